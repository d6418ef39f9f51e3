"""One run on many ranks: what each of the processes does that train it together.

Rank 0 does what a process alone would do: it claims the run, keeps its heartbeat and writes everything. The others
follow: they learn from it whether there is something to train, which attempt it is and with how many threads. A rank
that fails tells the others why before it leaves; one that is killed is missed, since its connections close.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from experiments.worker import Surroundings, advice, run_cell
from simsiam.config import Settings
from simsiam.data import Dataset, load
from simsiam.distributed import LOST, RankLostError
from simsiam.rendezvous import TIMEOUT_SECONDS, Place, Team, device_of, meet
from simsiam.train import Hooks, train

IN_ORDER = ("done", "stopped", "elsewhere")  # ends after which the same processes can train another run together
PATIENCE_SECONDS = 10.0  # for a follower to come back after rank 0 has


def run_cell_on_ranks(
    run_id: str,
    settings: Settings,
    dataset: Dataset,
    where: Surroundings,
    place: Place,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    while_waiting: Callable[[], None] = lambda: None,
) -> tuple[str, str]:
    """Train a run together with other processes, each of which calls this once with a ``place`` of its own.

    ``where`` is each process's own, with its device (see ``device_of``) and its ``should_stop``: all stop when one is
    to. A launcher such as srun calls this in each of its tasks, with ``Place(rank, tasks, file)``, where the file is
    in a folder that all tasks see and named for this run and this start of the job.

    Returns what run_cell does, on rank 0; on the others how their part ended. "failed": a rank raised an exception, and
    the first to do so is on record with its traceback. "interrupted": a rank is gone, and the run can be claimed again
    at once. After either the process is to end, best with a nonzero code: what it shared with the others is broken.
    """
    try:
        with meet(place, where.device, timeout_seconds=timeout_seconds, while_waiting=while_waiting) as team:
            if place.rank == 0:
                return run_cell(run_id, settings, dataset, where, team)
            return _follow(run_id, settings, dataset, where, team)
    except RankLostError as error:
        return "interrupted", str(error)


def _follow(run_id: str, settings: Settings, dataset: Dataset, where: Surroundings, team: Team) -> tuple[str, str]:
    """The part of every rank but 0."""
    try:
        orders: tuple[int, int] | None = team.ranks.broadcast(None)
        if orders is None:
            return "elsewhere", ""
        attempt, threads = orders
        torch.set_num_threads(threads)
        hooks = Hooks(should_stop=where.should_stop)
        folder = where.runs / run_id
        outcome = train(settings, dataset, folder, attempt=attempt, device=where.device, hooks=hooks, ranks=team.ranks)
    except LOST as error:
        return "interrupted", str(error)
    except Exception as error:  # rank 0 records it
        reason = advice(error) or f"{type(error).__name__}: {error}".splitlines()[0]
        team.report(reason, "".join(traceback.format_exception(error)))
        return "failed", reason
    return "stopped" if outcome is None else "done", ""


# --- on this machine ---------------------------------------------------------------------------------------------


class Group:
    """A worker process that is rank 0 and the processes that are its other ranks; they live and end with it.

    ``first_device``: the number of rank 0's GPU; the others take the next ones.
    """

    def __init__(self, num_ranks: int, first_device: int, data: Path) -> None:
        self.num_ranks, self.first_device, self.data = num_ranks, first_device, data
        self._others: list[tuple[BaseProcess, Connection]] = []

    def run_cell(self, run_id: str, settings: Settings, dataset: Dataset, where: Surroundings) -> tuple[str, str]:
        """See :func:`run_cell_on_ranks`. A group that lost a process has new ones for its next run."""
        if self.num_ranks == 1:
            return run_cell(run_id, settings, dataset, where)
        if not self._others:
            self._others = [self._start(rank) for rank in range(1, self.num_ranks)]
        meeting = Path(tempfile.gettempdir()) / f"ranks-{os.getpid()}-{secrets.token_hex(8)}.json"
        plain = replace(where, should_stop=_never, on_progress=_ignore)  # what can be sent; rank 0 is asked to stop
        for rank, (_, connection) in enumerate(self._others, start=1):
            with contextlib.suppress(OSError):  # it is gone, which the meeting finds out
                device = device_of(where.device.type, self.first_device + rank)
                place = Place(rank, self.num_ranks, meeting)
                connection.send((run_id, settings, replace(plain, device=device), place))
        place = Place(0, self.num_ranks, meeting)
        try:
            return run_cell_on_ranks(run_id, settings, dataset, where, place, while_waiting=self._check)
        finally:
            deadline = time.monotonic() + PATIENCE_SECONDS
            if not all(self._came_back(connection, deadline) for _, connection in self._others):
                self.close()

    def close(self) -> None:
        """End the other processes."""
        for _, connection in self._others:
            connection.close()
        for process, _ in self._others:
            process.kill()
            process.join()
        self._others.clear()

    def _start(self, rank: int) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.data), daemon=True, name=f"rank-{rank}")
        process.start()
        theirs.close()
        return process, ours

    def _check(self) -> None:
        for rank, (process, _) in enumerate(self._others, start=1):
            if not process.is_alive():
                raise RankLostError(f"the process of rank {rank} ended with exit code {process.exitcode}")

    def _came_back(self, connection: Connection, deadline: float) -> bool:
        try:
            return connection.poll(max(0.0, deadline - time.monotonic())) and connection.recv() in IN_ORDER
        except (EOFError, OSError):
            return False


def _never() -> bool:
    return False


def _ignore(progress: dict[str, Any]) -> None:
    pass


def _work(connection: Connection, data: Path) -> None:
    """In the process of another rank: its part of each run that comes through the connection, until that closes.

    Signals to stop are for the launcher alone; they are ignored here since they are in the process that started this.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_interop_threads(1)
    known: dict[Any, Dataset] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            run_id, settings, where, place = connection.recv()
            if settings.data not in known:
                known = {settings.data: load(settings.data, data)}
            state, _ = run_cell_on_ranks(run_id, settings, known[settings.data], where, place)
            connection.send(state)
            if state not in IN_ORDER:
                return


def _end_with(parent: int) -> None:
    """Rank 0 was killed: end too, even where this rank waits for a GPU that waits for rank 0's."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
