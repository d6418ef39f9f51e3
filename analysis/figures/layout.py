"""Panels of one kind beside each other, one for each variant: for what cannot be drawn over each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from analysis.diagnosis.shape_of_curve import Values
from analysis.figures import style
from analysis.figures.fonts import text_width, use_fonts_for, wrap
from simsiam.record.catalogue import REFERENCES

PANEL_WIDTH, NARROWEST = 1.55, 0.8  # inches: of a panel, about, and where a page would not hold them all


def make_panels(
    titles: Sequence[str], width: float, *, extra_height: float = 0.0, extra_width: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure ``width`` inches wide with a square panel under each title, in as many rows as it takes.

    Panels are smaller where a page would not hold them all, and so are their titles. ``extra_height`` and
    ``extra_width``: inches for a legend, and for what stands beside the panels. To be called within ``style.RC``.
    """
    names = use_fonts_for(titles)
    least = min(len(names), max(2, int(width / PANEL_WIDTH)))
    for most in range(least, max(least, min(len(names), int(width / NARROWEST))) + 1):
        num_rows = math.ceil(len(names) / most)
        num_columns = math.ceil(len(names) / num_rows)  # rows of equal length
        panel = min(width / num_columns, 2.4 if width >= style.TWO_COLUMNS else 2.1)
        size = style.RC["axes.titlesize"] * (1.0 if most == least else 0.75)
        inner = min(0.9 * panel, (width - extra_width) / num_columns)
        wrapped = ["\n".join(wrap(name, inner, size)) or "(no name)" for name in names]
        lines = max(title.count("\n") + 1 for title in wrapped)
        height = num_rows * (panel + 1.3 * size / 72 * lines) + extra_height
        if height <= style.PAGE_HEIGHT:
            break
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(num_rows, num_columns, i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, wrapped, strict=True):
        ax.set_title(title.replace("$", r"\$"), pad=4, fontsize=size)
    return figure, axes


def is_outer(place: int, num_panels: int, axes: Sequence[Axes]) -> tuple[bool, bool]:
    """Whether the panel at a place is the first of its row, and whether it is the last of its column."""
    num_columns = axes[place].get_gridspec().ncols  # type: ignore[union-attr]
    return place % num_columns == 0, place + num_columns >= num_panels


def outline(values: Values, stretches: int = 150) -> NDArray[np.intp]:
    """The places of a curve that show all of it when drawn: its ends, and the lowest and the highest of each stretch.

    A panel is a few hundred dots wide, a run of 800 epochs thousands of points long.
    """
    places = np.arange(len(values))
    if len(values) <= 2 * stretches:
        return places
    parts = np.array_split(places, stretches)
    extremes = [part[find(values[part])] for part in parts for find in (np.argmin, np.argmax)]
    return np.unique([places[0], *extremes, places[-1]])


@dataclass(frozen=True)
class Legend:
    """The entries of a legend that stands above or below panels, as they fit in its width."""

    labels: list[str]
    columns: int  # entries beside each other, in rows of equal length
    height: float  # inches


def fit_legend(labels: Sequence[str], width: float) -> Legend:
    """Labels broken where one is wider than ``width`` inches, and as many beside each other as fit.

    To be called within ``style.RC``, which has the spacing.
    """
    size = matplotlib.rcParams["legend.fontsize"]
    handle = 4.1 * size / 72  # inches: 2.2, the gap after it, and a margin
    broken = ["\n".join(wrap(label, width - handle, size)) or "(no name)" for label in labels]
    widest = max((text_width(line, size) for label in broken for line in label.split("\n")), default=0.0)
    most = max(1, min(len(broken), int(width / (widest + handle + 1.4 * size / 72))))
    columns = math.ceil(len(broken) / math.ceil(len(broken) / most)) if broken else 1
    rows = [broken[i::columns] for i in range(columns)] if broken else []
    lines = max((sum(label.count("\n") + 1 for label in column) for column in rows), default=0)
    return Legend([label.replace("$", r"\$") for label in broken], columns, 0.16 * lines + 0.1 if lines else 0.0)


def reference_values(runs: pd.DataFrame, metric: str) -> Iterator[tuple[str, tuple[float, float], Any]]:
    """What an accuracy is compared with: name, lowest and highest value over the runs (percent), dashes.

    Of the untrained networks it is the mean, twice: their spread is that of the random weights.
    """
    for name, dashes in (("raw pixels", "--"), ("untrained", (0, (1, 1))), ("chance", "-.")):
        column = REFERENCES[name].columns[metric]
        values = runs[column].dropna().to_numpy(float) if column in runs else np.array([])
        if len(values):
            ends = (values.mean(), values.mean()) if name == "untrained" else (values.min(), values.max())
            yield name, (float(ends[0]), float(ends[1])), dashes


def fit_accuracy(ax: Axes, values: Values, runs: pd.DataFrame, metric: str) -> None:
    """Limits that fit the accuracies drawn (percent), with the lines that they are compared with.

    A line at most half their height away is drawn; of one farther off, which would flatten them, the name and value
    stand at the edge that it lies beyond.
    """
    if not len(values):
        return reference_lines(ax, [(sum(ends) / 2, name, dash) for name, ends, dash in reference_values(runs, metric)])
    low, high = float(values.min()), float(values.max())
    half, reach = max(1.0, 0.55 * (high - low)), max(2.5, 0.5 * (high - low))  # less than two points is noise
    lines, beyond = [], []
    for name, ends, dashes in reference_values(runs, metric):
        value = sum(ends) / 2
        if low - reach <= value <= high + reach:
            lines.append((value, name, dashes))
            if ends[1] - ends[0] > 0.1:  # runs on different data have different lines
                ax.axhspan(*ends, color=style.REFERENCE, alpha=0.12, linewidth=0)
        else:
            beyond.append((value, f"{name} {value:.0f} {'↓' if value < low else '↑'}", None))
    near, middle = [value for value, _, _ in lines], (low + high) / 2
    bottom, top = min(middle - half, *near, math.inf), max(middle + half, *near, -math.inf)
    margin = 0.03 * (top - bottom)
    ax.set_ylim(max(bottom - margin, 0.0), min(top + margin, 100.0))
    reference_lines(ax, [*lines, *beyond])


def reference_lines(ax: Axes, lines: Sequence[tuple[float, str, Any]]) -> None:
    """Horizontal lines with their names in the right margin, moved apart where they would overlap.

    One without dashes is a name alone, at the edge of the panel.
    """
    for value, _, dashes in lines:
        if dashes is not None:
            ax.axhline(value, color=style.REFERENCE, linestyle=dashes, linewidth=0.8, zorder=1)
    bottom, top = ax.get_ylim()
    wanted = [(value - bottom) / (top - bottom) for value, _, _ in lines]
    # Those beyond an edge stand at it, in their order.
    heights = spread([min(max(height, 0.02 + 1e-6 * height), 0.98 + 1e-6 * height) for height in wanted], gap=0.085)
    beside = ax.transAxes + ScaledTranslation(7 / 72, 0, ax.figure.dpi_scale_trans)
    leader: dict[str, Any] = {"arrowstyle": "-", "color": style.REFERENCE, "linewidth": 0.5}
    leader |= {"shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    for (value, name, dashes), height in zip(lines, heights, strict=True):
        ax.annotate(
            name, (1.0, value), xycoords=ax.get_yaxis_transform(), xytext=(1.0, height), textcoords=beside,
            va="center", fontsize=7, color=style.REFERENCE,
            arrowprops=None if dashes is None else leader,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights at least ``gap`` apart, in the same order, each as near as may be to where it was."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # Blocks of labels that touch: each sits around the mean of what its members want.
    blocks: list[tuple[list[int], float]] = []
    for i in order:
        members, centre = [i], heights[i]
        while blocks and centre - blocks[-1][1] < gap * (len(members) + len(blocks[-1][0])) / 2:
            members = blocks.pop()[0] + members
            centre = sum(heights[member] for member in members) / len(members)
        blocks.append((members, centre))
    placed = dict[int, float]()
    for members, centre in blocks:
        for rank, member in enumerate(members):
            placed[member] = centre + gap * (rank - (len(members) - 1) / 2)
    return [placed[i] for i in range(len(heights))]
