"""The launcher for SLURM clusters: what `launch` does with a cluster's profile. Imports no torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.launcher import Launcher, Summary, Tell, missing
from experiments.plan import Plan, PlannedCell
from experiments.runs.code_changes import training_code
from experiments.runs.folder import Status, StoreError
from experiments.slurm import commands
from experiments.slurm import submit as slurm
from experiments.slurm.commands import Job, SlurmError
from experiments.slurm.job.follow_up import end_round, follow_up
from experiments.slurm.launch import Launch, LaunchCell, all_launches, create, current, one_at_a_time, shared_folders
from experiments.slurm.profile import Cluster, warnings
from experiments.slurm.queue import FOLLOW_UP, jobs_of
from simsiam.settings.checks import check_ranks

SUPERVISE_SECONDS = 60.0


@dataclass(frozen=True)
class SlurmLauncher(Launcher):
    """Submits cells as jobs that ask for what a profile says."""

    cluster: Cluster

    def check(self, made: Plan) -> None:
        self._check_ranks(made)
        commands.my_jobs()

    def submit(self, made: Plan, tell: Tell, *, command: str, supervised: bool = False) -> Summary:
        """A launch of what is missing; if it is not supervised, with a job that submits again what is lost."""
        for note in (*warnings(self.cluster), *_partition_warnings(self.cluster)):
            tell(f"warning: {note}")
        with one_at_a_time(made.runs, tell):  # so that no other `launch` takes the same cells to be missing
            for note in slurm.recover(made.runs, commands.my_jobs()):
                tell(note)
            jobs = commands.my_jobs()
            todo = self._missing(made, jobs, tell)
            for earlier, _ in current(made.unique(), all_launches(made.runs)):
                _hurry(earlier, jobs, tell)
            if not todo:
                return Summary()
            launch = create(made, [(planned, status.lease) for planned, status in todo], self.cluster, command=command)
            launch.cluster = self.cluster  # with the lines of its file, for messages
            is_followed = self.cluster.profile.follow_up and not supervised
            note = slurm.submit_round(launch, launch.cells, tell, follow_up=follow_up if is_followed else None)
        if note:
            tell(f"note: {note}")
        jobs_of_it = ", ".join(launch.rounds()[-1].jobs)
        return Summary([planned.run_id for planned, _ in todo], f"{launch.id}, job {jobs_of_it}")

    def preview(self, made: Plan, tell: Tell) -> list[PlannedCell]:
        """The script of the first array, and how the cells are spread; a machine without SLURM can show it, too."""
        self._check_ranks(made)
        profile = self.cluster.profile
        try:
            jobs, more, answers = commands.my_jobs(), _partition_warnings(self.cluster), True
        except SlurmError:
            jobs, more, answers = [], [], False
        todo = self._missing(made, jobs, tell)
        cells = [LaunchCell(planned, status.lease, profile.ranks) for planned, status in todo]
        for planned, status in todo:
            tell(f"{planned.label}  {planned.run_id}  {status.state}")
        if cells:
            with tempfile.TemporaryDirectory() as folder:
                launch = Launch(Path(folder) / "LAUNCH")
                launch.cluster, launch.folders = self.cluster, shared_folders(made.runs, made.data)
                text = slurm.script(launch, cells).replace(folder, str(made.runs / ".launches"))
                tasks = [len(indices) for indices, _ in slurm.arrays(launch, cells, 1001)]
            tell(f"\n{text}")
            if answers:
                tell(f"SLURM's estimate for the first of these jobs: {_expected_start(text)}.")
            tell(
                f"Tasks: {sum(tasks)}, in arrays: {len(tasks)}; cells at a time in each task: {profile.cells_at_once};"
                f" CPU threads of each: {profile.threads}."
            )
            for note in (*warnings(self.cluster), *more):
                tell(f"warning: {note}")
        return [planned for planned, _ in todo]

    def supervise(self, made: Plan, tell: Tell) -> bool:
        """New rounds of the launches that have lost their jobs, further apart while no cell makes a step."""
        while True:
            try:
                launches = [launch for launch, _ in current(made.unique(), all_launches(made.runs)) if launch.is_mine]
                left = {launch: launch.missing() for launch in launches if not launch.is_cancelled()}
                if not any(left.values()):
                    return True
                jobs = commands.my_jobs()
                for launch, cells in left.items():
                    if cells and not jobs_of(launch, jobs):
                        _, minutes = end_round(launch)
                        tell(f"{launch.id}: its jobs are gone; submitting again the cells that are left: {len(cells)}")
                        slurm.submit_round(launch, cells, tell, follow_up=None, in_minutes=minutes)
            except (SlurmError, StoreError, OSError) as error:
                tell(f"{error}; trying again")
            time.sleep(SUPERVISE_SECONDS)

    def _check_ranks(self, made: Plan) -> None:
        key = "tasks_per_node" if self.cluster.profile.tasks_per_node > 1 else "nodes"
        for planned in made.cells:
            check_ranks(planned.cell.settings, self.cluster.profile.ranks, f"{key}: {self.cluster.at(key)}")

    def _missing(self, made: Plan, jobs: Sequence[Job], tell: Tell) -> list[tuple[PlannedCell, Status]]:
        """What is to be submitted: not done, not trained elsewhere, and in no launch that still has jobs."""
        covered: dict[str, Launch] = {}
        for earlier, shared in current(made.unique(), all_launches(made.runs)):
            if not earlier.is_cancelled() and jobs_of(earlier, jobs):
                covered |= {run_id: earlier for run_id in shared if not earlier.has_given_up(run_id)}
        todo, queued, elsewhere = missing(made, covered)
        if queued:
            names = ", ".join(sorted({launch.id for launch in covered.values()}))
            tell(f"Cells left to {names}, which has jobs in the queue: {queued}.")
            if any(launch.cluster.profile != self.cluster.profile for launch in covered.values()):
                tell("Those were submitted with another profile than it is now: `cancel` first to submit them anew.")
            for launch in set(covered.values()):
                if (theirs := training_code(launch.path / "code")) != (ours := training_code()):
                    tell(f"{launch.id} runs other code ({theirs}) than this ({ours}): --runs keeps them apart.")
        if elsewhere:
            tell(f"Cells left to another process on this machine: {elsewhere}.")
        return todo


def _expected_start(script: str) -> str:
    try:
        return commands.expected_start(script)
    except SlurmError as error:
        return f"none: {error}"


def _hurry(launch: Launch, jobs: Sequence[Job], tell: Tell) -> None:
    """A follow-up that waits to look again, while nothing else of its launch is queued, looks now."""
    mine = [job for job in jobs_of(launch, jobs) if job.state != "COMPLETING"]
    if mine and all(job.name == launch.id + FOLLOW_UP and job.is_pending and job.reason == "BeginTime" for job in mine):
        for job in mine:
            commands.begin(job.id, "now")
            tell(f"{launch.id}: its follow-up was to look again at {job.start}; it looks now.")


def _partition_warnings(cluster: Cluster) -> list[str]:
    names = (cluster.profile.partition or "").split(",")
    return [note for name in names for note in _warnings_of(cluster, name)]


def _warnings_of(cluster: Cluster, partition: str) -> list[str]:
    profile = cluster.profile
    try:
        found = commands.partition(partition or None)
    except SlurmError:
        return []  # sbatch will say it, and about which line
    name, notes = found.get("PartitionName"), []
    grace = commands.seconds_from(found.get("GraceTime", ""))
    if found.get("PreemptMode", "OFF") != "OFF" and grace is not None and grace < profile.grace:
        notes.append(
            f"grace: partition {name} gives jobs {grace} s when it takes them away, not {profile.grace} s"
            f"  [{cluster.at('grace')}]"
        )
    if profile.follow_up and found.get("PreemptMode") == "CANCEL" and "partition" not in profile.follow_up_options:
        notes.append(
            f"follow_up: partition {name} cancels the jobs that it takes away, the follow-up too, if it is running"
            f" then: another partition for it in follow_up_options is safer  [{cluster.at('partition')}]"
        )
    return notes
