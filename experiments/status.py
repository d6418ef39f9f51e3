"""How the cells of a plan stand: run folders first, queues second, and right without them. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.launcher import Queue
from experiments.plan import Plan, PlannedCell, estimate
from experiments.runs.folder import Heartbeats, RunFolder, Status
from experiments.runs.states import ENDED, State

KINDS_SHOWN = 5  # of failures
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
    made: Plan
    asked: bool  # whether a queue has answered that knows launches of these cells

    def summary(self) -> list[str]:
        """Lines that say how the grid stands, and whether it goes on by itself."""
        return list(_summary(self))


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
        notes = [note for view in views for note in view.notes]
        asked = any(view.jobs is not None for view in views)
        return GridStatus(rows, notes, self.made, asked)


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


def _summary(found: GridStatus) -> Iterator[str]:
    rows = list({row.planned.run_id: row for row in found.rows}.values())  # each run once
    states = Counter(row.state for row in rows)
    listed = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    yield f"{len(rows)} run{'s' * (len(rows) != 1)} in {found.made.runs}/: {listed}"
    idle = [row for row in rows if row.state not in (*ENDED, State.RUNNING, State.STALLED)]
    for said, number in Counter(row.queue for row in idle if row.queue).most_common():
        yield f"waiting: {number:,}, {said}"
    reasons = Counter[str]()
    examples: dict[str, tuple[str, str]] = {}
    for index, row in enumerate(found.rows, start=1):
        if row.state == State.FAILED:
            reason, path = _reason(found.made.runs, row)
            kind = re.sub(r"/\S+|\d+", "#", reason)
            reasons[kind] += 1
            examples.setdefault(kind, (reason, f"cell {index}: {path}"))
    for kind, number in reasons.most_common(KINDS_SHOWN):
        reason, where = examples[kind]
        yield f"failed: {number:,} of this kind: {reason}  [{where}]"
    if len(reasons) > KINDS_SHOWN:
        yield f"failed: and of {len(reasons) - KINDS_SHOWN} other kinds: --failed lists them"
    yield _hours(found.made, rows)
    yield from _outlook(rows, asked=found.asked)


def _reason(runs: Path, row: CellStatus) -> tuple[str, Path]:
    path = RunFolder(runs, row.planned.run_id).path / "failure.txt"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return (lines[-1] if lines else "no reason on record"), path


def _hours(made: Plan, rows: Sequence[CellStatus]) -> str:
    """Used so far, and left: from what runs that are done have taken, else from the scale's measured speed."""
    taken: dict[str, list[float]] = {}
    for row in rows:
        if row.state == State.DONE and "seconds" in row.seen:
            taken.setdefault(row.planned.config_id, []).append(row.seen["seconds"])
    measured = {
        planned.config_id: estimate(planned.cell.settings, made.scale).seconds
        for planned in {row.planned.config_id: row.planned for row in rows}.values()
    }
    known = sum(sum(times) for times in taken.values())
    expected = sum(measured[config] * len(times) for config, times in taken.items())
    factor = known / expected if expected else 1.0  # of this machine to the one that the speed was measured on

    def left(row: CellStatus) -> float:
        if row.state in ENDED:
            return 0.0
        times = taken.get(row.planned.config_id)
        whole = sum(times) / len(times) if times else factor * measured[row.planned.config_id]
        return row.left if row.left is not None else max(0.0, whole - row.seen.get("seconds", 0.0))

    used = sum(row.seen.get("seconds", 0.0) for row in rows)
    return f"hours: {used / 3600:,.2f} used; about {sum(map(left, rows)) / 3600:,.2f} left, one cell after another"


def _outlook(rows: Sequence[CellStatus], *, asked: bool) -> Iterator[str]:
    """What happens next, if nobody does anything."""
    open_rows = [row for row in rows if row.state not in ENDED]
    busy = (State.RUNNING, State.STALLED)
    adrift = sum(row.state not in busy and not row.queue for row in open_rows)
    failed = sum(row.state == State.FAILED for row in rows)
    if open_rows and not adrift:
        yield "It goes on by itself."
    elif open_rows:
        what = "Nothing is queued" if asked and adrift == len(open_rows) else f"Nothing trains {adrift:,} of them now"
        yield f"{what}: `run`, or `launch` again, trains what is left."
    elif failed:
        yield "All others are done. `launch` again, or `run --retry-failed`, takes up what has failed."
