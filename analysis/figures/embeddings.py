"""The spectra of files of embeddings side by side: how many directions each uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.spectrum import LOWEST
from simsiam.record.catalogue import spectrum_ranks

MOST_NAMES = 8  # in the legend; of more files the colour alone tells the order


def plot_embeddings(spectra: Mapping[str, tuple[int, Sequence[float]]], *, width: float = style.ONE_COLUMN) -> Figure:
    """Singular values of the centred z/|z| by rank, both by logarithm, a line for each file.

    spectra: by name, the width d and the values at ``spectrum_ranks(d)``. ``width`` is in inches. A dashed line is
    1/sqrt(d), where all would be if all directions carried the same.
    """
    shown = {name: one for name, one in spectra.items() if len(one[1])}
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(width, 0.8 * width), layout="constrained")
        ax = figure.add_subplot()
        ax.set_xscale("log")
        ax.set_yscale("log")
        colours = matplotlib.colormaps["viridis"].resampled(max(len(shown), 2))
        widest = max((dim for dim, _ in shown.values()), default=2)
        for place, (name, (dim, values)) in enumerate(shown.items()):
            label = Path(name).name if place < MOST_NAMES else None
            drawn = [value if value > LOWEST else math.nan for value in values]  # what rounding makes of 0
            ax.plot(spectrum_ranks(dim), drawn, color=colours(place), linewidth=1.3, label=label)
        ax.axhline(1 / math.sqrt(widest), color=style.REFERENCE, linestyle="--", linewidth=0.8)
        ax.set_xlim(1, widest)
        ax.set_ylim(LOWEST, 1)
        ax.set_xlabel("rank")
        ax.set_ylabel("singular value of z/|z|")
        if shown:
            figure.legend(loc="outside upper center", ncols=2, frameon=False)
        return figure
