"""The follow-up of a launch: a small job that waits for the workers and starts another round for what they left undone.

Whatever stops it (a partition that is drained, a disk that is full, SLURM's controller that is away) it comes back
later, for as long as the launch is neither done nor cancelled: its own job is queued again, which needs no disk and no
permission to submit. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

from experiments.runs import slurm_environment
from experiments.runs.folder import Heartbeats, RunFolder, StoreError
from experiments.runs.states import State
from experiments.slurm import commands
from experiments.slurm.commands import SlurmError
from experiments.slurm.job.first_task import KILL_SECONDS, SEARCH_SECONDS
from experiments.slurm.job.notify import STANDS_STILL, notify, notify_if_ended
from experiments.slurm.job.task import say
from experiments.slurm.launch import Launch, LaunchCell
from experiments.slurm.submit import COME_BACK_MINUTES, submit_look, submit_round

TRIES = (15.0, 30.0, 60.0)  # seconds between tries, before it leaves its node and comes back
IDLE_MINUTES = (0, 1, 5, 20, 60)  # before the workers of a round start, by the rounds before in which no step was made
TOLD_AFTER = 2  # such rounds the user is told
LOOKS_FOR_OWNERS = 5  # SEARCH_SECONDS apart: heartbeats come as often


def follow_up(folder: str) -> None:
    """What the job runs: start another round for the cells that are left, now or later."""
    launch, reason = Launch(Path(folder)), ""
    for wait in (*TRIES, 0.0):
        try:
            return _once(launch)
        except (SlurmError, StoreError, OSError) as error:
            reason = str(error)
            say(f"cannot be submitted yet: {reason}")
            time.sleep(wait)
    notify(launch, STANDS_STILL, reason)
    come_back(launch, reason)


def _once(launch: Launch) -> None:
    if launch.is_cancelled():
        return say("the launch was cancelled")
    missing = launch.missing()
    if missing and not (missing := _unattended(launch, missing)):
        return come_back(launch, "all cells that are left are trained elsewhere")
    say(f"{len(missing)} of {len(launch.cells)} cells are left")
    notify_if_ended(launch)
    idle, minutes = end_round(launch)
    if missing:
        if minutes:
            say(f"no cell made a step in {idle} rounds: the next one starts in {minutes} min")
        if idle >= TOLD_AFTER:
            notify(launch, STANDS_STILL, f"no cell made a step in {idle} rounds")
        say(submit_round(launch, missing, say, follow_up=follow_up, in_minutes=minutes) or "submitted again")


def end_round(launch: Launch) -> tuple[int, int]:
    """Write down how far the cells have come. Returns rounds without a step so far, and the minutes to pause then."""
    total = sum(_steps(launch, cell) for cell in launch.cells)
    submitted = [content for content in launch.rounds() if content.jobs and not content.refused]
    if not submitted:
        return 0, 0
    *before, latest = submitted
    launch.write_round(latest.model_copy(update={"steps": total}))
    earlier = [content.steps for content in before if content.steps is not None]
    idle = next((number for number, steps in enumerate(reversed(earlier)) if steps != total), len(earlier))
    return idle, IDLE_MINUTES[min(idle, len(IDLE_MINUTES) - 1)]


def come_back(launch: Launch, reason: str) -> None:
    """Queue this job again, to be started in some minutes; it is then killed by SLURM. Returns if it is cancelled."""
    job = str(slurm_environment.job()["job"])
    say(f"{reason}: looking again in {COME_BACK_MINUTES} minutes")
    with contextlib.suppress(SlurmError):
        commands.comment(job, reason)
    # SLURM's request to end comes with the requeue, to all of the job: it must not end the command that says when.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while not _is_cancelled(launch):
        try:
            commands.requeue(job)
        except SlurmError as error:
            say(f"cannot be queued again yet: {error}")
        else:
            try:
                commands.begin(job, f"now+{COME_BACK_MINUTES}minutes")
            except SlurmError as error:
                say(f"looking again sooner: {error}")
            time.sleep(KILL_SECONDS)
        with contextlib.suppress(SlurmError, OSError):
            return submit_look(launch, COME_BACK_MINUTES, say, follow_up)  # a cluster where nothing is queued again
        time.sleep(60)


def _is_cancelled(launch: Launch) -> bool:
    try:
        return launch.is_cancelled()
    except OSError:
        return False


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
    with contextlib.suppress(OSError):
        return int(RunFolder(launch.runs, cell.planned.run_id).status().detail.get("step", 0))
    return 0
