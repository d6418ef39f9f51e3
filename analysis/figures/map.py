"""z of held-out images in two dimensions, a colour for each class.

::

    points, runs = load_runs("runs")
    plot_map(runs, hue="target.stop_gradient").savefig("figure.pdf")

PCA, not t-SNE: it has no seed and no settings, distances are not invented, and a collapse is seen as one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from analysis.figures import style
from analysis.figures.drawing import NOT_LOGGED, Drawing, absent, without
from analysis.figures.fonts import use_fonts_for
from analysis.figures.groups import column_of, make_groups
from analysis.figures.layout import fit_legend, is_outer, make_panels
from analysis.frames.load import counted_or_all
from experiments.studies.figures import Map
from simsiam.record.catalogue import COLLAPSED_BELOW

MOST_CLASSES = 10  # that have a look of their own; the points of the others are grey
SMALL = 1.2  # inches: of a panel that holds numbers alone
MOST_BYTES = 2**26  # of embeddings.npz: 1,000 images of d = 2048 have 4 MB
MARKERS = "o^sDvPX*<>"
COLOURS = (*style.COLOURS, "#882255", "#44AA99", "#999933")  # three more, of Tol's palette for the colour-blind


@dataclass(frozen=True)
class Embeddings:
    """z of held-out images of one run at its last evaluation."""

    z: NDArray[np.float64]  # (n, d), finite
    labels: NDArray[np.int64]  # (n,)
    num_classes: int  # of all held-out images
    names: tuple[str, ...] = ()  # of the classes, by label; () where the run did not record them


@dataclass(frozen=True)
class Projection:
    """z/|z| on its two main axes."""

    points: NDArray[np.float64]  # (n, 2), around their mean
    shares: tuple[float, float]  # of the variance, along each axis; 0 where z is constant
    variance: float  # of z/|z|, the sum over channels: 0 for a constant, at most 1

    @property
    def is_collapsed(self) -> bool:
        """By the rule for a run's std: its square is, in its units, the variance."""
        return self.variance < COLLAPSED_BELOW**2


def load_embeddings(folder: Path) -> Embeddings | None:
    """What ``embeddings.npz`` of a run folder holds; None if there is none, or it cannot be read. Unpickles nothing."""
    path = folder / "embeddings.npz"
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        with np.load(path, allow_pickle=False) as content:
            z = content["z"].astype(float)
            every = content["labels"].astype(np.int64)
            # There are those of all images; runs before revision 3 of the numerics kept the first ones.
            labels = every[content["places"]] if "places" in content else every[: len(z)]
            names = tuple(map(str, content["class_names"])) if "class_names" in content else ()
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return None
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        return None
    fine = np.isfinite(z).all(1)
    return Embeddings(z[fine], labels[fine], len(np.unique(every)), names) if fine.sum() > 1 else None


def project(z: NDArray[np.float64]) -> Projection:
    """PCA of z/|z|, z (n, d). Of the two signs of an axis the one in which the farthest point is positive."""
    unit = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(z), 2))
    variance = float((singular**2).sum() / len(z))
    if variance < 1e-12:  # rounding alone, which has axes too
        return Projection(points, (0.0, 0.0), 0.0)
    kept = min(2, len(singular))
    points[:, :kept] = left[:, :kept] * singular[:kept]
    farthest = points[np.abs(points).argmax(0), [0, 1]]
    shares = (points**2).sum(0) / len(z) / variance
    return Projection(points * np.where(farthest < 0, -1, 1), (float(shares[0]), float(shares[1])), variance)


def chosen_runs(runs: pd.DataFrame, hue: str | None = None) -> list[tuple[str, pd.Series, Embeddings]]:
    """For each value of ``hue`` its run of the lowest seed that has embeddings: label, row of ``runs``, embeddings.

    A run that has not ended, or diverged, stands for a value only where none of its runs counts.
    """
    runs = counted_or_all(runs, column_of(runs, hue))
    rows = {row["run"]: row for _, row in runs.sort_values("seed").iterrows()}
    found = []
    for group in make_groups(runs, hue):
        for run in (name for name in rows if name in group.runs):
            embeddings = load_embeddings(Path(rows[run]["path"]))
            if embeddings is not None:
                found.append((group.label, rows[run], embeddings))
                break
    return found


def plot_map(runs: pd.DataFrame, hue: str | None = None, *, width: float = style.TWO_COLUMNS) -> Figure:
    """z/|z| of held-out images on their two main axes, a panel for each value of ``hue``, all to the same scale.

    ``runs`` as of :func:`analysis.load_runs`; ``embeddings.npz`` of their folders is read, of each value of ``hue``
    (default: ``variant`` if there is such a column, else ``config``) that of the lowest seed. On the axes stands the
    share of the variance that each shows, unless z has collapsed. The first :data:`MOST_CLASSES` classes have a colour
    and a marker each, the others are grey. ``width`` is in inches. Raises ValueError if no run has embeddings, or
    ``runs`` no such column.
    """
    chosen = chosen_runs(runs, hue)
    if not chosen:
        raise ValueError("runs: none of them has embeddings.npz")
    return draw_map(chosen, width)


def draw_map(chosen: Sequence[tuple[str, pd.Series, Embeddings]], width: float) -> Figure:
    """:func:`plot_map` of what :func:`chosen_runs` has read."""
    projections = [project(embeddings.z) for _, _, embeddings in chosen]
    reach = 1.05 * max(float(np.abs(projection.points).max()) for projection in projections) or 1.0
    known = sorted({int(label) for _, _, embeddings in chosen for label in np.unique(embeddings.labels)})
    with matplotlib.rc_context(style.RC):
        legend = fit_legend(use_fonts_for(_names(chosen, known[:MOST_CLASSES])), width)
        figure, axes = make_panels(
            [label for label, *_ in chosen], width, extra_height=0.2 + legend.height, extra_width=0.8
        )
        ends = float(f"{0.8 * reach:.1g}")
        is_small = width / axes[0].get_gridspec().ncols < SMALL  # type: ignore[union-attr]
        figure.set_layout_engine("compressed")  # panels of equal aspect leave gaps else
        for place, (ax, (_, _, embeddings), projection) in enumerate(zip(axes, chosen, projections, strict=True)):
            _draw(ax, projection, embeddings.labels, known, is_small)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(FixedLocator([-ends, ends]) if is_small else MaxNLocator(3))
            left, bottom = is_outer(place, len(axes), axes)
            ax.tick_params(labelleft=left, labelbottom=bottom)
        handles = [
            Line2D([], [], color=COLOURS[i], marker=MARKERS[i], markersize=4, markeredgewidth=0, linestyle="none")
            for i in range(min(len(known), MOST_CLASSES))
        ]
        figure.legend(
            handles, legend.labels, loc="outside upper center", ncols=legend.columns, title="class", title_fontsize=8,
            handletextpad=0.1, columnspacing=1.0, handlelength=1.2,
        )  # fmt: skip
        figure.draw_without_rendering()  # this layout settles at the second draw only
        return figure


def _names(chosen: Sequence[tuple[str, pd.Series, Embeddings]], labels: Sequence[int]) -> list[str]:
    """What the classes are called; by number where no run says, or runs of several data sets say different things."""
    said = {embeddings.names for _, _, embeddings in chosen if embeddings.names}
    names = said.pop() if len(said) == 1 else ()
    return [names[label] if 0 <= label < len(names) else str(label) for label in labels]


def _draw(ax: Axes, projection: Projection, labels: NDArray[np.int64], known: list[int], is_small: bool) -> None:
    others = ~np.isin(labels, known[:MOST_CLASSES])
    if others.any():
        ax.scatter(projection.points[others, 0], projection.points[others, 1], s=3, color="#C0C0C0", linewidths=0)
    for i, label in enumerate(known[:MOST_CLASSES]):
        of_class = projection.points[labels == label]
        look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i]}
        ax.scatter(of_class[:, 0], of_class[:, 1], s=5, linewidths=0, alpha=0.8, **look)
    variance = f"{projection.variance:.2f}" if projection.variance >= 0.005 else "< 0.005"
    # The shares of a point are those of its rounding.
    shares = ["" if projection.is_collapsed else f"{100 * share:.0f} %" for share in projection.shares]
    if is_small:
        variance_size, names = 6, shares
    else:
        variance, variance_size = f"variance {variance}", 7
        names = [f"axis {i}" + (f" ({share})" if share else "") for i, share in enumerate(shares, 1)]
    ax.text(
        0.98, 0.02, variance, transform=ax.transAxes, ha="right", fontsize=variance_size, color=style.REFERENCE,
    )  # fmt: skip
    ax.set_xlabel(names[0], fontsize=variance_size + 1)
    ax.set_ylabel(names[1], fontsize=variance_size + 1)


# --- in a report -------------------------------------------------------------------------------------------------


def drawing(figure: Map, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    """The figure of a study's runs, in words and as it is drawn."""
    heading = "z of held-out images in two dimensions"
    chosen = chosen_runs(runs, "variant")
    if not chosen:
        return absent(
            figure, heading, runs, f"none of its runs has embeddings.npz: {NOT_LOGGED}, or were packed without"
        )
    seeds = ", ".join(f"{label} seed {run['seed']}" for label, run, _ in chosen)
    counts = sorted({len(embeddings.z) for _, _, embeddings in chosen})
    caption = (
        f"z/|z| of {' or '.join(f'{count:,}' for count in counts)} held-out images at the last evaluation, on its two "
        "main axes (PCA of each run by itself; percent of the variance on each, unless z has collapsed), by class. "
        "All panels have one scale, so a collapse is a dot. In "
        "each panel stands the variance of z/|z|, the sum over channels: 0 for a constant, at most 1 (the number alone "
        "where panels are small, and of the axes the percent). The classes "
        f"overlap in two dimensions more than in all of them. One run a variant: {seeds}."
    )
    classes, of = max((len(np.unique(one.labels)), one.num_classes) for _, _, one in chosen)
    if classes < of:
        caption += (
            f" They are the first images of their data set, which is in order of class: {classes} of {of} classes."
        )
    words = []
    for label, _, embeddings in chosen:
        one = project(embeddings.z)
        share = "collapsed" if one.is_collapsed else f"{100 * sum(one.shares):.0f} % of it on the two axes"
        words.append(f"{label}: variance {one.variance:.2g}, {share}")
    return Drawing(
        figure.name,
        heading,
        caption + without(runs, [label for label, _, _ in chosen]),
        f"Points of held-out images on two axes, a panel for each variant. {'; '.join(words)}.",
        draw=lambda width: draw_map(chosen, width),
    )
