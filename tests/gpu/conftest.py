"""Tests on a real GPU: ``make test-gpu``. Elsewhere they are left out.

``ABLATION_TEST_GPU`` names the device: cuda, or cpu to try the tests' own logic where there is none, in which case
those that need CUDA itself are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

WANTED = os.environ.get("ABLATION_TEST_GPU", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in item.path.as_posix() and not WANTED:
            item.add_marker(pytest.mark.skip(reason="make test-gpu runs it, on a machine with an NVIDIA GPU"))


@pytest.fixture
def device() -> torch.device:
    if WANTED == "cuda" and not torch.cuda.is_available():
        pytest.exit("make test-gpu: torch sees no GPU here (torch.cuda.is_available() is false)", returncode=1)
    return torch.device(WANTED, 0) if WANTED == "cuda" else torch.device("cpu")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs CUDA itself")
    return device


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels whose sums have one order; ``make test-gpu`` sets what cuBLAS needs for it."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # kNN and spectra have operations that have no such kernel
    yield
    torch.use_deterministic_algorithms(False)
