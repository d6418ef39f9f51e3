"""The machine's cores: how many this process may use, and what it does when others use them too."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
# Seconds a second that threads of this process waited for a core: above the first, others use its cores, below the
# second they do not.
SHARED, ALONE = 0.3, 0.1


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


class CoreWatch(threading.Thread):
    """Notices, within a ``with``, that others use this process's cores; while they do, threads sleep when they wait.

    On cores of their own, the threads of an operation are quickest if they spin for a moment when they wait for each
    other. On shared ones the spinning takes the core from the thread that is waited for. None of it changes a number.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="core-watch")
        self.are_shared = False
        self._stopped = threading.Event()

    def run(self) -> None:
        with contextlib.ExitStack() as sleepy:
            waited, now = waited_seconds(), time.monotonic()
            while not self._stopped.wait(LOOK_SECONDS):
                before, last = waited, now
                waited, now = waited_seconds(), time.monotonic()
                share = (waited - before) / (now - last)
                if not self.are_shared and share > SHARED:
                    self.are_shared = True
                    sleepy.enter_context(sleeping_at_once())
                elif self.are_shared and share < ALONE:
                    self.are_shared = False
                    sleepy.close()

    def __enter__(self) -> CoreWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()


@contextlib.contextmanager
def sleeping_at_once() -> Iterator[None]:
    """While in here, OpenMP threads of this process sleep as soon as they wait. Does nothing without GNU's OpenMP.

    GNU's OpenMP reads how long to spin (GOMP_SPINCOUNT) once, when it is loaded. But if OMP_WAIT_POLICY is passive, it
    does not spin while it has more threads than there are cores. So a thread holds a team of that many, which sleep.
    """
    program = ctypes.CDLL(None)
    if not hasattr(program, "GOMP_parallel"):
        yield
        return
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        nothing = ctypes.cast(program.free, ctypes.c_void_p)  # free(NULL) does nothing, in each thread of the team
        program.GOMP_parallel(nothing, None, ctypes.c_uint(len(os.sched_getaffinity(0)) + 1), ctypes.c_uint(0))
        held.set()
        let_go.wait()

    holder = threading.Thread(target=hold, daemon=True, name="spare-team")  # the team ends with the thread
    holder.start()
    held.wait()
    try:
        yield
    finally:
        let_go.set()
        holder.join()
