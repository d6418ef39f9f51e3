"""A word to the user from inside a job: `notify:` of the profile, a command that gets a summary on its standard input.

Each event is told once a launch, whichever of its jobs sees it first: a file of its own, created exclusively, decides.
This module imports no torch.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter

from experiments.runs.folder import RunFolder
from experiments.runs.states import State
from experiments.slurm.job.task import say
from experiments.slurm.launch import Launch

SECONDS = 60.0  # that the command may take
ENDED, FIRST_FAILURE, STANDS_STILL = "ended", "first failure", "nothing moves"


def notify(launch: Launch, event: str, what: str = "") -> None:
    """Tell the user of an event, unless that was done. Never raises: the work goes on whatever the command does."""
    command = launch.cluster.profile.notify
    if command is None:
        return
    # What stands still again on another day is news.
    mark = event + (time.strftime("-%Y-%m-%d") if event == STANDS_STILL else "")
    try:
        (launch.path / "notified").mkdir(exist_ok=True)
        (launch.path / "notified" / mark.replace(" ", "-")).touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError as error:  # who cannot be kept from telling twice does not tell
        return say(f"notify: {event}: {error}")
    variables = os.environ | {"ABLATION_EVENT": event, "ABLATION_LAUNCH": launch.id}
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            input=summary(launch, event, what),
            env=variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        how = f"exit code {done.returncode}: {done.stderr.strip()}" if done.returncode else "told"
    except (OSError, subprocess.TimeoutExpired) as error:
        how = str(error)
    say(f"notify: {event}: {how}")


def notify_if_ended(launch: Launch) -> None:
    """Tell the user that nothing is left to do, if so."""
    if launch.cluster.profile.notify is not None and not launch.missing():
        notify(launch, ENDED)


def summary(launch: Launch, event: str, what: str = "") -> str:
    """What the command gets: the launch and the event, how its cells stand, and why some failed."""
    states = Counter[State]()
    reasons = Counter[str]()
    for cell in launch.cells:
        run_id = cell.planned.run_id
        try:
            states[RunFolder(launch.runs, run_id).status().state] += 1
            if launch.has_given_up(run_id):
                reasons[launch.failures(run_id)[-1].reason] += 1
        except OSError:
            states[State.UNREADABLE] += 1
    lines = [f"{launch.id}: {event}" + (f": {what}" if what else "")]
    lines += [", ".join(f"{number} {state}" for state, number in sorted(states.items())) + f", in {launch.runs}"]
    lines += [f"failed: {number}: {reason}" for reason, number in reasons.most_common(5)]
    return "\n".join(lines) + "\n"
