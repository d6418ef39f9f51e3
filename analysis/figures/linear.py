"""The kNN accuracy over training, and beside it the linear evaluations, ours and the paper's: Fig. D.1.

::

    points, runs = load_runs("runs")
    plot_linear(points, runs, paper={"SimSiam": 91.8, "SimCLR": 91.1}).savefig("figure.pdf")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.figures.drawing import Drawing, absent, lines_and_bands
from analysis.figures.fonts import use_fonts_for
from analysis.figures.groups import Group, make_groups, points_by_run
from analysis.figures.layout import fit_legend, spread
from analysis.figures.training import draw_panel
from analysis.frames.load import counts
from analysis.frames.run_files import is_number, read_object
from experiments.studies.figures import Linear

OWN = "logistic"  # the protocol by which runs evaluate themselves at their end
Numbers = dict[str, dict[str, list[float]]]  # by protocol, by label of the group: top-1 (percent), one a seed


def load_linear(folder: Path) -> dict[str, float]:
    """Top-1 (percent) of each protocol by which a run was evaluated, from its ``linear-<protocol>.json``."""
    try:
        paths = sorted(folder.glob("linear-*.json"))
    except OSError:
        return {}
    contents = {path.stem.partition("-")[2]: read_object(path, []) or {} for path in paths}
    return {name: float(content["top1"]) for name, content in contents.items() if is_number(content.get("top1"))}


def linear_numbers(runs: pd.DataFrame, hue: str | None = None) -> Numbers:
    """The linear evaluations of runs, as of :data:`Numbers`: first the runs' own, then ``evaluate``'s.

    Diverged runs have none.
    """
    folders = dict(zip(runs["run"], runs["path"], strict=True))
    numbers: Numbers = {}
    counted = set(runs.loc[counts(runs), "run"])
    finals = runs.set_index("run")["final_linear_top1"]
    for group in make_groups(runs, hue):
        for run in (name for name in group.runs if name in counted):
            own = {OWN: float(finals[run])} if pd.notna(finals[run]) else {}
            for protocol, top1 in {**own, **load_linear(Path(folders[run]))}.items():
                numbers.setdefault(protocol, {}).setdefault(group.label, []).append(top1)
    return dict(sorted(numbers.items(), key=lambda item: item[0] != OWN))


def plot_linear(
    points: pd.DataFrame,
    runs: pd.DataFrame,
    hue: str | None = None,
    *,
    paper: Mapping[str, float] | None = None,
    width: float = style.TWO_COLUMNS,
) -> Figure:
    """kNN accuracy against epochs, and in a second panel the linear accuracies: of each protocol, then the paper's.

    ``points`` and ``runs`` as of :func:`analysis.load_runs`; the folders of the runs are read for their evaluations.
    ``hue``: the column that tells curves apart, by default ``variant`` if there is one, else ``config``. ``paper``: its
    top-1 by value of ``hue``. A point is the mean over seeds, a bar reaches from the lowest to the highest; runs of
    several settings under one value of ``hue`` are points of their own. Without any number there is one panel.
    ``width`` is in inches. Raises ValueError if ``runs`` has no such column.
    """
    groups = make_groups(runs, hue)
    columns = {f"ours,\n{name}": found for name, found in linear_numbers(runs, hue).items()}
    if paper:
        columns["paper"] = {label: [top1] for label, top1 in paper.items()}
    with matplotlib.rc_context(style.RC):
        legend = fit_legend(use_fonts_for([group.label for group in groups]), width)
        wide = width > 5
        height = legend.height + (2.2 if wide or not columns else 3.9)
        figure = Figure(figsize=(width, height), layout="constrained")
        shape = (1, 1) if not columns else (1, 2) if wide else (2, 1)
        grid = figure.add_gridspec(*shape, width_ratios=[1.5, 1.0][: shape[1]])
        left = figure.add_subplot(grid[0])
        of_runs = points[points["run"].isin(runs["run"])]
        draw_panel(left, of_runs, points_by_run(of_runs), runs, "knn_top1", groups)
        left.set_xlabel("epoch")
        if columns:
            _draw_numbers(figure.add_subplot(grid[1]), columns, groups)
        handles = [
            Line2D([], [], color=group.colour, linestyle=group.dashes, marker=_MARKERS[i % 4], markersize=3.5)
            for i, group in enumerate(groups)
        ]
        figure.legend(handles, legend.labels, loc="outside upper center", ncols=legend.columns)
        return figure


_MARKERS = "os^D"
VALUE_HEIGHT = 0.075  # of the panel, that a written value takes


def _draw_numbers(ax: Axes, columns: Mapping[str, Mapping[str, list[float]]], groups: list[Group]) -> None:
    """A column of points for each source of numbers, each mean over seeds with its value written beside it."""
    every = [value for found in columns.values() for values in found.values() for value in values]
    margin = max(0.5, 0.25 * (max(every) - min(every)))
    bottom, top = min(every) - margin, max(every) + margin
    ax.set_ylim(bottom, top)
    for x, found in enumerate(columns.values()):
        known = [(i, group, found[group.label]) for i, group in enumerate(groups) if group.label in found]
        means = [float(np.mean(values)) for _, _, values in known]
        heights = spread([(mean - bottom) / (top - bottom) for mean in means], gap=VALUE_HEIGHT)
        for (i, group, values), mean, height in zip(known, means, heights, strict=True):
            look: dict[str, Any] = {"color": group.colour, "marker": _MARKERS[i % 4], "linestyle": "none"}
            if not group.seeds_alone:
                ax.plot([x] * len(values), values, markersize=3, **look)
                continue
            ax.plot([x], [mean], markersize=4.5, **look)
            if len(values) > 1:
                ax.plot([x, x], [min(values), max(values)], color=group.colour, linewidth=0.8)
            if len(known) * VALUE_HEIGHT > 1:  # they would run off the panel; the table has them
                continue
            ax.annotate(
                f"{mean:.1f}", (x, mean), xytext=(x + 0.1, bottom + height * (top - bottom)), textcoords="data",
                va="center", fontsize=7,
            )  # fmt: skip
    ax.set_xlim(-0.4, len(columns) - 0.4)
    ax.set_xticks(range(len(columns)), list(columns))
    ax.set_ylabel("linear top-1 (%)")


# --- in a report -------------------------------------------------------------------------------------------------


def drawing(figure: Linear, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    """The figure of a study's runs, in words and as it is drawn."""
    heading = "kNN accuracy over training, and linear evaluation"
    present = [name for name in runs["variant"].cat.categories if (runs["variant"] == name).any()]
    known = {name: paper[name] for name in present if name in paper}
    numbers = linear_numbers(runs)
    if not len(points) and not numbers:
        return absent(figure, heading, runs, "no run has logged anything yet")
    caption = "kNN top-1 accuracy against epochs, with its reference lines. "
    if numbers or known:
        caption += "Beside it top-1 of linear classifiers on the frozen features: "
        ours = [
            "ours by logistic regression at the end of training" if name == OWN else f"ours by the protocol {name}"
            for name in numbers
        ]
        caption += ", ".join([*ours, *(["the paper's"] if known else [])]) + ". "
    if known:
        caption += "The paper's are of its own data and network: compare the order, not the numbers. "
    if not numbers:
        caption += "No run has been evaluated yet: the command `evaluate` does. "
    caption += lines_and_bands(runs[runs["run"].isin(points["run"])])
    words = [
        f"{name}, {label} {np.mean(values):.1f} %" for name, found in numbers.items() for label, values in found.items()
    ]
    words += [f"paper, {label} {top1:g} %" for label, top1 in known.items()]
    return Drawing(
        figure.name,
        heading,
        caption,
        f"kNN accuracy over epochs. Linear top-1: {'; '.join(words) or 'not evaluated'}.",
        draw=lambda width: plot_linear(points, runs, "variant", paper=known, width=width),
    )
