"""The states of runs, and how an attempt to train one ends. This module imports no torch."""

from __future__ import annotations

import enum
from typing import NamedTuple


class _Word(str, enum.Enum):
    """A word that is written into files and shown to users as it is."""

    __str__ = str.__str__


class State(_Word):
    """The state of a run, as its folder shows it."""

    PENDING = "pending"  # never started
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # its process died, or lost another rank; it can be claimed again
    STOPPED = "stopped"  # as its user asked; it can be claimed again
    FAILED = "failed"  # with an exception; claimed again only on request
    DONE = "done"
    UNREADABLE = "unreadable"  # this user may not read the folder
    # What `status` finds in addition, of runs that seem to be running:
    STALLED = "stalled"  # the process lives, but has made no step for a while
    LOST = "lost"  # its job is gone


ENDED = (State.DONE, State.FAILED)  # nothing more happens to such a run by itself


class End(_Word):
    """How one attempt to train a run ended."""

    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    GIVEN_UP = "given up"  # failed: attempt after attempt made no progress
    ELSEWHERE = "elsewhere"  # not trained here: it is done already, or another process owns it
    INTERRUPTED = "interrupted"  # another rank is gone
    BLOCKED = "blocked"  # the surroundings are at fault (a full disk, a network that is away): to be tried again later
    CRASHED = "crashed"  # the process that trained it is gone


class CellResult(NamedTuple):
    """How an attempt ended, and why it did not end well; of a run that is done, that it collapsed or diverged."""

    state: End
    reason: str = ""
