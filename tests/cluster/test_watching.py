"""What a user sees of jobs that run: `status --watch`, `logs --follow`, `cluster check`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.grid import CELL, Grid, Slurm
from tests.conftest import ROOT

SLOW = [*CELL, "--set", "epochs=12"]


def watched(slurm: Slurm, place: Path) -> tuple[str, str]:
    """What the two commands printed, while a grid was trained from its beginning to its end."""
    grid = Grid(slurm, place, options=SLOW, profile={"constraint": "f8"}, sleep=0.4)
    grid.launch()
    command = [sys.executable, str(ROOT / "run_ablation.py")]
    arguments = [grid.study, *SLOW]
    environment = grid.environment() | {"COLUMNS": "240"}

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell that starts the tests in the background has them ignore Ctrl-C, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    watching, following = start("status", *arguments, "--watch"), start("logs", *arguments, "--cell", "1", "--follow")
    status = watching.communicate(timeout=400)[0]  # ends by itself
    assert watching.returncode == 0, status
    assert grid.is_done()
    time.sleep(5)  # two looks of the log
    following.send_signal(signal.SIGINT)
    return status, following.communicate(timeout=30)[0]


@pytest.fixture(scope="module")
def looks(slurm: Slurm, folder: Path) -> Iterator[dict[str, Future[tuple[str, str]]]]:
    def check() -> tuple[str, str]:
        profile = {"constraint": "f9", "options": {"exclusive": True}}
        grid = Grid(slurm, folder / "check", profile=profile)
        done = grid.command("cluster", "check", "cluster.yaml")
        return done.stdout, done.stderr

    with ThreadPoolExecutor(2) as threads:
        yield {
            "watched": threads.submit(watched, slurm, folder / "watched"),
            "check": threads.submit(check),
        }


def test_status_looks_again_until_all_is_done(looks: dict[str, Future[tuple[str, str]]]) -> None:
    status, _ = looks["watched"].result()
    looked = re.split(r"\n\d\d:\d\d:\d\d\n", status)
    assert len(looked) >= 2, status
    assert re.search(r"\b(running|pending|not started|queued)\b", looked[0]), looked[0]
    assert "2 done" in looked[-1], looked[-1]
    epochs = [float(found) for look in looked for found in re.findall(r"(\d+\.\d)/12", look)]
    assert max(epochs) == 12


def test_logs_are_followed(looks: dict[str, Future[tuple[str, str]]]) -> None:
    _, log = looks["watched"].result()
    assert "Traceback" not in log
    assert re.search(r"with stop-gradient s0 .*: started", log), log
    assert re.search(r"with stop-gradient s0: done", log), log


def test_cluster_check_tells_how_jobs_end(looks: dict[str, Future[tuple[str, str]]]) -> None:
    output, errors = looks["check"].result()
    assert errors == ""
    for expected in (
        "JobRequeue 1", "KillWait 5", "MaxArraySize 1001", "GraceTime=5|GraceTime 5", "node: n9", "cpus: [12]",
        r"torch seconds: \d", "shared folder: written and seen from both sides", r"SIGUSR2 after \d+ s, \d+ s before",
    ):  # fmt: skip
        assert re.search(expected, output), f"{expected}\n{output}"
