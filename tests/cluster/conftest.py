"""The cluster tests run on a real SLURM, which they start; `make test` leaves them out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.grid import Slurm

HERE = Path(__file__).parent
WANTED = os.environ.get("ABLATION_TEST_CLUSTER") == "1"
NODES = 9
LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if HERE in item.path.parents] if not WANTED else []
    if left_out:
        config.stash[LEFT_OUT] = len(left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if LEFT_OUT in config.stash:
        number = config.stash[LEFT_OUT]
        terminalreporter.write_line(f"{number} tests on a real SLURM skipped: `make test-cluster` runs them (as root)")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path: SLURM's sockets have at most 107 characters in their names. Readable for ordinary users."""
    with tempfile.TemporaryDirectory(prefix="sc", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def slurm(folder: Path) -> Iterator[Slurm]:
    started = Slurm.start(folder / "s", NODES=str(NODES), PORT="18800")
    yield started
    started.stop()
