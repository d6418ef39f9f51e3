"""The cores that a process may use, and what it notices of others on them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simsiam.machine import num_cores, quota, waited_seconds
from tests.conftest import ROOT

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def printed(code: str) -> str:
    """What a fresh process prints that is bound to one core."""
    code = f"import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_a_bound_process_has_the_cores_it_is_bound_to() -> None:
    assert printed("from simsiam.machine import num_cores\nprint(num_cores())") == "1\n"


@pytest.mark.parametrize(("granted", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (1000.0, 8), (math.inf, 8)])
def test_cores_are_no_more_than_is_granted(monkeypatch: pytest.MonkeyPatch, granted: float, cores: int) -> None:
    monkeypatch.setattr("simsiam.machine.quota", lambda: granted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert num_cores() == cores


def group(root: Path, path: str, **files: str) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / path / name.replace("__", ".")).write_text(text + "\n")


def test_the_smallest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    """Files as the kernel's documentation of control groups describes them, version 2 and version 1."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    group(tmp_path, "proc", cgroup="0::/user/job")
    group(root, "user/job", cpu__max="max 100000")
    assert quota(proc, root) == math.inf
    group(root, "user", cpu__max="150000 100000")
    assert quota(proc, root) == 1.5
    group(root, "user/job", cpu__max="200000 50000")
    assert quota(proc, root) == 1.5
    group(tmp_path, "proc", cgroup="0::/../../seen/from/outside")
    assert quota(proc, root) == math.inf
    group(root, ".", cpu__max="300000 100000")
    assert quota(proc, root) == 3
    first = tmp_path / "first"
    group(tmp_path, "proc", cgroup="5:memory:/a\n4:cpu,cpuacct:/docker/0123\n0::/")
    group(first, "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert quota(proc, first) == math.inf
    group(first, "cpu,cpuacct/docker/0123", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert quota(proc, first) == 0.5
    assert quota(tmp_path / "no-linux", root) == math.inf


@linux
def test_waiting_is_what_is_not_run() -> None:
    """Two threads that are always ready, on one core: of each second one of them waits, whoever else is there."""
    code = (
        "import threading, time\nfrom simsiam.machine import waited_seconds\n"
        "end = time.monotonic() + 0.7\n"
        "data = bytes(2**22)\n"
        "import hashlib\n"
        "def work():\n    while time.monotonic() < end: hashlib.sha256(data)\n"  # without the interpreter's lock
        "threads = [threading.Thread(target=work) for _ in range(2)]\n"
        "before = waited_seconds()\n"
        "[thread.start() for thread in threads]\ntime.sleep(0.6)\nprint(waited_seconds() - before)\n"
    )
    assert float(printed(code)) > 0.4
    before = waited_seconds()
    time.sleep(0.2)
    assert waited_seconds() - before < 0.1, "who sleeps does not wait for a core"


CROWDED = """
import os, torch, time
from simsiam.machine import CoreWatch
torch.set_num_threads(2)
x = torch.ones(2**17)
watch = CoreWatch()
time.sleep(0.3)
print(watch.are_shared())
end = time.monotonic() + 0.5
while time.monotonic() < end: x.mul_(1)  # two threads on one core
print(watch.are_shared())
"""


@linux
def test_a_watch_notices_that_cores_are_shared() -> None:
    assert printed(CROWDED).split() == ["False", "True"]


@linux
def test_a_core_that_is_used_is_not_idle() -> None:
    busy = subprocess.Popen(
        [sys.executable, "-c", "import time\nend = time.time() + 20\nwhile time.time() < end: pass"]
    )
    try:
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(busy.pid, {core})
        time.sleep(0.2)
        idle = float(printed("from simsiam.machine import idle_cores\nprint(idle_cores(0.3))"))
    finally:
        busy.kill()
        busy.wait()
    assert idle < 0.2
