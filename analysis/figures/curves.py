"""Metrics against epochs: how a report draws them, by default the three panels of Fig. 2."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.figures.drawing import NOT_LOGGED, Drawing, absent, lines_and_bands, seeds_of
from analysis.figures.groups import make_groups
from analysis.figures.layout import reference_values
from analysis.figures.training import plot_training
from analysis.formats import percent_range
from analysis.frames.load import counts
from experiments.studies.figures import Curves
from simsiam.record.catalogue import FIG_2, METRICS


def drawing(figure: Curves, points: pd.DataFrame, runs: pd.DataFrame, paper: Mapping[str, float]) -> Drawing:
    """The curves of a study's runs."""
    return _fig_2(figure, points, runs) if figure.metrics == FIG_2 else _curves(figure, points, runs)


def _fig_2(figure: Curves, points: pd.DataFrame, runs: pd.DataFrame) -> Drawing:
    return Drawing(
        figure.name,
        "Loss, output std and kNN accuracy",
        _caption(points, runs),
        _alt_text(runs),
        draw=lambda width: plot_training(points, runs, "variant", width=width),
    )


def _caption(points: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What the figure shows and how it is to be read."""
    runs_with_points = runs[runs["run"].isin(points["run"].unique())]
    seeds = runs_with_points.groupby("variant", observed=True).size()
    several = seeds[seeds > 1]
    text = [
        "Training loss, standard deviation of the normalised output z/|z| (mean over channels, in units of 1/√d: 1 for "
        "an isotropic Gaussian z, 0 for a constant) and accuracy of a weighted kNN classifier on the backbone's "
        "features, against epochs."
    ]
    if len(several):
        means = f"Thick lines are means over {seeds_of(several.tolist())}"
        text.append(f"{means}, bands reach from the lowest to the highest seed.")
    mixed = runs.groupby("variant", observed=True)["outcome"].nunique()
    if (seeds == 1).any() or (mixed > 1).any() or (runs["state"] != "done").any() or runs["stopped_early"].any():
        text.append(
            "Thin lines are single runs: alone in their variant, not come as far as the others, or of a variant whose "
            "seeds came to different outcomes."
        )
    if points["diverged"].any():
        text.append("A cross marks where a loss stopped being finite; that run is left out of the scale of the axis.")
    lines = [f"{name} {percent_range(low, high)}" for name, (low, high), _ in reference_values(runs, "knn_top1")]
    if lines:
        text.append(
            f"Grey lines (a name with an arrow: beyond the axis): {', '.join(lines)}; untrained is the mean over the "
            "networks before their first step."
        )
    return " ".join(text)


def _alt_text(runs: pd.DataFrame) -> str:
    """The figure for those who do not see it."""
    parts = []
    for group in make_groups(runs, "variant"):
        ended = runs[counts(runs) & runs["run"].isin(group.runs)]
        loss, std, knn = (ended[f"final_{metric}"].mean() for metric in FIG_2)
        ends = f"ends at loss {loss:.2f}, std {std:.2f} / √d, kNN {knn:.1f} %"
        parts.append(f"{group.label} {ends if len(ended) else 'has no final values yet'}")
    return f"Curves over epochs of training loss, output std and kNN top-1 accuracy. {'; '.join(parts)}."


def _curves(figure: Curves, points: pd.DataFrame, runs: pd.DataFrame) -> Drawing:
    logged = [metric for metric in figure.metrics if metric in points and points[metric].notna().any()]
    names = " and ".join(", ".join(METRICS[metric].title for metric in logged or figure.metrics).rsplit(", ", 1))
    heading = f"{names[0].upper()}{names[1:]} over training"
    if not logged:
        return absent(figure, heading, runs, f"none of its runs logged {', '.join(figure.metrics)}: {NOT_LOGGED}")
    drawn = map(METRICS.__getitem__, logged)
    meanings = [f"{one.title} ({one.definition})" if one.definition else one.title for one in drawn]
    caption = f"Against epochs: {'; '.join(meanings)}. {lines_and_bands(runs[runs['run'].isin(points['run'])])}"
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
