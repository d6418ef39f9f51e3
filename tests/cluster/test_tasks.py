"""Cells that the tasks of a job train together, on two nodes of a real SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from simsiam.distributed.ranks import ONE_RANK
from tests import rank_cases
from tests.cluster.grid import CELL, STEPS_PER_EPOCH, Fault, Grid, Slurm, all_at_once, curves, processes, read, wait_for
from tests.conftest import ROOT
from tests.simsiam.test_distributed import check_steps

OPTIONS = [*CELL, "--set", "epochs=6"]
METHODS = ["SimSiam", "SimCLR", "SwAV", "BYOL", "MoCo v2"]


def test_two_nodes_give_the_losses_and_weights_of_one_process(slurm: Slurm, folder: Path) -> None:
    """One srun across two nodes, gloo between them, float64, 20 steps; BN statistics included."""
    place = folder / "srun"
    place.mkdir()
    inner = f'exec {sys.executable} -m tests.rank_cases $SLURM_PROCID $SLURM_NTASKS {place} "$@"'
    srun = ["srun", "-p", "high", "-N2", "-n2", "-C", "f5|f6|f7|f8", "--chdir", str(ROOT), "--kill-on-bad-exit=1"]
    slurm.call(*srun, "bash", "-c", inner, "ranks", *METHODS)
    found = [torch.load(place / f"answers.{rank}.pt", weights_only=False) for rank in range(2)]
    torch.set_num_threads(1)
    for case in METHODS:
        check_steps(case, {f"steps {case}": rank_cases.steps(case, place, ONE_RANK)}, found)


def rank_processes(grid: Grid, rank: int) -> list[int]:
    """The processes of a task that train a cell: each is forked from one that has imported torch as it has."""
    with_torch = {}
    for pid in processes(f"TRACE_FILE={grid.trace_file}"):
        environment = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        if f"SLURM_PROCID={rank}" in environment and "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text():
            with_torch[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in with_torch.items() if parent in with_torch]


def undisturbed(grid: Grid) -> None:
    grid.launch()


def preempted(grid: Grid) -> None:
    grid.launch()
    grid.wait_until_past(15)
    grid.slurm.call("sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 4")


def killed_rank(grid: Grid) -> None:
    grid.launch()
    grid.wait_until_past(15)
    (pid,) = rank_processes(grid, 1)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: bool(list(grid.latest().path.glob("failures/*"))), 120, grid.describe)
    (failure, *_) = [path.read_text() for path in grid.latest().path.glob("failures/*")]
    assert re.search(r"rank 1: its process was killed by signal 9, most likely because memory ran out.*memory", failure)


def killed_task(grid: Grid) -> None:
    grid.launch()
    grid.wait_until_past(15)
    for pid in processes(f"submitit.core._submit\0{grid.latest().path / 'jobs'}"):
        environment = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        if "SLURM_PROCID=1" in environment:
            os.kill(pid, signal.SIGKILL)


FAULTS: dict[Fault, str] = {
    undisturbed: "f7|f8",
    preempted: "f1|f2",
    killed_rank: "f3|f4",
    killed_task: "f5|f6",
}


@pytest.fixture(scope="module")
def local(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of the same grid, trained on this machine by two ranks, one thread each."""
    command = [sys.executable, str(ROOT / "run_ablation.py"), "run", "stop-gradient", *OPTIONS, "--ranks", "2", "-j1"]
    runs = folder / "local-ranks"
    subprocess.run([*command, "--runs", str(runs)], check=True, timeout=300, cwd=folder)
    return curves(runs)


@pytest.fixture(scope="module")
def grids(slurm: Slurm, folder: Path, local: object) -> Iterator[dict[str, Future[Grid]]]:
    def make(fault: Fault) -> Grid:
        profile = {"nodes": 2, "tasks_per_node": 1, "array_parallelism": 1, "constraint": FAULTS[fault]}
        return Grid(slurm, folder / f"ranks-{fault.__name__}", options=OPTIONS, profile=profile)

    with all_at_once(FAULTS, make, 600) as grids:
        yield grids


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_cells_of_two_nodes_end_with_the_curves_of_two_ranks_here(
    fault: Fault, grids: dict[str, Future[Grid]], local: dict[str, list[dict[str, Any]]]
) -> None:
    grid = grids[fault.__name__].result()
    assert grid.curves() == local
    grid.check_one_publisher()
    for run in grid.run_folders():
        assert {attempt["ranks"] for attempt in read(run.path / "provenance.json")["attempts"]} == {2}
    if fault is undisturbed:
        assert grid.attempts() == 2
    else:
        assert grid.attempts() > 2
    assert grid.repeated() <= (2 * STEPS_PER_EPOCH if fault in (killed_rank, killed_task) else 0)
    # Both nodes were asked; nothing of a job outlives it.
    wait_for(lambda: not processes(f"TRACE_FILE={grid.trace_file}"), 60)
