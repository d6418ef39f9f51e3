"""The figures that a study's file lists: each with its caption and its words, or the reason why it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from typing_extensions import assert_never

from analysis.figures.groups import make_groups
from analysis.figures.linear import OWN, linear_numbers, plot_linear
from analysis.figures.map import chosen_runs, draw_map, project
from analysis.figures.spectrum import LOWEST, draw_spectra, spectra_by_group
from analysis.figures.sweep import label_of, plot_sweep
from analysis.figures.training import plot_training
from analysis.frames.load import COLLAPSE, accuracy_of, came_to, counts
from analysis.report import in_words
from experiments.studies.figures import Curves, Linear, Map, Spectrum, StudyFigure, Sweep
from simsiam.record.catalogue import FIG_2, METRICS

NOT_LOGGED = "evaluation.diagnostics is off, or they are of an older version"


@dataclass(frozen=True)
class Drawing:
    """A figure of a report. ``draw`` makes it at a width in inches; None where ``absent`` says why it is not there."""

    name: str  # the stem of its files
    heading: str
    caption: str = ""
    alt: str = ""
    absent: str = ""
    draw: Callable[[float], Figure] | None = None


def drawings(
    figures: Sequence[StudyFigure], points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]
) -> list[Drawing]:
    """The figures of a study, in order. ``points`` and ``runs`` have the column ``variant``; ``paper``: its top-1."""
    return [_drawing(figure, points, runs, paper) for figure in figures]


def _drawing(figure: StudyFigure, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    if isinstance(figure, Curves):
        return _fig_2(figure, points, runs) if figure.metrics == FIG_2 else _curves(figure, points, runs)
    if isinstance(figure, Sweep):
        return _sweep(figure, runs, paper)
    if isinstance(figure, Linear):
        return _linear(figure, points, runs, paper)
    if isinstance(figure, Spectrum):
        return _spectrum(figure, runs)
    if isinstance(figure, Map):
        return _map(figure, runs)
    assert_never(figure)  # a new kind of figure is drawn nowhere yet


def _absent(figure: StudyFigure, heading: str, runs: pd.DataFrame, reason: str) -> Drawing:
    started = not runs["state"].isin(["missing", "pending"]).all()
    return Drawing(figure.name, heading, absent=reason if started else "no run has started")


# --- curves ------------------------------------------------------------------------------------------------------


def _fig_2(figure: Curves, points: pd.DataFrame, runs: pd.DataFrame) -> Drawing:
    return Drawing(
        figure.name,
        "Loss, output std and kNN accuracy",
        in_words.caption(points, runs),
        in_words.alt_text(runs),
        draw=lambda width: plot_training(points, runs, "variant", width=width),
    )


def _curves(figure: Curves, points: pd.DataFrame, runs: pd.DataFrame) -> Drawing:
    logged = [metric for metric in figure.metrics if metric in points and points[metric].notna().any()]
    names = " and ".join(", ".join(METRICS[metric].title for metric in logged or figure.metrics).rsplit(", ", 1))
    heading = f"{names[0].upper()}{names[1:]} over training"
    if not logged:
        return _absent(figure, heading, runs, f"none of its runs logged {', '.join(figure.metrics)}: {NOT_LOGGED}")
    drawn = map(METRICS.__getitem__, logged)
    meanings = [f"{one.title} ({one.definition})" if one.definition else one.title for one in drawn]
    caption = f"Against epochs: {'; '.join(meanings)}. {_lines_and_bands(runs[runs['run'].isin(points['run'])])}"
    left_out = [metric for metric in figure.metrics if metric not in logged]
    if left_out:
        caption += f" Not drawn, since no run logged it: {', '.join(left_out)}."
    ends = []
    ended = set(runs.loc[counts(runs), "run"])
    for group in make_groups(runs, "variant"):
        of_group = points[points["run"].isin(ended.intersection(group.runs))]
        last = [of_group.dropna(subset=[metric]).groupby("run")[metric].last() for metric in logged]
        known = [
            f"{metric.replace('_', ' ')} {ends_at.mean():.3g}"
            for metric, ends_at in zip(logged, last, strict=True)
            if len(ends_at)
        ]
        ends.append(f"{group.label} ends at {', '.join(known)}" if known else f"{group.label} has no final values yet")
    return Drawing(
        figure.name,
        heading,
        caption,
        f"Curves over epochs of {names}. {'; '.join(ends)}.",
        draw=lambda width: plot_training(points, runs, "variant", metrics=logged, width=width),
    )


def _lines_and_bands(runs: pd.DataFrame) -> str:
    seeds = runs.groupby("variant", observed=True).size()
    if not (seeds > 1).any():
        return "One run a variant: differences may be chance."
    text = f"Thick lines are means over {_seeds(seeds[seeds > 1].tolist())}, bands reach from the lowest to the highest"
    alone = (seeds == 1).any() or (runs["state"] != "done").any()
    return text + ("; thin lines are single runs." if alone else ".")


def _seeds(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    text = f"{most}" if least == most else f"{least} to {most}"
    return f"{text} seed{'s' if most != 1 else ''}"


# --- accuracy against something ------------------------------------------------------------------------------------


def _sweep(figure: Sweep, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    label = label_of(figure.setting)
    heading = f"Accuracy against {label}"
    if figure.setting not in runs:
        return _absent(figure, heading, runs, "no run has settings that can be read")
    present = set(runs["variant"].astype(str))
    base = figure.base if figure.base in present else None  # it may be run at other scales only
    swept = runs.assign(**{figure.setting: pd.to_numeric(runs[figure.setting], errors="coerce")})
    swept = swept.dropna(subset=[figure.setting])
    metric = accuracy_of(swept)
    ended = swept[counts(swept)].dropna(subset=[f"final_{metric}"])
    if not len(ended):
        return _absent(
            figure,
            heading,
            runs,
            "no run has ended yet" if not (swept["state"] == "done").any() else "no run has ended with a value",
        )
    of_variants = {name: group[f"final_{metric}"] for name, group in ended.groupby("variant", observed=True)}
    caption = (
        f"{METRICS[metric].title[0].upper()}{METRICS[metric].title[1:]} at the end of training against {label}"
        f"{f', in multiples of that of {base}' if base else ''}; mean over {_seeds([*map(len, of_variants.values())])}"
    )
    several = any(len(values) > 1 for values in of_variants.values())
    caption += ", bars and bands from the lowest to the highest seed." if several else ": differences may be chance."
    if came_to(ended).isin(COLLAPSE).any():
        caption += " Hollow points are runs that collapsed."
    if (swept["outcome"] == "diverged").any():
        caption += " Runs that diverged are left out."
    known = {name: top1 for name, top1 in paper.items() if name in present}
    if known:
        caption += (
            " The other panel has the paper's numbers (linear evaluation of a ResNet-50 on ImageNet): another "
            "quantity, so compare the shapes, not the heights."
        )
    if missing := _missing(runs, of_variants):
        caption += f" Without a result: {', '.join(missing)}."
    theirs = {name: f", paper {known[name]:g} %" if name in known else "" for name in of_variants}
    numbers = [f"{name} {values.mean():.1f} %{theirs[name]}" for name, values in of_variants.items()]
    return Drawing(
        figure.name,
        heading,
        caption,
        f"Final {METRICS[metric].title} against {label}: {'; '.join(numbers)}.",
        draw=lambda width: plot_sweep(swept, figure.setting, paper=known, base=base, width=width),
    )


def _linear(figure: Linear, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    heading = "kNN accuracy over training, and linear evaluation"
    present = [name for name in runs["variant"].cat.categories if (runs["variant"] == name).any()]
    known = {name: paper[name] for name in present if name in paper}
    numbers = linear_numbers(runs)
    if not len(points) and not numbers:
        return _absent(figure, heading, runs, "no run has logged anything yet")
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
    caption += _lines_and_bands(runs[runs["run"].isin(points["run"])])
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


# --- the geometry of z ---------------------------------------------------------------------------------------------


def _spectrum(figure: Spectrum, runs: pd.DataFrame) -> Drawing:
    heading = "Singular values of z over training"
    panels = spectra_by_group(runs, "variant")
    spectra = {group.label: found for group, found in panels}
    if not spectra:
        return _absent(figure, heading, runs, f"none of its runs logged a spectrum: {NOT_LOGGED}")
    caption = (
        "Singular values of the centred z/|z| (over √N, N held-out images) by rank, both axes by logarithm; light "
        "lines are early, dark ones late. An isotropic z has 1/√d at each rank; a drop shows directions not used. "
        f"Geometric means over {_seeds([len(found) for found in spectra.values()])}, of the last evaluation with a "
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
        caption + _without(runs, spectra),
        f"Singular values of z by rank, a panel for each variant. {'; '.join(words)}.",
        draw=lambda width: draw_spectra(panels, width),
    )


def _map(figure: Map, runs: pd.DataFrame) -> Drawing:
    heading = "z of held-out images in two dimensions"
    chosen = chosen_runs(runs, "variant")
    if not chosen:
        return _absent(figure, heading, runs, f"none of its runs has embeddings.npz: {NOT_LOGGED}")
    seeds = ", ".join(f"{label} seed {run['seed']}" for label, run, _ in chosen)
    counts = sorted({len(embeddings.z) for _, _, embeddings in chosen})
    caption = (
        f"z/|z| of {' or '.join(f'{count:,}' for count in counts)} held-out images at the last evaluation, on its two "
        "main axes (PCA of each run by itself; percent of the variance on each, unless z has collapsed), by class. "
        "All panels have one scale, so a collapse is a dot. In "
        "each panel stands the variance of z/|z|, the sum over channels: 0 for a constant, at most 1. The classes "
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
        caption + _without(runs, [label for label, _, _ in chosen]),
        f"Points of held-out images on two axes, a panel for each variant. {'; '.join(words)}.",
        draw=lambda width: draw_map(chosen, width),
    )


def _without(runs: pd.DataFrame, there: Mapping[str, object] | Sequence[str]) -> str:
    missing = _missing(runs, there)
    return f" Not there (no such data of its runs): {', '.join(missing)}." if missing else ""


def _missing(runs: pd.DataFrame, there: Mapping[str, object] | Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(runs["variant"].astype(str)) if name not in there]
