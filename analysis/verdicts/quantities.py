"""What the runs of a study say about a check: its quantities, a value for each seed, and the region they should lie in.

The frames are those of :func:`analysis.report.one_study.gather`: points, and runs with the column ``variant``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.formats import MINUS
from analysis.frames.load import counts, describe_state, device_hours
from analysis.verdicts.intervals import Region, rise
from experiments.studies.claims import Band, Check, Event, Final, Order, Ratio, Same, Trend
from simsiam.record.catalogue import METRICS, REFERENCES

Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Quantity:
    """A number that each seed gives, and where it lies if the claim holds."""

    name: str
    metric: str
    values: Values
    region: Region
    is_difference: bool
    unclear_within: float = 0.0  # a single seed's difference of less than this points nowhere

    @property
    def is_effect(self) -> bool:
        """Whether it is a difference that the claim wants to have a sign and a smallest size."""
        return self.is_difference and not self.region.has_two_ends

    def of(self, seeds: Sequence[int]) -> Quantity:
        """The same of these seeds alone, in their order."""
        return replace(self, values={seed: self.values[seed] for seed in seeds if seed in self.values})


EVENTS = {"collapsed": "complete collapse"}  # in words, where a name could mean more than the event is


@dataclass(frozen=True)
class Count:
    """In how many seeds something happened."""

    name: str
    happened: dict[int, bool]  # by seed
    how_often: str  # all, some or none of them, as the claim says
    rate: float  # of all runs, that it happens in more than (`none`: does not happen in)

    def of(self, seeds: Sequence[int]) -> Count:
        """The same of these seeds alone, in their order."""
        return replace(self, happened={seed: self.happened[seed] for seed in seeds if seed in self.happened})


class StudyRuns:
    """The runs of a study, as checks ask for them."""

    def __init__(self, points: pd.DataFrame, runs: pd.DataFrame) -> None:
        self.points = dict(iter(points.groupby("run", sort=False)))
        self.runs: dict[str, pd.DataFrame] = {
            str(name): of_name for name, of_name in runs.groupby("variant", observed=True)
        }
        self.none: pd.DataFrame = runs.iloc[:0]

    def waiting(self, variants: list[str]) -> list[str]:
        """What has not ended among the runs of variants: ``'default' (2 of 3 seeds: not run)``."""
        texts = []
        for name in variants:
            if name not in self.runs:
                texts.append(f"'{name}' (not run)")
                continue
            runs = self.runs[name]
            open_runs = runs[runs["state"] != "done"]
            for state, count in Counter(describe_state(run) for _, run in open_runs.iterrows()).items():
                texts.append(f"'{name}' ({f'{count} of {len(runs)} seeds: ' if len(runs) > 1 else ''}{state})")
        return texts

    def settled(self, variants: list[str]) -> list[int]:
        """The seeds that count: those that all variants have, in order, up to the first that has not ended in each.

        What ended beyond a run that failed or is still going on must not be looked at: it might be there because it
        was quick, or went well.
        """
        of_each = [self.runs.get(name, self.none) for name in variants]
        shared = set.intersection(*({int(seed) for seed in runs["seed"]} for runs in of_each))
        ended = set.intersection(*({int(seed) for seed in self.ended(name)["seed"]} for name in variants))
        return list(itertools.takewhile(ended.__contains__, sorted(shared)))

    def left_out(self, variants: list[str]) -> list[str]:
        """The diverged runs of variants, which have no final values."""
        return [
            f"'{name}', seed {run['seed']}"
            for name in variants
            for ended in [self.ended(name)]
            for _, run in ended[~counts(ended)].iterrows()
        ]

    def ended(self, variant: str) -> pd.DataFrame:
        """The runs of a variant that have ended."""
        runs = self.runs.get(variant, self.none)
        ended: pd.DataFrame = runs[runs["state"] == "done"]
        return ended

    def hours(self, variant: str) -> float:
        """Hours of a core, or of a GPU, that a run of a variant takes; NaN if that is not known."""
        ended = self.ended(variant)
        return float(device_hours(ended).mean()) if {"seconds", "device_seconds"} <= set(ended) else math.nan

    def losses(self, variants: list[str]) -> set[str]:
        """The names of the losses of variants."""
        return {str(name) for each in variants for name in self.ended(each)["loss.name"].dropna()}

    def hides_collapse(self, variants: list[str]) -> bool:
        """Whether an output BN without scale and shift keeps the std of z from showing a collapse (Sec. 4.4)."""
        return any(
            (runs["projector.bn_output"].eq(True) & runs["projector.bn_output_affine"].eq(False)).any()
            for runs in map(self.ended, variants)
        )

    def quantities(self, check: Check) -> list[Quantity]:
        """What a numeric check measures; none for a check on events."""
        if isinstance(check, Final):
            values, region = self.finals(check.of, check.metric), _region(check)
            return [Quantity(f"{_name(check.metric)} of '{check.of}'", check.metric, values, region, False)]
        if isinstance(check, Ratio):
            name = f"{_name(check.metric)} of '{check.of}', divided by {check.to},"
            return [Quantity(name, "ratio", self._ratios(check), _region(check), False)]
        if isinstance(check, Trend):
            sign = 1 if check.direction == "rises" else -1
            region = Region(low=check.by) if sign > 0 else Region(high=-check.by)
            if check.of is not None:
                values = self._per_run(check.of, lambda run: rise(*self.curve(run, check.metric)))
                name = f"change of {_name(check.metric)} over the training of '{check.of}'"
            else:
                across = check.across or ()
                values = _common(
                    [self.finals(name, check.metric) for name in across], lambda *y: rise(range(len(y)), y)
                )
                name = f"change of {_name(check.metric)} from '{across[0]}' to '{across[-1]}' along a line"
            return [Quantity(name, check.metric, values, region, True, check.by)]
        if isinstance(check, Order):
            terms = [self.finals(name, check.metric) for name in (*check.higher, *check.lower)]
            if len(check.higher) == 1:
                values, name = _common(terms, lambda a, b: a - b), f"'{check.higher[0]}' minus '{check.lower[0]}'"
            else:
                values = _common(terms, lambda a, b, c, d: (a - b) - (c - d))
                gains = (f"('{one}' minus '{other}')" for one, other in (check.higher, check.lower))
                name = " minus ".join(gains)
            name = f"{_name(check.metric)}, {name},"
            return [Quantity(name, check.metric, values, Region(low=check.by), True, check.by)]
        if isinstance(check, Same):
            return [
                Quantity(
                    f"{_name(check.metric)}, '{one}' minus '{other}',",
                    check.metric,
                    paired_differences(self.finals(one, check.metric), self.finals(other, check.metric)),
                    Region(-check.within, check.within),
                    True,
                )
                for one, other in itertools.combinations(check.of, 2)
            ]
        return []

    def count(self, check: Band | Event) -> Count:
        """In which seeds an event happened, or a curve stayed in its band."""
        ended = self.ended(check.of)
        if isinstance(check, Event):
            happened = {int(run["seed"]): any(_has(run, event) for event in check.event) for _, run in ended.iterrows()}
            events = " or ".join(EVENTS.get(event, event) for event in check.event)
            return Count(f"'{check.of}': {events}", happened, check.how_often, check.rate)
        low = -math.inf if check.low is None else check.low
        high = math.inf if check.high is None else check.high
        happened = {}
        for _, run in ended.iterrows():
            epochs, values = self.curve(run, check.metric)
            late = values[epochs >= check.after * epochs.max()] if len(epochs) else values
            if len(late):
                happened[int(run["seed"])] = bool(((late >= low) & (late <= high)).all())
        band = " and ".join(
            f"{side} {end:g}".replace("-", MINUS)
            for side, end in (("above", low), ("below", high))
            if math.isfinite(end)
        )
        since = f" from {100 * check.after:.0f} % of the training on" if check.after else ""
        return Count(f"{_name(check.metric)} of '{check.of}' stays {band}{since}", happened, "all", check.rate)

    def finals(self, variant: str, metric: str) -> Values:
        """The metric at the end of each run that ended and did not diverge."""
        if metric == "loss_roughness":
            return self._per_run(variant, lambda run: roughness(*self.curve(run, "loss")))
        return self._per_run(variant, lambda run: float(run[f"final_{metric}"]))

    def curve(self, run: pd.Series, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Epochs, and the finite values of a metric at them."""
        points = self.points.get(run["run"])
        if points is None:
            return np.array([]), np.array([])
        known = points[["epoch", metric]].to_numpy(float)
        known = known[np.isfinite(known).all(1)]
        return known[:, 0], known[:, 1]

    def _ratios(self, check: Ratio) -> Values:
        if check.to == "1/sqrt(d)":
            return self.finals(check.of, "z_std_relative")
        column = REFERENCES[check.to].columns[check.metric]
        return self._per_run(check.of, lambda run: float(run[f"final_{check.metric}"]) / float(run[column]))

    def _per_run(self, variant: str, value: Callable[[pd.Series], float]) -> Values:
        ended = self.ended(variant)
        values = {int(run["seed"]): value(run) for _, run in ended[counts(ended)].iterrows()}
        return {seed: number for seed, number in values.items() if math.isfinite(number)}


def _name(metric: str) -> str:
    return METRICS[metric].name_in_table


def paired_differences(one: Mapping[int, float], other: Mapping[int, float]) -> Values:
    """One minus the other, for each seed that both have."""
    return _common([one, other], lambda a, b: a - b)


def roughness(epochs: np.ndarray, values: np.ndarray) -> float:
    """Mean absolute change of a curve from a point to the next, in the second half of the training."""
    late = values[epochs >= epochs.max() / 2] if len(epochs) else values
    return float(np.abs(np.diff(late)).mean()) if len(late) > 1 else math.nan


def _common(terms: list[Values] | list[Mapping[int, float]], combine: Callable[..., float]) -> Values:
    seeds = set.intersection(*(set(term) for term in terms))
    return {seed: combine(*(term[seed] for term in terms)) for seed in sorted(seeds)}


def _region(check: Final | Ratio) -> Region:
    if check.near is not None and check.within is not None:
        return Region(check.near - check.within, check.near + check.within)
    return Region(-math.inf if check.above is None else check.above, math.inf if check.below is None else check.below)


def _has(run: pd.Series, event: str) -> bool:
    if event == "nothing learnt":
        return bool(run["final_knn_top1"] <= run["untrained_knn_top1"])
    return bool(run["outcome"] == event)
