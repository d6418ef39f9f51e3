"""One task of a job, whichever part it has: what it was started as, its signals, its node and its pool.

A signal only sets a flag. The trainings read it between two steps, write a checkpoint and stop. This module imports no
torch: each cell is trained in a process of its own.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from experiments.launcher import CellTask, Ranks
from experiments.local.pool import POLL_SECONDS, LocalRanks, Machine, Pool
from experiments.runs import slurm_environment
from experiments.runs.folder import StoreError
from experiments.runs.states import CellResult
from experiments.runs.surroundings import patiently
from experiments.slurm import commands
from experiments.slurm.commands import SlurmError
from experiments.slurm.job.announcements import Announcements, losses
from experiments.slurm.job.node import check_node, images_on_the_node
from experiments.slurm.launch import Launch
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    from experiments.launcher import RunContext
    from simsiam.data.dataset import Dataset

LOOK_SECONDS = 15.0  # between two looks for what others have decided
PATIENCE_SECONDS = 1800.0  # that a job stays which can do nothing but wait for its surroundings

T = TypeVar("T")


@dataclass(frozen=True)
class TaskRanks:
    """The tasks of a job, which srun has started: the worker of each is one rank of the cell that task 0 announces."""

    rank: int
    num_ranks: int
    device: int  # the number of the task on its node

    def start(self, worker: int, data: Path, stop: Event) -> Ranks:
        return _RankOfAJob(self, stop)


class _RankOfAJob:
    def __init__(self, ranks: TaskRanks, stop: Event) -> None:
        self.rank, self.num_ranks, self.device, self._stop = ranks.rank, ranks.num_ranks, ranks.device, stop
        self._last_look = 0.0

    def run_cell(self, task: CellTask, dataset: Dataset, context: RunContext) -> CellResult:
        from experiments.local.ranks import run_cell_on_ranks
        from simsiam.distributed.ranks import RankLostError
        from simsiam.distributed.rendezvous import Rendezvous

        file = task.rendezvous
        assert file is not None, "task 0 has announced it"

        def look_for_the_others() -> None:
            if time.monotonic() - self._last_look > POLL_SECONDS:
                self._last_look = time.monotonic()
                if reason := losses(file):
                    raise RankLostError(reason)
                if self._stop.is_set():
                    raise RankLostError("this job was told to stop before all its tasks had come")

        rendezvous = Rendezvous(self.rank, self.num_ranks, file)
        run_id, settings = task.planned.run_id, task.planned.cell.settings
        return run_cell_on_ranks(run_id, settings, dataset, context, rendezvous, while_waiting=look_for_the_others)

    def close(self) -> None:
        pass  # the other ranks are srun's


class JobTask:
    """A task of a job of a launch. Made in the main thread, which alone may set what signals do."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.stopping = ""  # why: a signal's name, or that the launch was cancelled
        for number in (signal.SIGTERM, signal.SIGUSR2):  # instead of submitit's, which act in the middle of a step
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        identity = slurm_environment.job()
        self.job, self.restart, self.job_cluster = str(identity["job"]), int(identity["restart"]), identity["cluster"]
        self.ranks = TaskRanks(slurm_environment.rank(), slurm_environment.num_tasks(), slurm_environment.local_rank())
        self.announcements = Announcements(launch, self.job, self.restart)
        self.last_look = time.monotonic()

    def _on_signal(self, number: int, frame: object) -> None:
        self.stopping = signal.Signals(number).name

    def make_pool(self) -> Pool:
        """A pool on this node, with the images.

        Raises StoreError, OSError for a node that cannot do the work; `status` then shows why.
        """
        profile = self.launch.cluster.profile

        def images() -> Path:
            check_node(self.launch)
            try:
                return images_on_the_node(self.launch)
            except SettingsError as error:  # of `local_data`: a variable that only this node lacks
                raise StoreError(f"{slurm_environment.node()}: {error}") from None

        try:
            data = self.patiently(images)
        except (StoreError, OSError) as error:
            where = f"task {self.ranks.rank}: " if self.ranks.rank else ""
            self.tell_queue(f"{where}{error}")
            with contextlib.suppress(OSError):
                report = self.launch.task(self.job)
                self.launch.write_task(report.model_copy(update={"job": self.job, "problem": f"{where}{error}"}))
            raise
        machine = Machine(
            runs=self.launch.runs,
            data=data,
            num_workers=profile.cells_at_once,
            threads=profile.threads,
            device="cuda" if profile.on_gpu else "cpu",
            checkpoint_seconds=profile.checkpoint_minutes * 60,
            logs=self.launch.path / "cells",
            ranks=self.ranks if self.ranks.num_ranks > 1 else LocalRanks(),
            is_patient=True,
        )
        return Pool(machine, self.launch.spec.command, warm=False)

    def patiently(self, do: Callable[[], T]) -> T:
        """What ``do`` returns, once the surroundings let it; their error, if they do not for half an hour."""

        def tell(what: str) -> None:
            say(what)
            self.tell_queue(what)

        return patiently(do, tell, seconds=PATIENCE_SECONDS, stopped=lambda: bool(self.stopping))

    def tell_queue(self, what: str) -> None:
        """Beside this job in the queue, where `status` finds it when nothing can be written."""
        with contextlib.suppress(SlurmError):
            commands.comment(self.job, what)

    def is_superseded(self) -> bool:
        """Whether SLURM has started this job again while this process, cut off from it, went on."""
        return self.launch.task(self.job).restart > self.restart

    def is_time_to_look(self) -> bool:
        """Now and then, since what others have decided about this job lies on a shared disk."""
        if time.monotonic() - self.last_look <= LOOK_SECONDS:
            return False
        self.last_look = time.monotonic()
        return True


def crash_advice(how: str, launch: Launch) -> str:
    """Why the process of a cell may be gone, and the setting to change."""
    if "signal 9" in how:
        return (
            "its process was killed by signal 9, most likely because memory ran out: more `memory`, or fewer"
            f" `cells_per_gpu`  [{launch.cluster.at('memory')}]"
        )
    return f"its process was {how}"


def say(message: str) -> None:
    """Into the job's log, now; a disk that is full takes no log, which must not end the job."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=sys.stdout, flush=True)
