"""How the cells of a plan stand: run folders first, SLURM second, and right without it. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments import scheduler
from experiments.launches import Launch, all_launches, current
from experiments.plan import Plan, PlannedCell
from experiments.scheduler import Job, SlurmError
from experiments.store import Heartbeats, RunFolder, Status

STALLED_AFTER = 600.0  # seconds in which an owner that is alive has made no step


@dataclass(frozen=True)
class Row:
    """A cell as `status` shows it. ``state`` is the run's, or "stalled" or "lost"."""

    planned: PlannedCell
    status: Status
    state: str
    slurm: str  # what SLURM says of its job, empty if nothing
    left: float | None  # seconds, while it is trained

    @property
    def seen(self) -> dict[str, Any]:
        """The latest numbers."""
        return {**self.status.detail, **(self.status.result or {}).get("final", {})}


@dataclass(frozen=True)
class Overview:
    """The rows, and what else a user should know."""

    rows: list[Row]
    notes: list[str]


class Overseer:
    """Looks at a plan again and again; remembers which heartbeats it has seen."""

    def __init__(self, made: Plan) -> None:
        self.made = made
        self.heartbeats = Heartbeats()

    def look(self) -> Overview:
        """One look: the run folders, and one question to SLURM if anything was launched."""
        statuses = self.made.statuses(self.heartbeats)
        launches = [launch for launch, _ in current(self.made.unique(), all_launches(self.made.runs))]
        jobs, notes = _jobs(launches)
        by_id = {job.id: job for job in jobs or ()}
        covering: dict[str, str] = {}
        for launch in launches:  # the newest first
            summary = _summary(launch, jobs or ())
            for run_id in launch.run_ids() if summary else ():
                covering.setdefault(run_id, summary)
        rows = []
        for planned in self.made.cells:
            status = statuses[planned.run_id]
            owner = RunFolder(self.made.runs, planned.run_id).owner(status.lease) if status.lease else {}
            job = by_id.get(str(owner.get("job")))
            state = _state(status, has_job="job" in owner, vanished=jobs is not None and job is None)
            slurm = ""
            if status.state not in ("done", "failed"):
                slurm = _said(job) if job else covering.get(planned.run_id, "")
            rows.append(Row(planned, status, state, slurm, _left(planned, status)))
        for launch in launches:
            notes += _problems(launch, jobs)
        return Overview(rows, notes)


def _jobs(launches: Sequence[Launch]) -> tuple[list[Job] | None, list[str]]:
    """The user's jobs; None where SLURM is not there or does not answer."""
    if not launches:
        return None, []
    try:
        return scheduler.my_jobs(), []
    except SlurmError as error:
        return None, [f"SLURM is not asked here: {error}"]


def _state(status: Status, *, has_job: bool, vanished: bool) -> str:
    if status.state == "running":
        if has_job and vanished and not status.certain:
            return "lost"
        return "stalled" if status.detail.get("still_seconds", 0) > STALLED_AFTER else "running"
    return "lost" if status.state == "interrupted" and has_job else status.state


def _left(planned: PlannedCell, status: Status) -> float | None:
    """From the speed of the steps; evaluations come on top."""
    detail = status.detail
    if status.state != "running" or not detail.get("images_per_s") or "num_steps" not in detail:
        return None
    steps = detail["num_steps"] - detail.get("step", 0)
    seconds: float = steps * planned.cell.settings.batch_size / detail["images_per_s"]
    return seconds


def _said(job: Job) -> str:
    because = f" ({job.reason})" if job.state == "PENDING" else ""
    return f"{job.id} {job.state.lower()}{because}"


def _summary(launch: Launch, jobs: Sequence[Job]) -> str:
    """What a launch's jobs do, for the cells that none of them trains yet."""
    mine = [job for job in jobs if job.name == launch.id]
    if not mine:
        return "follow-up waits" if any(job.name.startswith(launch.id) for job in jobs) else ""
    counts = Counter(job.state.lower() for job in mine)
    reasons = sorted({job.reason for job in mine if job.state == "PENDING" and job.reason not in ("None", "")})
    text = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    return f"queued: {text}" + (f" ({', '.join(reasons)})" if reasons else "")


def _problems(launch: Launch, jobs: Sequence[Job] | None) -> list[str]:
    """What the jobs of a launch complained of, and those that SLURM holds back."""
    found = []
    for job in jobs or ():
        if job.name.startswith(launch.id) and "held" in job.reason.lower():
            found.append(f"job {job.id} is held ({job.reason}): scontrol release {job.id}")
    tasks = launch.tasks()
    for name, task in tasks.items():
        found += [f"job {name}: {task[key]}" for key in ("problem", "warning") if task.get(key)]
    if launch.is_cancelled():
        return []
    submitted = any(content.get("released") and content.get("jobs") for content in launch.rounds())
    if jobs is not None and submitted and not tasks and not any(job.name.startswith(launch.id) for job in jobs):
        found.append(
            f"{launch.id}: its jobs ended without a sign. Do the nodes see {launch.path}? `cluster check` tells"
        )
    refused = [content["refused"] for content in launch.rounds() if content.get("refused")]
    return [*found, *(f"{launch.id}: sbatch refused: {text}" for text in refused[-1:])]
