"""A figure of a study's report: how it is drawn, with its caption and its words, or the reason why it is not there.

Each kind (``experiments.studies.figures``) is drawn by the module of its name in this folder, by its ``drawing``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.figures import StudyFigure

NOT_LOGGED = "evaluation.diagnostics is off, or they are of an older version"


@dataclass(frozen=True)
class Drawing:
    """A figure of a report. ``draw`` makes it at a width in inches; None where ``absent`` says why it is not there."""

    name: str  # the stem of its files
    heading: str
    caption: str = ""
    alt: str = ""
    absent: str = ""
    draw: Callable[[float], Figure] | None = None


def drawings(
    figures: Sequence[StudyFigure], points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]
) -> list[Drawing]:
    """The figures of a study, in order. ``points`` and ``runs`` have the column ``variant``; ``paper``: its top-1."""
    return [import_module(f"analysis.figures.{one.kind}").drawing(one, points, runs, paper) for one in figures]


def absent(figure: StudyFigure, heading: str, runs: pd.DataFrame, reason: str) -> Drawing:
    """A figure that is not there, with the reason; before any run has started, that."""
    started = not runs["state"].isin(["missing", "pending"]).all()
    return Drawing(figure.name, heading, absent=reason if started else "no run has started")


def lines_and_bands(runs: pd.DataFrame) -> str:
    """How curves over seeds are to be read."""
    seeds = runs.groupby("variant", observed=True).size()
    if not (seeds > 1).any():
        return "One run a variant: differences may be chance."
    text = (
        f"Thick lines are means over {seeds_of(seeds[seeds > 1].tolist())}, bands reach from the lowest to the highest"
    )
    alone = (seeds == 1).any() or (runs["state"] != "done").any()
    return text + ("; thin lines are single runs." if alone else ".")


def seeds_of(counts: Sequence[int]) -> str:
    """``3 seeds``, or ``2 to 3 seeds`` where groups differ."""
    least, most = min(counts), max(counts)
    text = f"{most}" if least == most else f"{least} to {most}"
    return f"{text} seed{'s' if most != 1 else ''}"


def without(runs: pd.DataFrame, there: Mapping[str, object] | Sequence[str]) -> str:
    """A sentence on the variants that a figure lacks; "" if it has all."""
    names = missing(runs, there)
    return f" Not there (no such data of its runs): {', '.join(names)}." if names else ""


def missing(runs: pd.DataFrame, there: Mapping[str, object] | Sequence[str]) -> list[str]:
    """The variants that are not among those that are there."""
    return [name for name in dict.fromkeys(runs["variant"].astype(str)) if name not in there]
