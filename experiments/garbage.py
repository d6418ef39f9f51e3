"""What can be freed: of runs that have ended, all that only further training would need; of launches, their code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import scheduler
from experiments.launches import all_launches
from experiments.scheduler import SlurmError
from experiments.slurm_queue import jobs_of
from experiments.store import RunFolder, run_names
from simsiam import checkpoint


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
    """Code and scripts of launches that have no jobs any more; those of which SLURM cannot be asked are left alone.

    So are those that were sent to another cluster than the one that answers here.
    """
    launches = all_launches(runs)
    try:
        jobs = scheduler.my_jobs() if launches else []
        here = scheduler.settings().get("ClusterName") if launches else None
    except SlurmError:
        return []
    found = []
    for launch in launches:
        folders = [launch.path / name for name in ("code", "jobs") if (launch.path / name).exists()]
        rounds = launch.rounds()
        has_ended = bool(rounds) and all(content.released and content.slurm in (here, None) for content in rounds)
        if folders and has_ended and not jobs_of(launch, jobs):
            size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
            found.append(Garbage("code and scripts of a launch that has ended", launch.path, size, _remove(folders)))
    return found


def _remove(folders: list[Path]) -> Callable[[], None]:
    def remove() -> None:
        for folder in folders:
            shutil.rmtree(folder)

    return remove
