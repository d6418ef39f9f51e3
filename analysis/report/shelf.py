"""Where reports lie: each in a folder of its own, so that none takes the place of another, and a page that lists all.

A report is of a study's file, a scale, run folders, settings from the command line and sources of the user's own parts.
``report.json`` in its folder says of which, and what came of it; the list is made from these files alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.report import page
from analysis.report.all_studies import counts, progress
from analysis.report.page import write_page
from analysis.verdicts.verdicts import Verdict
from experiments.studies.study import HERE, Cell, Study
from simsiam.errors import SettingsError
from simsiam.record.atomic_files import write_atomically
from simsiam.settings.identity import split_run_name
from simsiam.settings.own import own_parts

RECORD, LIST = "report.json", "reports.html"
KEYS = ("study", "scale", "runs", "set", "sources")  # of the record: what the report is of


@dataclass(frozen=True)
class Subject:
    """What a report is of."""

    study: Study | None  # None: of the paper's tables
    scale: str
    runs: Path  # a folder of runs, or an archive of them
    overrides: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # the pinned names of the user's own parts

    def record(self, folder: Path) -> dict[str, Any]:
        """As ``report.json`` in a folder has it; paths are relative to it, so that a project may be moved whole."""
        return {
            "study": "paper" if self.study is None else _name(self.study, folder),
            "scale": self.scale,
            "runs": _relative(self.runs, folder),
            "set": list(self.overrides),
            **({"sources": list(self.sources)} if self.sources else {}),
        }


def _name(study: Study, folder: Path) -> str:
    """Of one that ships its name, of others where its file is."""
    path = study.path
    shipped = path is None or path.resolve().parent == (HERE / "studies").resolve()
    return study.name if path is None or shipped else _relative(path, folder)


def sources_of(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The pinned names of the parts of the user's own in some cells."""
    return tuple(sorted({value for cell in cells for value in own_parts(cell.settings).values()}))


def _relative(path: Path, folder: Path) -> str:
    try:
        return os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
    except ValueError:  # on another drive
        return str(path.resolve())


def ending(scale: str, runs: Path | None, overrides: Sequence[str]) -> str:
    """What a name has behind the study's: ``-smoke-epochs-2-in-old-runs``. ``""`` and None are what is usual.

    Of run folders outside of this directory the last name stands for the path, with a hash of it.
    """
    where = ""
    if runs is not None:
        full, here = runs.resolve(), Path.cwd()
        where = f"in {full.relative_to(here) if full.is_relative_to(here) else f'{full.name} {_hash(str(full))}'}"
    parts = [scale, *overrides, where]
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.")[:60] for part in parts if part)
    return "".join(f"-{word}" for word in words)


def folder_for(subject: Subject, folder: Path) -> Path:
    """The ``folder`` if it is free or holds this very report, else one beside it with a name that tells them apart."""
    if _held(folder) in (None, subject.record(folder)):
        return folder
    return folder.with_name(f"{folder.name}-{_hash(json.dumps(subject.record(folder)))}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def check_free(subject: Subject, folder: Path) -> None:
    """Refuse a folder of the user's choice that holds the report of something else. Raises SettingsError."""
    held = _held(folder)
    if held is not None and held != subject.record(folder):
        of = ", ".join(f"{key} {value}" for key, value in held.items() if value)
        raise SettingsError(f"out: {folder} holds another report ({of}); choose another folder  [--out]")
    names = sorted(path.name for path in folder.iterdir()) if held is None and folder.is_dir() else []
    if any(split_run_name(name) for name in names):
        raise SettingsError(f"out: {folder} holds run folders; choose another folder  [--out]")
    if foreign := [name for name in names if re.match(r"index\.html$|tables?\.|figure", name)]:
        raise SettingsError(f"out: {folder} holds {foreign[0]}, which is of no report; choose another folder  [--out]")


def check_document(path: Path) -> None:
    """Refuse to write a document where there is a file that is none of ours. Raises SettingsError."""
    if path.exists() and not (path.is_file() and page.MADE_BY in path.read_text(encoding="utf-8", errors="replace")):
        raise SettingsError(f"markdown: {path} is there, and is no document of `report`; choose another  [--markdown]")


def _held(folder: Path) -> dict[str, Any] | None:
    """What the report in a folder is of; None if there is none, or it does not say."""
    content = _read(folder)
    return {key: content[key] for key in KEYS if key in content} or None


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def put(subject: Subject, folder: Path, title: str, runs: pd.DataFrame, verdicts: Sequence[Verdict] = ()) -> None:
    """Record beside a report what it is of, and what came of it."""
    record = {
        **subject.record(folder),
        "title": title,
        **progress(runs),
        "claims": counts(verdicts),
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(folder / RECORD, lambda file: file.write(text.encode()), aside=str(os.getpid()))


def _seen_from(folder: Path, below: Path, path: str) -> str:
    """A path that is relative to a report's folder, relative to the page that lists it."""
    return _relative(below / path, folder) if path else ""


def write_list(folder: Path) -> Path | None:
    """The page that lists every report below a folder; None, and no page, for none."""
    found = [(path.parent, _read(path.parent)) for path in sorted(folder.glob(f"*/{RECORD}"))]
    rows = [
        {
            "title": str(content.get("title", below.name)),
            "folder": below.name,
            "link": f"{quote(below.name)}/index.html",
            "scale": str(content.get("scale", "")),
            "set": " ".join(map(str, content.get("set", ()))),
            "runs": _seen_from(folder, below, str(content.get("runs", ""))),
            "ended": f"{content.get('ended', 0)} of {content.get('asked', 0)}",
            "claims": ", ".join(f"{num} {outcome}" for outcome, num in content.get("claims", {}).items() if num),
        }
        for below, content in found
        if content and (below / "index.html").exists()
    ]
    if not rows:
        return None
    indexes = sorted(path.name for path in folder.glob("index*.html"))
    write_page(folder / LIST, page.template("reports.html.jinja").render(rows=rows, indexes=indexes))
    return folder / LIST
