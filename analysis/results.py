"""Run folders as two tidy pandas frames: one row per logged point, one row per run.

Everything in this package starts from these two, and so can a notebook::

    from analysis import load_runs
    points, runs = load_runs("runs")

Reads the disk and imports no torch. A folder that is damaged, half-written or still growing is read as far as it goes,
and the column ``note`` names what is odd about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiments.store import RunFolder, read_json
from simsiam import metrics
from simsiam.config import Settings, flatten

POINT_COLUMNS = (  # of each logged point, with its unit
    "epoch",  # passes over the training set, fractional
    "step",  # updates of the weights
    "loss",
    "lr",
    "z_std",  # std of z/|z|, mean over channels
    "z_std_relative",  # the same times sqrt(d)
    "grad_norm",
    "images_per_s",
    "knn_top1",  # percent
    "effective_rank",
)
FINALS = ("loss", "z_std", "z_std_relative", "knn_top1", "effective_rank")
RUN_COLUMNS = (
    "run",  # name of the folder
    "config",  # the name without its seed: runs that share it are repetitions of one configuration
    "seed",
    "state",  # missing, pending, running, interrupted, stopped, failed, done; unknown for curves without a state
    "outcome",  # healthy, collapsed, diverged; None until done
    "stopped_early",
    "epoch",  # reached
    "step",
    *(f"final_{name}" for name in FINALS),  # NaN until done
    "untrained_knn_top1",  # percent, before the first step
    "reference_raw_pixels",  # percent, kNN on raw pixels
    "reference_chance",  # percent
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
    "note",  # what is odd about the folder; "" if nothing
    "path",
)

_PROVENANCE = ("device", "host", "git_commit", "git_dirty", "code", "command")


def load_runs(runs_dir: str | Path = "runs", folders: Iterable[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All runs below a directory, or the named ``folders`` of it, as ``(points, runs)``.

    ``points``: one row per logged point, in order of step: ``run``, ``config``, ``seed``, the columns of
    :data:`POINT_COLUMNS` (NaN where a point has no such value, or not a finite one), ``diverged``, and whatever else
    was logged. ``runs``: one row per run: :data:`RUN_COLUMNS`, then every setting by its dotted path. A named folder
    that does not exist is a row too, with the state ``missing``. Raises FileNotFoundError if ``runs_dir`` itself does
    not exist and no folder is named.
    """
    root = Path(runs_dir)
    if folders is None:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    frames, rows = [], []
    for name in folders:
        logged, row = read_run(root / name)
        rows.append(row)
        if logged:
            frames.append(pd.DataFrame(logged).assign(run=name, config=row["config"], seed=row["seed"]))
    return _points_frame(frames), _runs_frame(rows)


def read_run(folder: Path) -> tuple[list[metrics.Point], dict[str, Any]]:
    """One run folder: its points, and its row in the frame of runs."""
    match = re.fullmatch(r"(.+)-s(\d+)", folder.name)
    row: dict[str, Any] = dict.fromkeys(RUN_COLUMNS, math.nan)
    row |= dict.fromkeys((*_PROVENANCE, "outcome", "device_type", "versions", "started"))
    row |= {"run": folder.name, "path": str(folder), "stopped_early": False}
    row |= {"config": match[1], "seed": int(match[2])} if match else {"config": folder.name}
    notes: list[str] = []
    if not folder.is_dir():
        return [], {**row, "state": "missing", "note": ""}
    row |= _settings(folder, notes)
    points = _points(folder, notes)
    row |= _progress(folder, points, notes)
    row |= _provenance(folder, notes)
    return points, {**row, "note": "; ".join(notes)}


# --- a run in words and hours ----------------------------------------------------------------------------------------


def describe_state(run: pd.Series) -> str:
    """What a run came to, or how far it is, in a few words."""
    if run["state"] == "done":
        outcome = "ended" if pd.isna(run["outcome"]) else str(run["outcome"])
        return f"{outcome}, stopped early" if run["stopped_early"] and outcome != "diverged" else outcome
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


def _settings(folder: Path, notes: list[str]) -> dict[str, Any]:
    try:
        nested = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        found = {
            f"{key}.{leaf}" if leaf else key: tuple(value) if isinstance(value, list) else value
            for key, section in nested.items()
            for leaf, value in (section.items() if isinstance(section, dict) else [("", section)])
        }
    except FileNotFoundError:
        notes.append("no config.yaml")
        return {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        notes.append("config.yaml cannot be read")
        return {}
    # A switch that is newer than the folder has a default that keeps the old behaviour.
    defaults = flatten(Settings())
    unknown = found.keys() - defaults.keys()
    if unknown:
        notes.append(f"settings unknown to this version: {', '.join(sorted(unknown))}")
    return {**defaults, **found}


def _points(folder: Path, notes: list[str]) -> list[metrics.Point]:
    try:
        points = metrics.merge(folder)
        if any(not {"epoch", "step"} <= point.keys() for point in points):
            raise ValueError("a point without its place")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        notes.append("its metrics cannot be read")
        return []
    if not points:
        notes.append("no points logged")
    return points


def _progress(folder: Path, points: list[metrics.Point], notes: list[str]) -> dict[str, Any]:
    """State, outcome, finals and cost. An ended run's numbers come from its result, others' from their last state."""
    state, result = read_json(folder / "state.json") or {}, read_json(folder / "result.json")
    if result is None and (folder / "result.json").exists():
        notes.append("result.json cannot be read")
    last = points[-1] if points else {}
    untrained = next((point["knn_top1"] for point in points if "knn_top1" in point and point["step"] == 0), None)
    row: dict[str, Any] = {
        "state": _state(folder, state, bool(points)),
        "epoch": _number(last.get("epoch", state.get("epoch"))),
        "step": _number(last.get("step", state.get("step"))),
        "untrained_knn_top1": _number(untrained),
        "seconds": _number(state.get("seconds")),
        "attempts": _number(state.get("attempt")),
    }
    if result is not None:
        final = result.get("final")
        final = final if isinstance(final, dict) else {}
        row |= {f"final_{name}": _number(final.get(name)) for name in FINALS}
        row |= {
            name: _number(result.get(name))
            for name in ("seconds", "device_seconds", "threads", "peak_memory_bytes", "attempts")
        }
        row |= {"outcome": result.get("outcome"), "stopped_early": bool(result.get("stopped_early", False))}
    return row


def _state(folder: Path, state: Mapping[str, Any], has_points: bool) -> str:
    """As the store sees it; a folder without leases (a copy of one) is as its state.json says."""
    seen = RunFolder(folder.parent, folder.name).status().state
    if seen != "pending":
        return seen
    return str(state.get("state") or ("unknown" if has_points else "pending"))


def _provenance(folder: Path, notes: list[str]) -> dict[str, Any]:
    content = read_json(folder / "provenance.json")
    if content is None:
        there = (folder / "provenance.json").exists()
        notes.append("provenance.json cannot be read" if there else "no provenance.json")
        return {}
    references = content.get("references") or {}
    row: dict[str, Any] = {
        "reference_raw_pixels": _number(references.get("raw_pixels")),
        "reference_chance": _number(references.get("chance")),
    }
    attempts = [attempt for attempt in content.get("attempts") or [] if isinstance(attempt, dict)]
    if not attempts:
        return row
    if len({attempt.get("code") for attempt in attempts}) > 1:
        notes.append("its attempts ran different code")
    last = attempts[-1]
    device = last.get("device")
    kind = "cuda" if str(device).startswith(("NVIDIA", "cuda")) else "cpu"
    row |= {name: last.get(name) for name in _PROVENANCE}
    row |= {"device_type": last.get("device_type") or kind, "started": attempts[0].get("started")}
    row["versions"] = ", ".join(f"{name} {version}" for name, version in (last.get("versions") or {}).items()) or None
    if "threads" in last:
        row["threads"] = _number(last["threads"])
    return row


def _number(value: Any) -> float:
    """A number as it is; null and anything else is NaN."""
    return float(value) if isinstance(value, int | float) else math.nan


# --- the frames --------------------------------------------------------------------------------------------------


def _points_frame(frames: list[pd.DataFrame]) -> pd.DataFrame:
    first = ["run", "config", "seed", *POINT_COLUMNS]
    # A column that is empty in one run must not decide the type of all.
    frames = [frame.dropna(axis="columns", how="all") for frame in frames]
    points: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=first)
    others = [name for name in points.columns if name not in (*first, "diverged")]
    points = points.reindex(columns=[*first, *others, "diverged"])
    points["diverged"] = points["diverged"].eq(True)
    typed: pd.DataFrame = points.astype(dict.fromkeys(POINT_COLUMNS, float))
    return typed


def _runs_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)  # a setting that is missing somewhere is NaN there
    runs = pd.DataFrame(rows, columns=list(dict.fromkeys([*RUN_COLUMNS, *names])))
    typed: pd.DataFrame = runs.astype({"seed": "Int64"})
    return typed
