"""What is a fault of the surroundings and what is the cell's own; and that the code of a run is told apart."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from experiments.runs.folder import Heartbeats, RunFolder, StoreError
from experiments.runs.surroundings import LONGEST_WAIT, patiently, surrounding_fault, waits
from simsiam.settings.checks import validate


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "ESTALE", "EACCES", "EROFS", "ENETUNREACH", "ETIMEDOUT"])
def test_faults_of_disks_and_networks_are_known_under_what_was_made_of_them(name: str) -> None:
    fault = OSError(getattr(errno, name), "what the system says")

    def fail() -> None:
        try:
            raise fault
        except OSError as error:
            raise StoreError("the folder cannot be written") from error

    with pytest.raises(StoreError) as raised:
        fail()
    assert surrounding_fault(raised.value) is fault


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "x"), MemoryError(), StoreError("x")]
)
def test_what_is_wrong_with_a_cell_itself_is_no_such_fault(error: Exception) -> None:
    assert surrounding_fault(error) is None


def test_a_run_folder_that_cannot_be_written_is_such_a_fault(tmp_path: Path) -> None:
    """As the system says it, also to root."""
    (tmp_path / "full").symlink_to("/proc/self")  # takes no folder of ours
    with pytest.raises(StoreError, match="cannot be written") as raised:
        RunFolder(tmp_path / "full", "aaa-s0").claim(validate({}), Heartbeats(), retry_failed=False)
    assert isinstance(raised.value.__cause__, OSError)


def test_tries_come_further_and_further_apart() -> None:
    pauses = waits()
    seconds = [next(pauses) for _ in range(12)]
    assert seconds == sorted(seconds)
    assert seconds[0] == 5
    assert seconds[-1] == LONGEST_WAIT


def test_patience_ends_with_the_error_itself() -> None:
    told: list[str] = []

    def fails() -> None:
        raise OSError(errno.ESTALE, "stale")

    with pytest.raises(OSError, match="stale"):
        patiently(fails, told.append, seconds=1, stopped=lambda: False)
    with pytest.raises(OSError, match="stale"):
        patiently(fails, told.append, seconds=60, stopped=lambda: True)
    assert len(told) == 1
