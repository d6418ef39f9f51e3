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
from analysis.figures.drawing import Drawing, absent, missing, seeds_of
from analysis.figures.fonts import use_fonts_for
from analysis.figures.groups import method_of, methods_of
from analysis.figures.layout import fit_accuracy, fit_legend
from analysis.frames.load import COLLAPSE, DIMENSIONAL, accuracy_of, came_to, counts
from experiments.studies.figures import Sweep
from simsiam.record.catalogue import METRICS
from simsiam.settings.fields import is_setting
from simsiam.settings.identity import outside_id

ACCURACY = "accuracy"  # a column: that of each run, by the measure that they are compared by
LINE = "line"  # a column: the label of each run's line
LABELS = {
    "batch_size": "batch size",
    "optimizer.lr": "base learning rate",
    "optimizer.weight_decay": "weight decay",
    "projector.output_dim": "output dimension d",
    "projector.num_layers": "layers of the projector",
    "predictor.hidden_dim": "hidden dimension of h",
}


def label_of(setting: str) -> str:
    """What stands on the axis of a setting, given by its dotted path."""
    return LABELS.get(setting, setting.replace("_", " ").replace(".", " "))


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
    """Final accuracy against a setting, and in a second panel the paper's numbers against the same.

    The accuracy is linear, or kNN where no run has that. ``runs`` as of :func:`analysis.load_runs`; ``setting`` the
    column that is swept, of numbers. What is one line says :func:`lines_of`: no point is a mean over anything but
    seeds. ``paper``: its top-1 by variant (column ``variant``); without it there is one panel. ``base``: the variant
    whose value of the setting is 1 on the axis, so that another scale's values stand under the same factors; without it
    the axis has the values themselves. A point is the mean over the seeds that count
    (:func:`analysis.frames.load.counts`), a band from the lowest to the highest, a hollow point a collapsed run
    (a circle of complete collapse, a diamond of dimensional).
    ``width`` is in inches. Raises ValueError if ``runs`` has no such column or variant, or runs of several
    configurations that nothing in the frame tells apart.
    """
    if setting not in runs:
        raise ValueError(f"setting: {setting!r} is not a column of the runs")
    if not pd.api.types.is_numeric_dtype(runs[setting]) and runs[setting].map(_is_no_number).any():
        raise ValueError(f"setting: {setting!r} has values that are no numbers; only numbers can be an axis")
    unit = 1.0
    if base is not None:
        if base not in set(runs["variant"].astype(str)):
            raise ValueError(f"base: {base!r} is not a variant of the runs")
        unit = float(runs.loc[runs["variant"].astype(str) == base, setting].iloc[0])
        if not unit or math.isnan(unit):
            raise ValueError(f"base: {base!r} has a {setting} of {unit:g}, of which nothing is a multiple")
    runs = runs[runs[setting].notna()]
    metric = accuracy_of(runs)
    accuracy = runs[f"final_{metric}"].where(counts(runs))
    runs = runs.assign(**{ACCURACY: accuracy, LINE: lines_of(runs, setting)})
    ours = list(_our_lines(runs, setting, unit))
    theirs = list(_paper_lines(runs, setting, unit, paper or {}))
    with matplotlib.rc_context(style.RC):
        num_panels = 2 if theirs else 1
        names = [line.label for line in ours]
        legend = fit_legend(use_fonts_for(names) if len(names) > 1 else [], width)
        height = (2.1 if width > 5 else 1.9 * num_panels) + legend.height
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = [
            figure.add_subplot(*((1, num_panels) if width > 5 else (num_panels, 1)), i + 1) for i in range(num_panels)
        ]
        looks = _looks(runs, names)
        for line in ours:
            _draw(axes[0], line, looks[line.label])
        _mark_collapsed(axes[0], runs, setting, unit, looks)
        axes[0].set_ylabel(f"{METRICS[metric].axis}, ours")
        fit_accuracy(axes[0], runs[ACCURACY].dropna().to_numpy(float), runs, metric)
        for line in theirs:
            _draw(axes[1], line, looks[line.label])
        if theirs:
            axes[1].set_ylabel("ImageNet linear\ntop-1 (%), paper")
        ticks = sorted({x for line in (*ours, *theirs) for x in line.points})
        label = label_of(setting)
        of_base = [f"{label} (1x = {unit:g})", f"{label} (1x: the paper's)"]
        for ax, relative_label in zip(axes, of_base, strict=False):
            _finish(ax, ticks, relative_label if base else label, relative=base is not None)
        if len(looks) > 1:
            handles = [Line2D([], [], color=c, linestyle=d, marker="o", markersize=3) for c, d in looks.values()]
            figure.legend(handles, legend.labels, loc="outside upper center", ncols=legend.columns)
        return figure


def _is_no_number(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float | None)


# --- what is one line ---------------------------------------------------------------------------------------------


def lines_of(runs: pd.DataFrame, setting: str) -> pd.Series[str]:
    """The label of the line that each run belongs to, where ``setting`` is the axis.

    Variants whose names share the part before the first comma are one line: "BYOL, 1x" and "BYOL, 2x" are BYOL's; the
    values that a grid writes into a name are left to the settings. Where one line would have several configurations at
    one place, it is told apart by the settings in which they differ. Raises ValueError where there is none.
    """
    names = pd.Series("", index=runs.index)
    if "variant" in runs:
        found = runs["variant"].astype(str).map(method_of)
        places = pd.DataFrame({"name": found, "place": runs[setting].map(_text)}).drop_duplicates()
        is_a_place = len(places) == places["name"].nunique() == places["place"].nunique()  # "1/4x", "1x"
        if found.nunique() < runs["variant"].nunique() and not is_a_place:  # else each name is a point of one line
            names = found
    identity = runs["config" if "config" in runs else "variant"].astype(str)
    lines = dict[Any, str]()
    for name, line in runs.groupby(names):
        chosen = _telling_apart(line, setting, identity[line.index])
        for index, run in line.iterrows():
            parts = [f"{label_of(path)} {_text(run[path])}" for path in chosen if run[path] == run[path]]  # not NaN
            lines[index] = ", ".join([str(name)] * bool(name) + parts)
    labels: pd.Series[str] = pd.Series(lines, dtype=str).reindex(runs.index)
    return labels


def _telling_apart(line: pd.DataFrame, setting: str, identity: pd.Series[str]) -> list[str]:
    """The fewest settings, one after the other, that leave one configuration at each place of a line."""
    candidates = [
        path
        for path in map(str, line)
        if is_setting(path) and path not in ("seed", setting) and path not in outside_id()
    ]
    texts = line[candidates].astype(object).map(_text)
    keys, chosen = line[setting].map(_text), list[str]()

    def num_mixed(keys: pd.Series[str]) -> int:
        return int((identity.groupby(keys).nunique() - 1).sum())

    while num_mixed(keys) > 0:
        left = {path: num_mixed(keys + "|" + texts[path]) for path in candidates}
        useful = [path for path in candidates if left[path] < num_mixed(keys)]
        # The hash of the code comes last: runs of one configuration may have several, and it names no line well.
        best = min(useful, key=lambda path: (path == "code", left[path]), default=None)
        if best is None:
            raise ValueError(
                f"setting: at one {setting} there are runs of several configurations"
                f" ({', '.join(sorted(set(identity))[:4])}) that no column tells apart; a mean is over seeds alone"
            )
        chosen.append(best)
        keys = keys + "|" + texts[best]
    return chosen


def _looks(runs: pd.DataFrame, lines: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each line: those that its method has in the other figures of the study."""
    of_study = runs["variant"] if "variant" in runs else pd.Series(dtype=str)
    known = of_study.cat.categories if isinstance(of_study.dtype, pd.CategoricalDtype) else pd.unique(of_study)
    methods = dict.fromkeys(methods_of([*map(str, known)]))
    names = [*methods, *lines] if set(lines) & methods.keys() else lines
    of_all = dict(zip(dict.fromkeys(names), style.line_styles(), strict=False))
    return {name: of_all[name] for name in lines}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _our_lines(runs: pd.DataFrame, setting: str, unit: float) -> Iterator[Line]:
    for name in dict.fromkeys(runs[LINE]):
        known = runs[runs[LINE] == name].dropna(subset=[ACCURACY])
        points = {float(x) / unit: tuple(group[ACCURACY]) for x, group in known.groupby(setting)}
        yield Line(name, points)


def _paper_lines(runs: pd.DataFrame, setting: str, unit: float, paper: Mapping[str, float]) -> Iterator[Line]:
    if not paper:
        return
    variants = runs.drop_duplicates("variant")
    for line in _our_lines(variants.assign(**{ACCURACY: variants["variant"].astype(str).map(paper)}), setting, unit):
        if line.points:
            yield line


# --- drawing ------------------------------------------------------------------------------------------------------


def _draw(ax: Axes, line: Line, look: tuple[str, Any]) -> None:
    colour, dashes = look
    xs = sorted(line.points)
    values = [line.points[x] for x in xs]
    mean = [float(np.mean(value)) for value in values]
    ax.plot(xs, mean, color=colour, linestyle=dashes, linewidth=1.2, marker="o", markersize=3.5)
    low, high = [min(value) for value in values], [max(value) for value in values]
    if len(xs) > 1 and low != high:
        ax.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
    for x, value in zip(xs, values, strict=True):
        if len(value) > 1:
            ax.plot([x, x], [min(value), max(value)], color=colour, linewidth=0.8)


def _mark_collapsed(
    ax: Axes, runs: pd.DataFrame, setting: str, unit: float, looks: Mapping[str, tuple[str, Any]]
) -> None:
    """A hollow point over each run that collapsed, whose shape says how."""
    for word, (_, run) in zip(came_to(runs), runs.iterrows(), strict=True):
        if word in COLLAPSE and math.isfinite(run[ACCURACY]):
            colour, marker = looks[run[LINE]][0], "D" if word == DIMENSIONAL else "o"
            at = [run[setting] / unit], [run[ACCURACY]]
            ax.plot(*at, color=colour, marker=marker, markersize=3.5, markerfacecolor="white", linestyle="none")


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
    return f"1/{round(1 / x)}x" if 0 < x < 1 and math.isclose(1 / x, round(1 / x)) else f"{x:g}x"


# --- in a report -------------------------------------------------------------------------------------------------


def drawing(figure: Sweep, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    """The figure of a study's runs, in words and as it is drawn."""
    label = label_of(figure.setting)
    heading = f"Accuracy against {label}"
    if figure.setting not in runs:
        return absent(figure, heading, runs, f"no run has a value of {figure.setting}")
    present = set(runs["variant"].astype(str))
    swept = runs.assign(**{figure.setting: pd.to_numeric(runs[figure.setting], errors="coerce")})
    swept = swept.dropna(subset=[figure.setting])
    of_base = swept.loc[swept["variant"] == figure.base, figure.setting]
    base = figure.base if of_base.any() else None  # it may be run at other scales only; and of 0 nothing is a multiple
    with_value = [*swept["variant"].astype(str), *runs["variant"].astype(str)[runs["state"] != "done"]]
    metric = accuracy_of(swept)
    ended = swept[counts(swept)].dropna(subset=[f"final_{metric}"])
    if not len(ended):
        return absent(
            figure,
            heading,
            runs,
            "no run has ended yet" if not (swept["state"] == "done").any() else "no run has ended with a value",
        )
    of_variants = {name: group[f"final_{metric}"] for name, group in ended.groupby("variant", observed=True)}
    seeds = seeds_of([*map(len, of_variants.values())])
    caption = (
        f"{METRICS[metric].title[0].upper()}{METRICS[metric].title[1:]} at the end of training against {label}"
        f"{f', in multiples of that of {base}' if base else ''}; mean over {seeds}"
    )
    several = any(len(values) > 1 for values in of_variants.values())
    caption += ", bars and bands from the lowest to the highest seed." if several else ": differences may be chance."
    words = set(came_to(ended)) & set(COLLAPSE)
    if words - {DIMENSIONAL}:
        caption += " Hollow circles are runs with a complete collapse."
    if DIMENSIONAL in words:
        caption += " Hollow diamonds are runs with a dimensional collapse."
    if (swept["outcome"] == "diverged").any():
        caption += " Runs that diverged are left out."
    known = {name: top1 for name, top1 in paper.items() if name in present}
    if known:
        caption += (
            " The other panel has the paper's numbers (linear evaluation of a ResNet-50 on ImageNet): another "
            "quantity, so compare the shapes, not the heights."
        )
    if off_axis := missing(runs, with_value):
        caption += f" Not in the figure, for want of a value of {figure.setting}: {', '.join(off_axis)}."
    if lacking := [name for name in missing(runs, of_variants) if name not in off_axis]:
        caption += f" Without a result: {', '.join(lacking)}."
    theirs = {name: f", paper {known[name]:g} %" if name in known else "" for name in of_variants}
    numbers = [f"{name} {values.mean():.1f} %{theirs[name]}" for name, values in of_variants.items()]
    return Drawing(
        figure.name,
        heading,
        caption,
        f"Final {METRICS[metric].title} against {label}: {'; '.join(numbers)}.",
        draw=lambda width: plot_sweep(swept, figure.setting, paper=known, base=base, width=width),
    )
