"""Chosen runs beside each other: their frames, and the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.frames.load import load_runs
from simsiam.settings.fields import Settings, flatten, is_argument


def load_chosen(folders: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points and runs of folders that may lie in different places, with the column ``variant``: a name for each.

    The name is that of the folder; its whole path where two folders have the same name.
    """
    names = [folder.name for folder in folders]
    labels = [str(folder) if names.count(folder.name) > 1 else folder.name for folder in folders]
    loaded = [load_runs(folder.parent, [folder.name]) for folder in folders]
    for (points, runs), label in zip(loaded, labels, strict=True):
        points["run"] = points["variant"] = runs["run"] = runs["variant"] = label
    kind = pd.CategoricalDtype(labels)  # in the order in which they were named
    filled = [points for points, _ in loaded if len(points)] or [loaded[0][0]]
    both = [pd.concat(filled, ignore_index=True), pd.concat([runs for _, runs in loaded], ignore_index=True)]
    for frame in both:
        frame["variant"] = frame["variant"].astype(kind)
    return both[0], both[1]


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings in which runs differ, as texts: a column for each, a row for each run in the order of ``runs``.

    A setting that is not known of a run is a dash. Settings that are not known of any are left out.
    """
    found = {}
    for path in (*flatten(Settings()), *filter(is_argument, runs.columns)):
        if path not in runs:
            continue
        texts = [_text(value) for value in runs[path].astype(object)]
        if len(set(texts)) > 1:
            found[path] = texts
    table: pd.DataFrame = pd.DataFrame(found, index=runs.index)
    return table


MOST_IN_A_NAME = 3  # settings


def names_of(runs: pd.DataFrame) -> list[str]:
    """What to call each of the runs: by the settings in which they differ, ``stop_gradient false; seed 0``.

    By the first few, if there are many. Runs that this does not tell apart have the name of their folder too.
    """
    differing = differences(runs)
    ends = Counter(path.rpartition(".")[2] for path in flatten(Settings()))
    short = [end if ends[end := path.rpartition(".")[2]] == 1 else path for path in map(str, differing)]
    chosen = [place for place, path in enumerate(differing) if path != "seed"][:MOST_IN_A_NAME]
    chosen += [place for place, path in enumerate(differing) if path == "seed"]
    names = ["; ".join(f"{short[i]} {values[i]}" for i in chosen) for values in differing.to_numpy(str)]
    return [
        name if name and names.count(name) == 1 else f"{name} ({folder})" if name else str(folder)
        for name, folder in zip(names, runs["variant"], strict=True)
    ]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " to ".join(_text(item) for item in value)
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
