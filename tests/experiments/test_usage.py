"""How busy a GPU was: looked at while a run trains, and told with what would do next time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from experiments.local import train_cell
from experiments.runs.folder import Heartbeats, RunFolder
from experiments.slurm.profile import Profile
from experiments.slurm.usage import gpu_lines
from tests.run_folders import settings


def watched(runs: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """What the heartbeat of a run on ``device`` has found after a fifth of a second of beats."""
    monkeypatch.setattr(train_cell, "HEARTBEAT_SECONDS", 0.01)
    attempt = RunFolder(runs, "0123456789ab-s0").claim(settings(seed=0), Heartbeats(), retry_failed=False)
    assert attempt
    heartbeat = train_cell._Heartbeat(attempt, torch.device(device))
    heartbeat.start()
    time.sleep(0.2)
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
    (line,) = gpu_lines(busy, Profile(cells_per_gpu=cells_per_gpu))
    assert f"busy for {sum(busy) / len(busy):.0f} %" in line
    assert asked in line if asked else "cells_per_gpu" not in line


def test_no_record_no_line() -> None:
    assert not list(gpu_lines([], Profile()))
