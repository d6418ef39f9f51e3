"""What can be freed: of runs that have ended, all that only further training would need; of launches, their code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.registry import queues
from experiments.runs.folder import RunFolder, run_names
from simsiam.record import checkpoint


@dataclass(frozen=True)
class Garbage:
    """Something that can be freed."""

    what: str
    path: Path
    bytes: int
    free: Callable[[], None]


def find(runs: Path) -> list[Garbage]:
    """All that can be freed in a folder of runs. Results, curves and the weights of each run stay."""
    found = []
    for name in sorted(run_names(runs)):
        run = RunFolder(runs, name)
        if run.result() is None:
            continue  # it may be trained further
        previous = run.path / checkpoint.PREVIOUS
        size = checkpoint.bytes_for_training(run.path) + (previous.stat().st_size if previous.exists() else 0)
        if size:
            found.append(Garbage("optimiser state and previous checkpoint", run.path, size, _weights_only(run.path)))
    return found + _launches(runs)


def _weights_only(folder: Path) -> Callable[[], None]:
    return lambda: checkpoint.keep_weights_only(folder, f"gc{os.getpid()}")


def _launches(runs: Path) -> list[Garbage]:
    """Code and scripts of launches that have no jobs any more."""
    found = []
    for launch, folders in [item for queue in queues() for item in queue.leftovers(runs).items()]:
        size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        found.append(Garbage("code and scripts of a launch that has ended", launch, size, _remove(folders)))
    return found


def _remove(folders: list[Path]) -> Callable[[], None]:
    def remove() -> None:
        for folder in folders:
            shutil.rmtree(folder)

    return remove
