"""Groups of runs that share a colour, and each run's points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures import style


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one: repetitions of one variant."""

    label: str
    runs: tuple[str, ...]
    loss: str  # loss.name of its settings; "" if unknown
    mixed: bool  # its runs came to different outcomes, so that a mean would describe none of them
    colour: str
    dashes: Any


def column_of(runs: pd.DataFrame, hue: str | None) -> str:
    """``hue``, or the column that tells curves apart where none is named. Raises ValueError if there is no such one."""
    hue = hue or ("variant" if "variant" in runs else "config")
    if hue not in runs:
        raise ValueError(f"hue: {hue!r} is not a column of the runs ({', '.join(map(str, runs.columns))})")
    return hue


def make_groups(runs: pd.DataFrame, hue: str | None = None) -> list[Group]:
    """What will be drawn in one colour each, in order: that of a categorical column, of numbers, or of first sight."""
    hue = column_of(runs, hue)
    values = list(pd.unique(runs[hue].dropna()))
    if isinstance(runs[hue].dtype, pd.CategoricalDtype):
        values = [value for value in runs[hue].cat.categories if value in values]
    elif pd.api.types.is_numeric_dtype(runs[hue]):
        values = sorted(values)
    losses = runs["loss.name"].fillna("") if "loss.name" in runs else pd.Series("", index=runs.index)
    found = []
    for value in values:
        chosen = runs[hue] == value
        several = losses[chosen].nunique() > 1
        for loss in pd.unique(losses[chosen]):
            found.append((f"{value}, {loss}" if several else value, chosen & (losses == loss), loss))
    return [
        Group(_text(label), tuple(runs.loc[chosen, "run"]), loss, runs.loc[chosen, "outcome"].nunique() > 1, *look)
        for (label, chosen, loss), look in zip(found, style.line_styles(), strict=False)
    ]


def _text(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def points_by_run(points: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    """The points of each run, by its name."""
    return dict(iter(points.groupby("run", sort=False)))
