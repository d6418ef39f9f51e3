"""The local launcher: a grid on this machine, in warm worker processes that share its cores or its GPUs.

A worker imports torch and opens the data once, then trains one cell after another. A cell that fails, or whose
worker is killed, does not stop the others. Cells that another launcher trains are waited for, and taken over if it
dies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Protocol

from experiments.plan import PlannedCell
from experiments.store import Heartbeats, RunFolder, StoreError

POLL_SECONDS = 1.0  # between two looks at cells that another launcher trains
# Ctrl-C, a request to end, and a terminal that is closed.
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
MAX_CRASHES = 2  # of a cell's worker process, before the cell counts as failed


class View(Protocol):
    """What shows a grid's progress to the user."""

    def started(self, planned: PlannedCell) -> None: ...
    def progressed(self, planned: PlannedCell, progress: dict[str, Any]) -> None: ...
    def ended(self, planned: PlannedCell, state: str, message: str) -> None: ...
    def waiting(self, others: int) -> None: ...
    def stopping(self) -> None: ...


@dataclass
class Summary:
    """How the cells of a grid ended: run ids by state; ``failures`` has the reason of each failed one."""

    done: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped_failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Machine:
    """What a grid may use of this machine."""

    runs: Path
    data: Path
    num_workers: int
    threads: int  # of each worker, and of each of its ranks
    device: str  # cpu or cuda
    ranks: int = 1  # processes that train a cell together: the worker and others that it starts


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_grid(
    cells: Sequence[PlannedCell], machine: Machine, view: View, *, retry_failed: bool, command: str
) -> Summary:
    """Train all cells that are not done. Ctrl-C (or SIGTERM) once checkpoints and stops, twice stops at once."""
    return _Grid(cells, machine, view, retry_failed, command).run()


@dataclass(eq=False)
class _Worker:
    index: int
    process: SpawnProcess
    connection: Connection
    cell: PlannedCell | None = None


class _Grid:
    def __init__(
        self, cells: Sequence[PlannedCell], machine: Machine, view: View, retry_failed: bool, command: str
    ) -> None:
        self.machine, self.view, self.retry_failed, self.command = machine, view, retry_failed, command
        self.heartbeats = Heartbeats()
        self.summary = Summary()
        self.queue: deque[PlannedCell] = deque()
        self.elsewhere: list[PlannedCell] = []
        self.crashes: dict[str, int] = {}
        self.context = multiprocessing.get_context("spawn")
        self.stop: Event = self.context.Event()
        self.workers: list[_Worker] = []
        for planned in cells:
            self._sort(planned, first_look=True)

    def _sort(self, planned: PlannedCell, *, first_look: bool = False) -> None:
        """Put a cell where its state says that it belongs."""
        status = RunFolder(self.machine.runs, planned.run_id).status(self.heartbeats)
        if status.state == "done":
            self.summary.done.append(planned.run_id)
        elif status.state == "running":
            self.elsewhere.append(planned)
        elif status.state == "failed" and not (self.retry_failed and first_look):
            if first_look:
                self.summary.skipped_failures.append(planned.run_id)
            else:
                self.summary.failures[planned.run_id] = "failed in another process"
        else:
            self.queue.append(planned)

    def run(self) -> Summary:
        previous = {number: signal.signal(number, self._on_signal) for number in STOPPING}
        try:
            while self._busy():
                if not self.stop.is_set():
                    self._hand_out()
                elif not any(worker.cell for worker in self.workers):
                    break
                self._listen()
            return self.summary
        finally:
            self._dismiss(self.workers[:])
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _busy(self) -> bool:
        return bool(self.queue or self.elsewhere or any(worker.cell for worker in self.workers))

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stop.is_set():
            for worker in self.workers:
                worker.process.kill()
            raise KeyboardInterrupt
        self.stop.set()
        self.view.stopping()

    def _hand_out(self) -> None:
        """Give every idle worker a cell; start workers while there are more cells than workers."""
        for planned in self.elsewhere[:]:
            if RunFolder(self.machine.runs, planned.run_id).status(self.heartbeats).state != "running":
                self.elsewhere.remove(planned)
                self._sort(planned)
        while self.queue:
            idle = [worker for worker in self.workers if worker.cell is None]
            if not idle:
                if len(self.workers) == self.machine.num_workers:
                    break
                idle = [self._start_worker()]
            planned = self.queue.popleft()
            idle[0].cell = planned
            idle[0].connection.send((planned.run_id, planned.cell.settings, self.retry_failed))
            self.view.started(planned)
        if self.elsewhere and not any(worker.cell for worker in self.workers):
            self.view.waiting(len(self.elsewhere))

    def _start_worker(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        index = min(set(range(self.machine.num_workers)) - {worker.index for worker in self.workers})
        process = self.context.Process(
            target=_work, args=(theirs, self.stop, self.machine, index, self.command), name=f"worker-{index}"
        )
        # Threads that wait for each other by spinning starve on a machine that others use too.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # glibc returns freed memory to the system, and the next step faults it in again: a few percent of a small run.
        # What is larger than 32 MiB comes and goes with an evaluation, and is given back.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**29))
        # Ctrl-C reaches the whole process group; a worker must leave it to us, from its very first instruction.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        worker = _Worker(index, process, ours)
        self.workers.append(worker)
        return worker

    def _listen(self) -> None:
        """Take in what the workers say, for at most a second."""
        by_source: dict[object, _Worker] = {}
        for worker in self.workers:
            by_source |= {worker.connection: worker, worker.process.sentinel: worker}
        if not by_source:
            time.sleep(POLL_SECONDS)
            return
        ready = {by_source[source] for source in wait(list(by_source), timeout=POLL_SECONDS)}  # type: ignore[arg-type]
        for worker in ready:
            try:
                while worker in self.workers and worker.connection.poll():
                    self._hear(worker, worker.connection.recv())
            except (EOFError, ConnectionResetError):
                self._bury(worker)

    def _hear(self, worker: _Worker, message: tuple[str, Any]) -> None:
        planned = worker.cell
        assert planned is not None, "a worker speaks only of its cell"
        kind, content = message
        if kind == "progress":
            self.view.progressed(planned, content)
            return
        state, reason = content
        worker.cell = None
        if self.machine.ranks > 1 and state in ("failed", "interrupted"):  # its ranks no longer understand each other
            self._dismiss([worker])
        if state == "interrupted":
            self._take_up_again(planned, reason)
            return
        if state == "elsewhere":
            self._sort(planned)
            return
        if state == "done":
            self.summary.done.append(planned.run_id)
        elif state == "stopped":
            self.summary.stopped.append(planned.run_id)
        else:
            self.summary.failures[planned.run_id] = reason
        self.view.ended(planned, state, reason)

    def _bury(self, worker: _Worker) -> None:
        """A worker process is gone."""
        worker.process.join()
        self.workers.remove(worker)
        planned, code = worker.cell, worker.process.exitcode
        if planned is None:
            return
        how = (
            f"killed by signal {-code} (9 is often a lack of memory)"
            if code and code < 0
            else f"gone with exit code {code}"
        )
        self._take_up_again(planned, f"its worker process was {how}")

    def _take_up_again(self, planned: PlannedCell, reason: str) -> None:
        """A cell lost its worker or a rank; it goes on from its checkpoint, unless that keeps happening."""
        self.crashes[planned.run_id] = self.crashes.get(planned.run_id, 0) + 1
        if self.crashes[planned.run_id] < MAX_CRASHES and not self.stop.is_set():
            self.queue.appendleft(planned)
            return
        self.summary.failures[planned.run_id] = reason
        self.view.ended(planned, "failed", reason)

    def _dismiss(self, workers: list[_Worker]) -> None:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        for worker in workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
            self.workers.remove(worker)


# --- in the worker process ---------------------------------------------------------------------------------------


def _work(connection: Connection, stop: Event, machine: Machine, index: int, command: str) -> None:
    """Train the cells that come through the connection, one after another, until None comes."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    import torch

    from experiments.ranks import Group
    from experiments.worker import Surroundings
    from simsiam.data import DataError, load
    from simsiam.rendezvous import device_of

    load_cached = _remembering(load)
    first_device = index * machine.ranks
    device = device_of(machine.device, first_device)
    torch.set_num_interop_threads(1)
    last_told = 0.0

    def tell(progress: dict[str, Any]) -> None:
        nonlocal last_told
        if "knn_top1" in progress or time.monotonic() - last_told > 0.5:
            last_told = time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # the launcher was killed: should_stop finds out
                connection.send(("progress", dict(progress)))

    def where(retry_failed: bool) -> Surroundings:
        return Surroundings(
            runs=machine.runs,
            device=device,
            threads=machine.threads,
            # If the launcher was killed, nobody waits for this run any more.
            should_stop=lambda: stop.is_set() or os.getppid() != parent,
            on_progress=tell,
            retry_failed=retry_failed,
            command=command,
        )

    with (
        contextlib.suppress(EOFError, BrokenPipeError),  # the launcher was killed
        contextlib.closing(Group(machine.ranks, first_device, machine.data)) as group,
    ):
        while (task := connection.recv()) is not None:
            run_id, settings, retry_failed = task
            try:
                dataset = load_cached(settings.data, machine.data)
                ended = group.run_cell(run_id, settings, dataset, where(retry_failed))
            except (DataError, StoreError) as error:
                ended = ("failed", str(error))
            connection.send(("ended", ended))


def _remembering(load: Callable[..., Any]) -> Callable[..., Any]:
    """The last data set stays open between cells."""
    last: dict[object, Any] = {}

    def load_cached(settings: Any, root: Path) -> Any:
        if settings not in last:
            last.clear()
            last[settings] = load(settings, root)
        return last[settings]

    return load_cached
