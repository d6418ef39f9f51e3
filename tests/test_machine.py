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


def printed(code: str, **environment: str) -> str:
    """What a fresh process prints that is bound to one core."""
    code = f"import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
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
import resource, threading, time, torch
from simsiam import machine
machine.LOOK_SECONDS = 0.1
torch.set_num_threads(2)
x = torch.ones(2**17)
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: x.mul_(1)
with machine.CoreWatch() as watch:
    time.sleep(0.3)
    print(watch.are_shared)
    work(1)  # two threads on one core
    print(watch.are_shared)
    while watch.are_shared: time.sleep(0.1)
names = [thread.name for thread in threading.enumerate()]
print(names)
"""


@linux
def test_a_watch_notices_that_cores_are_shared_and_that_they_are_free_again() -> None:
    assert printed(CROWDED).splitlines() == ["False", "True", "['MainThread']"]


SPINNING = """
import contextlib, os, time, torch
from simsiam.machine import sleeping_at_once
torch.set_num_threads(2)
x = torch.ones(2**17)
tasks = lambda: len(os.listdir("/proc/self/task"))
def rest():
    x.mul_(1)
    before = time.process_time()
    time.sleep(0.5)
    return time.process_time() - before
x.mul_(1)
began = tasks()
with sleeping_at_once():
    asleep = rest()
while tasks() > began: time.sleep(0.01)
print(asleep, rest())
"""


@linux
def test_threads_spin_only_on_cores_of_their_own() -> None:
    """CPU time after an operation, in which the second thread waits for the next: half a second's wait, in spins."""
    code = SPINNING.replace("import contextlib", "os.sched_setaffinity(0, ALL)\nimport contextlib")
    # Bound to all cores before libgomp counts them: with one it would not spin at all.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000000000"}
    code = f"import os\nALL = {sorted(os.sched_getaffinity(0))}\n{code}"
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    asleep, spinning = map(float, printed(code, **environment).split())
    assert spinning > 3 * asleep  # on a busy machine the spin gets little of a core
