"""Worker processes that train cells, and what they tell: shared by the launchers on a machine and inside a job."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from experiments.launcher import CellTask, Ranks, RanksStarter
from experiments.plan import PlannedCell
from experiments.runs.folder import StoreError
from experiments.runs.states import CellResult, End
from simsiam.machine import idle_cores

POLL_SECONDS = 1.0  # at most, between two looks at what the workers tell
# Ctrl-C, a request to end, a terminal that is closed, and what SLURM sends ahead of the end of a job.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2") if hasattr(signal, name)
]  # Windows has not all of them
# Loaded once for all workers, from where Python looks by itself. No module of ours: the one that is installed there may
# not be the one that was called.
PRELOADED = ["torch", "torchvision.transforms.v2", "scipy.optimize", "pydantic"]
# What a training process is to find in its environment when it loads torch.
ENVIRONMENT = {
    # Threads that wait for each other by spinning, which GNU's OpenMP does by default, starve on a machine that others
    # use too; how long they spin: see prepare_environment.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc returns freed memory to the system, and the next step faults it in again: a few percent of a small run.
    # What is larger than 32 MiB comes and goes with an evaluation, and is given back.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}


def prepare_environment(threads: int) -> None:
    """Set ENVIRONMENT, but for what the user has set: for processes to come, and for this one ahead of torch.

    With several ``threads`` a process that has cores of its own lets them spin for some 50 microseconds before they
    sleep: a small network, whose operations take microseconds, is up to twice as fast for it. Where others use the
    cores, the spinning takes one from the thread that is waited for, so there they sleep at once. It changes no number.
    """
    alone = threads == 1 or idle_cores() > threads - 0.5
    for name, value in {**ENVIRONMENT, "GOMP_SPINCOUNT": "2000" if alone else "0"}.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class LocalRanks:
    """Each worker is rank 0 of its cells, and starts the other ranks on this machine."""

    num_ranks: int = 1

    def start(self, worker: int, data: Path, stop: Event) -> Ranks:
        """Of a worker that trains alone, too."""
        from experiments.local.ranks import LocalGroup

        return LocalGroup(self.num_ranks, worker * self.num_ranks, data)


@dataclass(frozen=True)
class Machine:
    """What cells may use of this machine."""

    runs: Path
    data: Path
    num_workers: int
    threads: int  # of each worker, and of each of its ranks
    device: str  # cpu or cuda
    ranks: RanksStarter = LocalRanks()
    checkpoint_seconds: float = 60.0  # between two checkpoints within an epoch
    logs: Path | None = None  # a folder for what each cell prints; None: it goes where the launcher's output goes
    is_patient: bool = False  # a cell that the surroundings have ended is "blocked", and is to be tried again


@dataclass(frozen=True)
class Progress:
    """The latest numbers of a cell."""

    planned: PlannedCell
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How an attempt to train a cell ended; "crashed" if its process did not live to say so."""

    planned: PlannedCell
    result: CellResult


@dataclass(eq=False)
class _Worker:
    index: int
    process: BaseProcess
    connection: Connection
    cell: PlannedCell | None = None


class Pool:
    """Up to ``machine.num_workers`` processes, each training one cell at a time.

    With ``warm`` workers a process trains one cell after another. Otherwise each cell has a process of its own, so that
    nothing of a cell is left for the next. On Linux they are forked from a process that has imported torch and done
    nothing else: what takes seconds is done once, and its memory is shared.
    """

    def __init__(self, machine: Machine, command: str, *, warm: bool) -> None:
        self.machine, self.command, self.warm = machine, command, warm
        can_fork = sys.platform == "linux"  # macOS's libraries may not be used after a fork, Windows has none
        self._context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:
            self._context.set_forkserver_preload(PRELOADED)
        with signals_held_back():  # an event brings a process with it that tidies up
            self.stop: Event = self._context.Event()
        self._workers: list[_Worker] = []

    def cells(self) -> list[PlannedCell]:
        """Those that are being trained."""
        return [worker.cell for worker in self._workers if worker.cell is not None]

    def has_room(self) -> bool:
        """Whether another cell can be trained now."""
        return len(self.cells()) < self.machine.num_workers

    def train(self, task: CellTask) -> None:
        """Hand a cell to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.cell is None), None) or self._start()
        worker.cell = task.planned
        worker.connection.send(task)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        index = min(set(range(self.machine.num_workers)) - {worker.index for worker in self._workers})
        process = self._context.Process(
            target=_work, args=(theirs, self.stop, self.machine, index, self.command), name=f"worker-{index}"
        )
        prepare_environment(self.machine.threads)
        with signals_held_back():
            try:
                process.start()
            except (EOFError, OSError):  # what processes are forked from was killed while it loaded PyTorch
                raise StoreError(
                    "a process for training did not start: what it is forked from was killed, of which a lack of memory"
                    " is often the reason; the same command tries it again"
                ) from None
        theirs.close()
        worker = _Worker(index, process, ours)
        self._workers.append(worker)
        return worker

    def listen(self) -> Iterator[Progress | Ended]:
        """Take in what the workers tell, for at most a second."""
        # Where a worker ends, so does its connection. Its sentinel would also say so when only the process that it was
        # forked from is gone.
        by_connection = {worker.connection: worker for worker in self._workers}
        if not by_connection:
            time.sleep(POLL_SECONDS)
            return
        for worker in [by_connection[each] for each in wait(list(by_connection), timeout=POLL_SECONDS)]:  # type: ignore[index]
            try:
                while worker.connection.poll():
                    told = worker.connection.recv()
                    assert worker.cell is not None, "a worker speaks only of its cell"
                    planned = worker.cell
                    if not isinstance(told, CellResult):
                        yield Progress(planned, told)
                        continue
                    worker.cell = None
                    # After such an end of one, the ranks of a worker no longer understand each other.
                    are_broken = self.machine.ranks.num_ranks > 1 and told.state in (
                        End.FAILED,
                        End.INTERRUPTED,
                        End.BLOCKED,
                    )
                    if not self.warm or are_broken:
                        self._dismiss([worker])
                    yield Ended(planned, told)
                    if worker not in self._workers:
                        break
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._workers.remove(worker)
                if worker.cell is not None:
                    yield Ended(worker.cell, CellResult(End.CRASHED, _how(worker.process.exitcode)))

    def kill(self) -> None:
        """End all workers at once; their cells go on from their last checkpoints another time."""
        for worker in self._workers:
            worker.process.kill()

    def dismiss(self) -> None:
        """Let the workers end, which have no cell any more."""
        self._dismiss(self._workers[:])

    def _dismiss(self, workers: list[_Worker]) -> None:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        for worker in workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
            worker.connection.close()
            self._workers.remove(worker)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes started here never get SIGNALS, which reach the whole process group; we get them a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {-code}" + (" (9 is often a lack of memory)" if code == -9 else "")
    return f"gone with exit code {code}"


# --- in the worker process ---------------------------------------------------------------------------------------


def _work(connection: Connection, stop: Event, machine: Machine, index: int, command: str) -> None:
    """Train the cells that come through the connection, one after another, until None comes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    import torch

    from experiments.launcher import RunContext
    from experiments.runs.surroundings import surrounding_fault
    from simsiam.data.sets import load
    from simsiam.distributed.rendezvous import device_of
    from simsiam.errors import DataError
    from simsiam.settings.identity import run_id

    load_cached = _remembering(load)
    ranks = machine.ranks.start(index, machine.data, stop)
    suffix = f".{ranks.rank}" if ranks.rank else ""
    device = device_of(machine.device, ranks.device)
    torch.set_num_interop_threads(1)
    last_told = 0.0

    def tell(progress: dict[str, Any]) -> None:
        nonlocal last_told
        if "knn_top1" in progress or time.monotonic() - last_told > 0.5:
            last_told = time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # the launcher was killed: should_stop finds out
                connection.send(dict(progress))

    def context(task: CellTask) -> RunContext:
        return RunContext(
            runs=machine.runs,
            device=device,
            threads=machine.threads,
            # The launcher says nothing while a cell is trained. What comes then is the end of the connection: it was
            # killed, and nobody waits for this run any more.
            should_stop=lambda: stop.is_set() or connection.poll(),
            on_progress=tell,
            retry_failed=task.retry_failed,
            attempts_before=task.attempts_before,
            checkpoint_seconds=machine.checkpoint_seconds,
            command=command,
            is_patient=machine.is_patient,
        )

    with (
        contextlib.suppress(EOFError, BrokenPipeError),  # the launcher was killed
        contextlib.closing(ranks),
    ):
        while (task := connection.recv()) is not None:
            try:
                if machine.logs is not None:
                    _log_to(machine.logs / f"{task.planned.run_id}{suffix}.log")
                settings = task.planned.cell.settings
                dataset = load_cached(settings.data, machine.data)
                if run_id(settings, dataset.fingerprint) != task.planned.run_id:
                    raise DataError(
                        f"{machine.data}: the images of {settings.data.name} have changed since this run was planned,"
                        " and would get its name; the same command plans anew"
                    )
                result = ranks.run_cell(task, dataset, context(task))
            except (DataError, StoreError, OSError) as error:
                is_blocked = machine.is_patient and surrounding_fault(error) is not None
                if isinstance(error, OSError) and not is_blocked:
                    raise
                result = CellResult(End.BLOCKED if is_blocked else End.FAILED, str(error))
            connection.send(result)


def _log_to(path: Path) -> None:
    """From here on, what this process prints goes to the end of a file, also what libraries print below Python."""
    with open(path, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _remembering(load: Callable[..., Any]) -> Callable[..., Any]:
    """The last data set stays open between cells."""
    last: dict[object, Any] = {}

    def load_cached(settings: Any, root: Path) -> Any:
        if settings not in last:
            last.clear()
            last[settings] = load(settings, root)
        return last[settings]

    return load_cached
