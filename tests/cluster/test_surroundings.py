"""Trouble with disks and partitions pauses a grid and never ends it; it goes on by itself, `status` says why it waits.

As in test_faults.py all grids run side by side, and the tests look at how each came out.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.grid import CELL, Fault, Grid, Slurm, all_at_once, curves, wait_for
from tests.cluster.test_launch import NOBODY, python_for_anybody

OPTIONS = [*CELL, "--set", "epochs=12"]
said: dict[str, str] = {}  # by the fault: what `status` said while it lasted


def status(grid: Grid) -> str:
    return grid.command("status", grid.study, *grid.options).stdout


def start_follow_up(grid: Grid) -> None:
    """Instead of waiting for ten minutes."""
    (job,) = grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id}.next", "-o", "%i").split()
    grid.slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def comes_back(grid: Grid) -> bool:
    name = f"{grid.latest().id}.next"
    return "BeginTime" in grid.slurm.call("squeue", "-h", "-n", name, "-o", "%r")


def full_disk(grid: Grid) -> None:
    """For 12 seconds, with everything in it: runs, the launch's folder, logs."""
    grid.launch()
    grid.wait_until_past(15)
    filler = grid.runs / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 2**12)
    time.sleep(12)
    said["full_disk"] = status(grid)
    filler.unlink()


def closed_folders(grid: Grid) -> None:
    """Two cells' folders that their owner may not use: 8 seconds burnt both failures of each."""
    grid.launch()
    grid.wait_until_past(15)
    for run in grid.run_folders():
        run.path.chmod(0)
    time.sleep(8)
    said["closed_folders"] = status(grid)
    for run in grid.run_folders():
        run.path.chmod(0o755)


def drained_partition(grid: Grid) -> None:
    """Workers cancelled, and nothing taken any more for longer than the follow-up tries."""
    grid.launch()
    grid.wait_until_past(15)
    grid.slurm.call("scontrol", "update", "PartitionName=drained", "State=DRAIN")
    grid.slurm.call("scancel", *{job.partition("_")[0] for job in grid.jobs()})
    wait_for(lambda: comes_back(grid), 300, grid.describe)
    said["drained_partition"] = status(grid)
    grid.slurm.call("scontrol", "update", "PartitionName=drained", "State=UP")
    start_follow_up(grid)


def unreadable_launch(grid: Grid) -> None:
    """The follow-up finds neither its code nor a place for its log."""
    grid.launch()
    grid.wait_until_past(15)
    launch = grid.latest()
    jobs = {job.partition("_")[0] for job in grid.jobs()}
    launch.path.chmod(0)
    grid.slurm.call("scancel", *jobs)
    name = f"{launch.id}.next"
    wait_for(lambda: "BeginTime" in grid.slurm.call("squeue", "-h", "-n", name, "-o", "%r"), 120)
    launch.path.chmod(0o700)
    start_follow_up(grid)


AS_USER = (closed_folders, unreadable_launch)
FAULTS = (full_disk, drained_partition, *AS_USER)


@pytest.fixture(scope="module")
def grids(slurm: Slurm, folder: Path) -> Iterator[dict[str, Future[Grid]]]:
    place = folder / "surroundings"
    slurm.call("scontrol", "create", "PartitionName=drained", "Nodes=n7,n8", "MaxTime=INFINITE", "State=UP")
    python = python_for_anybody(folder)

    def make(fault: Fault) -> Grid:
        partition = "drained" if fault is drained_partition else "low"
        profile = {"partition": partition, "constraint": "f5|f6|f7|f8", "checkpoint_minutes": 0.05}
        identity: dict[str, Any] = {"user": NOBODY, "python": python} if fault in AS_USER else {}
        grid = Grid(slurm, place / fault.__name__, options=OPTIONS, profile=profile, **identity)
        if fault is full_disk:
            grid.runs.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", grid.runs], check=True)
        return grid

    try:
        with all_at_once(FAULTS, make, 900) as played:
            yield played
    finally:
        subprocess.run(["umount", "-l", place / "full_disk" / "runs"], check=False)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
def test_it_goes_on_by_itself(fault: Fault, grids: dict[str, Future[Grid]], folder: Path) -> None:
    grid = grids[fault.__name__].result()
    grid.check_one_publisher()
    for run in grid.run_folders():
        assert grid.latest().failures(run.run_id) == []  # none is counted
    assert len({str(points) for points in grid.curves().values()}) == 2
    others = grids["drained_partition"].result()
    assert curves(grid.runs) == curves(others.runs)  # however it was disturbed


def test_status_says_what_is_waited_for(grids: dict[str, Future[Grid]]) -> None:
    for future in grids.values():
        future.result()
    assert "waits, and goes on by itself: no room to write" in said["full_disk"]
    assert "waits, and goes on by itself: " in said["closed_folders"]
    assert "lost" not in said["closed_folders"]
    assert "its follow-up looks again at" in said["drained_partition"]
