"""What was read from run folders, kept on disk so that the next reading is quick: always right, or not used.

One file for each run, ``RUNS/.analysis/RUN``: a line of JSON, then the values of the points as raw doubles. Nothing is
unpickled, so a stranger's cache can do no more than a stranger's curves. A file is used only if the files that it was
made from still have the size, times and inode that they had then, if the code that reads them is the same, and if its
checksum fits. It is written aside and renamed, so that two processes do each other no harm. The folder may be deleted
at any time; where it cannot be written, there is no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from analysis.frames import run_files
from analysis.frames.run_files import Contents, content_files, read_contents
from simsiam.record import curves
from simsiam.settings import fields

FOLDER = ".analysis"
# A file that changed so shortly before it was read may change again within the same tick of the file system's clock, so
# that its times would not tell. FAT's ticks, the longest, are of 2 s.
_SETTLED_NS = 3 * 10**9


def read_cached(folder: Path) -> Contents:
    """As :func:`analysis.frames.run_files.read_contents`, from the cache if it has the folder as it is now."""
    place = folder.parent / FOLDER / folder.name
    before = _key(folder)
    found = _load(place, before)
    if found is not None:
        return found
    contents = read_contents(folder)
    if _key(folder) == before:  # else it was written to meanwhile
        with contextlib.suppress(OSError):
            _store(place, before, contents)
    return contents


def forget(runs: Path, folders: Iterable[str]) -> None:
    """Remove what is cached of runs that are no longer among ``folders``."""
    with contextlib.suppress(OSError):
        for name in {entry.name for entry in os.scandir(runs / FOLDER)} - set(folders):
            if not name.startswith("."):  # another process is writing it
                os.unlink(runs / FOLDER / name)


def _key(folder: Path) -> list[Any]:
    """What changes if the files of a run do: for each its name, size, times and inode."""
    files: list[list[Any]] = []
    for path in content_files(folder):
        try:
            status = path.stat()
        except (OSError, ValueError):
            files.append([path.name])
            continue
        files.append([path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return [_code(), str(np.dtype(float)), files]


@cache
def _code() -> str:
    """The hash of the code that reads: another version may read the same files otherwise."""
    sources = (__file__, run_files.__file__, curves.__file__, fields.__file__)
    return hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()[:16]


def _load(place: Path, key: list[Any]) -> Contents | None:
    """What a file of the cache holds; None if there is none, or it is of other files, or damaged."""
    try:
        head, _, body = place.read_bytes().partition(b"\n")
        checksum, _, line = head.partition(b" ")
        if int(checksum) != zlib.crc32(body, zlib.crc32(line)):
            return None
        found = json.loads(line)
        if found["key"] != key:
            return None
        settings = found["settings"]
        if settings is not None:  # JSON has no tuples
            settings = {path: tuple(value) if isinstance(value, list) else value for path, value in settings.items()}
        values = np.frombuffer(body, dtype=float).reshape(-1, max(len(found["columns"]), 1))
        return Contents(settings, found["columns"], values, found["provenance"], found["notes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _store(place: Path, key: list[Any], contents: Contents) -> None:
    found = {
        "key": key,
        "settings": contents.settings,
        "columns": contents.columns,
        "provenance": contents.provenance,
        "notes": contents.notes,
    }
    line, body = json.dumps(found).encode(), np.ascontiguousarray(contents.values).tobytes()
    place.parent.mkdir(exist_ok=True)
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            file.write(b"%d " % zlib.crc32(body, zlib.crc32(line)) + line + b"\n" + body)
        # The clock that is asked is the file system's, which gave the files their times.
        newest = max((max(item[2:4]) for item in key[-1] if len(item) > 1), default=0)
        if os.stat(aside).st_mtime_ns - newest > _SETTLED_NS:
            os.replace(aside, place)
    finally:
        aside.unlink(missing_ok=True)
