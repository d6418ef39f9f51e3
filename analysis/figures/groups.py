"""Groups of runs that share a colour, and each run's points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures import style
from simsiam.settings.fields import is_setting


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one: repetitions of one variant."""

    label: str
    runs: tuple[str, ...]
    loss: str  # loss.name of its settings; "" if unknown
    seeds_alone: bool  # its runs differ in nothing but their seeds
    mixed: bool  # its runs came to different outcomes or have different settings, so that a mean would describe none
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
    if pd.api.types.is_numeric_dtype(runs[hue]):
        values = sorted(values)
    # Of a study all variants, so that each has its look also where another has no runs.
    categories = list(runs[hue].cat.categories) if isinstance(runs[hue].dtype, pd.CategoricalDtype) else values
    values = [value for value in categories if value in values]
    losses = runs["loss.name"].fillna("") if "loss.name" in runs else pd.Series("", index=runs.index)
    losses_of = {value: list(pd.unique(losses[runs[hue] == value])) for value in categories}
    labels = {
        (value, loss): f"{_text(value)}, {loss}" if len(known) > 1 else _text(value)
        for value, known in losses_of.items()
        for loss in known or [""]
    }
    looks = looks_of([*labels.values()])
    found: list[Group] = []
    for value in values:
        for loss in losses_of[value]:
            of_group = runs[(runs[hue] == value) & (losses == loss)]
            seeds_alone = "config" not in of_group or of_group["config"].nunique() == 1
            mixed = not seeds_alone or of_group["outcome"].nunique() > 1
            label = labels[value, loss]
            found.append(Group(label, tuple(of_group["run"]), loss, seeds_alone, mixed, *looks[label]))
    return found


def method_of(variant: str) -> str:
    """What comes before the first comma, without the ``setting=value`` of a grid: "BYOL, 2x" is BYOL's."""
    parts = [part for part in variant.split(", ") if not is_setting(part.partition("=")[0]) or "=" not in part]
    return parts[0] if parts else ""


def methods_of(variants: Sequence[str]) -> list[str]:
    """The method of each variant; itself where no two share one, or it has none."""
    methods = [method_of(variant) or variant for variant in variants]
    return methods if len(set(methods)) < len(set(variants)) else list(variants)


def looks_of(variants: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each variant: those of its method, of which several variants have shades.

    Where a method has more variants than shades can be told apart, each has a colour and dashes of its own.
    """
    methods = methods_of(variants)
    if max(map(methods.count, methods), default=0) > style.MOST_SHADES:
        methods = list(variants)
    of_method = dict(zip(dict.fromkeys(methods), style.line_styles(), strict=False))
    looks = {}
    for variant, method in zip(variants, methods, strict=True):
        members = [other for other, its in zip(variants, methods, strict=True) if its == method]
        colour, dashes = of_method[method]
        looks[variant] = style.shade(colour, members.index(variant), len(members)), dashes
    return looks


def _text(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def points_by_run(points: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    """The points of each run, by its name."""
    return dict(iter(points.groupby("run", sort=False)))
