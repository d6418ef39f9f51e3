"""Faults of what surrounds a run (a full disk, a quota, a network file system that is away), which are not the run's.

Who meets one waits and tries again: it passes, or somebody mends it. This module imports no torch.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from experiments.runs.folder import StoreError

FAULTS = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EIO", "ESTALE", "EACCES", "EPERM", "EROFS", "ENXIO", "ENODEV", "ENOTCONN", "ETIMEDOUT",
        "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNREFUSED", "ECONNRESET",
        "ECONNABORTED", "ESHUTDOWN", "EREMOTEIO", "ENOLINK", "ECOMM", "EAGAIN", "EBUSY", "ENOLCK",
    )
    if hasattr(errno, name)
)  # fmt: skip
FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds

T = TypeVar("T")


def surrounding_fault(error: BaseException) -> OSError | None:
    """The system's error behind an exception, if it is one of the surroundings; also under one that was made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FAULTS:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def waits() -> Iterator[float]:
    """Seconds to wait before each further try."""
    seconds = FIRST_WAIT
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST_WAIT)


def patiently(do: Callable[[], T], tell: Callable[[str], None], *, seconds: float, stopped: Callable[[], bool]) -> T:
    """What ``do`` returns, once the surroundings let it. Their fault is raised after ``seconds`` or if stopped."""
    deadline = time.monotonic() + seconds
    for wait in waits():
        try:
            return do()
        except (OSError, StoreError) as error:
            if surrounding_fault(error) is None or time.monotonic() + wait > deadline:
                raise
            tell(f"{error}; trying again in {wait:.0f} s")
            until = time.monotonic() + wait
            while time.monotonic() < until:
                if stopped():
                    raise
                time.sleep(min(1.0, wait))
    raise AssertionError("waits() has no end")
