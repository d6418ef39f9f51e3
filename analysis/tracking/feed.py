"""What of a study's runs is new for a tracker, so that each point is told once, however often a run was interrupted.

A run is its folder: its attempts are one run here as there. Where an attempt resumed, the points after its checkpoint
are made again with the same values, so a tracker that has them keeps them. Points of the last step wait until a later
step is there or the run has ended, since a step may be logged in several lines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.frames.load import RUN_COLUMNS
from analysis.report.one_study import ReportVariant, gather
from experiments.runs.states import ENDED
from simsiam.record.atomic_files import write_atomically
from simsiam.settings.fields import flatten

SENT = "sent.json"  # in the folder of what is written: the last step that was told, by run
_NO_METRICS = {"run", "config", "seed", "step", "variant", "diverged"}
Points = list[tuple[int, dict[str, float]]]  # step, and what was measured there


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is told of it."""

    name: str  # of its folder, by which a tracker knows it again
    study: str
    variant: str
    seed: int
    settings: dict[str, Any]  # by dotted path
    state: str
    result: dict[str, Any]  # outcome and final values; empty until it has ended

    @property
    def group(self) -> str:
        """What its repetitions with other seeds share."""
        return f"{self.study}: {self.variant}"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


Send = Callable[[TrackedRun, Points], None]


def tell(
    send: Send, study: str, variants: Sequence[ReportVariant], runs_dir: Path, out: Path
) -> tuple[int, dict[str, str]]:
    """Send what is new since the last time, and remember it in ``out``.

    Returns how many points were sent, and the state of each run. ``send`` is called once for each run with news: new
    points, or its end.
    """
    points, runs = gather(variants, runs_dir)
    settings = {variant.name: flatten(variant.settings) for variant in variants}
    sent, num_sent = _read(out / SENT), 0
    for row in runs.to_dict("records"):
        if row["state"] in ("missing", "pending"):
            continue
        run = _tracked(row, study, settings[str(row["variant"])])
        known = sent.get(run.name, {"step": -1, "ended": False})
        new = _new(points[points["run"] == run.name], known["step"], whole=run.has_ended)
        if not new and known["ended"] >= run.has_ended:
            continue
        send(run, new)
        num_sent += len(new)
        sent[run.name] = {"step": new[-1][0] if new else known["step"], "ended": run.has_ended}
        _remember(out / SENT, json.dumps(sent, indent=1))
    return num_sent, {str(row["run"]): str(row["state"]) for row in runs.to_dict("records")}


def _tracked(row: Mapping[Any, Any], study: str, settings: dict[str, Any]) -> TrackedRun:
    kept = {name: row[name] for name in RUN_COLUMNS if name.startswith("final_") or name in ("outcome", "seconds")}
    result = {name: value for name, value in kept.items() if value is not None and not pd.isna(value)}
    ended = row["state"] in ENDED
    seed = int(row["seed"])
    return TrackedRun(
        str(row["run"]), study, str(row["variant"]), seed, {**settings, "seed": seed}, str(row["state"]),
        result if ended else {},
    )  # fmt: skip


def _new(points: pd.DataFrame, after: int, *, whole: bool) -> Points:
    """The points after a step, those of one step together; without those of the last step unless it is ``whole``."""
    last = points["step"].max() if len(points) else -1
    by_step: dict[int, dict[str, float]] = {}
    names = [name for name in points.columns if name not in _NO_METRICS]
    wanted = points[(points["step"] > after) & (whole | (points["step"] < last))]
    for row in wanted[["step", *names]].to_dict("records"):
        measured = {name: float(row[name]) for name in names if math.isfinite(row[name])}
        by_step.setdefault(int(row["step"]), {}).update(measured)
    return sorted(by_step.items())


def _remember(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()), aside=str(os.getpid()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}
