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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from experiments.launcher import Tell
from experiments.runs import slurm_environment
from experiments.runs.folder import is_process_alive
from experiments.slurm import commands
from experiments.slurm.commands import Job, SlurmError
from experiments.slurm.container import start
from experiments.slurm.job.first_task import work
from experiments.slurm.launch import Launch, LaunchCell, Round, all_launches
from experiments.slurm.queue import FOLLOW_UP, jobs_of
from experiments.slurm.refusals import explained, is_limit, message_of

COME_BACK_MINUTES = 10  # after which a follow-up that can do nothing now looks again
MAX_RESTARTS = 1000  # of a follow-up that cannot even start: a week

FollowUp = Callable[[str], None]  # what the follow-up's job does with the launch's folder


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc, unused-ignore]
    @classmethod
    def affinity(cls) -> int:
        return 2  # a dry run writes the script without SLURM; sbatch itself says when it is missing


def submit_round(
    launch: Launch, cells: Sequence[LaunchCell], tell: Tell, *, follow_up: FollowUp | None, in_minutes: int = 0
) -> str:
    """Submit workers for some cells of a launch, to start in some minutes, and a follow-up if there is to be one.

    Returns a note for the user, empty if all went in.

    Raises SlurmError if SLURM refuses, with the line of the profile that it is about; then nothing of this round is
    left in the queue.
    """
    with launch.lock(tell):
        return _submit_round(launch, cells, follow_up, in_minutes)


def _submit_round(launch: Launch, cells: Sequence[LaunchCell], follow_up: FollowUp | None, in_minutes: int) -> str:
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
        total = num_tasks(launch, cells)
        tasks: list[str] = []  # that are in the queue
        refused = ""
        for indices, executor in planned:
            options = dict(executor.parameters["additional_parameters"])
            if content.number > 1:  # what the first round had to wait for has come
                options = {name: value for name, value in options.items() if name != "dependency"}
            if in_minutes:
                options["begin"] = f"now+{in_minutes}minutes"
            executor.update_parameters(additional_parameters=options)
            taken = len(indices)
            while True:
                try:
                    job = _submit(executor, indices[:taken], total, launch)
                    break
                except FailedJobError as error:
                    if not is_limit(error) or (taken == 1 and not tasks):
                        raise
                    refused, taken = message_of(error), taken // 2
                if not taken:
                    break
            if taken:
                tasks += [f"{job}_{index}" for index in range(taken)]
                write(jobs=(*content.jobs, job))
                _refuse_if_cancelled(launch, content)
            if refused:
                break
        if follow_up is not None:
            try:
                try:
                    follow_up_job = _submit_follow_up(launch, follow_up, content.jobs)
                except FailedJobError as error:
                    if not is_limit(error) or taken < 2:
                        raise
                    commands.scancel([tasks.pop()])  # its cell falls to another, and the follow-up has its place
                    follow_up_job = _submit_follow_up(launch, follow_up, content.jobs)
                content = content.model_copy(update={"follow_up": follow_up_job})
            except FailedJobError as error:
                note = f"the follow-up job was refused ({message_of(error)}): `launch` again when the jobs have ended"
        if len(tasks) < total:
            note = "; ".join(text for text in (_rest(launch, len(tasks), total, refused, content), note) if text)
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
    except KeyboardInterrupt:
        if content.number == 1:
            launch.mark_cancelled("interrupted by its user while it was submitted")
        clear_half_rounds(launch, commands.my_jobs())
        raise KeyboardInterrupt(f"{launch.id} was being submitted; its jobs are cancelled, none has run") from None
    _refuse_if_cancelled(launch, content)
    return "; ".join(text for text in (note, _release(launch, write(complete=True))) if text)


def submit_look(launch: Launch, minutes: int, tell: Tell, follow_up: FollowUp) -> None:
    """Submit a follow-up alone, which looks at the cells after some time. Raises SlurmError if SLURM refuses."""
    with launch.lock(tell):
        content = _begin_round(launch)
        try:
            job = _submit_follow_up(launch, follow_up, [], begin=f"now+{minutes}minutes")
        except (FailedJobError, FailedSubmissionError) as error:
            raise explained(message_of(error), launch.cluster) from None
        content = content.model_copy(update={"follow_up": job, "complete": True, "released": True})
        launch.write_round(content)
        _refuse_if_cancelled(launch, content)


def _rest(launch: Launch, queued: int, total: int, refused: str, content: Round) -> str:
    """What becomes of the tasks that are not in the queue, and which key has made them so many."""
    per_task = launch.cluster.profile.cells_per_task
    key = "array_parallelism" if per_task is None else "cells_per_task"
    why = f"SLURM takes no more jobs of yours now ({refused})" if refused else "arrays have at most MaxArraySize tasks"
    if per_task is None:
        then = "they take up all cells"
    elif content.follow_up is not None:
        then = "the follow-up submits the rest when they have ended"
    else:
        then = "`launch` again, when they have ended, submits the rest"
    return f"{why}: {queued} of {total} tasks are in the queue, and {then}  [{launch.cluster.at(key)}]"


def _refuse_if_cancelled(launch: Launch, content: Round) -> None:
    """Raises SlurmError if the launch has been cancelled while it is submitted; then nothing of the round is left."""
    if launch.is_cancelled():
        commands.scancel(content.job_ids)
        launch.write_round(content.model_copy(update={"complete": True, "released": True}))
        raise SlurmError(f"{launch.id} was cancelled while it was submitted: none of its jobs has run")


def _begin_round(launch: Launch) -> Round:
    """The record of a new round, before anything is asked of SLURM; what an interrupted one left is cleared first."""
    rounds = launch.rounds()
    if any(not content.complete for content in rounds):
        clear_half_rounds(launch, commands.my_jobs())
    number = max((content.number for content in rounds), default=0)
    was_refused = bool(rounds) and bool(rounds[-1].refused) and not rounds[-1].jobs
    content = Round(number=number if was_refused else number + 1)
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
        except KeyboardInterrupt:
            text = f"{launch.id} is submitted, but some of its jobs are held: `launch` again lets them start"
            raise KeyboardInterrupt(text) from None
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
    """The arrays of a round, each with its tasks' numbers, of at most ``limit`` (MaxArraySize) tasks.

    SLURM's limit on jobs at the same time holds for each array: so they share the profile's ``array_parallelism``, and
    the tasks in proportion. What does not fit into so many arrays is left to the next round.
    """
    total, most = num_tasks(launch, cells), launch.cluster.profile.array_parallelism
    number = min(math.ceil(total / limit), most)
    shares = [most // number + (index < most % number) for index in range(number)]
    sizes = [min(limit, total * share // most) for share in shares]
    for index in range(number):
        sizes[index] += min(limit - sizes[index], total - sum(sizes))
    first = 0
    for size, share in zip(sizes, shares, strict=True):
        yield range(first, first + size), _workers(launch, launch.cluster.profile.ranks, share)
        first += size


def num_tasks(launch: Launch, cells: Sequence[LaunchCell]) -> int:
    """Tasks, each a job's, that a round is to have."""
    profile = launch.cluster.profile
    if profile.cells_per_task is not None:
        return math.ceil(len(cells) / profile.cells_per_task)
    return min(profile.array_parallelism, math.ceil(len(cells) / profile.cells_at_once))


def _workers(launch: Launch, ranks: int, at_once: int = 1) -> submitit.SlurmExecutor:
    profile = launch.cluster.profile
    starting = start(profile, launch.path, launch.folders if profile.container else ())
    executor = _executor(launch, starting.command)
    executor.update_parameters(
        job_name=launch.id,
        nodes=profile.nodes,
        ntasks_per_node=ranks // profile.nodes,
        cpus_per_task=profile.cpus_per_task,
        time=profile.time_limit,
        array_parallelism=at_once,
        signal_delay_s=profile.grace,
        # srun does not inherit --cpus-per-task from 22.05 to 23.11.
        srun_args=[
            *(f"--cpus-per-task={profile.cpus_per_task}", "--kill-on-bad-exit=1"),
            *(*starting.srun_options, *profile.srun_options),
        ],
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


def _submit_follow_up(launch: Launch, follow_up: FollowUp, jobs: Sequence[str], **when: str) -> str:
    when = when or {"dependency": f"afterany:{':'.join(jobs)}"}
    profile = launch.cluster.profile
    # It calls SLURM's commands, so it stays outside of a container.
    outside = profile.model_copy(update={"container": None, "python": None if profile.container else profile.python})
    executor = _executor(launch, start(outside, launch.path, ()).command)
    executor.update_parameters(
        job_name=launch.id + FOLLOW_UP,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=1,
        time=15,
        use_srun=False,  # a job step may not submit jobs everywhere
        additional_parameters={
            "requeue": True,
            "chdir": launch.path,
            "output": "/dev/null",  # a log that cannot be opened would end the job
            **when,
            **_flags(profile.follow_up_options),
        },
        setup=[*_coming_back(launch), *executor.parameters["setup"]],
        **_given(partition=profile.partition, account=profile.account, qos=profile.qos),
    )
    with _clean_environment():
        return str(executor.submit(follow_up, str(launch.path)).job_id)


def _coming_back(launch: Launch) -> list[str]:
    """Shell lines of a follow-up: a node that can start nothing of ours, not even a log, does not end the launch."""
    logs = shlex.quote(str(launch.path / "jobs"))
    return [
        f'exec >>{logs}/"${{SLURM_JOB_ID}}_0_log.out" 2>&1 || true',
        "come_back() {",
        f'  [ $? -ne 0 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ] || exit',
        "  sleep 5; scontrol requeue $SLURM_JOB_ID",
        f"  scontrol update JobId=$SLURM_JOB_ID StartTime=now+{COME_BACK_MINUTES}minutes; sleep 600",
        "}",
        "trap come_back EXIT",
    ]


def _executor(launch: Launch, python: str) -> submitit.SlurmExecutor:
    executor = _Executor(launch.path / "jobs", python=python)
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
    """Adopt or cancel what this user's launchers left that died while they submitted. Returns what was done."""
    notes = []
    for launch in all_launches(runs):
        if launch.is_cancelled() or not launch.is_mine:
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
