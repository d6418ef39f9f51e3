"""Control over what was launched is never lost: by whom, from where and in whatever shell it is asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.grid import CELL, Grid, Slurm, wait_for
from tests.cluster.test_launch import NOBODY, python_for_anybody
from tests.conftest import ROOT

QUICK = [*CELL, "--set", "epochs=2"]
LATER = {"options": {"begin": "now+1hour"}}
HOSTILE = {
    "SBATCH_PARTITION": "no-such", "SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "1", "SQUEUE_PARTITION": "high",
    "SQUEUE_STATES": "completed", "SLURM_CLUSTERS": "no-such", "SBATCH_ACCOUNT": "no-such", "SCANCEL_STATE": "RUNNING",
    "SQUEUE_FORMAT": "%i", "SQUEUE_USERS": "nobody",
}  # fmt: skip


def test_variables_of_the_shell_change_nothing(slurm: Slurm, folder: Path) -> None:
    """One sent the jobs elsewhere, one hid them, so that `gc` deleted the code of what was running."""
    grid = Grid(slurm, folder / "hostile", options=QUICK, profile=LATER)
    done = grid.command("launch", grid.study, *QUICK, "--cluster", "cluster.yaml", env=HOSTILE)
    assert "2 cells submitted" in done.stdout, done.stderr
    shown = slurm.call("scontrol", "show", "job", grid.jobs()[0].partition("_")[0])
    assert "Partition=low" in shown
    assert "Requeue=1" in shown
    assert "TimeLimit=00:20:00" in shown
    # SLURM gives the reason once it has looked at the job.
    wait_for(lambda: "(BeginTime)" in grid.command("status", grid.study, *QUICK, env=HOSTILE).stdout, 60, grid.describe)
    grid.command("gc", "--yes", env=HOSTILE)
    assert (grid.latest().path / "code" / "simsiam").exists()
    assert "cancelled; jobs: 3" in grid.command("cancel", grid.study, *QUICK, env=HOSTILE).stdout
    wait_for(lambda: not grid.jobs())


def test_cancel_finds_jobs_by_the_launch_alone(slurm: Slurm, folder: Path) -> None:
    place = folder / "control"
    grid = Grid(slurm, place, options=QUICK, profile=LATER)
    study = place / "mine.yaml"
    shutil.copy(ROOT / "experiments" / "studies" / "stop-gradient.yaml", study)
    grid.study = str(study)
    grid.launch()
    first = grid.latest().id
    # Without the options of the launch it is other cells that are named; the launch is listed, and nothing is done.
    for more in (["--scale", "smoke"], [*QUICK, "--seeds", "5-5"]):
        done = grid.command("cancel", grid.study, *more)
        assert done.returncode == 1
        assert "Nothing was cancelled" in done.stdout
        assert first in done.stdout
    study.write_text(study.read_text() + "\nno_such_key: 1\n")
    done = grid.command("cancel", grid.study, *QUICK)
    assert "no_such_key" in done.stdout
    assert first in done.stdout
    study.unlink()
    assert len(grid.jobs()) == 2
    listed = grid.command("launches").stdout
    assert [word in listed for word in (first, "root", "smoke", "pending")] == [True] * 4, listed
    # From any folder, with no study, and without the folder of runs.
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, str(ROOT / "run_ablation.py"), "cancel", "--launch", first]
    done = subprocess.run(command, cwd=elsewhere, env=grid.environment(), capture_output=True, text=True)
    assert f"{first}: cancelled; jobs: 3" in done.stdout, done.stderr
    wait_for(lambda: not grid.jobs())
    assert "cancelled" in grid.command("launches").stdout
    done = grid.command("cancel", "--launch", first[:-1])
    assert done.returncode == 2
    assert f"did you mean {first!r}" in done.stderr


def test_a_launch_that_is_cancelled_while_it_is_submitted_does_not_run(slurm: Slurm, folder: Path) -> None:
    """The jobs were released after `cancel` had found none."""
    grid = Grid(slurm, folder / "overtaken", options=QUICK)
    cancel = (
        f'for id in $(ls runs/.launches); do {sys.executable} {ROOT}/run_ablation.py cancel --launch "$id"'
        " >cancelled.log 2>&1 & done; while ! ls runs/.launches/*/cancelled; do sleep .1; done"
    )
    done = grid.launch_with("sbatch", f'$REAL "$@" || exit\n({cancel}) >/dev/null 2>&1')
    assert done.returncode == 1
    assert "was cancelled while it was submitted: none of its jobs has run" in done.stderr
    wait_for(lambda: "cancelled; jobs:" in (grid.folder / "cancelled.log").read_text())
    wait_for(lambda: not grid.jobs())
    assert grid.attempts() == 0


def test_gc_leaves_the_launches_of_others_alone(slurm: Slurm, folder: Path) -> None:
    """Root's, too: `squeue --me` shows it nothing of them."""
    python = python_for_anybody(folder)
    grid = Grid(slurm, folder / "others", options=QUICK, profile=LATER, user=NOBODY, python=python)
    grid.launch()
    as_root = [sys.executable, str(ROOT / "run_ablation.py")]
    done = subprocess.run([*as_root, "gc", "--yes"], cwd=grid.folder, env=grid.environment(), capture_output=True)
    assert b"nothing can be freed" in done.stdout
    assert (grid.latest().path / "code" / "simsiam").exists()
    # What a launcher left that was killed before it had written the spec.
    killed = grid.runs / ".launches" / "stop-gradient-20260101-000000-abcd"
    (killed / "code").mkdir(parents=True)
    (killed / "code" / "file").write_text("x")
    (killed / "creator.json").write_text((grid.latest().path / "creator.json").read_text())
    for path in (killed, *killed.rglob("*")):
        shutil.chown(path, NOBODY, NOBODY)
    assert "1 folder" in grid.command("gc", "--yes").stdout
    assert not killed.exists()
    listed = subprocess.run(
        [*as_root, "cancel", "--launch", grid.latest().id], cwd="/", env=grid.environment(), capture_output=True
    )
    assert b"cancelled; jobs: 3" in listed.stdout
    wait_for(lambda: not grid.jobs())


@pytest.mark.parametrize("moment", ["import", "sbatch", "release"])
def test_ctrl_c_says_what_stands(slurm: Slurm, folder: Path, moment: str) -> None:
    grid = Grid(slurm, folder / f"ctrl-c-{moment}", options=QUICK)
    if moment == "import":
        (grid.folder / "typer.py").write_text("raise KeyboardInterrupt\n")
        place = {"PYTHONPATH": str(grid.folder)}
        done = grid.command("launch", grid.study, *QUICK, "--cluster", "cluster.yaml", env=place)
        assert "interrupted: nothing was begun" in done.stderr
    else:
        name, when = ("sbatch", '$REAL "$@"; ') if moment == "sbatch" else ("scontrol", '[ "$1" = release ] && ')
        done = grid.launch_with(
            name,
            f'{when} kill -INT $PPID; sleep 1; exec $REAL "$@"'
            if moment == "release"
            else f"{when} kill -INT $PPID; sleep 1",
        )
        said = "its jobs are cancelled, none has run" if moment == "sbatch" else "`launch` again lets them start"
        assert said in done.stderr, done.stderr
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
    if moment == "release":
        grid.launch()
        grid.wait_until_done()
    wait_for(lambda: not grid.jobs())
