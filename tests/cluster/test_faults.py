"""Whatever happens to a grid, it ends done with the curves of an undisturbed run, by itself or by one command.

Most of the time here is SLURM's own waiting, so all grids run side by side on one cluster, each disturbed in its way by
a thread of its own; the tests then look at how each came out.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from experiments.runs.folder import read_json
from tests.cluster.grid import CELL, STEPS_PER_EPOCH, Fault, Grid, Slurm, all_at_once, curves, processes, wait_for
from tests.conftest import ROOT

OPTIONS = [*CELL, "--set", "epochs=12"]
NOT_APART = "n1,n2,n3,n4,n9"  # nodes that some of the faults have for themselves


def nodes(*numbers: int) -> dict[str, Any]:
    return {"constraint": "|".join(f"f{number}" for number in numbers)}


ELSEWHERE = {"options": {"exclude": NOT_APART}}


def preempt(grid: Grid, node: str) -> None:
    grid.wait_until_past(15)
    grid.slurm.call("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 4")


def preempted_by_requeue(grid: Grid) -> None:
    """By itself."""
    grid.launch()
    preempt(grid, "n1")


def preempted_by_cancel(grid: Grid) -> None:
    """By itself."""
    output = grid.launch()
    assert "grace: partition spot gives jobs 5 s" in output
    assert "follow_up: partition spot cancels the jobs" in output
    preempt(grid, "n2")


def preempted_while_starting(grid: Grid) -> None:
    """By itself: the signal comes before anything of ours runs."""
    grid.launch()
    wait_for(lambda: any(grid.state_of(job) == "RUNNING" for job in grid.jobs()))
    grid.slurm.call("sbatch", "-p", "high", "-w", "n9", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def requeued_by_hand(grid: Grid) -> None:
    """By itself."""
    grid.launch()
    grid.wait_until_past(15)
    for job in grid.jobs():
        grid.slurm.call("scontrol", "requeue", job)


def time_limit(grid: Grid) -> None:
    """By itself. (A minute is the shortest limit that SLURM has.)"""
    grid.launch()


def killed_cell(grid: Grid) -> None:
    """By itself: the job tries again at once."""
    grid.launch()
    grid.wait_until_past(15)
    for run in grid.run_folders():
        os.kill((read_json(run.path / "state.json") or {})["pid"], signal.SIGKILL)
    wait_for(lambda: all(grid.latest().failures(run.run_id) for run in grid.run_folders()))
    for run in grid.run_folders():
        (failure,) = grid.latest().failures(run.run_id)
        assert re.match(r"its process was killed by signal 9, most likely because memory ran out", failure.reason)


def killed_job(grid: Grid) -> None:
    """By itself: the job fails, and the follow-up submits again."""
    grid.launch()
    grid.wait_until_past(15)
    for pid in processes(f"submitit.core._submit\0{grid.latest().path / 'jobs'}"):
        os.kill(pid, signal.SIGKILL)


def silent_node(grid: Grid) -> None:
    """By itself: SLURM starts the job elsewhere, while the old step, cut off from SLURM, still trains."""
    grid.launch()
    grid.wait_until_past(15)
    node = grid.trace()[-1].node
    grid.slurm.end(f"slurmd-{node}", signal.SIGKILL)
    wait_for(lambda: {event.node for event in grid.trace()} == {"n3", "n4"}, 400, grid.describe)
    grid.wait_until_done()
    time.sleep(5)  # whatever the old step still wants to write
    grid.slurm.call("slurmd", "-N", node)


def scancelled(grid: Grid) -> None:
    """By `launch`: the jobs were cancelled on purpose, and so was the follow-up."""
    grid.launch()
    grid.wait_until_past(15)
    for end in ("", ".next"):
        grid.slurm.call("scancel", f"--name={grid.latest().id}{end}")
    wait_for(lambda: not grid.jobs())
    assert not grid.is_done()
    assert re.search("cells? submitted", grid.launch())  # on a slow machine one of them was done


def cancelled(grid: Grid) -> None:
    """By `launch`, after `cancel`; cancelling revives nothing."""
    grid.launch()
    grid.wait_until_past(15)
    with grid.slurm.undisturbed:
        done = grid.command("cancel", grid.study, *grid.options)
    assert "cancelled" in done.stdout, done.stdout + done.stderr
    wait_for(lambda: not grid.jobs())
    time.sleep(15)  # as long as a requeued job takes to come back
    assert not grid.jobs()
    assert not grid.is_done()
    assert re.search("cells? submitted", grid.launch())  # on a slow machine one of them was done


def killed_launcher(grid: Grid) -> None:
    """By `launch`: it cancels the held job that nobody had recorded."""
    done = grid.launch_with("sbatch", '$REAL "$@"\nkill -9 $PPID')
    assert done.returncode == -signal.SIGKILL
    assert grid.latest().job_ids() == set()
    (orphan, *_) = grid.jobs()
    assert grid.state_of(orphan) == "PENDING"
    output = grid.launch()
    assert "held job(s) of it cancelled" in output
    assert orphan not in grid.jobs()
    assert "2 cells submitted" in output


def killed_before_release(grid: Grid) -> None:
    """By `launch`: it adopts the jobs, which had been recorded."""
    done = grid.launch_with("scontrol", '[ "$1" = release ] && kill -9 $PPID && exit\nexec $REAL "$@"')
    assert done.returncode == -signal.SIGKILL
    output = grid.launch()
    assert "released now" in output
    assert "nothing to submit" in output


def restarted_controller(grid: Grid) -> None:
    """By itself; every other grid here lives through it, too."""
    grid.launch()
    grid.wait_until_past(15)
    with grid.slurm.undisturbed:  # a launch would be refused, and say so
        grid.slurm.end("slurmctld")
        time.sleep(4)
        grid.slurm.call("slurmctld")
        wait_for(lambda: "UP" in grid.slurm.call("scontrol", "ping", check=False))
    grid.slurm.end("slurmdbd")
    time.sleep(4)
    grid.slurm.call("slurmdbd")


def supervised(grid: Grid) -> None:
    """By `launch --supervise`, which stays."""
    with ThreadPoolExecutor(1) as threads:
        supervising = threads.submit(grid.launch, "--supervise")
        grid.wait_until_past(15)
        grid.slurm.call("scancel", f"--name={grid.latest().id}")
        assert "submitting again" in supervising.result()


def undisturbed(grid: Grid) -> None:
    grid.launch()


FAULTS: dict[Fault, dict[str, Any]] = {
    preempted_by_requeue: nodes(1),
    preempted_by_cancel: {"partition": "spot", **nodes(2)},
    preempted_while_starting: nodes(9),
    silent_node: {"grace": 2, **nodes(3, 4)},
    # One job, so not an array, in which two cells are packed.
    requeued_by_hand: {"array_parallelism": 1, "cells_per_gpu": 2, "cpus_per_task": 2, **ELSEWHERE},
    time_limit: {"time_limit": 1, "grace": 5, "array_parallelism": 1, **ELSEWHERE},
    killed_cell: ELSEWHERE,
    killed_job: ELSEWHERE,
    scancelled: ELSEWHERE,
    cancelled: ELSEWHERE,
    killed_launcher: ELSEWHERE,
    killed_before_release: ELSEWHERE,
    restarted_controller: ELSEWHERE,
    supervised: ELSEWHERE,
    undisturbed: ELSEWHERE,
}
# SLURM sends the signal of a time limit up to a minute early, and calls a silent node down after a while: these two
# have to take longer than that. `cancel` waits for its turn among the other grids' commands.
SLEEP = {time_limit: 0.25, silent_node: 1.2, cancelled: 0.6}
IS_GRACEFUL = (
    preempted_by_requeue,
    preempted_by_cancel,
    requeued_by_hand,
    time_limit,
    scancelled,
    cancelled,
    supervised,
)


@pytest.fixture(scope="module")
def local(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of the same grid, trained on this machine without SLURM, one thread each."""
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    command = [sys.executable, str(ROOT / "run_ablation.py"), "run", "stop-gradient", *OPTIONS]
    subprocess.run(
        [*one_core, *command, "--runs", str(folder / "local")],
        check=True,
        timeout=300,
        cwd=folder,
    )
    return curves(folder / "local")


@pytest.fixture(scope="module")
def grids(slurm: Slurm, folder: Path, local: object) -> Iterator[dict[str, Future[Grid]]]:
    def make(fault: Fault) -> Grid:
        sleep = SLEEP.get(fault, 0.15)
        return Grid(slurm, folder / fault.__name__, options=OPTIONS, profile=FAULTS[fault], sleep=sleep)

    with all_at_once(FAULTS, make, 900) as grids:
        yield grids


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_ends_done_with_the_curves_of_an_undisturbed_run(
    fault: Fault, grids: dict[str, Future[Grid]], local: dict[str, list[dict[str, Any]]]
) -> None:
    grid = grids[fault.__name__].result()
    assert grid.curves() == local
    grid.check_one_publisher()
    print(f"{fault.__name__}: {grid.attempts()} attempts of 2 runs, {grid.repeated()} steps made again")
    if fault in (undisturbed, restarted_controller, killed_launcher, killed_before_release):
        assert grid.attempts() == 2
        assert grid.repeated() == 0
    elif fault in IS_GRACEFUL:
        assert grid.attempts() > 2
        assert grid.repeated() == 0
    elif fault is silent_node:
        # Until the heartbeat finds the lease lost (5 s), on top of what was made since the last checkpoint.
        assert grid.attempts() == 4
        assert any("more than half of the grace time of 2 s" in str(task) for task in grid.latest().tasks().values())
        assert grid.repeated() <= 2 * (STEPS_PER_EPOCH + 5 / grid.sleep)
    elif fault in (killed_cell, killed_job):
        assert grid.attempts() == 4
        assert grid.repeated() <= 2 * STEPS_PER_EPOCH


def test_count_of_faults(grids: dict[str, Future[Grid]], capsys: pytest.CaptureFixture[str]) -> None:
    ended = [future.result() for future in grids.values()]
    interruptions = sum(grid.attempts() - len(grid.run_folders()) for grid in ended)
    with capsys.disabled():
        print(f"\n{len(FAULTS) - 1} kinds of fault; {interruptions} interruptions of runs; all grids done")
    assert interruptions >= 16
