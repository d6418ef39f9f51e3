"""The Multi-Process Service, with a command that writes down how it is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.slurm.mps import COMMAND, service
from experiments.slurm.profile import Profile, load_cluster
from simsiam.errors import SettingsError


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
