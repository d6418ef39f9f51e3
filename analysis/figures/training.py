"""Curves over epochs for any set of runs: the three panels of the paper's Figure 2 (loss, std of z, kNN), or others.

::

    points, runs = load_runs("runs")
    plot_training(points, runs, hue="target.stop_gradient").savefig("figure.pdf")
    plot_training(points, runs, hue="target.stop_gradient", metrics=["positive_cosine"])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.figures import style
from analysis.figures.fonts import use_fonts_for
from analysis.figures.groups import Group, make_groups, points_by_run
from analysis.figures.layout import fit_accuracy, fit_legend, outline, reference_lines
from simsiam.record.catalogue import FIG_2, METRICS

Curve = NDArray[np.float64]  # (n, 2): epoch, value

LOSS_NAMES = {"cosine": "negative cosine", "squared-distance": "squared distance"}


def plot_training(
    points: pd.DataFrame,
    runs: pd.DataFrame,
    hue: str | None = None,
    *,
    metrics: Sequence[str] = FIG_2,
    width: float = style.TWO_COLUMNS,
    stacked: bool | None = None,
) -> Figure:
    """Loss, std and kNN against epochs, or other ``metrics``, with the lines that each is to be compared with.

    ``points`` and ``runs`` are those of :func:`analysis.load_runs`. ``hue`` is the column of ``runs`` that tells curves
    apart: a setting by its dotted path, ``variant``, ``config`` ...; by default ``variant`` if there is one, else
    ``config``. Runs with the same value are repetitions: a line at their mean and a band from the lowest to the
    highest. A run is a thin line of its own if it is alone, has not come as far as the others, or if they came to
    different outcomes. Losses of different names get panels of their own. ``width`` is in inches; ``stacked`` puts the
    panels one below the other (by default: where the figure is narrow). Raises ValueError if ``runs`` has no such
    column, or ``points`` no such metric.
    """
    for metric in metrics:
        if metric not in points:
            raise ValueError(f"metrics: {metric!r} is not a column of the points")
    with matplotlib.rc_context(style.RC):
        stacked = width < 5 if stacked is None else stacked
        groups = make_groups(runs, hue)
        panels = _panels(groups, metrics)
        title = hue if hue not in (None, "variant", "config") else None
        figure, axes = _canvas(groups, len(panels), width, stacked, title)
        points = points[points["run"].isin(runs["run"])]
        by_run = points_by_run(points)
        for ax, (metric, members) in zip(axes, panels, strict=True):
            several = [name for name, _ in panels].count(metric) > 1
            draw_panel(ax, points, by_run, runs, metric, members, several=several)
            if not stacked or ax is axes[-1]:
                ax.set_xlabel("epoch")
            else:
                ax.tick_params(labelbottom=False)
        figure.align_ylabels(axes)
        return figure


def _panels(groups: Sequence[Group], metrics: Sequence[str]) -> list[tuple[str, list[Group]]]:
    """A panel of each metric with all groups, of each loss with its own: different losses must not share an axis."""
    losses = list(dict.fromkeys(group.loss for group in groups)) or [""]
    by_loss = [("loss", [group for group in groups if group.loss == loss]) for loss in losses]
    return [panel for metric in metrics for panel in (by_loss if metric == "loss" else [(metric, list(groups))])]


# --- curves ------------------------------------------------------------------------------------------------------


def _curves(by_run: Mapping[Any, pd.DataFrame], group: Group, metric: str) -> list[Curve]:
    """The finite values of a metric, a curve for each run of the group that has any."""
    curves = [by_run[run][["epoch", metric]].to_numpy(float) for run in group.runs if run in by_run]
    finite = [curve[np.isfinite(curve[:, 1])] for curve in curves]
    return [curve for curve in finite if len(curve)]


def split_by_length(curves: Sequence[Curve]) -> tuple[list[Curve], list[Curve]]:
    """Those that reach as far as any, which can be averaged, and those that end before."""
    end = max((curve[-1, 0] for curve in curves), default=0.0)
    whole = [curve for curve in curves if curve[-1, 0] >= end - 1e-6]
    return whole, [curve for curve in curves if curve[-1, 0] < end - 1e-6]


def mean_and_range(curves: Sequence[Curve]) -> tuple[Curve, Curve, Curve]:
    """Epochs (n,), mean (n,), and lowest and highest (2, n), over curves that may be logged at different epochs."""
    start, end = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    epochs = np.unique(np.round(np.concatenate([curve[:, 0] for curve in curves]), 9))
    epochs = epochs[(epochs >= start - 1e-6) & (epochs <= end + 1e-6)]
    values = np.stack([np.interp(epochs, curve[:, 0], curve[:, 1]) for curve in curves])
    return epochs, values.mean(0), np.stack([values.min(0), values.max(0)])


def _draw(ax: Axes, group: Group, curves: Sequence[Curve]) -> None:
    whole, single = split_by_length(curves)
    if len(whole) == 1 or group.mixed:
        whole, single = [], list(curves)
    if whole:
        epochs, mean, (low, high) = mean_and_range(whole)
        band, line = np.union1d(outline(low), outline(high)), outline(mean)
        ax.fill_between(epochs[band], low[band], high[band], color=group.colour, alpha=0.2, linewidth=0)
        ax.plot(epochs[line], mean[line], color=group.colour, linestyle=group.dashes, linewidth=1.4)
    for curve in (curve[outline(curve[:, 1])] for curve in single):
        ax.plot(curve[:, 0], curve[:, 1], color=group.colour, linestyle=group.dashes, linewidth=0.8)
        if len(curve) == 1:  # a line of one point is invisible
            ax.plot(curve[:, 0], curve[:, 1], color=group.colour, marker="o", markersize=2.5)


def _horizon(points: pd.DataFrame, runs: pd.DataFrame) -> float:
    """The epoch to which the axis goes: that planned, so that a run in progress shows how far it is."""
    planned = pd.to_numeric(runs["epochs"], errors="coerce").max() if "epochs" in runs else math.nan
    known = [value for value in (planned, points["epoch"].max()) if value > 0]
    return float(max(known, default=1.0))


# --- panels ------------------------------------------------------------------------------------------------------


def draw_panel(
    ax: Axes,
    points: pd.DataFrame,
    by_run: Mapping[Any, pd.DataFrame],
    runs: pd.DataFrame,
    metric: str,
    groups: Sequence[Group],
    *,
    several: bool = False,
) -> None:
    """One metric against epochs. ``by_run``: the ``points`` by :func:`points_by_run`, once for all panels.

    ``several``: there is another panel of the same metric, so that its label says more.
    """
    curves = {group: _curves(by_run, group, metric) for group in groups}
    for group, of_group in curves.items():
        _draw(ax, group, of_group)
    if metric == "loss":
        _finish_loss(ax, groups, curves, points, several)
    elif metric == "z_std_relative":
        _finish_std(ax, curves)
    elif metric in METRICS and METRICS[metric].unit == "%":
        ax.set_ylabel(METRICS[metric].axis)
        values = [curve[:, 1] for of_group in curves.values() for curve in of_group]
        fit_accuracy(ax, np.concatenate(values) if values else np.array([]), runs, metric)
    else:
        known = METRICS.get(metric)  # a notebook may draw any column of the points
        ax.set_ylabel(known.axis if known else metric.replace("_", " "))
        if known and known.log_axis:
            ax.set_yscale("log")
        reference_lines(ax, [(known.level.value, known.level.label, "--")] if known and known.level else [])
    horizon = _horizon(points, runs)
    ax.set_xlim(0, horizon)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=horizon >= 3, min_n_ticks=3))
    if not any(len(curve) for of_group in curves.values() for curve in of_group):
        at_centre: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ended = "state" in runs and bool((runs["state"] == "done").all())
        ax.text(0.5, 0.5, "not logged" if ended else "no data yet", color=style.REFERENCE, **at_centre)


def _canvas(
    groups: Sequence[Group], num_panels: int, width: float, stacked: bool, title: str | None
) -> tuple[Figure, list[Axes]]:
    """Panels under one legend."""
    num_columns = 1 if stacked else num_panels if num_panels <= 4 else 3
    num_rows = math.ceil(num_panels / num_columns)
    legend = fit_legend(use_fonts_for([group.label for group in groups]), width)
    legend_height = legend.height + (0.16 if title else 0.0)
    panel_height = 1.45 if stacked else 1.9
    figure = Figure(figsize=(width, panel_height * num_rows + legend_height), layout="constrained")
    axes = [figure.add_subplot(num_rows, num_columns, i + 1) for i in range(num_panels)]
    if groups:
        handles = [Line2D([], [], color=group.colour, linestyle=group.dashes, linewidth=1.4) for group in groups]
        figure.legend(
            handles,
            legend.labels,
            loc="outside upper left" if len(groups) > 3 else "outside upper center",
            ncols=legend.columns,
            title=title,
            alignment="left",
        )
    return figure, axes


def _finish_loss(
    ax: Axes, groups: Sequence[Group], curves: dict[Group, list[Curve]], points: pd.DataFrame, several: bool
) -> None:
    loss = groups[0].loss if groups else ""
    ax.set_ylabel(
        f"{METRICS['loss'].axis}\n({LOSS_NAMES.get(loss, loss) or 'unknown'})" if several else METRICS["loss"].axis
    )
    diverged = set(points.loc[points["diverged"], "run"])
    kept = [
        curve[:, 1] for group, of_group in curves.items() if not diverged & set(group.runs) for curve in of_group
    ] or [curve[:, 1] for of_group in curves.values() for curve in of_group]
    if kept:
        # What blows up must not flatten what does not.
        values = np.concatenate(kept)
        low, high = values.min(), values.max()
        if loss == "cosine":
            low, high = -1.0, min(max(high, -0.8), 1.0)
        margin = 0.05 * (high - low or 1.0)
        ax.set_ylim(low - margin, high + margin)
    if loss == "cosine":
        reference_lines(ax, [(-1.0, "minimum", "--")])
    for group in groups:
        for run in diverged & set(group.runs):
            _mark_divergence(ax, group, points[points["run"] == run])


def _mark_divergence(ax: Axes, group: Group, of_run: pd.DataFrame) -> None:
    """A cross at the top of the panel where the loss stopped being finite."""
    epoch = of_run.loc[of_run["diverged"], "epoch"].min()
    ax.plot([epoch], [0.97], transform=ax.get_xaxis_transform(), color=group.colour, marker="x", markersize=4.5)
    ax.annotate(
        "diverged", (epoch, 0.97), xycoords=ax.get_xaxis_transform(), xytext=(4, 0), textcoords="offset points",
        va="center", fontsize=7, color=style.REFERENCE,
    )  # fmt: skip


def _finish_std(ax: Axes, curves: dict[Group, list[Curve]]) -> None:
    ax.set_ylabel(METRICS["z_std_relative"].axis)
    highest = max((curve[:, 1].max() for of_group in curves.values() for curve in of_group), default=1.0)
    ax.set_ylim(0, 1.08 * max(highest, 1.0))
    reference_lines(ax, [(1.0, "1/√d", "--")])
