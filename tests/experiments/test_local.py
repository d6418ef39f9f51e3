"""The local launcher, through the command as a user calls it: processes that are killed, stopped, doubled."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simsiam.machine import num_cores
from simsiam.record import curves as metrics
from tests.conftest import ROOT, Command

# Cells that take a few seconds each: long enough to be caught in the middle.
CELL = ["--set", "data.num_train=640", "--set", "batch_size=32", "--set", "evaluation.bank_size=200"]
QUICK = ["stop-gradient", "--scale", "smoke", *CELL, "--set", "epochs=1"]
SLOW = ["stop-gradient", "--scale", "smoke", *CELL, "--set", "epochs=40", "-j", "2"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in a process group of its own, as a shell does."""
    started = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_ablation.py"), *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def states(command: Command, *arguments: str) -> list[dict[str, Any]]:
    options = list(arguments)
    if "-j" in options:
        at = options.index("-j")
        options[at : at + 2] = []
    done = command("status", *options, "--json")
    cells: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    return cells


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def curves(runs: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        folder.name: [{**point, "images_per_s": None} for point in metrics.merge(folder)]
        for folder in runs.iterdir()
        if (folder / "config.yaml").exists()
    }


def leases(runs: Path) -> list[int]:
    return sorted(len(list(folder.glob("lease.*"))) for folder in runs.iterdir() if (folder / "config.yaml").exists())


def children(pid: int, running: str) -> list[int]:
    """The processes that a process has started with these words in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and running in (path.parent / "cmdline").read_text():
                found.append(int(path.parent.name))
    return found


def running(runs: Path) -> bool:
    """Whether both cells are being trained, past a checkpoint."""
    found = list(runs.glob("*/metrics.*.jsonl"))
    return len({path.parent for path in found}) == 2 and all(len(path.read_text().splitlines()) > 8 for path in found)


def test_a_grid_ends_done_and_a_second_time_does_nothing(command: Command, tmp_path: Path) -> None:
    first = command("run", *QUICK, "--seeds", "2", "-j", "2")
    assert first.returncode == 0, first.stderr
    ended = {(cell["state"], cell["seed"]) for cell in states(command, *QUICK, "--seeds", "2")}
    assert ended == {("done", 0), ("done", 1)}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    second = command("run", *QUICK, "--seeds", "2", "-j", "2")
    assert second.returncode == 0
    assert "4 done" in second.stdout
    assert "to train" not in second.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert leases(tmp_path / "runs") == [1, 1, 1, 1]
    # What `status` without --seeds shows includes the seed that was run beyond the study's own.
    assert len(states(command, *QUICK)) == 4


def test_a_failing_cell_fails_alone_and_is_taken_up_on_request(command: Command, tmp_path: Path) -> None:
    plan = json.loads(command("plan", *QUICK, "--json").stdout)
    broken = tmp_path / "runs" / plan["cells"][0]["run"]
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("epochs: 99\n")
    run = command("run", *QUICK)
    assert run.returncode == 1
    assert "holds other settings" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert sorted(cell["state"] for cell in states(command, *QUICK)) == ["done", "pending"]
    (broken / "config.yaml").unlink()
    assert command("run", *QUICK).returncode == 0
    assert [cell["state"] for cell in states(command, *QUICK)] == ["done", "done"]


def test_a_failed_cell_waits_for_retry_failed(command: Command, tmp_path: Path) -> None:
    """A checkpoint that cannot be read, nor the one before: an exception inside the training."""
    plan = json.loads(command("plan", *QUICK, "--json").stdout)
    folder = tmp_path / "runs" / plan["cells"][0]["run"]
    (folder / "checkpoint.pt").mkdir(parents=True)
    (folder / "checkpoint.previous.pt").mkdir(parents=True)
    (folder / "checkpoint.previous.pt" / "not empty").touch()
    run = command("run", *QUICK)
    assert run.returncode == 1
    assert "failure.txt" in run.stderr
    assert "Traceback" in (folder / "failure.txt").read_text()
    again = command("run", *QUICK)
    assert again.returncode == 1
    assert "--retry-failed" in again.stderr
    assert [cell["state"] for cell in states(command, *QUICK)] == ["failed", "done"]
    shutil.rmtree(folder / "checkpoint.pt")
    shutil.rmtree(folder / "checkpoint.previous.pt")
    assert command("run", *QUICK, "--retry-failed").returncode == 0
    assert [cell["state"] for cell in states(command, *QUICK)] == ["done", "done"]
    assert not (folder / "failure.txt").exists()


def test_stopped_killed_and_taken_over_it_ends_as_undisturbed(
    command: Command, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    # Ctrl-C reaches the whole process group, as from a terminal.
    process = start("run", *SLOW)
    wait_for(lambda: running(runs))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "goes on from there" in output
    assert "Traceback" not in output
    assert {cell["state"] for cell in states(command, *SLOW)} == {"stopped"}
    # kill -9 of the launcher: its workers notice, write a checkpoint and end.
    process = start("run", *SLOW)
    wait_for(lambda: {cell["state"] for cell in states(command, *SLOW)} == {"running"})
    process.kill()
    wait_for(lambda: "running" not in {cell["state"] for cell in states(command, *SLOW)})
    # kill -9 of everything.
    process = start("run", *SLOW)
    wait_for(lambda: {cell["state"] for cell in states(command, *SLOW)} == {"running"})
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert {cell["state"] for cell in states(command, *SLOW)} <= {"interrupted", "stopped"}
    # kill -9 of one worker: the launcher gives its cell to another.
    process = start("run", *SLOW)
    wait_for(lambda: {cell["state"] for cell in states(command, *SLOW)} == {"running"})
    state = json.loads(next(iter(runs.glob("*/state.json"))).read_text())
    os.kill(state["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    whole = command("run", *SLOW, "--runs", "undisturbed")
    assert whole.returncode == 0, whole.stderr
    assert curves(runs) == curves(tmp_path / "undisturbed")
    assert max(leases(runs)) == 5


def test_two_launchers_of_one_grid_train_each_cell_once(
    command: Command, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    grid = ["stop-gradient", "--scale", "smoke", *CELL, "--set", "epochs=3", "--seeds", "3", "-j", "2"]
    both = [start("run", *grid) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert {cell["state"] for cell in states(command, *grid)} == {"done"}
    assert leases(tmp_path / "runs") == [1] * 6


def test_a_killed_launcher_s_cells_are_taken_over(
    command: Command, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = start("run", *SLOW)
    wait_for(lambda: running(tmp_path / "runs"))
    second = start("run", *SLOW)
    assert second.stdout is not None
    wait_for(lambda: "another process" in second.stdout.readline())
    os.killpg(first.pid, signal.SIGKILL)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert {cell["state"] for cell in states(command, *SLOW)} == {"done"}
    assert leases(tmp_path / "runs") == [2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_what_workers_are_forked_from_may_be_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """While it loads PyTorch, which is said; and later, when nobody needs it and no reason to be busy."""

    def seconds(pid: int) -> float:
        used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")

    process = start("run", *SLOW)
    wait_for(lambda: len(children(process.pid, "multiprocessing.forkserver")) == 1)
    os.kill(children(process.pid, "multiprocessing.forkserver")[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "what it is forked from was killed" in output
    assert "Traceback" not in output
    process = start("run", *SLOW)
    wait_for(lambda: running(tmp_path / "runs"))
    os.kill(children(process.pid, "multiprocessing.forkserver")[0], signal.SIGKILL)
    before = seconds(process.pid)
    time.sleep(2)
    assert seconds(process.pid) - before < 1
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert leases(tmp_path / "runs") == [1, 1]


def test_threads_of_the_first_start_are_kept(command: Command, tmp_path: Path) -> None:
    """Sums depend on the thread count, so resuming with another -j must not change it."""
    assert command("run", *QUICK, "-j", "1").returncode == 0
    for path in (tmp_path / "runs").glob("*/provenance.json"):
        content = json.loads(path.read_text())
        assert content["attempts"][0]["threads"] == num_cores()
        assert set(content["references"]) == {"raw_pixels", "raw_pixels_linear", "chance"}
        assert content["attempts"][0]["versions"]["torch"]


def test_a_run_that_diverges_is_done_and_says_so(command: Command, tmp_path: Path) -> None:
    """NaN is a result, through the whole of the launcher; neither a failure nor a crash."""
    options = [*QUICK, "--set", "loss.name=squared-distance", "--set", "optimizer.lr=1e30"]
    done = command("run", *options, "-j", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(": done (diverged)") == 2
    assert {(cell["state"], cell["outcome"]) for cell in states(command, *options)} == {("done", "diverged")}
    assert leases(tmp_path / "runs") == [1, 1]
    for folder in (tmp_path / "runs").glob("*-s0"):
        assert json.loads((folder / "state.json").read_text())["state"] == "done"
    assert command("report", *options, "--out", "rep").returncode == 0


def test_status_names_a_runs_folder_that_is_not_there(command: Command, tmp_path: Path) -> None:
    assert f"There is no folder {tmp_path / 'elsewhere'}" in command("status", *QUICK, "--runs", "elsewhere").stdout


def test_a_damaged_result_is_made_anew_from_the_checkpoint(command: Command, tmp_path: Path) -> None:
    assert command("run", *QUICK).returncode == 0
    before = curves(tmp_path / "runs")
    for folder in (tmp_path / "runs").glob("*-s0"):
        (folder / "result.json").write_text('{"outc')
    assert {cell["state"] for cell in states(command, *QUICK)} == {"interrupted"}
    assert command("run", *QUICK).returncode == 0
    assert {cell["state"] for cell in states(command, *QUICK)} == {"done"}
    assert curves(tmp_path / "runs") == before
