"""Two clusters that train into one runs folder, each with a profile and a SLURM of its own."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.grid import CELL, Grid, Slurm, wait_for

OPTIONS = [*CELL, "--set", "epochs=6", "--seeds", "4"]


def test_each_cell_is_trained_once(slurm: Slurm, folder: Path) -> None:
    """Neither SLURM shows the other's jobs; leases alone keep them apart, and nobody calls the other's cells lost."""
    other = Slurm.start(folder / "o", PORT="18950", NODES="2", CLUSTER="other", GATHER="linux")
    try:
        here = Grid(slurm, folder / "here", options=OPTIONS, profile={"constraint": "f5|f6"})
        here.options = [*OPTIONS, "--runs", str(here.runs)]
        there = Grid(other, folder / "there", options=here.options)
        here.launch()
        assert "8 cells submitted" in there.launch()
        wait_for(lambda: len({event.run for grid in (here, there) for event in grid.trace()}) >= 4, 200, here.describe)
        for grid in (here, there):
            assert "lost" not in grid.command("status", grid.study, *grid.options).stdout
        here.wait_until_done()
        made = [(event.run, event.step) for grid in (here, there) for event in grid.trace() if event.what == "step"]
        assert len(made) == len(set(made)) == 8 * 60
        assert here.trace()
        assert there.trace()
        assert here.attempts() == 8
        listed = there.command("launches", "--runs", str(here.runs)).stdout
        assert listed.count("stop-gradient-") == 2
        # Where SLURM keeps accounts of memory: what was used, and what would do.
        theirs = here.latest().id
        wait_for(lambda: not there.jobs() and not other.call("squeue", "-h"), 120)
        used = there.command("cluster", "usage", theirs, "--runs", str(here.runs)).stdout
        assert "`time_limit: " in used, used
        assert "GiB at most in a task" in used, used
        assert "by the runs' own records: " in used, used
    finally:
        other.stop()
