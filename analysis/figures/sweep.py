"""Accuracy against a swept setting, with the paper's curve beside ours: Table 2, App. B, Table 4.

::

    points, runs = load_runs("runs")
    plot_sweep(runs, "batch_size").savefig("figure.pdf")
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analysis.figures import style
from analysis.figures.fonts import use_fonts_for
from analysis.figures.layout import legend_columns, reference_lines, reference_values
from analysis.frames.load import counts

METRIC = "final_knn_top1"
LABELS = {
    "batch_size": "batch size",
    "optimizer.lr": "base learning rate",
    "projector.output_dim": "output dimension d",
    "projector.num_layers": "layers of the projector",
    "predictor.hidden_dim": "hidden dimension of h",
}


def label_of(setting: str) -> str:
    """What stands on the axis of a setting, given by its dotted path."""
    return LABELS.get(setting, setting.replace("_", " "))


@dataclass(frozen=True)
class Line:
    """One curve: what it is of, and for each x its values, one a seed; a paper's point is one value."""

    label: str
    points: Mapping[float, Sequence[float]]


def plot_sweep(
    runs: pd.DataFrame,
    setting: str,
    *,
    paper: Mapping[str, float] | None = None,
    base: str | None = None,
    width: float = style.TWO_COLUMNS,
) -> Figure:
    """Final kNN accuracy against a setting, and in a second panel the paper's numbers against the same.

    ``runs`` as of :func:`analysis.load_runs`; ``setting`` the column that is swept. Variants (column ``variant``) whose
    names share the part before the first comma are one line: "BYOL, 1x" and "BYOL, 2x" are BYOL's. ``paper``: its
    top-1 by variant; without it there is one panel. ``base``: the variant whose value of the setting is 1 on the axis,
    so that another scale's values stand under the same factors; without it the axis has the values themselves. A point
    is the mean over the seeds that count (:func:`analysis.frames.load.counts`), a bar from the lowest to the highest, a
    hollow point a collapsed run. ``width`` is in inches. Raises ValueError if ``runs`` has no such column or variant.
    """
    if setting not in runs:
        raise ValueError(f"setting: {setting!r} is not a column of the runs")
    unit = 1.0
    if base is not None:
        if base not in set(runs["variant"].astype(str)):
            raise ValueError(f"base: {base!r} is not a variant of the runs")
        unit = float(runs.loc[runs["variant"].astype(str) == base, setting].iloc[0])
    runs = runs.assign(**{METRIC: runs[METRIC].where(counts(runs))})
    ours = list(_our_lines(runs, setting, unit))
    theirs = list(_paper_lines(runs, setting, unit, paper or {}))
    with matplotlib.rc_context(style.RC):
        num_panels = 2 if theirs else 1
        names = [line.label for line in ours]
        labels = [name.replace("$", r"\$") for name in use_fonts_for(names)]
        legend_rows = len(names) / legend_columns(labels, width) if len(names) > 1 else 0
        height = (2.1 if width > 5 else 1.9 * num_panels) + 0.2 * legend_rows
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = [
            figure.add_subplot(*((1, num_panels) if width > 5 else (num_panels, 1)), i + 1) for i in range(num_panels)
        ]
        looks = dict(zip(names, style.line_styles(), strict=False))
        for line in ours:
            _draw(axes[0], line, looks[line.label])
        _mark_collapsed(axes[0], runs[runs["outcome"] == "collapsed"], setting, unit, looks)
        axes[0].set_ylabel("kNN top-1 (%), ours")
        _references_nearby(axes[0], runs)
        for line in theirs:
            _draw(axes[1], line, looks[line.label])
        if theirs:
            axes[1].set_ylabel("ImageNet linear top-1 (%), paper")
        ticks = sorted({x for line in (*ours, *theirs) for x in line.points})
        label = label_of(setting)
        of_base = [f"{label} (1x = {unit:g})", f"{label} (1x: the paper's)"]
        for ax, relative_label in zip(axes, of_base, strict=False):
            _finish(ax, ticks, relative_label if base else label, relative=base is not None)
        if len(looks) > 1:
            handles = [Line2D([], [], color=c, linestyle=d, marker="o", markersize=3) for c, d in looks.values()]
            figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, width))
        return figure


def _name(variant: Any) -> str:
    return str(variant).partition(",")[0]


def _our_lines(runs: pd.DataFrame, setting: str, unit: float) -> Iterator[Line]:
    names = runs["variant"].map(_name).astype(str)
    several = len(set(names)) < runs["variant"].nunique()  # else each name is a point of one line
    for name in dict.fromkeys(names) if several else [""]:
        of_line = runs[names == name] if several else runs
        known = of_line.dropna(subset=[METRIC])
        points = {float(x) / unit: tuple(group[METRIC]) for x, group in known.groupby(setting)}
        yield Line(name, points)


def _paper_lines(runs: pd.DataFrame, setting: str, unit: float, paper: Mapping[str, float]) -> Iterator[Line]:
    variants = runs.drop_duplicates("variant")
    for line in _our_lines(variants.assign(**{METRIC: variants["variant"].astype(str).map(paper)}), setting, unit):
        if line.points:
            yield line


def _draw(ax: Axes, line: Line, look: tuple[str, Any]) -> None:
    colour, dashes = look
    xs = sorted(line.points)
    values = [line.points[x] for x in xs]
    mean = [float(np.mean(value)) for value in values]
    ax.plot(xs, mean, color=colour, linestyle=dashes, linewidth=1.2, marker="o", markersize=3.5)
    for x, value in zip(xs, values, strict=True):
        if len(value) > 1:
            ax.plot([x, x], [min(value), max(value)], color=colour, linewidth=0.8)


def _mark_collapsed(
    ax: Axes, runs: pd.DataFrame, setting: str, unit: float, looks: Mapping[str, tuple[str, Any]]
) -> None:
    """A hollow point over each run that collapsed."""
    for _, run in runs.iterrows():
        colour = looks.get(_name(run["variant"]), looks.get("", ("black", "-")))[0]
        if math.isfinite(run[METRIC]):
            at = [run[setting] / unit], [run[METRIC]]
            ax.plot(*at, color=colour, marker="o", markersize=3.5, markerfacecolor="white", linestyle="none")


def _references_nearby(ax: Axes, runs: pd.DataFrame) -> None:
    """The lines of raw pixels and so on, where they do not flatten the curve: at most its own height away."""
    values = runs[METRIC].dropna()
    if len(values):
        middle, half = (values.min() + values.max()) / 2, max(1.0, 0.55 * (values.max() - values.min()))
        ax.set_ylim(middle - half, middle + half)  # at least two points high: less is noise, and should look it
        reach = max(5.0, values.max() - values.min())  # points
        lines = [(sum(ends) / 2, name, dashes) for name, ends, dashes in reference_values(runs, "knn_top1")]
        near = [line for line in lines if values.min() - reach <= line[0] <= values.max() + reach]
        heights = [*ax.get_ylim(), *(line[0] for line in near)]
        ax.set_ylim(min(heights) - 0.1, max(heights) + 0.1)
        reference_lines(ax, near)


def _finish(ax: Axes, ticks: Sequence[float], label: str, *, relative: bool) -> None:
    if len(ticks) > 1 and ticks[0] > 0:
        ax.set_xscale("log", base=2)
        ratio = (ticks[-1] / ticks[0]) ** 0.06
        ax.set_xlim(ticks[0] / ratio, ticks[-1] * ratio)  # the same in both panels
    ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([_factor(x) if relative else f"{x:g}" for x in ticks])
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel(label)


def _factor(x: float) -> str:
    return f"1/{round(1 / x)}x" if x < 1 and math.isclose(1 / x, round(1 / x)) else f"{x:g}x"
