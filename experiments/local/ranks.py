"""One run on many ranks: what each of the processes does that train it together.

Rank 0 does what a process alone would do: it claims the run, keeps its heartbeat and writes everything. The others
learn from it whether there is something to train, which attempt it is and with how many threads. A rank
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

from experiments.launcher import CellTask, RunContext
from experiments.local.train_cell import advice, run_cell
from experiments.runs.states import CellResult, End
from simsiam.data.dataset import Dataset
from simsiam.data.sets import load
from simsiam.distributed.ranks import LOST, RankLostError
from simsiam.distributed.rendezvous import TIMEOUT_SECONDS, RankGroup, Rendezvous, device_of, join
from simsiam.settings.fields import Settings
from simsiam.training.loop import Hooks, train

IN_ORDER = (End.DONE, End.STOPPED, End.ELSEWHERE)  # ends after which the same processes can train another run together
PATIENCE_SECONDS = 10.0  # for another rank to finish a cell after rank 0 has


def run_cell_on_ranks(
    run_id: str,
    settings: Settings,
    dataset: Dataset,
    context: RunContext,
    rendezvous: Rendezvous,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    while_waiting: Callable[[], None] = lambda: None,
) -> CellResult:
    """Train a run together with other processes, each of which calls this once with a ``rendezvous`` of its own.

    ``context`` is each process's own, with its device (see ``device_of``) and its ``should_stop``: all stop when one is
    to. A launcher such as srun calls this in each of its tasks, with ``Rendezvous(rank, tasks, file)``, where the file
    is in a folder that all tasks see and named for this run and this start of the job.

    Returns what run_cell does, on rank 0; on the others how their part ended. "failed": a rank raised an exception, and
    the first to do so is on record with its traceback. "interrupted": a rank is gone, and the run can be claimed again
    at once. After either the process is to end, best with a nonzero code: what it shared with the others is broken.
    """
    try:
        with join(rendezvous, context.device, timeout_seconds=timeout_seconds, while_waiting=while_waiting) as group:
            if rendezvous.rank == 0:
                return run_cell(run_id, settings, dataset, context, group)
            return _train_part(run_id, settings, dataset, context, group)
    except RankLostError as error:
        return CellResult(End.INTERRUPTED, str(error))


def _train_part(run_id: str, settings: Settings, dataset: Dataset, context: RunContext, group: RankGroup) -> CellResult:
    """The part of every rank but 0."""
    try:
        orders: tuple[int, int] | None = group.ranks.broadcast(None)
        if orders is None:
            return CellResult(End.ELSEWHERE)
        attempt, threads = orders
        torch.set_num_threads(threads)
        hooks, folder = Hooks(should_stop=context.should_stop), context.runs / run_id
        outcome = train(
            settings, dataset, folder, attempt=attempt, device=context.device, hooks=hooks, ranks=group.ranks
        )
    except LOST as error:
        return CellResult(End.INTERRUPTED, str(error))
    except Exception as error:  # rank 0 records it
        reason = advice(error, context.runs) or f"{type(error).__name__}: {error}".splitlines()[0]
        group.report(reason, "".join(traceback.format_exception(error)))
        return CellResult(End.FAILED, reason)
    return CellResult(End.STOPPED if outcome is None else End.DONE)


# --- on this machine ---------------------------------------------------------------------------------------------


class LocalGroup:
    """A worker process that is rank 0 and the processes that are its other ranks; they live and end with it.

    ``device``: the number of rank 0's GPU; the others take the next ones.
    """

    rank = 0

    def __init__(self, num_ranks: int, device: int, data: Path) -> None:
        self.num_ranks, self.device, self.data = num_ranks, device, data
        self._others: list[tuple[BaseProcess, Connection]] = []

    def run_cell(self, task: CellTask, dataset: Dataset, context: RunContext) -> CellResult:
        """See :func:`run_cell_on_ranks`. A group that lost a process has new ones for its next run."""
        run_id, settings = task.planned.run_id, task.planned.cell.settings
        if self.num_ranks == 1:
            return run_cell(run_id, settings, dataset, context)
        if not self._others:
            self._others = [self._start(rank) for rank in range(1, self.num_ranks)]
        file = Path(tempfile.gettempdir()) / f"ranks-{os.getpid()}-{secrets.token_hex(8)}.json"
        plain = replace(context, should_stop=_never, on_progress=_ignore)  # what can be sent; rank 0 is asked to stop
        for rank, (_, connection) in enumerate(self._others, start=1):
            with contextlib.suppress(OSError):  # it is gone, which rank 0 finds out while it waits for it
                device = device_of(context.device.type, self.device + rank)
                rendezvous = Rendezvous(rank, self.num_ranks, file)
                connection.send((run_id, settings, replace(plain, device=device), rendezvous))
        rendezvous = Rendezvous(0, self.num_ranks, file)
        try:
            return run_cell_on_ranks(run_id, settings, dataset, context, rendezvous, while_waiting=self._check)
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
            run_id, settings, context, rendezvous = connection.recv()
            if settings.data not in known:
                known = {settings.data: load(settings.data, data)}
            result = run_cell_on_ranks(run_id, settings, known[settings.data], context, rendezvous)
            connection.send(result.state)
            if result.state not in IN_ORDER:
                return


def _end_with(parent: int) -> None:
    """Rank 0 was killed: end too, even where this rank waits for a GPU that waits for rank 0's."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
