"""What several test files need: settings of a run that takes a second, and a way to call the command.

Tests that need a browser or LaTeX are skipped where there is none; ``ABLATION_TEST_REQUIRE=chromium,latex`` makes them
fail instead (``tools.py``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from tests import command_process
from tests.command_process import ROOT

SMALL: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "data.name": "synthetic",
    "data.storage": "memory",
    "data.image_size": 16,
    "data.num_train": 320,
    "augment.blur_probability": 0.0,
    "backbone.name": "small",
    "backbone.width": 4,
    "projector.num_layers": 2,
    "projector.hidden_dim": 16,
    "projector.output_dim": 16,
    "predictor.hidden_dim": 8,
    "evaluation.log_every_steps": 3,
    "evaluation.query_size": 100,
}


# A machine that others use too must not fail a test for its time.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small() -> Callable[..., Settings]:
    """Settings of a tiny run; keyword arguments with __ for the dot change them."""

    def make(**changes: Any) -> Settings:
        return validate({**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})

    return make


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Call ``run_ablation.py`` from a folder of its own, as a user would from anywhere.

    With ``options`` of `subprocess.run` Python starts anew, else the process has PyTorch loaded already.
    """
    scratch = tmp_path_factory.mktemp("said")

    def call(*arguments: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        if not options:
            return command_process.call(arguments, tmp_path, scratch, timeout)
        return subprocess.run(
            [sys.executable, str(ROOT / "run_ablation.py"), *arguments],
            cwd=tmp_path,
            env=command_process.environment() | options.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )

    return call
