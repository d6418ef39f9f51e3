"""Run folders as two tidy pandas frames: one row per logged point, one row per run.

Everything in this package starts from these two, and so can a notebook::

    from analysis import load_runs
    points, runs = load_runs("runs")

Reads the disk and imports no torch. A folder that is damaged, half-written or still growing is read as far as it goes,
and the column ``note`` names what is odd about it.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import cache
from analysis.frames.run_files import PROVENANCE_TEXTS, Contents, note_missing, number, read_contents, read_object, text
from experiments.runs.folder import RunFolder
from experiments.studies.study import GRIDS
from simsiam.errors import SettingsError
from simsiam.record.catalogue import ACCURACY, CATALOGUE, CURVES
from simsiam.settings.fields import NEW_SETTINGS, Settings, flatten, is_argument
from simsiam.settings.identity import split_run_name

POINT_COLUMNS = (  # of each logged point; the metrics among them are those that every run logs
    "epoch",  # passes over the training set, fractional
    "step",  # updates of the weights
    "images_per_s",
    *(metric.name for metric in CATALOGUE if metric.always),
)
RUN_COLUMNS = (
    "run",  # name of the folder
    "config",  # the name without its seed: runs that share it are repetitions of one configuration
    "seed",
    "state",  # missing, pending, running, interrupted, stopped, failed, done; unknown for curves without a state
    "outcome",  # healthy, collapsed, diverged; None until done
    "stopped_early",
    "epoch",  # reached
    "step",
    *(f"final_{name}" for name in CURVES),  # NaN until done, and where it was not logged; see counts
    "untrained_knn_top1",  # percent, before the first step
    "untrained_linear_top1",
    "reference_raw_pixels",  # percent, kNN on raw pixels
    "reference_raw_pixels_linear",
    "reference_chance",  # percent
    "reference_loss_chance",  # what a loss of one's own says of itself, if it does
    "reference_loss_optimum",
    "seconds",  # wall time, over all attempts
    "device_seconds",
    "threads",
    "peak_memory_bytes",
    "attempts",
    "device",
    "device_type",  # cpu or cuda
    "host",
    "git_commit",
    "git_dirty",
    "code",  # hash of the code that ran
    "versions",
    "command",
    "started",  # first attempt, UTC
    "claims",  # what was claimed of it when it began, as JSON: hash and date by study and claim
    "note",  # what is odd about the folder; "" if nothing
    "path",
)

_COSTS = ("seconds", "device_seconds", "threads", "peak_memory_bytes", "attempts")  # of a result
OUTCOMES = ("healthy", "collapsed", "diverged")


def load_runs(
    runs_dir: str | Path = "runs", folders: Iterable[str] | None = None, *, use_cache: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All runs below a directory, or the named ``folders`` of it, as ``(points, runs)``.

    ``points``: one row per logged point, in order of step: ``run``, ``config``, ``seed``, the columns of
    :data:`POINT_COLUMNS` (NaN where a point has no such value, or not a finite one), ``diverged``, and whatever other
    numbers were logged. ``runs``: one row per run: :data:`RUN_COLUMNS`, then every setting by its dotted path. A named
    folder that does not exist is a row too, with the state ``missing``. What was read is kept in
    ``RUNS_DIR/.analysis``, see :mod:`analysis.frames.cache`, unless ``use_cache`` is false. Raises FileNotFoundError if
    ``runs_dir`` itself does not exist and no folder is named, SettingsError if it is a file, such as an archive.
    """
    root = Path(runs_dir)
    if root.is_file():
        raise SettingsError(
            f"runs_dir: {root} is a file, and a folder of runs is wanted; `unpack` makes one of an archive"
        )
    if folders is None:
        folders_there = (entry.name for entry in root.iterdir() if _is_folder(entry))
        names = sorted(name for name in folders_there if not name.startswith(".") and name != GRIDS)
        cache.forget(root, names)
    else:
        names = list(folders)
    defaults = flatten(Settings())
    rows, curves = [], []
    for name in names:
        contents, row = _read_run(root / name, defaults, use_cache=use_cache)
        rows.append(row)
        curves.append((contents, row))
    return _points_frame(curves), _runs_frame(rows)


def _read_run(folder: Path, defaults: Mapping[str, Any], *, use_cache: bool) -> tuple[Contents, dict[str, Any]]:
    """One run folder: what its files hold, and its row in the frame of runs."""
    named = split_run_name(folder.name)
    row: dict[str, Any] = dict.fromkeys(RUN_COLUMNS, math.nan)
    row |= dict.fromkeys((*PROVENANCE_TEXTS, "git_dirty", "outcome", "device_type", "versions", "started", "claims"))
    row |= {"run": folder.name, "path": str(folder), "stopped_early": False}
    row |= {"config": named[0], "seed": named[1]} if named else {"config": folder.name}
    if not _is_folder(folder):
        return Contents(), {**row, "state": "missing", "note": ""}
    contents = cache.read_cached(folder) if use_cache else read_contents(folder)
    notes = list(contents.notes)
    known = _with_defaults(contents.settings, defaults, notes)
    row |= known if not _is_nan(known.get("seed")) else {**known, "seed": row["seed"]}
    row |= _progress(folder, contents, notes)
    row |= {name: value for name, value in contents.provenance.items() if not _is_nan(value)}
    return contents, {**row, "note": "; ".join(notes)}


# --- which runs count ---------------------------------------------------------------------------------------------


def counts(runs: pd.DataFrame) -> pd.Series[bool]:
    """Whether each run is one for final values: it has ended, and did not diverge. All means, figures and tests ask."""
    return (runs["state"] == "done") & (runs["outcome"] != "diverged")


def accuracy_of(runs: pd.DataFrame) -> str:
    """The accuracy that runs are compared by: the paper's, linear, or kNN where none has been evaluated linearly."""
    found = f"final_{ACCURACY}" in runs and runs.loc[counts(runs), f"final_{ACCURACY}"].notna().any()
    return ACCURACY if found else "knn_top1"


def counted_or_all(runs: pd.DataFrame, hue: str) -> pd.DataFrame:
    """The runs that count; of a value of ``hue`` that has none of them, all."""
    does = counts(runs)
    of_value = does.groupby(runs[hue], observed=True, dropna=False).transform("any").astype(bool)
    chosen: pd.DataFrame = runs[does | ~of_value]
    return chosen


# --- a run in words and hours ----------------------------------------------------------------------------------------


DIMENSIONAL = "dimensional collapse"
COLLAPSE = ("complete collapse", DIMENSIONAL, "collapsed")  # the last is complete, of a run without a diagnosis


def came_to(runs: pd.DataFrame) -> pd.Series[str]:
    """The word for what each ended run came to: that of its diagnosis (column ``diagnosis``, where it is there).

    Else its own record, of an accuracy and a std alone. Empty for a run that has not ended.
    """
    recorded = runs["outcome"].where(runs["outcome"].notna(), "ended")
    words = runs["diagnosis"].fillna(recorded) if "diagnosis" in runs else recorded
    ended: pd.Series[str] = words.where(runs["state"] == "done", "").astype(str)
    return ended


def describe_state(run: pd.Series) -> str:
    """What a run came to, or how far it is, in a few words."""
    if run["state"] == "done":
        word = str(came_to(run.to_frame().T).iloc[0])
        return f"{word}, stopped early" if run["stopped_early"] and word not in ("diverged", "divergence") else word
    if run["state"] == "failed":
        return "failed: see failure.txt"
    if run["state"] in ("missing", "pending"):
        return "not run"
    state = "state unknown" if run["state"] == "unknown" else str(run["state"])
    if pd.isna(run["epoch"]):
        return state
    planned = run.get("epochs", math.nan)
    return f"{state}, epoch {int(run['epoch'])}" + ("" if pd.isna(planned) else f"/{int(planned)}")


def device_hours(runs: pd.DataFrame) -> pd.Series[float]:
    """Hours of a GPU for runs on one; of a core, which is time by threads, for runs on a CPU."""
    seconds = runs["device_seconds"].fillna(runs["seconds"])
    hours: pd.Series[float] = seconds.where(runs["device_type"] == "cuda", seconds * runs["threads"]) / 3600
    return hours.astype(float)


# --- the files of a run ------------------------------------------------------------------------------------------


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):  # gone, a loop of links, or not ours to see
        return False


def _may_be_there(path: Path) -> bool:
    """Whether there is such a file, or one may not look."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _with_defaults(found: Mapping[str, Any] | None, defaults: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """All settings: a switch that is newer than the folder has a default that keeps the old behaviour."""
    if found is None:
        return {}
    if found.get("foreign") is True:  # of another program: what it does not say is not known, and is no default
        return {**dict.fromkeys(defaults, math.nan), **{path: found[path] for path in found if path != "foreign"}}
    unknown = {path for path in found.keys() - defaults.keys() if not is_argument(path)}
    if unknown:
        notes.append(f"settings unknown to this version: {', '.join(sorted(unknown))[:200]}")
    damaged = {note.split(": ")[1] for note in notes if note.startswith("config.yaml: ")}
    lacking = defaults.keys() - found.keys() - damaged - NEW_SETTINGS
    if lacking:
        names = ", ".join(sorted(lacking)[:3]) + (" ..." if len(lacking) > 3 else "")
        notes.append(f"settings of an older version: {len(lacking)} taken from the defaults ({names})")
    return {**defaults, **dict.fromkeys(damaged, math.nan), **found}


def _progress(folder: Path, contents: Contents, notes: list[str]) -> dict[str, Any]:
    """State, outcome, finals and cost. An ended run's numbers come from its result, others' from their last state."""
    state = read_object(folder / "state.json", notes)
    result = read_object(folder / "result.json", notes)
    if state is None:
        notes += [] if _may_be_there(folder / "state.json") else ["no state.json"]
        state = {}
    else:
        note_missing(state, ("state", "attempt", "seconds"), "state.json", notes)
        if state.get("state") == "done" and not _may_be_there(folder / "result.json"):
            notes.append("it is done, but has no result.json")
    columns = contents.columns
    last = dict(zip(columns, contents.values[-1].tolist(), strict=True)) if len(contents.values) else {}
    row: dict[str, Any] = {
        "state": _state(folder, state, notes, has_points=bool(last)),
        "epoch": last.get("epoch", number(state.get("epoch"), "state.json: epoch", notes)),
        "step": last.get("step", number(state.get("step"), "state.json: step", notes)),
        **{f"untrained_{name}": _untrained(contents, name) for name in ("knn_top1", "linear_top1")},
        "seconds": number(state.get("seconds"), "state.json: seconds", notes),
        "attempts": number(state.get("attempt"), "state.json: attempt", notes),
    }
    if result is not None:
        final = result.get("final")
        if not isinstance(final, dict) or not final:
            notes.append("result.json: it has no final numbers")
            final = {}
        else:
            note_missing(final, ("epoch", "step"), "result.json: final", notes)
        note_missing(result, ("outcome", *_COSTS), "result.json", notes)
        row |= {f"final_{name}": number(final.get(name), f"result.json: final {name}", notes) for name in CURVES}
        row |= {name: number(result.get(name), f"result.json: {name}", notes) for name in _COSTS}
        outcome = text(result.get("outcome"), "result.json: outcome", notes)
        if isinstance(outcome, str) and outcome not in OUTCOMES:
            notes.append(f"result.json: outcome {outcome[:40]!r} is unknown to this version")
        row |= {"outcome": outcome, "stopped_early": result.get("stopped_early") is True}
        end = number(final.get("step"), "result.json: final step", notes)
        if last and end != last["step"] and not math.isnan(end) and outcome != "diverged":
            notes.append(f"its curves end at step {last['step']:.0f}, its result is of step {end:.0f}")
    return row


def _untrained(contents: Contents, accuracy: str) -> float:
    """The first accuracy of step 0; NaN if none was logged."""
    if not {accuracy, "step"} <= set(contents.columns):
        return math.nan
    step, values = (contents.values[:, contents.columns.index(name)] for name in ("step", accuracy))
    found = values[(step == 0) & np.isfinite(values)]
    return float(found[0]) if len(found) else math.nan


def _state(folder: Path, state: Mapping[str, Any], notes: list[str], *, has_points: bool) -> str:
    """As the store sees it; a folder without leases (a copy of one) is as its state.json says."""
    said = text(state.get("state"), "state.json: state", notes)
    try:
        seen = RunFolder(folder.parent, folder.name).status().state.value
    except (OSError, ValueError, TypeError, OverflowError):
        notes.append("its state cannot be read")
        return "unknown"
    return seen if seen != "pending" else said or ("unknown" if has_points else "pending")


# --- the frames --------------------------------------------------------------------------------------------------


def _points_frame(curves: list[tuple[Contents, dict[str, Any]]]) -> pd.DataFrame:
    """One block of doubles for all runs, filled run by run: a frame for each, put together later, costs more."""
    curves = [(contents, row) for contents, row in curves if len(contents.values)]
    logged = dict.fromkeys(name for contents, _ in curves for name in contents.columns)
    names = [*POINT_COLUMNS, *(name for name in logged if name not in (*POINT_COLUMNS, "diverged")), "diverged"]
    places = {name: place for place, name in enumerate(names)}
    lengths = [len(contents.values) for contents, _ in curves]
    block = np.full((len(names), sum(lengths)), math.nan)
    start = 0
    for (contents, _), length in zip(curves, lengths, strict=True):
        block[[places[name] for name in contents.columns], start : start + length] = contents.values.T
        start += length
    points: pd.DataFrame = pd.DataFrame(block.T, columns=names)
    points["diverged"] = points["diverged"].eq(1)
    for place, name in enumerate(("run", "config", "seed")):
        values = pd.Series([row[name] for _, row in curves], dtype=float if name == "seed" else str)
        whole = values.astype(int) if name == "seed" and values.notna().all() else values
        points.insert(place, name, whole.repeat(lengths).reset_index(drop=True))
    return points


def _runs_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)  # a setting that is missing somewhere is NaN there
    runs = pd.DataFrame(rows, columns=list(dict.fromkeys([*RUN_COLUMNS, *names])))
    typed: pd.DataFrame = runs.astype({"seed": "Int64"}).copy()  # in few blocks: else pandas warns who adds a column
    return typed
