"""The machine that this process runs on: which it is, its cores, and whether others use them. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from functools import cache
from pathlib import Path

SHARED = 0.3  # seconds a second that threads of a process wait for a core, from which on others use its cores


@cache
def machine_identity() -> str:
    """This host since its last boot; on a system that is not Linux, its name alone."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return " ".join(parts)


def num_cores() -> int:
    """The cores that this process may use: those it is bound to, or what its control groups grant, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota())))


def quota(proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that the control groups of this process grant it, in seconds of CPU time a second; infinite without limit.

    Of its group and all above it the smallest counts. Knows both versions of control groups; inside a container, where
    the path of the group is that of the host, the container's own group is the root.
    """
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    granted = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root
        elif "cpu" in controllers.split(","):
            mount = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / "cpu")
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            granted = min(granted, _granted(folder))
    return granted


def _granted(folder: Path) -> float:
    with contextlib.suppress(OSError):
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError):
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if microseconds < 0 else microseconds / int((folder / "cpu.cfs_period_us").read_text())
    return math.inf


def waited_seconds() -> float:
    """How long threads of this process have been ready to run while their cores were busy; 0 if not on Linux."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that ended just now
            total += int(path.read_text().split()[1])
    return total / 1e9


class CoreWatch:
    """Notices that others use this process's cores, by how long its threads waited for one since the last look."""

    def __init__(self) -> None:
        self._waited, self._looked = waited_seconds(), time.monotonic()

    def are_shared(self) -> bool:
        """Whether its threads waited for more than :data:`SHARED` of the time since the last call."""
        before, last = self._waited, self._looked
        self._waited, self._looked = waited_seconds(), time.monotonic()
        return self._waited - before > SHARED * max(self._looked - last, 1e-3)


def idle_cores(seconds: float = 0.2) -> float:
    """How many of this process's cores nobody uses, over a moment; all of them where the system does not say."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    shares = [
        (after[core][0] - idle) / (after[core][1] - total)
        for core, (idle, total) in before.items()
        if core in after and after[core][1] > total
    ]
    return min(sum(shares), num_cores()) if shares else float(num_cores())


def _ticks() -> dict[int, tuple[int, int]]:
    """Of each core that this process may use: its idle time, and all of its time, in ticks since the start."""
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:  # not Linux
        return {}
    mine = os.sched_getaffinity(0)
    of_cores = {row[0].removeprefix("cpu"): [int(number) for number in row[1:9]] for row in rows if row[0] != "intr"}
    counts = {int(core): count for core, count in of_cores.items() if core.isdigit()}
    return {core: (count[3] + count[4], sum(count)) for core, count in counts.items() if core in mine}
