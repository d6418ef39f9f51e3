"""The local launcher: a grid on this machine, in warm worker processes that share its cores or its GPUs.

A worker imports torch and opens the data once, then trains one cell after another. A cell that fails, or whose
worker is killed, does not stop the others. Cells that another launcher trains are waited for, and taken over if it
dies.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.launcher import CellTask, Launcher, Summary, Tell, missing
from experiments.local.pool import Ended, Machine, Pool, Progress
from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import Heartbeats, RunFolder
from experiments.runs.states import CellResult, End, State
from simsiam.settings.checks import check_ranks

# Ctrl-C, a request to end, and a terminal that is closed.
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
MAX_CRASHES = 2  # of a cell's worker process, before the cell counts as failed


class View(Protocol):
    """What shows a grid's progress to the user."""

    def started(self, planned: PlannedCell) -> None: ...
    def progressed(self, planned: PlannedCell, progress: dict[str, Any]) -> None: ...
    def ended(self, planned: PlannedCell, result: CellResult) -> None: ...
    def waiting(self, others: int) -> None: ...
    def stopping(self) -> None: ...


@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """Trains cells in worker processes on this machine, and returns when they have ended."""

    machine: Machine
    view: View
    retry_failed: bool = False

    def check(self, made: Plan) -> None:
        for planned in made.cells:
            check_ranks(planned.cell.settings, self.machine.ranks.num_ranks, "--ranks")

    def submit(self, made: Plan, tell: Tell, *, command: str, supervised: bool = False) -> Summary:
        """Ctrl-C (or SIGTERM) once checkpoints and stops, twice stops at once."""
        return _Grid(made.unique(), self.machine, self.view, self.retry_failed, command).run()

    def preview(self, made: Plan, tell: Tell) -> list[PlannedCell]:
        self.check(made)
        todo, _, _ = missing(made, ())
        for planned, status in todo:
            tell(f"{planned.label}  {planned.run_id}  {status.state}")
        return [planned for planned, _ in todo]

    def supervise(self, made: Plan, tell: Tell) -> bool:
        return True  # ``submit`` has stayed


class _Grid:
    def __init__(
        self, cells: Sequence[PlannedCell], machine: Machine, view: View, retry_failed: bool, command: str
    ) -> None:
        self.machine, self.view, self.retry_failed = machine, view, retry_failed
        self.heartbeats = Heartbeats()
        self.summary = Summary()
        self.queue: deque[PlannedCell] = deque()
        self.elsewhere: list[PlannedCell] = []
        self.crashes: dict[str, int] = {}
        self.pool = Pool(machine, command, warm=True)
        for planned in cells:
            self._sort(planned, first_look=True)

    def _sort(self, planned: PlannedCell, *, first_look: bool = False) -> None:
        """Put a cell where its state says that it belongs."""
        status = RunFolder(self.machine.runs, planned.run_id).status(self.heartbeats)
        if status.state == State.DONE:
            self.summary.done.append(planned.run_id)
        elif status.state == State.RUNNING:
            self.elsewhere.append(planned)
        elif status.state == State.FAILED and not (self.retry_failed and first_look):
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
                if not self.pool.stop.is_set():
                    self._hand_out()
                elif not self.pool.cells():
                    break
                for news in self.pool.listen():
                    if isinstance(news, Progress):
                        self.view.progressed(news.planned, news.numbers)
                    else:
                        self._ended(news)
            return self.summary
        finally:
            self.pool.dismiss()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _busy(self) -> bool:
        return bool(self.queue or self.elsewhere or self.pool.cells())

    def _on_signal(self, number: int, frame: object) -> None:
        if self.pool.stop.is_set():
            self.pool.kill()
            raise KeyboardInterrupt
        self.pool.stop.set()
        self.view.stopping()

    def _hand_out(self) -> None:
        """Give every idle worker a cell; start workers while there are more cells than workers."""
        for planned in self.elsewhere[:]:
            if RunFolder(self.machine.runs, planned.run_id).status(self.heartbeats).state != State.RUNNING:
                self.elsewhere.remove(planned)
                self._sort(planned)
        while self.queue and self.pool.has_room():
            planned = self.queue.popleft()
            self.pool.train(CellTask(planned, self.retry_failed))
            self.view.started(planned)
        if self.elsewhere and not self.pool.cells():
            self.view.waiting(len(self.elsewhere))

    def _ended(self, news: Ended) -> None:
        planned, (state, reason) = news.planned, news.result
        if state == End.CRASHED:
            self._take_up_again(planned, f"its worker process was {reason}")
            return
        if state == End.INTERRUPTED:
            self._take_up_again(planned, reason)
            return
        if state == End.ELSEWHERE:
            self._sort(planned)
            return
        if state == End.DONE:
            self.summary.done.append(planned.run_id)
        elif state == End.STOPPED:
            self.summary.stopped.append(planned.run_id)
        else:
            self.summary.failures[planned.run_id] = reason
        self.view.ended(planned, news.result)

    def _take_up_again(self, planned: PlannedCell, reason: str) -> None:
        """A cell lost its worker or a rank; it goes on from its checkpoint, unless that keeps happening."""
        self.crashes[planned.run_id] = self.crashes.get(planned.run_id, 0) + 1
        if self.crashes[planned.run_id] < MAX_CRASHES and not self.pool.stop.is_set():
            self.queue.appendleft(planned)
            return
        self.summary.failures[planned.run_id] = reason
        self.view.ended(planned, CellResult(End.FAILED, reason))
