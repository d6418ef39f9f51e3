"""The local launcher: a grid on this machine, in warm worker processes that share its cores or its GPUs.

A worker imports torch and opens the data once, then trains one cell after another. A cell that fails, or whose
worker is killed, does not stop the others. Cells that another launcher trains are waited for, and taken over if it
dies.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from experiments.plan import PlannedCell
from experiments.pool import Machine, News, Pool, Task
from experiments.store import Heartbeats, RunFolder

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


def run_grid(
    cells: Sequence[PlannedCell], machine: Machine, view: View, *, retry_failed: bool, command: str
) -> Summary:
    """Train all cells that are not done. Ctrl-C (or SIGTERM) once checkpoints and stops, twice stops at once."""
    return _Grid(cells, machine, view, retry_failed, command).run()


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
                if not self.pool.stop.is_set():
                    self._hand_out()
                elif not self.pool.cells():
                    break
                for news in self.pool.listen():
                    self._hear(news)
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
            if RunFolder(self.machine.runs, planned.run_id).status(self.heartbeats).state != "running":
                self.elsewhere.remove(planned)
                self._sort(planned)
        while self.queue and self.pool.has_room():
            planned = self.queue.popleft()
            self.pool.train(Task(planned, self.retry_failed))
            self.view.started(planned)
        if self.elsewhere and not self.pool.cells():
            self.view.waiting(len(self.elsewhere))

    def _hear(self, news: News) -> None:
        planned = news.planned
        if news.kind == "progress":
            self.view.progressed(planned, news.content)
            return
        if news.kind == "crashed":
            self._take_up_again(planned, f"its worker process was {news.content}")
            return
        state, reason = news.content
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

    def _take_up_again(self, planned: PlannedCell, reason: str) -> None:
        """A cell lost its worker or a rank; it goes on from its checkpoint, unless that keeps happening."""
        self.crashes[planned.run_id] = self.crashes.get(planned.run_id, 0) + 1
        if self.crashes[planned.run_id] < MAX_CRASHES and not self.pool.stop.is_set():
            self.queue.appendleft(planned)
            return
        self.summary.failures[planned.run_id] = reason
        self.view.ended(planned, "failed", reason)
