"""The spectra of files of embeddings side by side: how many directions each uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.layout import fit_legend
from analysis.figures.spectrum import LOWEST
from simsiam.record.catalogue import spectrum_ranks

MOST_NAMES = 8  # in the legend; of more files the colour alone tells the order


def below_axis(spectra: Mapping[str, tuple[int, Sequence[float]]]) -> list[str]:
    """The names of those whose singular values are all below the axis, as those of a z that is one point."""
    return [name for name, (_, values) in spectra.items() if len(values) and max(values) <= LOWEST]


def plot_embeddings(spectra: Mapping[str, tuple[int, Sequence[float]]], *, width: float = style.ONE_COLUMN) -> Figure:
    """Singular values of the centred z/|z| by rank, both by logarithm, a line for each file.

    spectra: by name, the width d and the values at ``spectrum_ranks(d)``. ``width`` is in inches. A dashed line is
    1/sqrt(d), where all would be if all directions carried the same. What lies below the axis is drawn dashed, at its
    lower edge.
    """
    shown = {name: one for name, one in spectra.items() if len(one[1])}
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(width, 0.8 * width), layout="constrained")
        ax = figure.add_subplot()
        ax.set_xscale("log")
        ax.set_yscale("log")
        colours = style.late_is_dark()
        widest = max((dim for dim, _ in shown.values()), default=2)
        below = below_axis(shown)
        for place, (name, (dim, values)) in enumerate(shown.items()):
            label = Path(name).name if place < MOST_NAMES else None
            drawn = [value if value > LOWEST else math.nan for value in values]  # what rounding makes of 0
            style_of: dict[str, Any] = {"color": colours((place + 1) / len(shown)), "linewidth": 1.3, "label": label}
            if name in below:
                drawn = [LOWEST] * len(values)
                style_of |= {"linewidth": 2.2, "linestyle": (0, (2, 1)), "clip_on": False}
                style_of["label"] = label and f"{label} (below {LOWEST:g})"
            ax.plot(spectrum_ranks(dim), drawn, **style_of)
        ax.axhline(1 / math.sqrt(widest), color=style.REFERENCE, linestyle="--", linewidth=0.8)
        ax.set_xlim(1, widest)
        ax.set_ylim(LOWEST, 1)
        ax.set_xlabel("rank")
        ax.set_ylabel("singular value of z/|z|")
        if shown:
            lines, names = ax.get_legend_handles_labels()
            legend = fit_legend(names, width)
            figure.legend(lines, legend.labels, loc="outside upper center", ncols=legend.columns, frameon=False)
        return figure
