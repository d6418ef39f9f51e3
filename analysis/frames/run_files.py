"""The files of one run, read so that no content can stop the reader: what is damaged is left out, and named.

A run folder may be half copied, of an older version, or written to at this moment. So nothing here trusts the type of a
value, and nothing raises for what it finds: each finding goes into ``notes``. What a folder from a stranger can and
cannot do is in docs/run-folder.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from simsiam.record import curves
from simsiam.settings.fields import Settings, flatten

MOST_BYTES = 2**20  # of a settings, provenance, state or result file: a real one has a few thousand
MOST_COLUMNS = 256  # of the points: a real run logs about a dozen
RESERVED = ("run", "config", "seed")  # columns that say whose point it is
# What is no single number, and too large for a table of all runs.
LONG = ("spectrum", "knn_correct", "linear_correct")
_UNREADABLE = (OSError, ValueError, RecursionError, MemoryError, yaml.YAMLError, TypeError, KeyError, AttributeError)

# NaN and Infinity, which JSON has not and no file of ours holds, become lists: neither a number nor a text.
_decoded = partial(json.loads, parse_constant=lambda name: [name])


@dataclass
class Contents:
    """What the files of a run hold that does not change with time: settings, points, provenance."""

    settings: dict[str, Any] | None = None  # by dotted path, as in config.yaml; None if it cannot be read
    columns: list[str] = field(default_factory=list)
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))  # (points, columns)
    provenance: dict[str, Any] = field(default_factory=dict)  # as columns of the frame of runs
    notes: list[str] = field(default_factory=list)


def read_contents(folder: Path) -> Contents:
    """All that :class:`Contents` names, from the files of a run folder."""
    notes: list[str] = []
    settings = _settings(folder, notes)
    columns, values = _points(folder, notes)
    return Contents(settings, columns, values, _provenance(folder, notes), notes)


def content_files(folder: Path) -> list[Path]:
    """The files that :func:`read_contents` looks at, those that are not there included."""
    merged = folder / "metrics.jsonl"
    try:
        attempts = [] if merged.exists() else curves.attempt_files(folder)
    except OSError:
        attempts = []
    return [folder / "config.yaml", folder / "provenance.json", merged, *attempts]


def read_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The JSON object in a small file; None if there is none, and a note if there is a file that holds no object."""
    try:
        value = _decoded(_text(path, MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _UNREADABLE:
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} cannot be read")
    return None


def number(value: Any, name: str, notes: list[str]) -> float:
    """A number as it is; absent or null is NaN, and so is what is no number, which is noted under its name."""
    if value is None or is_number(value):
        return math.nan if value is None else float(value)
    notes.append(f"{name}: {_short(value)} is no number")
    return math.nan


def text(value: Any, name: str, notes: list[str]) -> str | None:
    """A text as it is; absent or null is None, and so is what is no text, which is noted under its name."""
    if value is None or type(value) is str:
        return value
    notes.append(f"{name}: {_short(value)} is no text")
    return None


def note_missing(content: dict[str, Any], names: Iterable[str], place: str, notes: list[str]) -> None:
    """Note which of the names that a file of this version has are not in it."""
    missing = [name for name in names if name not in content]
    if missing:
        notes.append(f"{place}: no {', '.join(missing)}")


def is_number(value: Any) -> bool:
    """A finite int or float that a double can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # an int of any size compares with a float; beyond this float() may overflow


def _short(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | bool | float) else type(value).__name__
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _text(path: Path, most_bytes: int | None = None) -> str:
    """The text of a file that is no longer than ``most_bytes``."""
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise ValueError(f"{path} is too long")
    return path.read_text(encoding="utf-8")


# --- settings ----------------------------------------------------------------------------------------------------


def _settings(folder: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        content = _text(folder / "config.yaml", MOST_BYTES)
        nested = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        flat: dict[str, Any] = {}
        for key, section in nested.items():
            for leaf, value in section.items() if isinstance(section, dict) else [("", section)]:
                if leaf == "arguments" and isinstance(value, dict):  # of one's own part, each a setting
                    flat |= {f"{key}.arguments.{name}": given for name, given in value.items()}
                else:
                    flat[f"{key}.{leaf}" if leaf else str(key)] = value
    except (FileNotFoundError, NotADirectoryError):
        notes.append("no config.yaml")
        return None
    except _UNREADABLE:
        notes.append("config.yaml cannot be read")
        return None
    settings = {path: tuple(value) if isinstance(value, list) else value for path, value in flat.items()}
    damaged = [path for path, value in settings.items() if not _is_plain(value)]
    damaged += _refused({path: value for path, value in settings.items() if path not in damaged})
    for path in damaged:
        notes.append(f"config.yaml: {path[:60]}: {_short(settings.pop(path))} is not allowed")
    return settings


def _is_plain(value: Any) -> bool:
    """A scalar or a short list of scalars, as all settings are; a number of a size that a frame can hold."""
    if isinstance(value, tuple):
        return len(value) <= 16 and all(_is_plain(item) and not isinstance(item, tuple) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return is_number(value) and (isinstance(value, float) or abs(value) < 2**63)
    return value is None or isinstance(value, str | bool)


def _refused(settings: dict[str, Any]) -> list[str]:
    """The paths that this version knows, and whose values it would not take: a text for a number, say."""
    known = flatten(Settings())
    nested: dict[str, Any] = {}
    for path, value in settings.items():
        section, _, leaf = path.rpartition(".")
        if path in known and section:
            nested.setdefault(section, {})[leaf] = value
        elif path in known:
            nested[path] = value
    try:
        Settings.model_validate(nested)
    except ValidationError as error:
        places = [[str(part) for part in item["loc"]] for item in error.errors()]
        paths = [place[0] if place[0] in known else ".".join(place[:2]) for place in places]
        return [path for path in dict.fromkeys(paths) if path in settings]
    return []


def read_with(folder: Path, name: str) -> list[curves.Point]:
    """The points that have something of that name, in order of step; only their lines are parsed.

    For what is in the file alone (:data:`LONG`). Points that are damaged are left out: reading the curves names them.
    """
    mark = f'"{name}"'
    try:
        points = curves.merge(folder, lambda path: _lines(path, [], mark))
    except OSError:
        return []
    return sorted(
        (point for point in points if isinstance(point.get(name), list | str)), key=lambda point: point["step"]
    )


# --- points ------------------------------------------------------------------------------------------------------


def _points(folder: Path, notes: list[str]) -> tuple[list[str], NDArray[np.float64]]:
    try:
        damage: list[str] = []
        points = curves.merge(folder, lambda path: _lines(path, damage))
        if (damage or not points) and (folder / "metrics.jsonl").exists():  # what it was merged from is still there
            of_attempts = curves.merge(folder, lambda path: _lines(path, []), from_attempts=True)
            if len(of_attempts) > len(points):
                points, damage = of_attempts, [*damage, "its points are read from its attempts"]
        notes += damage
    except OSError:  # the folder cannot be listed
        notes.append("its metrics cannot be read")
        return [], np.empty((0, 0))
    # A later attempt wins from its resume step on, so that steps only grow; a damaged file may mix them up.
    # Where a run diverged it says at the next logged step, of the step at which it did.
    steps = [point["step"] for point in points if point.get("diverged") is not True]
    if any(after < before for before, after in itertools.pairwise(steps)):
        notes.append("the steps of its points are out of order")
    points.sort(key=lambda point: float(point["step"]))
    if not points:
        notes.append("no points logged")
    names = list(dict.fromkeys(name for point in points for name in point if name not in LONG))
    if len(names) > MOST_COLUMNS or set(names) & set(RESERVED):
        names = [name for name in names if name not in RESERVED][:MOST_COLUMNS]
        notes.append(f"only {len(names)} of the names in its points are read")
    values = np.full((len(points), len(names)), math.nan)
    for place, name in enumerate(names):
        values[:, place] = _column([point.get(name) for point in points], name, notes)
    return names, values


def _column(values: list[Any], name: str, notes: list[str]) -> NDArray[np.float64]:
    """The numbers of one name; NaN where there is none, or something else."""
    kinds = {bool, type(None)} if name == "diverged" else {int, float, type(None)}
    if set(map(type, values)) <= kinds:
        with contextlib.suppress(OverflowError):  # an int that no double can hold
            column = np.array(values, dtype=float)  # None becomes NaN
            if not np.isinf(column).any():
                return column
    fine = [type(value) in kinds and (value is None or isinstance(value, bool) or is_number(value)) for value in values]
    notes.append(f"{name[:60]} is no finite number in {fine.count(False)} of its points")
    return np.array([value if is_fine else None for value, is_fine in zip(values, fine, strict=True)], dtype=float)


def _lines(path: Path, notes: list[str], mark: str = "") -> list[curves.Point]:
    """The objects in a file of metrics; a line that is none, or a point without its place, is left out and noted.

    With ``mark`` only of the lines that hold it, and of the first.
    """
    try:
        content = _text(path)
    except _UNREADABLE:
        notes.append(f"{path.name} cannot be read")
        return []
    whole, _, rest = content.rpartition("\n")
    if rest:
        notes.append(f"{path.name}: its last line is half-written")
    rows = whole.split("\n") if whole else []
    found = [_line(row) for i, row in enumerate(rows) if i == 0 or mark in row]
    header: list[curves.Point] = []
    if path.name != "metrics.jsonl" and found:
        first = found.pop(0)
        if not ("attempt" in first and (first.get("resumed_at_step") is None or is_number(first["resumed_at_step"]))):
            notes.append(f"{path.name}: its first line does not say where it resumed")
            first = {}  # as if it had begun anew
        header = [first]
    points = [point for point in found if _has_place(point)]
    if len(points) < len(found):
        lines = "1 line is" if len(found) - len(points) == 1 else f"{len(found) - len(points)} lines are"
        notes.append(f"{path.name}: {lines} no point with epoch and step")
    return header + points


def _line(line: str) -> curves.Point:
    try:
        value = _decoded(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _has_place(point: curves.Point) -> bool:
    epoch, step = point.get("epoch"), point.get("step")
    return is_number(epoch) and is_number(step) and epoch >= 0 and step >= 0  # type: ignore[operator]


# --- provenance --------------------------------------------------------------------------------------------------

PROVENANCE_TEXTS = ("device", "host", "git_commit", "code", "command")


def _provenance(folder: Path, notes: list[str]) -> dict[str, Any]:
    before = len(notes)
    content = read_object(folder / "provenance.json", notes)
    if content is None:
        if len(notes) == before:
            notes.append("no provenance.json")
        return {}
    references = _part(content, "references", dict, notes)
    note_missing(references, ("raw_pixels", "chance"), "provenance.json: references", notes)
    row: dict[str, Any] = {
        f"reference_{name}": number(references.get(name), f"provenance.json: references.{name}", notes)
        # The last two are of a loss of one's own.
        for name in ("raw_pixels", "raw_pixels_linear", "chance", "loss_chance", "loss_optimum")
    }
    listed = _part(content, "attempts", list, notes)
    attempts = [attempt for attempt in listed if isinstance(attempt, dict)]
    if len(attempts) < len(listed):
        notes.append("provenance.json: attempts: not all can be read")
    if not attempts:
        notes.append("provenance.json: no attempts")
        return row
    first, last = attempts[0], attempts[-1]
    note_missing(last, (*PROVENANCE_TEXTS, "git_dirty", "versions", "threads"), "provenance.json", notes)
    codes = {attempt["code"] for attempt in attempts if isinstance(attempt.get("code"), str)}
    if len(codes) > 1:
        notes.append("its attempts ran different code")
    row |= {name: text(last.get(name), f"provenance.json: {name}", notes) for name in PROVENANCE_TEXTS}
    row["claims"] = _claims(first, notes)
    dirty = last.get("git_dirty")
    if not (dirty is None or isinstance(dirty, bool)):
        notes.append(f"provenance.json: git_dirty: {_short(dirty)} is neither true nor false")
        dirty = None
    kind = "cuda" if str(row["device"]).startswith(("NVIDIA", "cuda")) else "cpu"
    versions = _part(last, "versions", dict, notes)
    plain = {name: version for name, version in versions.items() if type(version) is str}
    if len(plain) < len(versions) or not versions:
        notes.append("provenance.json: versions: not all can be read")
    return row | {
        "git_dirty": dirty,
        "device_type": text(last.get("device_type"), "provenance.json: device_type", notes) or kind,
        "started": text(first.get("started"), "provenance.json: started", notes),
        "versions": ", ".join(f"{name} {version}" for name, version in plain.items()) or None,
        "threads": number(last.get("threads"), "provenance.json: threads", notes),
    }


def _claims(attempt: dict[str, Any], notes: list[str]) -> str | None:
    """What was claimed when a run began, as JSON: hash and date by study and claim; None if it was not put down."""
    claims = _part(attempt, "claims", dict, notes)
    plain = {
        study: {name: entry for name, entry in of_study.items() if _is_claim(entry)}
        for study, of_study in claims.items()
        if isinstance(of_study, dict)
    }
    if plain != claims:
        notes.append("provenance.json: claims: not all can be read")
    return json.dumps(plain) if plain else None


def _is_claim(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(name)) is str for name in ("hash", "since"))


def _part(content: dict[str, Any], name: str, kind: type, notes: list[str]) -> Any:
    """A list or an object within an object; an empty one if it is absent, null or, which is noted, something else."""
    value = content.get(name)
    if value is None or isinstance(value, kind):
        return kind() if value is None else value
    notes.append(f"provenance.json: {name}: {_short(value)} is no {'list' if kind is list else 'object'}")
    return kind()
