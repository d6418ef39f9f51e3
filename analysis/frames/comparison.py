"""Chosen runs beside each other: their frames, and the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.frames.load import load_runs
from simsiam.settings.fields import Settings, flatten, is_argument

DEFAULTS = flatten(Settings())


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

    Only runs of which a setting is known are compared; of the others it is a dash.
    """
    found = {}
    for path, known in _known(runs).items():
        texts = [_text(path, value) for value in runs[path].astype(object)]
        if len({text for text, is_known in zip(texts, known, strict=True) if is_known}) > 1:
            found[path] = texts
    table: pd.DataFrame = pd.DataFrame(found, index=runs.index)
    return table


def partly_known(runs: pd.DataFrame) -> list[str]:
    """The settings that are known of some of the runs only."""
    return [path for path, known in _known(runs).items() if any(known) and not all(known)]


def all_known(runs: pd.DataFrame) -> bool:
    """Whether every setting is known of every run."""
    return bool(len(runs)) and all(_is_whole(runs))


def _known(runs: pd.DataFrame) -> dict[str, list[bool]]:
    """By setting, of which of the runs it is known. NaN stands for what is not, but in a run that is whole for null."""
    paths = [path for path in (*DEFAULTS, *filter(is_argument, runs.columns)) if path in runs]
    whole = _is_whole(runs)
    return {
        path: [all_are or not empty for all_are, empty in zip(whole, runs[path].isna(), strict=True)] for path in paths
    }


def _is_whole(runs: pd.DataFrame) -> list[bool]:
    """Whether each run records all settings that are never null. One of another program does not."""
    never_null = [path for path, value in DEFAULTS.items() if value is not None]
    recorded: list[bool] = runs.reindex(columns=never_null).notna().all(axis=1).tolist()
    return recorded


MOST_IN_A_NAME = 3  # settings


def names_of(runs: pd.DataFrame) -> list[str]:
    """What to call each of the runs: by the settings in which they differ, ``stop_gradient false; seed 0``.

    By the first few, if there are many. Runs that this does not tell apart have the name of their folder too.
    """
    differing = differences(runs)
    ends = Counter(path.rpartition(".")[2] for path in DEFAULTS)
    short = [end if ends[end := path.rpartition(".")[2]] == 1 else path for path in map(str, differing)]
    chosen = [place for place, path in enumerate(differing) if path != "seed"][:MOST_IN_A_NAME]
    chosen += [place for place, path in enumerate(differing) if path == "seed"]
    names = ["; ".join(f"{short[i]} {values[i]}" for i in chosen) for values in differing.to_numpy(str)]
    return [
        name if name and names.count(name) == 1 else f"{name} ({folder})" if name else str(folder)
        for name, folder in zip(names, runs["variant"], strict=True)
    ]


def _text(path: str, value: object) -> str:
    if isinstance(value, tuple):
        return " to ".join(_text(path, item) for item in value)
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if isinstance(value, bool) or isinstance(DEFAULTS.get(path), bool):  # beside NaN a frame may hold it as 1.0
        return str(bool(value)).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
