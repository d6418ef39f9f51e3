"""The singular values of z over training: a drop shows the directions that z does not use, which the std alone hides.

::

    points, runs = load_runs("runs")
    plot_spectra(runs, hue="target.stop_gradient").savefig("figure.pdf")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from analysis.figures import style
from analysis.figures.drawing import NOT_LOGGED, Drawing, absent, seeds_of, without
from analysis.figures.groups import Group, column_of, make_groups
from analysis.figures.layout import is_outer, make_panels
from analysis.frames.load import counted_or_all
from analysis.frames.run_files import is_number, read_with
from experiments.studies.figures import Spectrum
from simsiam.record.catalogue import spectrum_ranks

MOST_LINES = 5  # of a variant: more evaluations than that are thinned out evenly, the first and the last stay
LOWEST = 1e-5  # of the axis; singular values below it are what rounding makes of 0
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Spectra:
    """The spectra of one run: a row of singular values for each evaluation."""

    epochs: Values  # (n,)
    ranks: NDArray[np.int64]  # (m,), which of the d sorted singular values are kept, from 1
    values: Values  # (n, m), of the centred z/|z| over sqrt(N)
    dim: int  # d


def load_spectra(run: pd.Series) -> Spectra | None:
    """The spectra of a run, a row of the frame of :func:`analysis.load_runs`, from its files; None if there are none.

    What has not as many values as its output width asks for is left out.
    """
    dim = run.get("projector.output_dim", math.nan)
    if not is_number(dim) or not 1 <= dim <= 10**6:
        return None
    ranks = spectrum_ranks(int(dim))
    found = [
        (float(point["epoch"]), [float(value) for value in point["spectrum"]])
        for point in read_with(Path(run["path"]), "spectrum")
        if len(point["spectrum"]) == len(ranks) and all(map(is_number, point["spectrum"]))
    ]
    if not found:
        return None
    return Spectra(np.array([epoch for epoch, _ in found]), ranks, np.array([row for _, row in found]), int(dim))


def plot_spectra(runs: pd.DataFrame, hue: str | None = None, *, width: float = style.TWO_COLUMNS) -> Figure:
    """Singular values of z by rank, both by logarithm: a panel for each value of ``hue``, a line for each evaluation.

    ``runs`` as of :func:`analysis.load_runs`; their files are read. ``hue`` is the column that tells panels apart, by
    default ``variant`` if there is one, else ``config``. A line is the geometric mean over the runs that came as far
    as any, the last one with a band from the lowest to the highest; runs that came to different outcomes, or differ in
    width, are thin lines of their own. Dark lines are late in training. At most :data:`MOST_LINES` evaluations are
    drawn. ``width`` is in inches. Raises ValueError if no run has a spectrum, or ``runs`` no such column.
    """
    panels = spectra_by_group(runs, hue)
    if not panels:
        raise ValueError("runs: none of them logged a spectrum")
    return draw_spectra(panels, width)


def draw_spectra(panels: Sequence[tuple[Group, list[Spectra]]], width: float) -> Figure:
    """:func:`plot_spectra` of what :func:`spectra_by_group` has read."""
    with matplotlib.rc_context(style.RC):
        figure, axes = make_panels([group.label for group, _ in panels], width, extra_width=1.1)
        last = max(float(one.epochs[-1]) for _, spectra in panels for one in spectra)
        colours, scale = style.late_is_dark(), Normalize(0, last or 1.0)
        drawn = set[float]()
        for place, (ax, (group, spectra)) in enumerate(zip(axes, panels, strict=True)):
            drawn |= _draw(ax, spectra, group.mixed, colours, scale)
            left, bottom = is_outer(place, len(axes), axes)
            ax.tick_params(labelleft=left, labelbottom=bottom)
        figure.supylabel("singular value of z/|z|", fontsize=style.RC["axes.labelsize"])
        figure.supxlabel("rank", fontsize=style.RC["axes.labelsize"])
        legend = figure.colorbar(ScalarMappable(scale, colours), ax=axes, aspect=30, pad=0.02, fraction=0.05)
        legend.set_label("epoch")
        legend.ax.yaxis.set_major_locator(FixedLocator(_thinned(np.array(sorted(drawn))).tolist()))
        legend.outline.set_visible(False)
        return figure


def spectra_by_group(runs: pd.DataFrame, hue: str | None = None) -> list[tuple[Group, list[Spectra]]]:
    """The spectra of the runs of each value of ``hue`` that came as far as any of them, where there are any.

    A run that has not ended, or diverged, is among them only where no run of the value counts.
    """
    runs = counted_or_all(runs, column_of(runs, hue))
    rows = {row["run"]: row for _, row in runs.iterrows()}
    found = []
    for group in make_groups(runs, hue):
        spectra = [one for one in (load_spectra(rows[run]) for run in group.runs) if one is not None]
        if not spectra:
            continue
        end = max(one.epochs[-1] for one in spectra)
        found.append((group, [one for one in spectra if one.epochs[-1] >= end - 1e-6]))
    return found


def _thinned(epochs: Values) -> Values:
    if len(epochs) <= MOST_LINES:
        return epochs
    chosen: Values = epochs[np.linspace(0, len(epochs) - 1, MOST_LINES).round().astype(int)]
    return chosen


def _draw(ax: Axes, spectra: Sequence[Spectra], mixed: bool, colours: Colormap, scale: Normalize) -> set[float]:
    """The lines of one panel; the epochs that they are of."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    first, alone = spectra[0], mixed or len(spectra) == 1 or len({one.dim for one in spectra}) > 1
    shared = set(np.round(first.epochs, 9)).intersection(*(np.round(one.epochs, 9) for one in spectra[1:]))
    epochs = _thinned(np.array(sorted(shared)))
    for epoch in epochs:
        rows = [one.values[np.flatnonzero(np.isclose(one.epochs, epoch, atol=1e-8))[0]] for one in spectra]
        colour = colours(scale(epoch))
        if alone:
            for one, row in zip(spectra, rows, strict=True):
                ax.plot(one.ranks, row, color=colour, linewidth=0.9)
        else:
            if epoch == epochs[-1]:  # those of all evaluations would hide each other
                ax.fill_between(first.ranks, np.min(rows, 0), np.max(rows, 0), color=colour, alpha=0.2, linewidth=0)
            ax.plot(first.ranks, geometric_mean(np.array(rows)), color=colour, linewidth=1.3)
    widest = max(one.dim for one in spectra)
    ax.axhline(1 / math.sqrt(widest), color=style.REFERENCE, linestyle="--", linewidth=0.8, zorder=1)
    ax.annotate(
        "1/√d", (1.0, 1 / math.sqrt(widest)), xycoords=ax.get_yaxis_transform(), xytext=(-1, 2),
        textcoords="offset points", ha="right", va="bottom", fontsize=7, color=style.REFERENCE,
    )  # fmt: skip
    if all(one.values.max() < LOWEST for one in spectra):
        ax.text(0.5, 0.5, "all below $10^{-5}$", transform=ax.transAxes, ha="center", color=style.REFERENCE)
    ax.set_xlim(1, widest)
    ax.set_ylim(LOWEST, 1)
    return set(map(float, epochs))


def geometric_mean(rows: Values) -> Values:
    """Over runs (n, m) to (m,). Where some are above :data:`LOWEST` those below count as that: a 0 would win else."""
    mean = np.exp(np.log(np.maximum(rows, LOWEST)).mean(0))
    drawn: Values = np.where(rows.max(0) < LOWEST, rows.max(0), mean)
    return drawn


# --- in a report -------------------------------------------------------------------------------------------------


def drawing(figure: Spectrum, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    """The figure of a study's runs, in words and as it is drawn."""
    heading = "Singular values of z over training"
    panels = spectra_by_group(runs, "variant")
    spectra = {group.label: found for group, found in panels}
    if not spectra:
        return absent(figure, heading, runs, f"none of its runs logged a spectrum: {NOT_LOGGED}")
    caption = (
        "Singular values of the centred z/|z| (over √N, N held-out images) by rank, both axes by logarithm; light "
        "lines are early, dark ones late. An isotropic z has 1/√d at each rank; a drop shows directions not used. "
        f"Geometric means over {seeds_of([len(found) for found in spectra.values()])}, of the last evaluation with a "
        f"band from the lowest to the highest where there are several. What is below {LOWEST:.0e} is rounding, "
        "and is not drawn; in a mean it counts as that."
    )
    words = []
    for name, found in spectra.items():
        last = np.mean([one.values[-1, 0] for one in found])
        used = np.mean([(one.ranks[one.values[-1] > 0.01 * one.values[-1].max()]).max(initial=0) for one in found])
        words.append(f"{name} ends with a largest value of {last:.2g}, and is above 1 % of it up to rank {used:.0f}")
    return Drawing(
        figure.name,
        heading,
        caption + without(runs, spectra),
        f"Singular values of z by rank, a panel for each variant. {'; '.join(words)}.",
        draw=lambda width: draw_spectra(panels, width),
    )
