"""SLURM's queue: what it says of the jobs of launches, and how they are cancelled. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.launcher import LaunchView, Queue, QueueView, Tell
from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import Json, RunFolder
from experiments.slurm import commands
from experiments.slurm.commands import Job, SlurmError
from experiments.slurm.launch import Launch, abandoned, all_launches, current, launch_folders

FOLLOW_UP = ".next"  # ends the name of the follow-up job
MOST_REASONS = 3  # that are shown of a launch
# Why SLURM keeps a job waiting that no node could ever run.
IMPOSSIBLE = ("BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit")


class SlurmQueue(Queue):
    """The jobs of all launches, whatever profile they were submitted with."""

    def look(self, made: Plan) -> QueueView:
        """One question to SLURM's controller, if anything was launched."""
        launches = [launch for launch, _ in current(made.unique(), all_launches(made.runs)) if launch.is_mine]
        if not launches:
            return QueueView()
        jobs: list[Job] | None = None
        here = None
        notes = []
        try:
            jobs, here = commands.my_jobs(), commands.cluster_name()
        except SlurmError as error:
            notes.append(f"SLURM is not asked here: {error}")
        waiting: dict[str, str] = {}
        for launch in launches:  # the newest first
            if summary := _summary(launch, jobs or ()):
                waiting = {**dict.fromkeys(launch.run_ids(), summary), **waiting}
            notes += _problems(launch, jobs)
        if jobs is None:
            return QueueView(None, waiting, notes)
        known = {job for launch in launches for job in launch.job_ids(here)}
        said = {job.id: f"{job.id} {job}" for job in jobs}

        def has_lost(owner: Json) -> bool:
            job = str(owner.get("job"))
            return job not in said and job.partition("_")[0] in known and owner.get("cluster") in ("", None, here)

        return QueueView(said, waiting, notes, has_lost)

    def cancel(self, made: Plan, tell: Tell) -> list[str]:
        """A launch that holds other cells, too, is cancelled only by its id."""
        jobs, cancelled = commands.my_jobs(), []
        for launch, shared in list(current(made.unique(), all_launches(made.runs))):
            has_ended = not jobs_of(launch, jobs) and (launch.is_cancelled() or not launch.missing())
            if launch.is_mine and not has_ended and not launch.run_ids() - shared:
                _cancel(launch, tell)
                cancelled.append(launch.id)
        return cancelled

    def cancel_launch(self, runs: Path, launch_id: str, tell: Tell) -> bool:
        """By the folder of runs, or by what SLURM knows of its jobs: then from anywhere."""
        places = [path for path in launch_folders(runs) if path.name == launch_id]
        if not places:
            jobs = commands.jobs_named([launch_id, launch_id + FOLLOW_UP])
            places = [Path(job.folder) for job in jobs[:1]]
        for path in places:
            _cancel(Launch(path), tell)
        return bool(places)

    def launches(self, runs: Path) -> list[LaunchView]:
        folders = launch_folders(runs)
        names = [name for path in folders for name in (path.name, path.name + FOLLOW_UP)]
        try:
            jobs: list[Job] | None = commands.jobs_named(names)
        except SlurmError:
            jobs = None
        return [_view(Launch(path), jobs) for path in folders]

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
        """This user's own. Where SLURM cannot be asked, none of a launch; nor of another cluster than answers here."""
        found = {path: [path] for path in abandoned(runs)}
        launches = [launch for launch in all_launches(runs) if launch.is_mine]
        try:
            jobs = commands.my_jobs() if launches else []
            here = commands.cluster_name() if launches else None
        except SlurmError:
            return found
        for launch in launches:
            folders = [launch.path / name for name in ("code", "jobs") if (launch.path / name).exists()]
            rounds = launch.rounds()
            has_ended = bool(rounds) and all(each.released and each.slurm in (here, None) for each in rounds)
            if folders and has_ended and not jobs_of(launch, jobs):
                found[launch.path] = folders
        return found


def _cancel(launch: Launch, tell: Tell) -> None:
    """The marker first, so that no job queues itself again and nothing that is being submitted now is released."""
    try:
        if launch.path.exists():  # else its folder was removed, and its jobs are still there
            launch.mark_cancelled("cancelled by its user")
    except OSError as error:
        # A full disk takes no marker; jobs that are cancelled are not queued again by themselves either.
        tell(f"{launch.id}: the mark that it is cancelled cannot be written ({error.strerror or error})")
    with launch.lock(tell):
        jobs = commands.jobs_named([launch.id, launch.id + FOLLOW_UP])
        commands.scancel([job.id for job in jobs])
    tell(f"{launch.id}: cancelled; jobs: {len(jobs)}")


def _view(launch: Launch, jobs: Sequence[Job] | None) -> LaunchView:
    import pwd  # not on Windows, from where nothing was launched

    details = launch.path.stat()
    mine = jobs_of(launch, jobs or ())
    try:
        owner = pwd.getpwuid(details.st_uid).pw_name
    except KeyError:  # known to another machine
        owner = str(details.st_uid)
    counts = Counter(job.state.lower() for job in mine)
    state = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    view = LaunchView(launch.id, owner, state or "-", None if jobs is None else len(mine), details.st_mtime)
    if not (os.access(launch.path / "spec.json", os.R_OK) and launch.is_readable()):
        what = "no launch: its launcher died" if details.st_uid == os.getuid() else "private"
        return replace(view, state=state or what, is_over=not mine)
    left = len(launch.missing())
    is_over = not mine and (launch.is_cancelled() or not left)
    if launch.is_cancelled():
        state = "cancelled"
    elif not state:
        state = "done" if not left else "SLURM does not answer" if jobs is None else "nothing is queued"
    spec = launch.spec
    return replace(view, state=state, studies=spec.studies, scale=spec.scale, left=left, is_over=is_over)


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


def _pauses(launch: Launch, mine: Sequence[Job]) -> list[str]:
    """What the jobs of a launch wait for, each reason once, and when its follow-up looks again."""
    reasons: dict[str, list[str]] = {}
    for job in mine:
        if job.name == launch.id and (waits := job.comment.removeprefix("waits: ") or launch.task(job.id).waits):
            reasons.setdefault(waits, []).append(job.id)
    found = [f"waits, and goes on by itself: {reason}  [job {', '.join(jobs)}]" for reason, jobs in reasons.items()]
    return found + [
        f"{launch.id}: its follow-up looks again at {job.start}: {job.comment}"
        for job in mine
        if job.name == launch.id + FOLLOW_UP and job.is_pending and job.comment
    ]


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
    found += _pauses(launch, mine)
    if launch.is_cancelled():
        return []
    tried = launch.tried_again().most_common(MOST_REASONS)
    found += [f"{launch.id}: attempts that ended, and are made again: {number}: {reason}" for reason, number in tried]
    submitted = any(content.released and content.jobs for content in launch.rounds())
    if jobs is not None and submitted and not tasks and not mine:
        found.append(
            f"{launch.id}: its jobs ended without a report: `setup` failed, or the nodes do not see {launch.path}."
            " `logs --cell 1` shows what they printed, `cluster check` what works"
        )
    refused = [content.refused for content in launch.rounds() if content.refused]
    return [*found, *(f"{launch.id}: sbatch refused: {text}" for text in refused[-1:])]
