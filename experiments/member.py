"""One task of a job, whichever part it has: what it was started as, its signals, its node and its pool.

A signal only sets a flag. The trainings read it between two steps, write a checkpoint and stop. This module imports no
torch: each cell is trained in a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from experiments.launches import Launch
from experiments.meetings import Board
from experiments.node import check_node, images_on_the_node
from experiments.pool import Machine, Pool, Seat
from experiments.store import StoreError, slurm_job

LOOK_SECONDS = 15.0  # between two looks for what others have decided


class Member:
    """A task of a job of a launch. Made in the main thread, as signals want it."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.stopping = ""  # why; a signal's name, or the tombstone
        for number in (signal.SIGTERM, signal.SIGUSR2):  # instead of submitit's, which act in the middle of a step
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        self.identity = slurm_job()
        self.job, self.restart = str(self.identity["job"]), int(self.identity["restart"])
        rank, num_tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        self.seat = Seat(rank, num_tasks, int(os.environ["SLURM_LOCALID"]))
        self.board = Board(launch, self.job, self.restart)
        self.last_look = time.monotonic()

    def _on_signal(self, number: int, frame: object) -> None:
        self.stopping = signal.Signals(number).name

    def make_pool(self) -> Pool:
        """A pool on this node, with the images.

        Raises StoreError, OSError for a node that cannot do the work; `status` then shows why.
        """
        profile = self.launch.cluster.profile
        try:
            check_node(self.launch)
            data = images_on_the_node(self.launch)
        except (StoreError, OSError) as error:
            where = f"task {self.seat.rank}: " if self.seat.rank else ""
            self.launch.write_task(self.job, {**self.launch.task(self.job), "problem": f"{where}{error}"})
            raise
        machine = Machine(
            runs=self.launch.runs,
            data=data,
            num_workers=profile.cells_at_once,
            threads=profile.threads,
            device="cuda" if profile.on_gpu else "cpu",
            checkpoint_seconds=profile.checkpoint_minutes * 60,
            logs=self.launch.path / "cells",
            seat=self.seat,
        )
        return Pool(machine, self.launch.spec["command"], warm=False)

    def is_superseded(self) -> bool:
        """Whether SLURM has started this job again while this process, cut off from it, went on."""
        return int(self.launch.task(self.job).get("restart", 0)) > self.restart

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
    """Into the job's log, now."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=sys.stdout, flush=True)
