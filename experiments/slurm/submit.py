"""Cells fanned out over SLURM jobs, through submitit: how jobs are submitted, and what is left of a broken submission.

Every submission is a *round* of a launch: arrays of workers that pull cells from the launch's frozen list, and a small
follow-up job that waits for them and starts another round for what they left undone. Jobs are submitted held, recorded
durably, then released: a launcher that dies in between leaves nothing running that nobody knows of.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from experiments.runs import slurm_environment
from experiments.runs.folder import Heartbeats, RunFolder, is_process_alive
from experiments.runs.states import State
from experiments.slurm import commands
from experiments.slurm.commands import Job, SlurmError
from experiments.slurm.first_task import SEARCH_SECONDS, work
from experiments.slurm.launch import Launch, LaunchCell, Round, all_launches
from experiments.slurm.queue import FOLLOW_UP, jobs_of
from experiments.slurm.refusals import explained, is_limit, message_of
from experiments.slurm.task import say

RETRIES, RETRY_SECONDS = 8, 60.0  # of the follow-up, when SLURM does not take its jobs
MAX_IDLE_ROUNDS = 3  # rounds of a launch in which no cell made a step, before the follow-up stops
LOOKS_FOR_OWNERS = 5  # of the follow-up, SEARCH_SECONDS apart: heartbeats come as often
LOOK_AGAIN_MINUTES = 10  # after which a follow-up looks again, where others train all that is left


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc, unused-ignore]
    @classmethod
    def affinity(cls) -> int:
        return 2  # a dry run writes the script without SLURM; sbatch itself says when it is missing


def submit_round(launch: Launch, cells: Sequence[LaunchCell], *, with_follow_up: bool) -> str:
    """Submit workers for some cells of a launch. Returns a note for the user, empty if all went in.

    Raises SlurmError if SLURM refuses, with the line of the profile that it is about; then nothing of this round is
    left in the queue.
    """
    content = _begin_round(launch)
    note = ""

    def write(**changes: Any) -> Round:
        nonlocal content
        content = content.model_copy(update=changes)
        launch.write_round(content)
        return content

    try:
        of_cluster = commands.settings()
    except SlurmError as error:
        write(complete=True, released=True, refused=str(error))
        raise
    write(slurm=of_cluster.get("ClusterName"))
    limit = int(of_cluster.get("MaxArraySize", "1001"))
    try:
        planned = list(arrays(launch, cells, limit))
        for indices, executor in planned:
            try:
                job = _submit(executor, indices, planned[-1][0].stop, launch)
            except FailedJobError as error:
                if not (content.jobs and is_limit(error)):
                    raise
                note = f"SLURM takes no more jobs of yours now ({message_of(error)}); the others take up the cells"
                break
            write(jobs=(*content.jobs, job))
        if with_follow_up:
            try:
                follow_up_job = _submit_follow_up(launch, content.jobs)
                content = content.model_copy(update={"follow_up": follow_up_job})
            except FailedJobError as error:
                note = f"the follow-up job was refused ({message_of(error)}): `launch` again when the jobs have ended"
    except (FailedJobError, FailedSubmissionError) as error:
        # Whether SLURM has taken the jobs or not in these cases: whoever submits next cancels what it has.
        refusal = explained(message_of(error), launch.cluster)
        if commands.is_away(refusal) or not message_of(error):
            raise refusal from None
        commands.scancel(content.jobs)
        write(complete=True, released=True, refused=message_of(error))
        raise refusal from None
    except FileNotFoundError:
        raise SlurmError("sbatch: no such command: there is no SLURM here. `launch` needs a login node") from None
    return "; ".join(text for text in (note, _release(launch, write(complete=True))) if text)


def submit_look(launch: Launch, minutes: int) -> str:
    """Submit a follow-up alone, which looks at the cells after some time. Raises SlurmError if SLURM refuses."""
    content = _begin_round(launch)
    try:
        job = _submit_follow_up(launch, [], begin=f"now+{minutes}minutes")
    except (FailedJobError, FailedSubmissionError) as error:
        raise explained(message_of(error), launch.cluster) from None
    launch.write_round(content.model_copy(update={"follow_up": job, "complete": True, "released": True}))
    return "a follow-up is submitted"


def _begin_round(launch: Launch) -> Round:
    """The record of a new round, before anything is asked of SLURM; what an interrupted one left is cleared first."""
    rounds = launch.rounds()
    if any(not content.complete for content in rounds):
        clear_half_rounds(launch, commands.my_jobs())
    content = Round(number=max((content.number for content in rounds), default=0) + 1)
    launch.write_round(content)
    return content


def clear_half_rounds(launch: Launch, jobs: Sequence[Job]) -> int:
    """Cancel what an interrupted submission left in the queue: held jobs of the launch that no whole round records.

    Returns how many there were. Jobs that run, or that a whole round submitted, are left alone.
    """
    half = [content for content in launch.rounds() if not content.complete]
    recorded = {job for content in launch.rounds() if content.complete for job in content.job_ids}
    orphans = [
        job.id
        for job in jobs_of(launch, jobs)
        if job.is_pending and job.is_held and job.id.partition("_")[0] not in recorded
    ]
    commands.scancel(orphans)
    for content in half:
        launch.write_round(content.model_copy(update={"complete": True, "released": True}))
    return len(orphans)


def _release(launch: Launch, content: Round) -> str:
    """Let the jobs of a round start. Returns what SLURM has to say against it, empty if nothing."""
    complaints = []
    for job in content.jobs:
        try:
            commands.release(job)
        except SlurmError as error:
            if commands.is_away(error):
                raise SlurmError(f"{error}. The jobs are submitted, but held: `launch` again lets them start") from None
            complaints.append(str(error))  # it may start, but nothing there now can run it
    launch.write_round(content.model_copy(update={"released": True}))
    if not complaints:
        return ""
    path = launch.cluster.document.path
    return f"SLURM says of the jobs: {complaints[0]}. If they stay in the queue, they ask for too much  [{path}]"


def arrays(launch: Launch, cells: Sequence[LaunchCell], limit: int) -> Iterator[tuple[range, submitit.SlurmExecutor]]:
    """The arrays of a round, each with its tasks' numbers: cells of one shape share an array, up to MaxArraySize."""
    first = 0
    profile = launch.cluster.profile

    def shape(cell: LaunchCell) -> int:
        return cell.ranks

    for ranks, alike in groupby(sorted(cells, key=shape), key=shape):
        num_cells = len(list(alike))
        if profile.cells_per_task is not None:
            left = math.ceil(num_cells / profile.cells_per_task)
        else:
            left = min(profile.array_parallelism, math.ceil(num_cells / profile.cells_at_once))
        while left > 0:
            num_tasks = min(left, limit)
            yield range(first, first + num_tasks), _workers(launch, ranks)
            first, left = first + num_tasks, left - num_tasks


def _workers(launch: Launch, ranks: int) -> submitit.SlurmExecutor:
    profile = launch.cluster.profile
    executor = _executor(launch)
    executor.update_parameters(
        job_name=launch.id,
        nodes=profile.nodes,
        ntasks_per_node=ranks // profile.nodes,
        cpus_per_task=profile.cpus_per_task,
        time=profile.time_limit,
        array_parallelism=profile.array_parallelism,
        signal_delay_s=profile.grace,
        # srun does not inherit --cpus-per-task from 22.05 to 23.11.
        srun_args=[f"--cpus-per-task={profile.cpus_per_task}", "--kill-on-bad-exit=1"],
        additional_parameters={"hold": True, "requeue": True, "chdir": launch.path, **_flags(profile.options)},
        **_given(
            partition=profile.partition,
            account=profile.account,
            qos=profile.qos,
            constraint=profile.constraint,
            mem=profile.memory,
            gpus_per_node=profile.gpus_per_task * profile.tasks_per_node or None,
        ),
    )
    return executor


def submit_probe(
    launch: Launch, function: Callable[..., None], *arguments: str, tasks: int, minutes: int, warning: int
) -> str:
    """Submit a small job with what the profile asks for, to find something out. Raises SlurmError if refused."""
    profile = launch.cluster.profile
    executor = _workers(launch, profile.nodes)
    options = {name: value for name, value in executor.parameters["additional_parameters"].items() if name != "hold"}
    executor.update_parameters(
        nodes=1,
        ntasks_per_node=tasks,
        time=minutes,
        signal_delay_s=warning,
        additional_parameters=options,
        **_given(gpus_per_node=profile.gpus_per_task * tasks or None),
    )
    try:
        with _clean_environment():
            return str(executor.submit(function, *arguments).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise explained(message_of(error), launch.cluster) from None


def _submit_follow_up(launch: Launch, jobs: Sequence[str], **when: str) -> str:
    when = when or {"dependency": f"afterany:{':'.join(jobs)}"}
    profile = launch.cluster.profile
    executor = _executor(launch)
    executor.update_parameters(
        job_name=launch.id + FOLLOW_UP,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=1,
        time=15,
        use_srun=False,  # a job step may not submit jobs everywhere
        additional_parameters={"requeue": True, "chdir": launch.path, **when, **_flags(profile.follow_up_options)},
        **_given(partition=profile.partition, account=profile.account, qos=profile.qos),
    )
    with _clean_environment():
        return str(executor.submit(follow_up, str(launch.path)).job_id)


def _executor(launch: Launch) -> submitit.SlurmExecutor:
    # Until work() sees to them, TERM and USR2 must not kill the interpreter: a job that ends by itself while it is
    # being preempted is not queued again.
    guard = 'trap \'\' TERM USR2; exec "$0" "$@"'
    executor = _Executor(launch.path / "jobs", python=f"bash -c {shlex.quote(guard)} {shlex.quote(sys.executable)}")
    executor.update_parameters(
        stderr_to_stdout=True,
        wckey=None,
        setup=[
            "trap '' TERM USR2",
            *(line for command in launch.cluster.profile.setup for line in (command, _or_end(command))),
            f"export PYTHONPATH={shlex.quote(str(launch.path / 'code'))}${{PYTHONPATH:+:$PYTHONPATH}}",
        ],
    )
    return executor


def _or_end(command: str) -> str:
    """In the job's script, after a command of ``setup``: without what it sets up nothing after it can be trusted."""
    message = f"setup: this command failed, and the job ends: {command}"
    return f"[ $? -eq 0 ] || {{ echo {shlex.quote(message)}; exit 1; }}"


def _submit(executor: submitit.SlurmExecutor, indices: range, total: int, launch: Launch) -> str:
    """Submit an array; an array of one is a plain job. Returns its id without the number of a task."""
    with _clean_environment():
        jobs = executor.map_array(work, [str(launch.path)] * len(indices), indices, [total] * len(indices))
    return str(jobs[0].job_id).partition("_")[0]


def script(launch: Launch, cells: Sequence[LaunchCell]) -> str:
    """The sbatch script of the first array, for a dry run."""
    indices, executor = next(arrays(launch, cells, 1001))
    if len(indices) > 1:
        executor.parameters["map_count"] = len(indices)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return text


def _given(**parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _flags(options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    return {name.lstrip("-"): value for name, value in options.items() if value is not False}


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """submitit calls sbatch in this process's environment, which the job inherits."""
    before = dict(os.environ)
    clean = slurm_environment.without_job()
    for name in before.keys() - clean.keys():
        del os.environ[name]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what it prints is in its exception, too
            yield
    finally:
        os.environ.update(before)


# --- what sbatch says --------------------------------------------------------------------------------------------


# --- launches that are there already -----------------------------------------------------------------------------


def recover(runs: Path, jobs: Sequence[Job]) -> list[str]:
    """Adopt or cancel what a launcher left that died while it submitted. Returns what was done, for the user."""
    notes = []
    for launch in all_launches(runs):
        if launch.is_cancelled():
            continue
        for content in launch.rounds():
            if content.released:
                continue
            alive = is_process_alive(content.submitter)
            if alive is None and content.number > 1:  # by a follow-up, on a node: it lives as long as its job
                alive = any(job.name == launch.id + FOLLOW_UP and not job.is_pending for job in jobs)
            if alive is None:
                host = content.submitter.get("host")
                notes.append(f"{launch.id}: was being submitted on {host}; if that died, `cancel` it by --launch")
            elif not alive and content.complete:
                _release(launch, content)
                notes.append(f"{launch.id}: its launcher died before it released the jobs; released now")
            elif not alive:
                if content.number == 1:  # nothing of it has ever run
                    launch.mark_cancelled("its launcher died while it submitted")
                held = clear_half_rounds(launch, jobs)
                notes.append(f"{launch.id}: its launcher died while it submitted; {held} held job(s) of it cancelled")
    return notes


def follow_up(folder: str) -> None:
    """Start another round for the cells that are not done, unless the last rounds achieved nothing."""

    launch = Launch(Path(folder))
    if launch.is_cancelled():
        return
    missing, rounds = launch.missing(), launch.rounds()
    if missing and not (missing := _unattended(launch, missing)):
        say(f"all cells that are left are trained elsewhere: looking again in {LOOK_AGAIN_MINUTES} minutes")
        return _insistently(lambda: submit_look(launch, LOOK_AGAIN_MINUTES))
    total = sum(_steps(launch, cell) for cell in launch.cells)
    progress = [content.steps for content in rounds if content.steps is not None]
    say(f"{len(missing)} of {len(launch.cells)} cells are left")
    launch.write_round(rounds[-1].model_copy(update={"steps": total}))
    if not missing:
        return
    if len(progress) >= MAX_IDLE_ROUNDS and all(steps == total for steps in progress[-MAX_IDLE_ROUNDS:]):
        say(f"no cell made a step in {MAX_IDLE_ROUNDS} rounds: nothing is submitted any more")
        return
    _insistently(lambda: submit_round(launch, missing, with_follow_up=True))


def _insistently(submit: Callable[[], str]) -> None:
    for _ in range(RETRIES):
        try:
            return say(submit() or "submitted again")
        except SlurmError as error:
            say(f"cannot be submitted yet: {error}")
            time.sleep(RETRY_SECONDS)


def _unattended(launch: Launch, cells: list[LaunchCell]) -> list[LaunchCell]:
    """Those that nobody is seen to train, in another launch or by `run`, for as long as a look takes."""
    heartbeats, left = Heartbeats(), cells
    for look in range(LOOKS_FOR_OWNERS):
        time.sleep(SEARCH_SECONDS if look else 0)
        states = [(cell, RunFolder(launch.runs, cell.planned.run_id).status(heartbeats)) for cell in left]
        left = [cell for cell, status in states if not status.is_alive]
        if not any(status.state == State.RUNNING for _, status in states):
            break  # nobody to wait for
    return left


def _steps(launch: Launch, cell: LaunchCell) -> int:
    return int(RunFolder(launch.runs, cell.planned.run_id).status().detail.get("step", 0))
