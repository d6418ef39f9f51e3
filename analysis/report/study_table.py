"""The table of a study: the paper's number and ours side by side, and the difference to the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.formats import DASH, common_decimals, format_estimate, format_hours, format_seconds
from analysis.frames.load import counts, describe_state, device_hours
from analysis.report.differences import OURS_NONE, PAPER_NONE, Differences
from analysis.report.table import Column, Entry, Table
from experiments.studies.design import LEVEL
from experiments.studies.published import NAMES, Published
from experiments.studies.study import PaperResult
from simsiam.record.catalogue import METRICS, TABLE, Metric

FloatArray = npt.NDArray[np.float64]


def study_table(
    runs: pd.DataFrame,
    paper: Mapping[str, PaperResult],
    title: str,
    scale: str,
    against: Mapping[str, str | None] | None = None,
    published: Mapping[str, Sequence[Published]] | None = None,
    metrics: Sequence[str] = TABLE,
) -> Table:
    """A row for each variant: what the paper reports, what our runs came to, and the difference to the baseline.

    ``runs`` has a row for each run that was asked for (missing ones too) and the column ``variant``; ``paper`` has the
    paper's result of each variant, in the order of the rows, ``against`` the variant that each is compared with, and
    ``published`` what others have published for it at this scale.
    Means are over the runs that ended, diverged ones left out; the spread is the sample standard deviation over seeds.
    ``metrics`` are those with a column; the difference stands after the accuracy that it is of, or after the first.
    The paper's column and that of others are there if they give any number, those of the differences if any variant has
    a baseline.
    """
    ours = f"Ours ({scale} scale)"
    differences = Differences(runs, paper, {name: (against or {}).get(name) for name in paper})
    has_paper = any(result.top1 is not None for result in paper.values())
    has_differences = any(differences.against.values())
    has_directions = any(differences.paper_difference(name) is not None for name in paper)
    of_metric = "" if differences.metric in metrics else f", {METRICS[differences.metric].name_in_table}"
    place = metrics.index(differences.metric) + 1 if differences.metric in metrics else 1
    before, after = (
        [Column(name, METRICS[name].heading, ours) for name in part] for part in (metrics[:place], metrics[place:])
    )
    columns = [
        Column("variant", "variant", is_number=False),
        *[Column("paper_top1", "ImageNet linear top-1 (%)", "Paper")][: int(has_paper)],
        *[Column("published", "top-1 (%)", "Others", is_number=False)][: int(any((published or {}).values()))],
        *before,
        *[Column("difference", f"difference{of_metric} (points)", ours)][: int(has_differences)],
        *[Column("direction", "as in the paper?", ours, is_number=False)][: int(has_directions)],
        *after,
        Column("outcome", "outcome (runs)", ours, is_number=False),
        Column("cost", "cost per run", ours),
    ]
    of_variants = {name: runs[runs["variant"] == name] for name in paper}
    decimals = {name: decimals_of(of_variants.values(), METRICS[name]) for name in metrics}
    rows = []
    for name, result in paper.items():
        of_variant = of_variants[name]
        entries = {
            "variant": Entry(name or "(no name)", exact={"": name}),
            "paper_top1": paper_entry(result),
            "published": published_entry((published or {}).get(name, ())),
            **{
                name: estimate_entry(of_variant, METRICS[name], decimals[name], say_how_many=name == metrics[0])
                for name in metrics
            },
            "difference": differences.difference_entry(name),
            "direction": differences.direction_entry(name),
            "outcome": outcome_entry(of_variant),
            "cost": cost_entry(of_variant),
        }
        rows.append(tuple(entries[column.key] for column in columns))
    notes = [
        "Ours: mean ± sample standard deviation over seeds at the end of training, diverged runs left out. Linear is a "
        "logistic regression on backbone features, kNN the weighted kNN on them; std is that of z/|z|: 1/√d for an "
        "isotropic Gaussian z, 0 for a constant."
    ]
    if has_paper:
        notes.insert(
            0,
            "Paper and ours are different quantities: the paper's is the linear evaluation of a ResNet-50 on ImageNet, "
            f"pre-trained for 100 epochs unless noted; ours are of this study at {scale} scale. "
            "Compare the order of the variants and the failure modes, not the numbers.",
        )
    if has_differences:
        notes.append(_note_on_differences(differences.against, METRICS[differences.metric].name_in_table))
    if has_directions:
        notes.append(
            "As in the paper?: whether our difference goes the way of the paper's, and is half to twice "
            "as large. With several seeds the interval "
            "decides; with one it is the direction only, and what is smaller than "
            f"{OURS_NONE:g} point is unclear. A difference of less than {PAPER_NONE:g} points in the paper counts as "
            f"none, which ours agrees with if it is within {OURS_NONE:g} point."
        )
    notes += [
        f"Paper, {_quoted(name for name, result in paper.items() if result.note == note)}: {note}"
        for note in dict.fromkeys(result.note for result in paper.values() if result.note)
    ]
    notes += [
        f"Others, '{name}': {'; '.join(map(str, numbers))}." for name, numbers in (published or {}).items() if numbers
    ]
    losses = set(runs["loss.name"].dropna()) if "loss.name" in runs else set[str]()
    if len(losses) > 1:
        notes.append(f"The variants have different losses ({', '.join(sorted(losses))}), whose values do not compare.")
    what = "the paper's results and ours" if has_paper else "our results"
    return Table(f"{title}: {what}, at {scale} scale.", tuple(columns), tuple(rows), tuple(notes))


def _quoted(names: Iterable[str]) -> str:
    """Names that may hold commas, told apart."""
    return ", ".join(f"'{name}'" for name in names)


def _note_on_differences(against: Mapping[str, str | None], accuracy: str) -> str:
    """What the differences are taken to."""
    baselines = dict.fromkeys(baseline for baseline in against.values() if baseline is not None)
    if len(baselines) == 1:
        text = f"'{next(iter(baselines))}'"
    else:
        of_each = (
            f"'{baseline}' for {_quoted(name for name, other in against.items() if other == baseline)}"
            for baseline in baselines
        )
        text = "; ".join(of_each)
    return (
        f"Difference: {accuracy} minus that of {text}, run by run with the same seed, with the {LEVEL:.0%} interval of "
        "the mean over seeds.".replace("%", " %")
    )


def paper_entry(result: PaperResult) -> Entry:
    """The paper's number, with its spread and trials where it gives them."""
    exact: dict[str, float | int | str] = {
        "": math.nan if result.top1 is None else result.top1,
        "_spread": math.nan if result.spread is None else result.spread,
        "_trials": 0 if result.trials is None else result.trials,
    }
    if result.top1 is None:
        return Entry(reason="not reported", exact=exact)
    decimals = max(1, len(repr(result.top1).partition(".")[2]))
    text = f"{result.top1:.{decimals}f}"
    if result.spread is not None:
        text += f" ± {result.spread:.{decimals}f}"
    if result.trials is not None:
        text += f" ({result.trials} trials)"
    return Entry(text, exact=exact)


def published_entry(numbers: Sequence[Published]) -> Entry:
    """The range of what others report, for each measure: ``linear 90.5 to 91.9; kNN 76.4 to 90.4``."""
    by_measure = {measure: sorted(number.top1 for number in numbers if number.measure == measure) for measure in NAMES}
    exact: dict[str, float | int | str] = {}
    texts = []
    for measure, found in by_measure.items():
        low, high = (found[0], found[-1]) if found else (math.nan, math.nan)
        exact |= {f"_{measure}_lowest": low, f"_{measure}_highest": high}
        if found:
            texts.append(f"{NAMES[measure]} {low:.1f}" + (f" to {high:.1f}" if len(found) > 1 else ""))
    return Entry("; ".join(texts), "" if texts else "none known", exact)


def decimals_of(variants: Iterable[pd.DataFrame], metric: Metric) -> int:
    """The decimals of a metric's column, of the runs of each variant in it."""
    samples = (_finals(runs, metric) for runs in variants)
    return common_decimals((_sd(values) for values in samples if len(values)), metric.decimals, metric.most_decimals)


def _finals(runs: pd.DataFrame, metric: Metric) -> FloatArray:
    values: FloatArray = runs.loc[counts(runs), f"final_{metric.name}"].to_numpy(float)
    finite: FloatArray = values[np.isfinite(values)]
    return finite


def _sd(values: FloatArray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def estimate_entry(runs: pd.DataFrame, metric: Metric, decimals: int, *, say_how_many: bool = False) -> Entry:
    """Mean and standard deviation of a metric's final value over the runs of a variant that ended with one.

    ``say_how_many``: those that did, where it is not all.
    """
    values = _finals(runs, metric)
    mean, sd = float(values.mean()) if len(values) else math.nan, _sd(values)
    exact: dict[str, float | int | str] = {"_mean": mean, "_sd": sd, "_runs": len(values)}
    if not len(values):
        return Entry(reason=_why_nothing(runs), exact=exact)
    text = format_estimate(mean, sd, decimals)
    if say_how_many and len(values) < len(runs):
        text += f" ({len(values)} of {len(runs)})"
    return Entry(text, exact=exact)


def outcome_entry(runs: pd.DataFrame) -> Entry:
    """How many runs came to what: ``collapsed (3/3)``, ``healthy (1/2); running, epoch 3/8 (1/2)``."""
    found = runs.apply(describe_state, axis=1).value_counts(sort=False) if len(runs) else pd.Series(dtype=int)
    text = "; ".join(f"{what} ({count}/{len(runs)})" for what, count in found.items()) or f"{DASH} (not run)"
    return Entry(text, exact={"": text})


def _why_nothing(runs: pd.DataFrame) -> str:
    if not len(runs):
        return "not run"
    reasons = runs.apply(describe_state, axis=1)
    if counts(runs).all():
        return "not logged"
    return "; ".join(dict.fromkeys(reasons[~counts(runs)]))


def cost_entry(runs: pd.DataFrame) -> Entry:
    """Wall time of a run and its core-hours (on a CPU) or device-hours, means over the runs that ended."""
    ended = runs[(runs["state"] == "done") & runs["seconds"].notna()]
    wall, hours = float(ended["seconds"].mean()), float(device_hours(ended).mean())
    exact: dict[str, float | int | str] = {"_seconds_per_run": wall, "_device_hours_per_run": hours}
    if not len(ended):
        return Entry(reason=_why_nothing(runs), exact=exact)
    unit = "GPU-h" if (ended["device_type"] == "cuda").any() else "core-h"
    text = format_seconds(wall) + (f", {format_hours(hours)} {unit}" if hours >= 0 else "")
    return Entry(text, exact=exact)
