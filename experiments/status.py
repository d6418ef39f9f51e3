"""How the cells of a plan stand: run folders first, queues second, and right without them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.launcher import Queue
from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import Heartbeats, RunFolder, Status
from experiments.runs.states import ENDED, State

REASONS_SHOWN = 5  # of cells that failed
STALLED_AFTER = 600.0  # seconds in which an owner that is alive has made no step


@dataclass(frozen=True)
class CellStatus:
    """A cell as `status` shows it."""

    planned: PlannedCell
    status: Status
    state: State  # the run's; or that it is stalled or lost
    queue: str  # what the queue says of its job, empty if nothing
    left: float | None  # seconds, while it is trained

    @property
    def seen(self) -> dict[str, Any]:
        """The latest numbers."""
        return {**self.status.detail, **(self.status.result or {}).get("final", {})}


@dataclass(frozen=True)
class GridStatus:
    """The cells of a plan, and what else a user should know."""

    rows: list[CellStatus]
    notes: list[str]


class Watcher:
    """Looks at a plan again and again; remembers which heartbeats it has seen."""

    def __init__(self, made: Plan, queues: Sequence[Queue]) -> None:
        self.made, self.queues = made, queues
        self.heartbeats = Heartbeats()

    def look(self) -> GridStatus:
        """One look: the run folders, then one question to each queue."""
        statuses = self.made.statuses(self.heartbeats)
        views = [queue.look(self.made) for queue in self.queues]
        jobs = {job: said for view in views for job, said in (view.jobs or {}).items()}
        waiting = {run_id: said for view in views for run_id, said in view.waiting.items()}
        rows = []
        for planned in self.made.cells:
            status = statuses[planned.run_id]
            owner = RunFolder(self.made.runs, planned.run_id).owner(status.lease) if status.lease else {}
            job = jobs.get(str(owner.get("job")))
            state = _state(status, is_lost="job" in owner and any(view.has_lost(owner) for view in views))
            said = "" if status.state in ENDED else job or waiting.get(planned.run_id, "")
            rows.append(CellStatus(planned, status, state, said, _left(planned, status)))
        notes = [*_failures(self.made.runs, rows), *(note for view in views for note in view.notes)]
        return GridStatus(rows, notes)


def _state(status: Status, *, is_lost: bool) -> State:
    if status.state == State.RUNNING:
        if is_lost and not status.certain:
            return State.LOST
        return State.STALLED if status.detail.get("still_seconds", 0) > STALLED_AFTER else State.RUNNING
    return State.LOST if status.state == State.INTERRUPTED and is_lost else status.state


def _left(planned: PlannedCell, status: Status) -> float | None:
    """From the speed of the steps; evaluations come on top."""
    detail = status.detail
    if status.state != State.RUNNING or not detail.get("images_per_s") or "num_steps" not in detail:
        return None
    steps = detail["num_steps"] - detail.get("step", 0)
    seconds: float = steps * planned.cell.settings.batch_size / detail["images_per_s"]
    return seconds


def _failures(runs: Path, rows: Sequence[CellStatus]) -> list[str]:
    """Why cells failed, of the first few."""
    found: list[str] = []
    for number, row in enumerate(rows, start=1):
        path = RunFolder(runs, row.planned.run_id).path / "failure.txt"
        if row.state == State.FAILED and path.exists() and len(found) < REASONS_SHOWN:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            found.append(f"cell {number}: {lines[-1] if lines else 'failed'}  [{path}]")
    return found
