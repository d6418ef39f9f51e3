"""Panels of one kind beside each other, one for each variant: for what cannot be drawn over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.fonts import use_fonts_for, wrap

PANEL_WIDTH = 1.55  # inches, about


def make_panels(titles: Sequence[str], width: float, *, extra_height: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure ``width`` inches wide with a square panel under each title, in as many rows as it takes.

    ``extra_height``: inches for a legend. To be called within ``style.RC``.
    """
    num_columns = min(len(titles), max(2, int(width / PANEL_WIDTH)))
    if len(titles) > num_columns:  # rows of equal length
        num_columns = math.ceil(len(titles) / math.ceil(len(titles) / num_columns))
    num_rows = math.ceil(len(titles) / num_columns)
    panel = min(width / num_columns, 2.4 if width >= style.TWO_COLUMNS else 2.1)
    names = use_fonts_for(titles)
    wrapped = ["\n".join(wrap(name, 0.9 * panel, style.RC["axes.titlesize"])) or "(no name)" for name in names]
    lines = max(title.count("\n") + 1 for title in wrapped)
    figure = Figure(figsize=(width, num_rows * (panel + 0.13 * lines) + extra_height), layout="constrained")
    axes = [figure.add_subplot(num_rows, num_columns, i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, wrapped, strict=True):
        ax.set_title(title.replace("$", r"\$"), pad=4)
    return figure, axes


def is_outer(place: int, num_panels: int, axes: Sequence[Axes]) -> tuple[bool, bool]:
    """Whether the panel at a place is the first of its row, and whether it is the last of its column."""
    num_columns = axes[place].get_gridspec().ncols  # type: ignore[union-attr]
    return place % num_columns == 0, place + num_columns >= num_panels
