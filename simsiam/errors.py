"""The errors that a user may meet, and the nearest name to a wrong one. Imports no torch."""

from __future__ import annotations

import difflib


class UserError(Exception):
    """What the person who called the program can mend: its message is for them, and is shown without a traceback."""


class DataError(UserError, RuntimeError):
    """The images cannot be had; the message is for the user: what, which path, and what to do next."""


class SettingsError(UserError, ValueError):
    """One or more settings are wrong; the message has a line for each: path, value, what is allowed, origin."""


def nearest(name: str, names: list[str]) -> str:
    """The end of an error message for a misspelt name: ``; did you mean 'x'?``, or nothing if no name is near."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not matches:  # 'learning_rate' or 'hidden_dim' without its section: compare the last part alone
        leaf = name.rpartition(".")[2]
        matches = [path for path in names if path.rpartition(".")[2] == leaf][:1]
    return f"; did you mean '{matches[0]}'?" if matches else ""


def nearest_or_some(name: str, names: list[str]) -> str:
    """:func:`nearest`, or where no name is near the first that there are: ``; there are 'a', 'b', 'c', and 4 more``."""
    some = [f"'{known}'" for known in names[:3]] + ([f"and {len(names) - 3} more"] if len(names) > 3 else [])
    return nearest(name, names) or f"; there are {', '.join(some)}"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used, and why."""
