"""A GPU that cells share: MPS, with a command that notes how it is called; how busy it was, and what that means."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from experiments.local import train_cell
from experiments.runs.folder import Heartbeats, RunFolder
from experiments.slurm.mps import COMMAND, service
from experiments.slurm.profile import Profile, load_cluster
from experiments.slurm.usage import gpu_line
from simsiam.errors import SettingsError
from tests.run_folders import settings


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    command = tmp_path / COMMAND
    command.write_text(
        f'#!/bin/sh\necho "$1 $CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/calls\n[ "$1" ] || cat >> {tmp_path}/calls\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_it_is_started_and_ended_by_the_job(calls: Path) -> None:
    with service(Profile(mps=True, cells_per_gpu=4)):
        folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        assert folder.is_dir()
        assert calls.read_text() == f"-d {folder}\n"
    assert calls.read_text() == f"-d {folder}\n {folder}\nquit\n"
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not folder.exists()


def test_unasked_for_it_is_not(calls: Path) -> None:
    with service(Profile(cells_per_gpu=4)):
        assert not calls.exists()


def test_one_cell_on_a_gpu_shares_it_with_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cells_per_gpu: 1\nmps: true\n")
    with pytest.raises(SettingsError, match=r"mps: .*cells_per_gpu.*mine\.yaml:2"):
        load_cluster(str(tmp_path / "mine.yaml"))


def watched(runs: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """What the heartbeat of a run on ``device`` has found after four beats or more."""
    monkeypatch.setattr(train_cell, "HEARTBEAT_SECONDS", 0.01)
    attempt = RunFolder(runs, "0123456789ab-s0").claim(settings(seed=0), Heartbeats(), retry_failed=False)
    assert attempt
    heartbeat = train_cell._Heartbeat(attempt, torch.device(device))
    beats = list[str]()
    write = attempt.write_state
    monkeypatch.setattr(attempt, "write_state", lambda state: (beats.append(state), write(state)))
    heartbeat.start()
    deadline = time.monotonic() + 30
    while len(beats) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    heartbeat.stop()
    return heartbeat.gpu_busy_percent()


def test_it_is_the_mean_of_what_nvml_says_and_a_failing_look_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([20, 40, None, 90])

    def utilization(device: torch.device) -> int:
        assert device.type == "cuda"
        if (percent := next(said)) is None:
            raise ModuleNotFoundError("pynvml")
        return percent

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert watched(tmp_path, "cuda", monkeypatch) == 50.0


def test_without_a_gpu_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: pytest.fail("looked at a GPU that is not used"))
    assert watched(tmp_path, "cpu", monkeypatch) is None


@pytest.mark.parametrize(
    ("busy", "cells_per_gpu", "asked"),
    [([20.0, 40.0], 1, "cells_per_gpu: 3"), ([20.0], 2, "cells_per_gpu: 9"), ([88.0], 1, None), ([46.0], 1, None)],
)
def test_cells_that_leave_a_gpu_idle_could_share_it(busy: list[float], cells_per_gpu: int, asked: str | None) -> None:
    line = gpu_line(busy, Profile(cells_per_gpu=cells_per_gpu))
    assert f"busy for {sum(busy) / len(busy):.0f} %" in line
    assert asked in line if asked else "cells_per_gpu" not in line
