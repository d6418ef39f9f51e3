"""Ended runs in one small file: all that reports read, without checkpoints, with a checksum of each file.

``manifest.json`` comes first in the archive (a tar, compressed by xz): the format, and the SHA-256 of each file.
Nothing that is read back is run or unpickled, no name can lead out of the folder it is written to, and what does not
fit its checksum is refused. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.folder import StoreError, read_json

FORMAT = 1
MANIFEST = "manifest.json"
KEPT = ("config.yaml", "provenance.json", "metrics.jsonl", "result.json", "state.json")
EMBEDDINGS = "embeddings.npz"  # a megabyte a run, which only maps of z are drawn from
MOST_BYTES = 2**28  # of one file that is read back
MOST_BYTES_IN_ALL = 2**33
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Packed:
    """What an archive was made of."""

    num_runs: int
    left_out: int  # runs that have not ended
    bytes: int


@dataclass(frozen=True)
class Unpacked:
    """What became of the runs of an archive, by their names."""

    written: tuple[str, ...]
    kept: tuple[str, ...]  # were there already, with a result
    in_the_way: tuple[str, ...]  # something of that name was there that has none


def pack(runs: Path, archive: Path, *, with_embeddings: bool = False) -> Packed:
    """Write every ended run of a folder into ``archive``, which must not exist. Raises StoreError."""
    if os.path.lexists(archive):
        raise StoreError(f"{archive}: is there already, and is not overwritten")
    folders = sorted(path.parent for path in runs.glob("*/config.yaml"))
    ended = [folder for folder in folders if read_json(folder / "result.json") is not None]
    if not ended:
        raise StoreError(f"{runs}: no run there has ended, so there is nothing to pack  [--runs]")
    names = (*KEPT, *([EMBEDDINGS] if with_embeddings else []))
    contents = {
        f"{folder.name}/{name}": _without_folders((folder / name).read_bytes(), name)
        for folder in ended
        for name in names
        if (folder / name).is_file()
    }
    manifest = {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    aside = archive.with_name(f".{archive.name}.part")
    with tarfile.open(aside, "w:xz", preset=6) as tar:
        for name, content in {MANIFEST: json.dumps(manifest, indent=1).encode(), **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    aside.replace(archive)
    return Packed(len(ended), len(folders) - len(ended), archive.stat().st_size)


def _without_folders(content: bytes, name: str) -> bytes:
    """A file as it is; in a provenance the absolute paths of commands lose their folders, which are of a machine."""
    if name != "provenance.json":
        return content
    try:
        record = json.loads(content)
        for attempt in record["attempts"]:
            attempt["command"] = re.sub(r"(?<![^\s='\"])/(?:[^\s/]+/)+", "", attempt["command"])
    except (ValueError, KeyError, TypeError):
        return content
    return json.dumps(record, indent=1).encode()


def unpack(archive: Path, runs: Path) -> Unpacked:
    """Write the runs of an archive into a folder of runs, each at once.

    What is there already of a run's name is kept as it is. Raises StoreError for what is no archive of runs, or is
    damaged; all of it is looked at before anything is written.
    """
    for _ in _runs_of(archive):
        pass
    written, kept, in_the_way = list[str](), list[str](), list[str]()
    for run, files in _runs_of(archive):
        if os.path.lexists(runs / run):
            (in_the_way if read_json(runs / run / "result.json") is None else kept).append(run)
            continue
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=runs) as place:
            folder = Path(place) / run
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            folder.rename(runs / run)
        written.append(run)
    return Unpacked(tuple(written), tuple(kept), tuple(in_the_way))


def _runs_of(archive: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each run with the contents of its files, which fit their checksums. Raises StoreError."""
    try:
        with tarfile.open(archive, "r:xz") as tar:
            members = iter(tar)
            first = next(members, None)
            if first is None or first.name != MANIFEST:
                raise StoreError(f"{archive}: is no archive of runs (it does not begin with {MANIFEST})")
            wanted = _files_of(json.loads(_read(tar, first, archive)), archive)
            read = dict[str, dict[str, bytes]]()  # of runs whose files are not all there yet
            in_all = 0
            for member in members:
                run, _, name = member.name.partition("/")
                if name not in wanted.get(run, {}):
                    raise StoreError(f"{archive}: {member.name[:80]} is not in its manifest")
                in_all += member.size
                if in_all > MOST_BYTES_IN_ALL:
                    raise StoreError(f"{archive}: holds more than {MOST_BYTES_IN_ALL >> 30} GB")
                content = _read(tar, member, archive)
                if hashlib.sha256(content).hexdigest() != wanted[run][name]:
                    raise StoreError(f"{archive}: {member.name} does not fit its checksum; the file is damaged")
                read.setdefault(run, {})[name] = content
                if read[run].keys() == wanted[run].keys():
                    yield run, read.pop(run)
                    del wanted[run]
            if wanted:
                raise StoreError(f"{archive}: {len(wanted)} of its runs are not whole; the file is cut short")
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise StoreError(f"{archive}: is no archive of runs, or a part of one ({error})") from None


def _files_of(manifest: object, archive: Path) -> dict[str, dict[str, str]]:
    """Checksums by run and file. Refuses names that are not RUN/FILE with a file that archives hold."""
    listed = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
    if not isinstance(listed, dict):
        raise StoreError(f"{archive}: its manifest is none of this version (format {FORMAT})")
    files = dict[str, dict[str, str]]()
    for name, digest in listed.items():
        run, _, file = name.partition("/")
        if not RUN_NAME.fullmatch(run) or file not in (*KEPT, EMBEDDINGS):
            raise StoreError(f"{archive}: its manifest names {name[:80]!a}, which is no file of a run")
        files.setdefault(run, {})[file] = str(digest)
    return files


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    if not member.isfile() or member.size > MOST_BYTES:
        raise StoreError(f"{archive}: {member.name[:80]!a} is no plain file of at most {MOST_BYTES >> 20} MB")
    file = tar.extractfile(member)
    assert file is not None  # it is a plain file
    return file.read()
