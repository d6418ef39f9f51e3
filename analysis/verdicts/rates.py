"""Statements on a rate ("collapses in every run"): exact binomial bounds after Clopper and Pearson (1934).

What happens in n of n seeds happens, at 97.5 % confidence, at a rate of more than 0.025^(1/n): 3 of 3 are not enough
for half of all runs, 6 of 6 are. Over several looks each has the part of the error that it may spend
(:func:`analysis.verdicts.sequential.spent`), so that all together keep it (union bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import bdtr, bdtrc, betaincinv

from analysis.verdicts.intervals import Outcome
from analysis.verdicts.sequential import spent
from experiments.studies.design import Design


@dataclass(frozen=True)
class RateInterval:
    """How often something happened, and between which rates the truth lies."""

    happened: int
    count: int
    low: float
    high: float
    level: float  # that all looks together keep


@dataclass(frozen=True)
class RateJudgement:
    """An outcome with the interval that it rests on; if it is open, the look that decides if it goes on like this."""

    outcome: Outcome
    interval: RateInterval
    seeds_to_decide: int | None = None
    p_supported: float = 1.0  # the smallest two-sided levels, over all looks
    p_contradicted: float = 1.0


def clopper_pearson(happened: int, count: int, error: float) -> tuple[float, float]:
    """The rates below and above which as much, or as little, has a probability of at most ``error``, each."""
    low = float(betaincinv(happened, count - happened + 1, error)) if happened else 0.0
    high = float(betaincinv(happened + 1, count - happened, 1 - error)) if happened < count else 1.0
    return low, high


def judge_rate(happened: Sequence[bool], rate: float, design: Design, num_tests: int = 1) -> RateJudgement:
    """Whether something happens at more than a rate, from what happened in each seed, in the order of the seeds."""
    reached = [look for look in design.looks if look <= len(happened)]
    shares = _shares(design.looks)
    error = (1 - design.level) / 2
    p_supported = p_contradicted = 1.0
    decided: tuple[Outcome, RateInterval] | None = None
    interval = RateInterval(sum(happened), len(happened), 0.0, 1.0, design.level)
    for look, share in zip(reached, shares, strict=False):
        times = sum(happened[:look])
        p_supported = min(p_supported, 2 * (float(bdtrc(times - 1, look, rate)) if times else 1.0) / share)
        p_contradicted = min(p_contradicted, 2 * num_tests * float(bdtr(times, look, rate)) / share)
        interval = RateInterval(times, look, *clopper_pearson(times, look, error * share), design.level)
        outside = clopper_pearson(times, look, error * share / num_tests)[1]
        if decided is None and interval.low > rate:
            decided = "supported", interval
        elif decided is None and outside < rate:
            level = 1 - (1 - design.level) / num_tests
            low = clopper_pearson(times, look, error * share / num_tests)[0]
            decided = "contradicted", RateInterval(times, look, low, outside, level)
    if decided is not None:
        return RateJudgement(*decided, None, p_supported, p_contradicted)
    needed = _seeds_to_decide(happened, rate, design, num_tests)
    return RateJudgement("undecided", interval, needed, p_supported, p_contradicted)


def _shares(looks: tuple[int, ...]) -> list[float]:
    upto = [0.0, *(spent(look / looks[-1]) for look in looks)]
    return [later - earlier for earlier, later in pairwise(upto)]


def _seeds_to_decide(happened: Sequence[bool], rate: float, design: Design, num_tests: int) -> int | None:
    """The look that decides if what happened in most seeds so far happens in all that follow."""
    if not happened:
        return None
    goes_on = sum(happened) > len(happened) * rate
    for look, share in zip(design.looks, _shares(design.looks), strict=True):
        if look <= len(happened):
            continue
        times = sum(happened) + (look - len(happened)) * goes_on
        error = (1 - design.level) / 2 * share
        low, high = clopper_pearson(times, look, error)[0], clopper_pearson(times, look, error / num_tests)[1]
        if low > rate if goes_on else high < rate:
            return look
    return None
