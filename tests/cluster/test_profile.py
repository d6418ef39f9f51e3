"""Keys of a profile, on a real SLURM: who is told of what, options of srun, what a launch waits for, dry runs."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.cluster.grid import CELL, Grid, Slurm, wait_for

QUICK = [*CELL, "--set", "epochs=2"]


def test_a_user_is_told_of_a_failure_and_of_the_end(slurm: Slurm, folder: Path) -> None:
    told = folder / "told"
    profile = {"notify": f'(echo "$ABLATION_EVENT"; cat) >> {told}', "constraint": "f5|f6", "max_failures": 1}
    grid = Grid(slurm, folder / "notify", options=QUICK, profile=profile, sleep=0)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        first = grid.command("plan", grid.study, *QUICK, "--json").stdout.partition('"run": "')[2].partition('"')[0]
        (grid.runs / first / name / "not empty").mkdir(parents=True)  # this cell fails each time
    grid.launch()
    wait_for(lambda: told.exists() and "ended" in told.read_text(), 300, grid.describe)
    wait_for(lambda: not grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id},{grid.latest().id}.next"))
    lines = told.read_text().splitlines()
    events = [line for line in lines if line in ("ended", "first failure", "nothing moves")]
    assert events == ["first failure", "ended"]
    assert f"1 done, 1 failed, in {grid.runs}" in lines


def test_what_sbatch_and_srun_are_given(slurm: Slurm, folder: Path) -> None:
    """A dependency, two partitions, an option of srun, and SLURM's estimate in a dry run."""
    before = slurm.call("sbatch", "--parsable", "-p", "high", "-o", "/dev/null", "--hold", "--wrap", "true")
    options = {"dependency": f"afterok:{before}"}
    profile = {"partition": ["low", "spot"], "srun_options": ["--cpu-bind=none"], "options": options}
    grid = Grid(slurm, folder / "given", options=QUICK, profile=profile, sleep=0)
    dry = grid.launch("--dry-run")
    assert re.search(r"SLURM's estimate for the first of these jobs: .", dry), dry
    assert "srun --unbuffered" in dry
    assert "--cpu-bind=none" in dry
    grid.launch()
    job = grid.jobs()[0].partition("_")[0]
    shown = slurm.call("scontrol", "show", "job", job)
    assert "Partition=low,spot" in shown
    assert f"Dependency=afterok:{before}" in shown
    time.sleep(3)
    assert grid.attempts() == 0
    slurm.call("scontrol", "release", before)
    grid.wait_until_done()
    assert "Done already: 2 cells" in grid.launch("--dry-run")
    plain = Grid(slurm, folder / "estimate", options=QUICK)
    estimate = plain.launch("--dry-run")
    assert re.search(r"jobs: to start at \d{4}-\d\d-\d\dT\S+ .*in partition low\.", estimate), estimate


def test_a_launch_that_waits_for_another_is_hurried(slurm: Slurm, folder: Path) -> None:
    grid = Grid(slurm, folder / "hurried", options=QUICK, profile={"constraint": "f7|f8"})
    grid.launch()
    name = f"{grid.latest().id}.next"
    (job,) = grid.slurm.call("squeue", "-h", "-n", name, "-o", "%i").splitlines()
    grid.slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now+1hour")
    grid.slurm.call("scancel", *{job.partition("_")[0] for job in grid.jobs()})
    wait_for(lambda: "BeginTime" in grid.slurm.call("squeue", "-h", "-n", name, "-o", "%r"), 60, grid.describe)
    assert "it looks now" in grid.launch()
    grid.wait_until_done()
