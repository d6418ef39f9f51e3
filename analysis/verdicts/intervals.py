"""What a few seeds can decide: intervals of a mean at each look, and whether they lie in the region that a claim names.

Every numeric claim is one question: does the mean, over seeds, of a quantity (a final value, a paired difference, a
slope) lie in a region? It is *supported* if the interval of the mean lies inside the region, *contradicted* if it lies
outside, else *undecided*. The first look at which it is one of the two decides; what comes after does not change it.

The level holds for all looks of a study's design together (:mod:`analysis.verdicts.sequential`): a region that is open
on one side is tested at 2.5 %, a region with two ends (an equivalence margin) by two one-sided tests at 5 % each, which
is the 90 % interval lying inside. So if the true mean is at the end of the region or beyond, "supported" comes up in at
most 2.5 or 5 % of studies. Outside is judged at 2.5 % a side, divided (Bonferroni) by the tests that a claim makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from analysis.verdicts.sequential import Looks, bounds, p_value, spent
from experiments.studies.design import LEVEL, Design

Outcome = Literal["supported", "contradicted", "undecided"]

POWER = 0.8  # of the number of seeds that is said to decide


@dataclass(frozen=True)
class Interval:
    """Mean, sample standard deviation and interval of the mean; infinite with fewer than two values."""

    mean: float
    low: float
    high: float
    level: float  # that all looks together keep
    sd: float
    count: int
    looks: int = 1  # at which such an interval was or will be looked at


@dataclass(frozen=True)
class Region:
    """Where a quantity lies if the claim holds; open, an end may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def has_two_ends(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def ends(self) -> list[float]:
        """The finite ones."""
        return [end for end in (self.low, self.high) if math.isfinite(end)]

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high


@dataclass(frozen=True)
class Judgement:
    """An outcome with the interval that it rests on; if it is open, at which number of seeds it should be decided."""

    outcome: Outcome
    interval: Interval  # of the look that decided, else of the last one that was reached
    seeds_to_decide: int | None = None  # None: decided, unknown, or no look of the design would do
    # The smallest levels (two-sided, over all looks) at which it would be supported and contradicted.
    p_supported: float = 1.0
    p_contradicted: float = 1.0


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The two-sided Student interval of a mean. Values that do not vary at all have an interval of no width."""
    return _interval(np.asarray(values, float), level, _quantile(len(values), level), 1)


def _quantile(count: int, level: float) -> float:
    return float(stdtrit(count - 1, (1 + level) / 2)) if count > 1 else math.inf


def _interval(array: np.ndarray, level: float, bound: float, looks: int) -> Interval:
    count = len(array)
    mean = float(array.mean()) if count else math.nan
    if count < 2:
        return Interval(mean, -math.inf, math.inf, level, math.nan, count, looks)
    sd = float(array.std(ddof=1))
    half = bound * sd / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, level, sd, count, looks)


def levels(region: Region, design: Design, num_tests: int = 1) -> tuple[float, float]:
    """The one-sided errors, over all looks, of "supported" and of "contradicted" on each side."""
    error = 1 - design.level
    return error if region.has_two_ends else error / 2, error / 2 / num_tests


def judge(values: Sequence[float], region: Region, design: Design | None = None, num_tests: int = 1) -> Judgement:
    """Whether the mean lies in the region.

    values: one for each seed, in the order in which the seeds count; NaN for a seed that gives none. design: when one
    looks; None: once, at all of them. num_tests: how many tests the whole claim makes.
    """
    array = np.asarray(values, float)
    design = design or Design(looks=(max(len(array), 2),))
    error_inside, error_outside = levels(region, design, num_tests)
    looks, seeds = _looks(array, design)
    to_support, to_contradict = bounds(looks, error_inside), bounds(looks, error_outside)
    seen = array[~np.isnan(array)]
    reached = [count for count, at in zip(looks.counts, seeds, strict=True) if at <= len(array)]
    p_values = _p_values(seen, region, looks, reached, num_tests)
    if not reached:
        return Judgement("undecided", mean_interval(seen, 1 - 2 * error_inside))
    num_looks = len(design.looks)
    for k, count in enumerate(reached):
        inside = _interval(seen[:count], 1 - 2 * error_inside, to_support[k], num_looks)
        if region.low < inside.low and inside.high < region.high:
            return Judgement("supported", inside, None, *p_values)
        outside = _interval(seen[:count], 1 - 2 * error_outside, to_contradict[k], num_looks)
        if outside.high < region.low or outside.low > region.high:
            return Judgement("contradicted", outside, None, *p_values)
    to_cross = to_support if inside.mean in region else to_contradict
    needed = _count_to_decide(inside, region, looks.counts, to_cross)
    at = None if needed is None else seeds[looks.counts.index(needed)]
    return Judgement("undecided", inside, at, *p_values)


def _looks(array: np.ndarray, design: Design) -> tuple[Looks, list[int]]:
    """The looks in numbers of values, and in seeds: where seeds give none, a look has fewer values than seeds.

    A look that adds less than two values to the one before is left out; the next one may spend its share, too.
    """
    counts, seeds = [0], []
    for look in design.looks:
        known = array[:look]
        count = int((~np.isnan(known)).sum()) + max(0, look - len(known))
        if count >= counts[-1] + 2:
            counts.append(count)
            seeds.append(look)
    if not seeds:  # hardly any seed gives a value
        return Looks.planned((design.last,)), [len(array) + 1]
    shares = [spent(look / design.last) for look in seeds]
    return Looks(tuple(counts[1:]), tuple(shares)), seeds


def _p_values(
    array: np.ndarray, region: Region, looks: Looks, reached: Sequence[int], num_tests: int
) -> tuple[float, float]:
    """The smallest two-sided levels at which it is supported, and contradicted, at a look that was reached."""
    above_low, below_high = (
        [_statistic(array[:count], end, sign) for count in reached]
        for end, sign in ((region.low, 1), (region.high, -1))
    )
    of_ends = [p_value(each, looks) for each in (above_low, below_high)]
    supported = max(of_ends) if region.has_two_ends else 2 * max(of_ends)
    beyond = [p_value([-t for t in each], looks) for each in (above_low, below_high)]
    return min(1.0, supported), min(1.0, 2 * num_tests * min(beyond))


def _statistic(array: np.ndarray, end: float, sign: int) -> float:
    """How many standard errors the mean lies inside of an end."""
    distance = sign * (float(array.mean()) - end)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    if error == 0 or math.isinf(distance):
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / error


def _count_to_decide(seen: Interval, region: Region, counts: Sequence[int], to_cross: Sequence[float]) -> int | None:
    """The look that decides in four of five cases, if the true mean and spread are those seen."""
    distance = min(abs(seen.mean - end) for end in region.ends)
    for count, bound in zip(counts, to_cross, strict=True):
        reach = bound + float(stdtrit(count - 1, POWER))
        if count > seen.count and reach * seen.sd / math.sqrt(count) < distance:
            return count
    return None


def rise(x: ArrayLike, y: ArrayLike) -> float:
    """By how much y rises from the first x to the last along its least-squares line; NaN for fewer than two points."""
    across, up = np.asarray(x, float), np.asarray(y, float)
    if len(across) < 2 or across.max() == across.min():
        return math.nan
    from_mean = across - across.mean()
    slope = (from_mean * (up - up.mean())).sum() / (from_mean**2).sum()
    return float(slope * (across.max() - across.min()))
