"""What goes wrong for a user of a real SLURM, and what is said of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.runs.states import State
from tests.cluster.grid import CELL, Grid, Slurm, images, wait_for
from tests.conftest import ROOT

QUICK = [*CELL, "--set", "epochs=2"]
LATER = {"options": {"begin": "now+5"}, "follow_up": False}  # time to spoil something before the job starts


def ended(grid: Grid) -> None:
    wait_for(lambda: not grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id},{grid.latest().id}.next"), 400)


def start_now(grid: Grid) -> None:
    """Let the jobs start that are to begin later."""
    for job in grid.jobs():
        grid.slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")


@pytest.mark.parametrize(
    ("change", "message", "line"),
    [
        ({"partition": "hgih"}, "partition: 'hgih': sbatch refuses: .*invalid partition", "partition"),
        ({"constraint": "a100"}, "constraint: 'a100': sbatch refuses: .*[Ff]eature", "constraint"),
        ({"options": {"no-such-option": 1}}, "sbatch refuses: .*no-such-option", "options"),
    ],
)
def test_what_sbatch_refuses(
    slurm: Slurm, folder: Path, change: dict[str, object], message: str, line: str, request: pytest.FixtureRequest
) -> None:
    grid = Grid(slurm, folder / f"refused-{abs(hash(request.node.name))}", options=QUICK, profile=change)
    done = grid.command("launch", grid.study, *QUICK, "--cluster", "cluster.yaml")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    keys = [text.partition(":")[0] for text in (grid.folder / "cluster.yaml").read_text().splitlines()]
    assert f"cluster.yaml:{keys.index(line) + 1}]" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not grid.jobs()


def test_a_job_that_no_node_can_run(slurm: Slurm, folder: Path) -> None:
    """SLURM takes it, and lets it wait for ever; `launch` says so."""
    grid = Grid(slurm, folder / "too-large", options=QUICK, profile={"cpus_per_task": 64})
    assert "they ask for too much" in grid.launch()
    assert "cancelled" in grid.command("cancel", grid.study, *QUICK).stdout
    wait_for(lambda: not grid.jobs())


def test_no_slurm_at_all(slurm: Slurm, folder: Path) -> None:
    grid = Grid(slurm, folder / "none", options=QUICK)
    path = {"PATH": str(Path(sys.executable).parent)}
    launch = ["launch", grid.study, *QUICK, "--cluster", "cluster.yaml"]
    done = grid.command(*launch, env=path)
    assert done.returncode == 1
    assert "there is no SLURM here" in done.stderr
    dry = grid.command(*launch, "--dry-run", env=path)
    assert dry.returncode == 0, dry.stderr
    assert "#SBATCH --requeue" in dry.stdout
    assert not grid.runs.exists()
    assert grid.command("status", grid.study, *QUICK, env=path).returncode == 0


def test_images_that_the_node_does_not_have(slurm: Slurm, folder: Path) -> None:
    """Nothing is tried there, and `status` says why; with the images back, `launch` is all that is needed."""
    place = folder / "no-images"
    grid = Grid(slurm, place, options=[*QUICK], profile={"constraint": "f5|f6", **LATER}, sleep=0)
    grid.options = [*QUICK, *images(place)]
    grid.launch()
    (place / "data").rename(place / "away")
    ended(grid)
    (place / "away").rename(place / "data")
    status = grid.command("status", grid.study, *grid.options).stdout
    expected = rf"job \S+: {place}/data: the images of folder are not there on n[56]; --data must name a folder"
    assert re.search(expected, status), status + grid.describe()
    assert grid.attempts() == 0
    assert "2 cells submitted" in grid.launch()
    grid.wait_until_done()


def test_images_copied_to_the_node(slurm: Slurm, folder: Path) -> None:
    """Each node has a copy of its own, and nobody reads the original any more; the curves stay what they are."""
    place = folder / "node-local"
    scratch = place / "scratch"
    scratch.mkdir(parents=True)
    grid = Grid(slurm, place / "grid", options=[*QUICK], profile={"constraint": "f5|f6"}, sleep=0)
    grid.options = [*QUICK, *images(place)]
    grid.launch()
    grid.wait_until_done()
    profile = {"constraint": "f5|f6", "local_data": f"{scratch}/$SLURMD_NODENAME", "array_parallelism": 1}
    local = Grid(slurm, place / "copied", options=grid.options, profile=profile, sleep=0)
    local.launch()
    local.wait_until_done()
    assert local.curves() == grid.curves()
    (copy,) = [path.name for path in scratch.iterdir()]
    assert copy in ("n5", "n6")
    originals = sorted(path.relative_to(place / "data") for path in (place / "data").rglob("*.png"))
    assert sorted(path.relative_to(scratch / copy) for path in scratch.rglob("*.png")) == originals


def test_no_room_to_write(slurm: Slurm, folder: Path) -> None:
    """The system's own "No space left": the cell waits, its neighbour does not; with room again it goes on."""
    grid = Grid(slurm, folder / "full", options=QUICK, profile={"constraint": "f5|f6", "max_failures": 1, **LATER})
    grid.launch()
    full, other = grid.run_folders()
    for attempt in range(1, 50):
        full.path.mkdir(exist_ok=True)
        (full.path / f".checkpoint.pt.{attempt}").symlink_to("/dev/full")
    wait_for(lambda: other.status().state == "done" and full.highest_lease() > 3, 400, grid.describe)
    assert grid.latest().failures(full.run_id) == []
    expected = r"waits, and goes on by itself: no room to write \(.*No space left on device.*\): `gc` frees"
    # Between two attempts, that is, and not in the middle of one.
    wait_for(lambda: bool(re.search(expected, grid.command("status", grid.study, *QUICK).stdout)), 60, grid.describe)
    for path in full.path.glob(".checkpoint.pt.*"):
        path.unlink()
    grid.wait_until_done()


def test_a_setup_that_fails(slurm: Slurm, folder: Path) -> None:
    """Nothing is trained without what it sets up, and the user is led to what it said."""
    grid = Grid(slurm, folder / "setup", options=QUICK, profile={"constraint": "f5|f6", "follow_up": False})
    text = (grid.folder / "cluster.yaml").read_text()
    (grid.folder / "cluster.yaml").write_text(text.replace("setup:\n", "setup:\n- ls /no/such/module\n"))
    grid.launch()
    ended(grid)
    assert grid.attempts() == 0
    status = grid.command("status", grid.study, *QUICK).stdout
    assert "its jobs ended without a report: `setup` failed, or" in status, status
    logs = grid.command("logs", grid.study, *QUICK, "--cell", "1").stdout
    assert "setup: this command failed, and the job ends: ls /no/such/module" in logs


def test_cells_that_others_train_are_left_to_them(slurm: Slurm, folder: Path) -> None:
    """No round after round that finds nothing to do; the follow-up looks again later, and takes over from the dead."""
    grid = Grid(slurm, folder / "left", options=[*CELL, "--set", "epochs=60"], profile={"constraint": "f7|f8"})
    text = (grid.folder / "cluster.yaml").read_text()
    (grid.folder / "cluster.yaml").write_text(text + "options: {begin: now+1hour}\n")
    grid.launch()
    observer = {"ABLATION_OBSERVER": "tests.cluster.observer:record", "TRACE_FILE": str(grid.trace_file)}
    environment = grid.environment() | observer | {"TRACE_SLEEP": "0.5", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run_ablation.py"), "run", grid.study, *grid.options, "-j", "2"]
    with open(grid.folder / "run.log", "w") as log:
        local = subprocess.Popen(command, cwd=grid.folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: all(run.status().state == State.RUNNING for run in grid.run_folders()), 120)
        start_now(grid)
        name = f"{grid.latest().id}.next"
        wait_for(lambda: "BeginTime" in grid.slurm.call("squeue", "-h", "-n", name, "-o", "%r"), 120, grid.describe)
        assert local.poll() is None
        time.sleep(5)
        assert len(grid.latest().rounds()) == 1
        assert not grid.jobs()
    finally:
        local.kill()
        local.wait()
    (look,) = grid.slurm.call("squeue", "-h", "-n", name, "-o", "%i").splitlines()
    grid.slurm.call("scontrol", "update", f"jobid={look}", "StartTime=now")
    wait_for(lambda: bool(grid.jobs()), 60, grid.describe)
    start_now(grid)
    grid.wait_until_past(0)
    grid.command("cancel", grid.study, *grid.options)


def test_sbatch_that_is_killed_after_it_has_submitted(slurm: Slurm, folder: Path) -> None:
    """By `launch`: it cancels the job that nobody knows of."""
    grid = Grid(slurm, folder / "killed-sbatch", options=QUICK, profile={"constraint": "f7|f8"}, sleep=0)
    done = grid.launch_with("sbatch", '$REAL "$@" >/dev/null\nkill -TERM $$')
    assert done.returncode == 1
    assert "sbatch ended without an answer" in done.stderr
    orphans = grid.jobs()
    assert orphans
    assert "held job(s) of it cancelled" in grid.launch()
    assert not set(orphans) & set(grid.jobs())
    grid.wait_until_done()


def test_a_limit_on_submitted_jobs(folder: Path) -> None:
    """SLURM takes one array of two: the grid is trained all the same, and the user hears of it."""
    small = Slurm.start(folder / "l", PORT="18900", NODES="2", MAX_SUBMIT="5", MAX_ARRAY="4")
    try:
        options = [*QUICK, "--seeds", "3"]
        profile = {"cells_per_task": 1, "follow_up": True}
        grid = Grid(small, folder / "limited", options=options, profile=profile, sleep=0)
        output = grid.launch()
        assert "6 cells submitted" in output
        expected = r"note: SLURM takes no more jobs of yours now .*: 4 of 6 tasks are .*the follow-up submits the rest"
        assert re.search(rf"{expected} when they have ended  \[.*cluster.yaml:\d+\]", output), output
        assert len(grid.jobs()) <= 4
        most = 0

        def is_done() -> bool:
            nonlocal most
            states = grid.slurm.call("squeue", "-h", "-r", "-n", grid.latest().id, "-o", "%T").split()
            most = max(most, states.count("RUNNING"))
            return grid.is_done()

        wait_for(is_done, 400, grid.describe)
        assert most == 2  # array_parallelism, over both arrays
    finally:
        small.stop()
