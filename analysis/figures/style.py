"""How every figure looks: colours, line styles, type and sizes, set once; and how a figure is written to files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import seaborn
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

from analysis.figures import fonts
from simsiam.errors import SettingsError

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # widths in inches, of a column and of a page of two
PAGE_HEIGHT = 9.0  # inches, of what a paper's page holds
FORMATS = ("pdf", "svg", "png")

# Okabe and Ito's palette, without the yellow that white paper swallows; the order keeps neighbours apart in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
REFERENCE = "#595959"  # lines that are no curves
MOST_SHADES = 5  # of one colour that can be told apart as lines

RC: dict[Any, Any] = {
    **seaborn.axes_style("ticks"),
    **seaborn.plotting_context("paper"),
    "font.family": [fonts.MAIN],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelspacing": 0.25,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.1,
    "legend.handlelength": 2.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.solid_capstyle": "round",
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.03,  # inches
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.wspace": 0.05,  # of a panel's width
    "figure.constrained_layout.hspace": 0.04,
    "pdf.fonttype": 42,  # TrueType, so that the text stays text
    "svg.fonttype": "path",  # looks the same where the fonts are missing
    "svg.hashsalt": "analysis",  # the same figure gives the same file
}
_MADE_BY = "SimSiam ablations, run_ablation.py"  # by this a file is known as one that may be written anew
# Dates and versions would make two files of one figure differ.
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": _MADE_BY, "Producer": None, "CreationDate": None},
    "svg": {"Date": None, "Creator": _MADE_BY},
    "png": {"Software": _MADE_BY},
}


def line_styles() -> Iterator[tuple[str, Any]]:
    """Colour and dashes of one curve after another: no two of the first 28 share both, neighbours share neither."""
    for i in itertools.count():
        yield COLOURS[i % len(COLOURS)], DASHES[(i + i // 28) % len(DASHES)]


def shade(colour: str, place: int, of: int) -> str:
    """One of several shades of a colour, as ``#rrggbb``: the last is the colour itself, those before it are lighter."""
    white = 0.5 * (of - 1 - place) / max(of - 1, 1)
    red, green, blue = (channel + white * (1 - channel) for channel in to_rgb(colour))
    return colour if white == 0 else to_hex((red, green, blue))


def late_is_dark() -> Colormap:
    """Light blue to black: its lightness alone tells early from late, so that it can be read in grey."""
    return LinearSegmentedColormap.from_list("training", ["#8FC9EE", "#0072B2", "#00263B"])


def place(out: Path, *more: str) -> Path:
    """The ``stem`` of :func:`save` for the place that a user chose, with an ending or without.

    ``more``: the endings of what goes beside the figure. Raises SettingsError if it is no name of a file, or that of a
    file that no figure of this program is, or is not beside one.
    """
    if out.name in ("", ".."):
        raise SettingsError(
            f"out: {out} is a folder; a name for the figure is wanted, such as {out / 'figure'}  [--out]"
        )
    stem = out.with_suffix("") if out.suffix[1:] in FORMATS else out
    for kind in (*FORMATS, *more):
        path = stem.with_name(f"{stem.name}.{kind}")
        figure = stem.with_name(f"{stem.name}.{FORMATS[-1]}") if kind in more else path
        if path.exists() and not (figure.is_file() and _MADE_BY.encode() in figure.read_bytes()):
            raise SettingsError(f"out: {path} is there, and not by this command; choose another name  [--out]")
    return stem


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem.pdf``, ``stem.svg`` and ``stem.png``; the same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    engine = figure.get_layout_engine()
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # one layout, the costliest part of drawing, for all formats
        for path, kind in zip(paths, FORMATS, strict=True):
            figure.savefig(path, format=kind, metadata=_METADATA[kind])
            if kind == "svg":
                path.write_bytes(_PLACES.sub(_rounded, path.read_bytes()))
    figure.set_layout_engine(engine)
    return paths


# An SVG is held twice by its page. Its coordinates are points, and hundredths of them are finer than any printer;
# numbers elsewhere in it (the scale of the type) are left alone.
_PLACES = re.compile(rb'(?<= )(?:d|x|y)="[^"]*"')


def _rounded(place: re.Match[bytes]) -> bytes:
    return re.sub(rb"-?\d+\.\d{3,}", lambda number: b"%.2f" % float(number[0]), place[0])
