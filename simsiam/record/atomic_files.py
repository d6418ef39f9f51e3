"""Files that are whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[Any]], object], *, aside: str, mode: str = "wb") -> None:
    """Write a file so that a reader sees the old one or the new one, whole, whatever dies in between.

    ``aside`` tells the temporary name apart from that of another writer (the attempt, say). A failure removes it.
    """
    temporary = path.with_name(f".{path.name}.{aside}")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
