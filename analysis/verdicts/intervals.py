"""What a few seeds can decide: t-intervals, whether they lie in the region that a claim names, how many seeds would do.

Every numeric claim is one question: does the mean, over seeds, of a quantity (a final value, a paired difference, a
slope) lie in a region? It is *supported* if the interval of the mean lies inside the region, *contradicted* if it lies
outside, else *undecided*.

The level: a region that is open on one side is tested with the two-sided 95 % t-interval. A region with two ends (an
equivalence margin) is tested by two one-sided tests at 5 % each (TOST), which is the 90 % interval lying inside it. So
if the true mean is at the end of the region or beyond, "supported" comes up in at most 2.5 or 5 % of studies. Outside
is judged with the 95 % interval, widened (Bonferroni) where a claim makes several tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Outcome = Literal["supported", "contradicted", "undecided"]

LEVEL = 0.95
POWER = 0.8  # of the number of seeds that is said to decide
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """Mean, sample standard deviation and t-interval of the mean at a level; infinite with fewer than two values."""

    mean: float
    low: float
    high: float
    level: float
    sd: float
    count: int


@dataclass(frozen=True)
class Region:
    """Where a quantity lies if the claim holds; open, an end may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def has_two_ends(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high


@dataclass(frozen=True)
class Judgement:
    """An outcome with the interval that it rests on, and how many more seeds would decide it."""

    outcome: Outcome
    interval: Interval
    more_seeds: int | None  # None: decided, unknown (fewer than two seeds), or more than MOST_SEEDS


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The two-sided Student interval of a mean. Values that do not vary at all have an interval of no width."""
    array = np.asarray(values, float)
    count = len(array)
    mean = float(array.mean()) if count else math.nan
    if count < 2:
        return Interval(mean, -math.inf, math.inf, level, math.nan, count)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * sd / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, level, sd, count)


def judge(values: Sequence[float], region: Region, num_tests: int = 1) -> Judgement:
    """Whether the mean lies in the region. ``num_tests``: how many tests the whole claim makes."""
    inside = mean_interval(values, 2 * LEVEL - 1 if region.has_two_ends else LEVEL)
    if inside.count < 2:
        return Judgement("undecided", inside, None)
    if region.low < inside.low and inside.high < region.high:
        return Judgement("supported", inside, None)
    outside = mean_interval(values, 1 - (1 - LEVEL) / num_tests)
    if outside.high < region.low or outside.low > region.high:
        return Judgement("contradicted", outside, None)
    level = inside.level if inside.mean in region else outside.level
    return Judgement("undecided", inside, _more_seeds(inside, region, level))


def _more_seeds(seen: Interval, region: Region, level: float) -> int | None:
    """How many more seeds decide in four of five cases, if the true mean and spread are those seen."""
    distance = min(abs(seen.mean - end) for end in (region.low, region.high) if math.isfinite(end))
    counts = np.arange(seen.count + 1, MOST_SEEDS + 1)
    reach = stats.t.ppf((1 + level) / 2, counts - 1) + stats.t.ppf(POWER, counts - 1)
    enough = reach * seen.sd / np.sqrt(counts) < distance
    return int(counts[enough.argmax()]) - seen.count if enough.any() else None


def rise(x: ArrayLike, y: ArrayLike) -> float:
    """By how much y rises from the first x to the last along its least-squares line; NaN for fewer than two points."""
    across, up = np.asarray(x, float), np.asarray(y, float)
    if len(across) < 2 or across.max() == across.min():
        return math.nan
    from_mean = across - across.mean()
    slope = (from_mean * (up - up.mean())).sum() / (from_mean**2).sum()
    return float(slope * (across.max() - across.min()))
