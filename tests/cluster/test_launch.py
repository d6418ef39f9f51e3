"""Launching on a real SLURM: the same result as on this machine, what it refuses, how large it may be."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from tests.cluster.grid import CELL, Grid, Slurm, wait_for
from tests.conftest import ROOT

NOBODY = 65534
QUICK = [*CELL, "--set", "epochs=2"]


def table(path: Path) -> list[dict[str, str]]:
    """A report's table, without what depends on the time it took."""
    (file,) = path.glob("*.csv")
    with open(file, encoding="utf-8") as lines:
        return [
            {key: value for key, value in row.items() if not re.search("time|hour|cost|seconds|memory", key.lower())}
            for row in csv.DictReader(lines)
        ]


def test_a_grid_over_two_nodes_ends_as_the_local_one(slurm: Slurm, folder: Path) -> None:
    grid = Grid(
        slurm,
        folder / "two-nodes",
        options=[*QUICK, "--seeds", "3"],
        # One task fills a node, so that the two cannot share one.
        profile={"array_parallelism": 2, "cpus_per_task": 2, "cells_per_gpu": 2, "constraint": "f5|f6"},
        sleep=0.5,  # a step: no node has trained all before the other has loaded PyTorch
    )
    output = grid.launch()
    assert "6 cells submitted" in output
    again = grid.launch()
    assert "nothing to submit" in again
    grid.wait_until_done()
    assert {event.node for event in grid.trace()} == {"n5", "n6"}
    assert grid.attempts() == 6
    # A report can be made at any time, and is the one of the same grid trained here.
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    command = [sys.executable, str(ROOT / "run_ablation.py")]
    here = ["--runs", "here", *QUICK, "--seeds", "3"]
    subprocess.run([*one_core, *command, "run", grid.study, *here], cwd=grid.folder, check=True, timeout=300)
    for runs in ("runs", "here"):
        done = grid.command("report", grid.study, *QUICK, "--seeds", "3", "--runs", runs, "--out", f"report-{runs}")
        assert done.returncode == 0, done.stderr
    assert table(grid.folder / "report-runs") == table(grid.folder / "report-here")
    assert "nothing to submit" in grid.launch()
    provenance = json.loads((grid.run_folders()[0].path / "provenance.json").read_text())["attempts"][0]
    assert provenance["slurm_job"]["job"] in {task.job for task in grid.latest().tasks().values()}
    assert stat.S_IMODE(grid.latest().path.stat().st_mode) == 0o700


def test_a_failing_cell_fails_alone_and_is_submitted_again(slurm: Slurm, folder: Path) -> None:
    grid = Grid(slurm, folder / "failing", options=QUICK, profile={"constraint": "f5|f6|f7|f8"}, sleep=0)
    cells = json.loads(grid.command("plan", grid.study, *QUICK, "--json").stdout)["cells"]
    broken = grid.runs / cells[0]["run"]
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (broken / name / "not empty").mkdir(parents=True)
    grid.launch()
    wait_for(lambda: not grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id},{grid.latest().id}.next"), 400)
    states = {run.run_id: run.status().state for run in grid.run_folders()}
    assert states == {cells[0]["run"]: "failed", cells[1]["run"]: "done"}
    assert len(grid.latest().failures(cells[0]["run"])) == 2  # its budget; then the rest of the launch leaves it alone
    assert "Traceback" in (broken / "failure.txt").read_text()
    shown = grid.command("logs", grid.study, *QUICK, "--cell", "1").stdout
    assert "failure.txt" in shown
    assert "failed" in shown
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        shutil.rmtree(broken / name)
    assert "1 cell submitted" in grid.launch()
    grid.wait_until_done()


def test_without_progress_a_cell_is_given_up(slurm: Slurm, folder: Path) -> None:
    """Its process dies at its first step, each time; neither the job nor the launch goes round in a circle."""
    grid = Grid(slurm, folder / "stuck", options=QUICK, profile={"constraint": "f7|f8", "max_failures": 9})
    text = (grid.folder / "cluster.yaml").read_text()
    (grid.folder / "dies.py").write_text(
        "import os\ndef at_step(run, attempt, step, event):\n    if event == 'step':\n        os._exit(3)\n"
    )
    text = text.replace("tests.cluster.observer:record", "dies:at_step").replace(
        f"PYTHONPATH={ROOT}", f"PYTHONPATH={grid.folder}"
    )
    (grid.folder / "cluster.yaml").write_text(text)
    grid.launch()
    wait_for(lambda: not grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id},{grid.latest().id}.next"), 400)
    for run in grid.run_folders():
        assert run.status().state == "failed"
        assert "3 attempts ended after step 0" in (run.path / "failure.txt").read_text()
        assert run.highest_lease() == 4


def python_for_anybody(folder: Path) -> str:
    """This interpreter may lie where an ordinary user cannot look: then the system's, with the same packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    works = f"import torch, submitit; open({str(ROOT / 'run_ablation.py')!r})"
    environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(folder)}
    for python in (sys.executable, f"/usr/bin/{version}"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            command = [python, "-c", works]
            if not subprocess.run(command, env=environment, user=NOBODY, group=NOBODY).returncode:
                return python
    pytest.fail("neither this Python nor the system's can be run by an ordinary user: move the checkout")


def test_an_ordinary_user(slurm: Slurm, folder: Path) -> None:
    python = python_for_anybody(folder)
    grid = Grid(
        slurm, folder / "user", options=QUICK, user=NOBODY, profile={"constraint": "f7|f8"}, sleep=0, python=python
    )
    grid.launch()
    grid.wait_until_done()
    assert {path.stat().st_uid for path in grid.runs.iterdir()} == {NOBODY}
    # Root's launches, which this user may not read, are not in the way of looking at root's runs.
    theirs = Grid(slurm, folder / "theirs", options=QUICK, profile={"constraint": "f7|f8"}, sleep=0)
    theirs.launch()
    theirs.wait_until_done()
    done = grid.command("status", grid.study, *QUICK, "--runs", str(theirs.runs))
    assert "2 done" in done.stdout, done.stderr
    # A folder that cannot be written is the user's to know before anything is submitted.
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    done = grid.command("launch", grid.study, *QUICK, "--cluster", "cluster.yaml", "--runs", str(closed / "runs"))
    assert done.returncode == 1
    assert f"{closed}/runs: run folders cannot be written here" in done.stderr
    # Nobody cancels what is not theirs.
    assert "nothing to cancel" in grid.command("cancel", grid.study, *QUICK, "--runs", str(theirs.runs)).stdout


def test_two_thousand_cells(slurm: Slurm, folder: Path) -> None:
    measured = (
        "import os, resource, runpy, sys, time\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        "start = time.monotonic()\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print('MEASURED', time.monotonic() - start, memory)\n"
    )
    profile = {"cells_per_task": 1, "array_parallelism": 4, "options": {"begin": "now+3hours"}, "follow_up": False}

    def call(grid: Grid, *arguments: str) -> tuple[str, float, float]:
        command = [sys.executable, "-c", measured, str(ROOT / "run_ablation.py"), *arguments]
        done = subprocess.run(
            command, cwd=grid.folder, env=grid.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        _, seconds, memory = done.stdout.splitlines()[-1].split()
        return done.stdout, float(seconds), float(memory) / 1024

    costs = {}
    for seeds in (250, 1000):
        grid = Grid(slurm, folder / f"many-{seeds}", profile=profile)
        options = [grid.study, *QUICK, "--seeds", str(seeds)]
        output, seconds, memory = call(grid, "launch", *options, "--cluster", "cluster.yaml")
        assert f"{2 * seeds:,} cells submitted" in output
        costs[seeds] = (seconds, memory)
        assert len(grid.jobs()) == 2 * seeds
        assert len(grid.latest().job_ids()) == (1 if seeds == 250 else 2)  # MaxArraySize is 1001
        output, shown, _ = call(grid, "status", *options)
        assert f"{2 * seeds} pending" in output
        assert "500 pending" in output or shown < 5
        assert "pending (BeginTime)" in output or "queued" in output
        output, cancelling, _ = call(grid, "cancel", *options)
        assert "cancelled" in output
        wait_for(lambda grid=grid: not grid.jobs())  # type: ignore[misc]
        print(
            f"{2 * seeds} cells: launched in {seconds:.1f} s with {memory:.0f} MiB, status {shown:.1f} s,"
            f" cancelled in {cancelling:.1f} s"
        )
    assert costs[1000][0] < 8 * costs[250][0]
    assert costs[1000][1] - costs[250][1] < 300  # MiB, for 1,500 more


def test_without_accounting(folder: Path) -> None:
    """submitit's own view of jobs needs slurmdbd; ours does not."""
    small = Slurm.start(folder / "n", ACCOUNTING="no", PORT="18850", NODES="2")
    try:
        options = [*CELL, "--set", "epochs=8"]
        low = Grid(small, folder / "low", options=options, profile={"constraint": "f1"})
        spot = Grid(small, folder / "spot", options=options, profile={"constraint": "f2", "partition": "spot"})
        for grid in (low, spot):
            grid.launch()
        for grid, node in ((low, "n1"), (spot, "n2")):
            grid.wait_until_past(12)
            small.call("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
        wait_for(lambda: "running" in low.command("status", low.study, *options).stdout, 120, low.describe)
        for grid in (low, spot):
            grid.wait_until_done()
            grid.check_one_publisher()
            assert grid.repeated() == 0
            assert grid.attempts() > 2
        assert low.curves() == spot.curves()
        time.sleep(1)
    finally:
        small.stop()
