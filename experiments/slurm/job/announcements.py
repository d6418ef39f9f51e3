"""How the tasks of a job, which train a cell together, agree on which one: over files in the launch's folder.

Task 0 takes the cells, and announces each to the others. Every start of a job has files of its own, so nothing that an
earlier one left is taken for news. This module imports no torch.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.runs.folder import read_json, write_json
from experiments.slurm.launch import Launch
from simsiam.record.atomic_files import write_atomically


@dataclass(frozen=True)
class Announcement:
    """What task 0 has announced last: the cell to train, or, without one, the end of the job's work."""

    number: int
    run_id: str | None
    retry_failed: bool = False
    attempts_before: int | None = None


class Announcements:
    """Where the tasks of one start of a job read what they do together."""

    def __init__(self, launch: Launch, job: str, restart: int) -> None:
        self._path = launch.path / "announcements" / f"{job}-{restart}.json"

    def announce(self, announcement: Announcement) -> None:
        """From now on all tasks are to train this cell, and no other."""
        write_json(self._path, asdict(announcement), secrets.token_hex(4))

    def latest(self) -> Announcement | None:
        """What was announced last; None before the first."""
        content = read_json(self._path)
        return None if content is None else Announcement(**content)

    def rendezvous(self, number: int) -> Path:
        """The file by which the ranks of an announced cell find each other."""
        return self._path.with_suffix(f".{number}.rendezvous")

    def mark_ready(self, rank: int) -> None:
        """This task has its images and waits for a cell."""
        self._ready(rank).touch()

    def are_all_ready(self, num_tasks: int) -> bool:
        """Whether every other task is ready."""
        return all(self._ready(rank).exists() for rank in range(1, num_tasks))

    def _ready(self, rank: int) -> Path:
        return self._path.with_suffix(f".ready.{rank}")


def losses(rendezvous: Path) -> str:
    """Which ranks lost their part of a cell, and how, as they wrote down; empty if none did."""
    paths = sorted(rendezvous.parent.glob(f"{rendezvous.name}.lost.*"))
    return "; ".join(path.read_text(encoding="utf-8") for path in paths)


def write_loss(rendezvous: Path, rank: int, reason: str) -> None:
    """What :func:`losses` reads."""
    write_atomically(Path(f"{rendezvous}.lost.{rank}"), lambda file: file.write(reason), aside="new", mode="w")
