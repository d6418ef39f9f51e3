"""SLURM's queue: what it says of the jobs of launches, and how they are cancelled. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.launcher import Queue, QueueView, Tell
from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import RunFolder
from experiments.slurm import commands
from experiments.slurm.commands import Job, SlurmError
from experiments.slurm.launch import Launch, all_launches, current

FOLLOW_UP = ".next"  # ends the name of the follow-up job
# Why SLURM keeps a job waiting that no node could ever run.
IMPOSSIBLE = ("BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit")


class SlurmQueue(Queue):
    """The jobs of all launches, whatever profile they were submitted with."""

    def look(self, made: Plan) -> QueueView:
        """One question to SLURM's controller, if anything was launched."""
        launches = [launch for launch, _ in current(made.unique(), all_launches(made.runs))]
        if not launches:
            return QueueView()
        jobs: list[Job] | None = None
        notes = []
        try:
            jobs = commands.my_jobs()
        except SlurmError as error:
            notes.append(f"SLURM is not asked here: {error}")
        waiting: dict[str, str] = {}
        for launch in launches:  # the newest first
            if summary := _summary(launch, jobs or ()):
                waiting = {**dict.fromkeys(launch.run_ids(), summary), **waiting}
            notes += _problems(launch, jobs)
        return QueueView(None if jobs is None else {job.id: f"{job.id} {job}" for job in jobs}, waiting, notes)

    def cancel(self, made: Plan, tell: Tell, launch_id: str | None) -> bool:
        """A launch that holds other cells, too, is cancelled only by its id."""
        jobs = commands.my_jobs()
        found, refused = 0, 0
        for launch, shared in list(current(made.unique(), all_launches(made.runs))):
            mine = jobs_of(launch, jobs)
            if launch_id not in (None, launch.id) or (not mine and (launch.is_cancelled() or not launch.missing())):
                continue
            others = len(launch.run_ids() - shared)
            if others and launch_id is None:
                refused += 1
                tell(f"{launch.id}: holds other cells, too ({others}): cancel --launch {launch.id}")
                continue
            found += 1
            # The marker first, so that no job queues itself again.
            launch.mark_cancelled("cancelled by its user")
            commands.scancel([job.id for job in mine])
            tell(f"{launch.id}: cancelled; jobs: {len(mine)}")
        if not found and not refused:
            tell("There is nothing to cancel.")
        return not refused

    def launches(self, runs: Path) -> list[str]:
        return [launch.id for launch in all_launches(runs)]

    def logs(self, made: Plan, planned: PlannedCell) -> list[Path]:
        """Of each task of the job that trains it, and of the cell; of all jobs, if none has begun it."""
        run = RunFolder(made.runs, planned.run_id)
        job = run.owner(run.highest_lease()).get("job")  # of the newest attempt
        return [
            path
            for launch, _ in current([planned], all_launches(made.runs))
            for pattern in (f"jobs/{job or '*'}_*_log.out", f"cells/{planned.run_id}.*log")
            for path in launch.path.glob(pattern)
        ]

    def leftovers(self, runs: Path) -> dict[Path, list[Path]]:
        """Where SLURM cannot be asked, none; nor those of another cluster than the one that answers here."""
        launches = all_launches(runs)
        try:
            jobs = commands.my_jobs() if launches else []
            here = commands.settings().get("ClusterName") if launches else None
        except SlurmError:
            return {}
        found = {}
        for launch in launches:
            folders = [launch.path / name for name in ("code", "jobs") if (launch.path / name).exists()]
            rounds = launch.rounds()
            has_ended = bool(rounds) and all(each.released and each.slurm in (here, None) for each in rounds)
            if folders and has_ended and not jobs_of(launch, jobs):
                found[launch.path] = folders
        return found


def jobs_of(launch: Launch, jobs: Sequence[Job]) -> list[Job]:
    """Those of the user's jobs that are this launch's: by name, since ids are used again."""
    return [job for job in jobs if job.name in (launch.id, launch.id + FOLLOW_UP)]


def _summary(launch: Launch, jobs: Sequence[Job]) -> str:
    """What a launch's jobs do, for the cells that none of them trains yet."""
    mine = [job for job in jobs if job.name == launch.id]
    if not mine:
        return "follow-up waits" if jobs_of(launch, jobs) else ""
    counts = Counter(job.state.lower() for job in mine)
    reasons = sorted({job.reason for job in mine if job.is_pending and job.reason not in ("None", "")})
    text = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    return f"queued: {text}" + (f" ({', '.join(reasons)})" if reasons else "")


def _problems(launch: Launch, jobs: Sequence[Job] | None) -> list[str]:
    """What the jobs of a launch complained of, and those that SLURM holds back."""
    found = []
    mine = jobs_of(launch, jobs or ())
    for job in mine:
        if job.is_held:
            found.append(f"job {job.id} is held ({job.reason}): scontrol release {job.id}")
        if job.reason in IMPOSSIBLE:
            found.append(
                f"job {job.id} waits for ever ({job.reason}): no node has what the profile asks for (cpus_per_task,"
                f" memory, gpus_per_task, nodes, time_limit): `cancel`, change it, `launch`"
                f"  [{launch.cluster.document.path}]"
            )
    tasks = launch.tasks()
    for name, task in tasks.items():
        found += [f"job {name}: {text}" for text in (task.problem, task.warning) if text]
    if launch.is_cancelled():
        return []
    submitted = any(content.released and content.jobs for content in launch.rounds())
    if jobs is not None and submitted and not tasks and not mine:
        found.append(
            f"{launch.id}: its jobs ended without a report: `setup` failed, or the nodes do not see {launch.path}."
            " `logs --cell 1` shows what they printed, `cluster check` what works"
        )
    refused = [content.refused for content in launch.rounds() if content.refused]
    return [*found, *(f"{launch.id}: sbatch refused: {text}" for text in refused[-1:])]
