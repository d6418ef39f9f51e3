"""Logs of other programs as tables: CSV, JSON lines, TensorBoard's event files, exports of Weights & Biases, Lightning.

The kind is found by looking at the file. Only the columns that the caller chooses are read, nothing is unpickled, and
memory grows with the chosen numbers alone. In a column NaN is a cell without a value, and infinity is a value that is
there and is not finite: ``nan``, ``inf``, and ``null`` in JSON, which has no other word for it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simsiam.errors import DataError

KINDS = ("csv", "lightning", "wandb", "jsonl", "tensorboard")
Column = NDArray[np.float64]
Choose = Callable[[list[str]], Iterable[str]]  # which of a file's columns are wanted

SAMPLE = 65536  # bytes that tell the kind
CHUNK = 20_000  # lines of JSON that are held as objects at a time
MOST_COLUMNS = 10_000
MOST_JSON_BYTES = 2**26  # of a file that is one JSON value, which is read whole
NOT_FINITE = ("nan", "inf", "+inf", "-inf", "infinity", "-infinity", "+infinity", "-nan", "+nan")
NO_VALUE = ["", " ", "None", "none", "null", "NULL", "NA", "N/A", "n/a", "-", "--"]
_EVENTS = "tfevents"
_OF_A_RUN = re.compile(r"(?P<run>.+) - (?P<name>.+?)(?P<range>__MIN|__MAX)?")


@dataclass
class Table:
    """The chosen columns of one run in a file, a row for each that was logged, in the order of the file."""

    name: str  # of the run: the file's, or the one that Weights & Biases gave it
    kind: str
    names: list[str]  # of all columns, also of those that were not chosen
    columns: dict[str, Column]
    source: str = ""  # the file, as messages name it; "" for the run's name

    def __post_init__(self) -> None:
        self.source = self.source or self.name


def kind_of(path: Path) -> str:
    """One of :data:`KINDS`, by a file's name and its first bytes. Raises DataError for what is no log."""
    if path.is_dir() or _EVENTS in path.name:
        return "tensorboard"
    with open(path, "rb") as file:
        start = file.read(SAMPLE)
    if not start.strip():
        raise DataError(f"{path}: is empty")
    if b"\0" in start:
        raise DataError(f"{path}: is neither text nor an event file of TensorBoard (whose names hold '{_EVENTS}')")
    if start.lstrip()[:1] in (b"{", b"["):
        return "jsonl"
    header = _header(start.decode("utf-8", "replace"))[0]
    if header[0] == "Step" and any(_OF_A_RUN.fullmatch(name) for name in header):
        return "wandb"
    return "lightning" if path.name == "metrics.csv" and {"epoch", "step"} <= set(header) else "csv"


def read_tables(path: Path, choose: Choose, kind: str | None = None) -> list[Table]:
    """The runs in a file, one but for exports of Weights & Biases. ``kind``: one of :data:`KINDS`; None: find it.

    Raises OSError for a file that cannot be opened, DataError, in one line, for one that is no log of its kind.
    """
    kind = kind or kind_of(path)
    name = path.stem if path.suffix and _EVENTS not in path.name else path.name
    if kind == "tensorboard":
        tables = [_events(path, choose)]
    elif kind == "jsonl":
        tables = [Table(name, kind, *_objects(path, choose))]
    elif kind == "wandb":
        tables = _wandb(path, choose)
    else:
        tables = [Table(name, kind, *_separated(path, choose))]
    for table in tables:
        if not any(len(column) for column in table.columns.values()) and table.columns:
            raise DataError(f"{path}: has no rows")
    return tables


# --- separated values --------------------------------------------------------------------------------------------


def _header(text: str) -> tuple[list[str], str, bool]:
    """The names of the columns, what separates them, and whether decimals are written with a comma."""
    lines = text.lstrip("\ufeff").splitlines() or [""]
    first = lines[0].lstrip("# ")
    counts = {sign: first.count(sign) for sign in ",;\t|"}
    separator = max(counts, key=lambda sign: counts[sign])
    if not counts[separator]:
        separator = r"\s+" if len(first.split()) > 1 else ","
    names = first.split() if separator == r"\s+" else next(csv.reader([first], delimiter=separator), [""])
    body = "\n".join(lines[1:200])
    comma = separator != "," and bool(re.search(r"\d,\d", body)) and not re.search(r"\d\.\d", body)
    return [name.strip() for name in names], separator, comma


def _separated(path: Path, choose: Choose) -> tuple[list[str], dict[str, Column]]:
    with open(path, "rb") as file:
        start = file.read(SAMPLE).decode("utf-8", "replace")
    if "\n" not in start and len(start) >= SAMPLE:
        raise DataError(f"{path}: is no table: its first line has more than {SAMPLE} characters")
    names, separator, comma = _header(start)
    if all(_is_a_number(name) for name in names):
        raise DataError(f"{path}: has no line of column names; its first line is {start.splitlines()[0][:60]!r}")
    wanted = [name for name in dict.fromkeys(choose(names)) if name in names]
    if not wanted:
        return names, {}
    places = [names.index(name) for name in wanted]
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            decimal="," if comma else ".",
            header=None,
            skiprows=1,
            names=list(range(len(names))),
            usecols=places,
            index_col=False,
            keep_default_na=False,
            na_values=NO_VALUE,
            skipinitialspace=True,
            on_bad_lines="skip",
            encoding="utf-8",
            encoding_errors="replace",
            engine="c",
            low_memory=True,
        )
    except (ValueError, MemoryError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: is no table that can be read ({str(error).splitlines()[0][:100]})") from None
    return names, {name: _numbers(frame[place]) for name, place in zip(wanted, places, strict=True)}


def _numbers(column: pd.Series[Any]) -> Column:
    """Cells as numbers: what is no number has no value, what is not finite is infinite."""
    if column.dtype.kind in "fiu":
        values: Column = column.to_numpy(float)
        return values
    texts = column.astype(str).str.strip()
    values = pd.to_numeric(texts, errors="coerce").to_numpy(float, copy=True)
    values[texts.str.lower().isin(NOT_FINITE).to_numpy() & column.notna().to_numpy()] = math.inf
    return values


def _is_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wandb(path: Path, choose: Choose) -> list[Table]:
    """The chart export: a column for each run and metric, and two for its range over what was summed up."""
    with open(path, "rb") as file:
        names, _, _ = _header(file.read(SAMPLE).decode("utf-8", "replace"))
    own: dict[str, dict[str, str]] = {}  # run -> metric -> column
    for column in names:
        match = _OF_A_RUN.fullmatch(column)
        if match and not match["range"]:
            own.setdefault(match["run"], {})[match["name"]] = column
    if not own:
        raise DataError(f"{path}: is no export of Weights & Biases: no column is named 'RUN - METRIC'")
    step = names[0]
    chosen = {run: [name for name in choose([step, *metrics]) if name in metrics] for run, metrics in own.items()}
    _, read = _separated(path, lambda _: [step, *(own[run][name] for run, found in chosen.items() for name in found)])
    tables = []
    for run, found in chosen.items():
        columns = {name: read[own[run][name]] for name in found}
        logged = np.any([~np.isnan(column) for column in columns.values()], axis=0) if columns else np.empty(0, bool)
        columns = {name: column[logged] for name, column in {step: read[step], **columns}.items()} if columns else {}
        tables.append(Table(run, "wandb", [step, *own[run]], columns))
    return tables


# --- JSON --------------------------------------------------------------------------------------------------------


def _objects(path: Path, choose: Choose) -> tuple[list[str], dict[str, Column]]:
    """Objects, one a line, or a list of them; of objects within objects the names are joined by ``/``."""
    names: dict[str, None] = {}
    wanted: list[str] = []
    parts: list[dict[str, list[Any]]] = []
    for rows in _chunks(path):
        flat = [_flat(row) for row in rows]
        new = [name for name in dict.fromkeys(name for row in flat for name in row) if name not in names]
        if new:
            names |= dict.fromkeys(new[: MOST_COLUMNS - len(names)])
            wanted = [name for name in dict.fromkeys(choose(list(names))) if name in names]
        parts.append({name: np.array([_value(row, name) for row in flat]) for name in wanted})  # type: ignore[misc]
    if not parts:
        raise DataError(f"{path}: no line of it is a JSON object")
    lengths = [len(next(iter(part.values()))) if part else 0 for part in parts]
    columns = {
        name: np.concatenate(
            [
                np.asarray(part.get(name, np.full(length, math.nan)), float)
                for part, length in zip(parts, lengths, strict=True)
            ]
        )
        for name in wanted
    }
    return list(names), columns


def _chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        if file.read(SAMPLE).lstrip()[:1] == "[" or path.suffix == ".json":
            if path.stat().st_size > MOST_JSON_BYTES:
                raise DataError(f"{path}: is one JSON value of more than {MOST_JSON_BYTES:,} bytes; use JSON lines")
            file.seek(0)
            try:
                value = json.load(file)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict) and isinstance(value.get("log_history"), list):  # of a Hugging Face trainer
                value = value["log_history"]
            if isinstance(value, list):
                yield [row for row in value if isinstance(row, dict)]
                return
        file.seek(0)
        while lines := list(islice(file, CHUNK)):
            try:
                rows = json.loads(f"[{','.join(lines)}]")
            except (ValueError, RecursionError):
                rows = [_line(line) for line in lines]
            if found := [row for row in rows if isinstance(row, dict)]:
                yield found


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    if not any(isinstance(value, dict) for value in row.values()):
        return row
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _value(row: dict[str, Any], name: str) -> float:
    if name not in row:
        return math.nan
    value = row[name]
    if value is None:
        return math.inf
    if isinstance(value, str):
        return _value({name: float(value)}, name) if _is_a_number(value) else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e300 else math.inf  # also where it is NaN


# --- TensorBoard -------------------------------------------------------------------------------------------------


def _events(path: Path, choose: Choose) -> Table:
    """The scalars of an event file, or of those in a folder, which are attempts of one run, in order of their names."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError:
        raise DataError(
            f"{path}: event files are read by the package tensorboard, which is not here: pip install tensorboard"
        ) from None
    files = sorted(file for file in path.iterdir() if _EVENTS in file.name) if path.is_dir() else [path]
    if not path.is_dir():
        path.stat()  # raises OSError
    found: dict[str, dict[int, float]] = {}
    for file in files:
        try:
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    number = _scalar(value)
                    if number is not None:
                        of_tag = found.setdefault(value.tag, {})
                        of_tag.pop(event.step, None)  # a later attempt's value, in its own place
                        of_tag[event.step] = number if math.isfinite(number) else math.inf
        except Exception as error:  # a damaged file can raise anything
            raise DataError(f"{file}: is no event file that can be read ({type(error).__name__})") from None
    if not found:
        raise DataError(f"{path}: has no scalars")
    names = ["step", *found]
    wanted = [name for name in choose(names) if name in found]
    steps = sorted({step for name in wanted for step in found[name]})
    columns = {name: np.array([found[name].get(step, math.nan) for step in steps]) for name in wanted}
    return Table(path.stem, "tensorboard", names, {"step": np.array(steps, float), **columns} if wanted else {})


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    tensor = value.tensor
    if tensor.tensor_shape.dim:
        return None
    for numbers in (tensor.float_val, tensor.double_val):
        if len(numbers) == 1:
            return float(numbers[0])
    kinds = {1: np.float32, 2: np.float64}
    if tensor.dtype in kinds and tensor.tensor_content:
        return float(np.frombuffer(io.BytesIO(tensor.tensor_content).read(), kinds[tensor.dtype])[0])
    return None
