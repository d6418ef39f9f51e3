"""How likely more seeds are to decide an open check, given what was seen: the predictive probability.

Mean and spread are as uncertain as the seeds so far leave them (a posterior with the usual flat prior, of the rate
Jeffreys'), the next seeds are drawn from them, and the share of the draws in which a look decides is the answer. Where
it falls below FUTILE a claim is given up. That is not binding: stopping for it never makes a false verdict more likely,
it only costs some verdicts, docs/claims.md says how many.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.verdicts.intervals import levels
from analysis.verdicts.rates import judge_rate
from analysis.verdicts.sequential import Array, Looks, bounds
from analysis.verdicts.verdicts import Finding, Verdict
from experiments.studies.design import Design

FUTILE = 0.05
DRAWS = 2000


def chance_to_decide(verdict: Verdict, most_seeds: int) -> float | None:
    """Of a claim, with at most so many seeds: all open checks must be decided, or one be contradicted.

    An upper bound where several checks are open. None before the first look.
    """
    open_ones = [finding for finding in verdict.findings if finding.outcome == "undecided"]
    chances = [_chances(finding, verdict.design, most_seeds) for finding in open_ones]
    known = [pair for pair in chances if pair is not None]
    if len(known) < len(chances) or not known:
        return None
    return max(min(decided for decided, _ in known), max(contradicted for _, contradicted in known))


def _chances(finding: Finding, design: Design, most_seeds: int) -> tuple[float, float] | None:
    """Of one check: to be decided, and to be contradicted."""
    future = [look for look in design.looks if finding.num_settled < look <= most_seeds]
    if not future:
        return 0.0, 0.0
    if finding.num_settled < design.looks[0]:
        return None
    if finding.rate is not None:
        return _of_rate(finding, design, future)
    if finding.interval is None or finding.region is None or not finding.interval.sd > 0:
        return 0.0, 0.0  # no values, or values that do not vary and lie on the edge
    seen, region = finding.interval, finding.region
    random = np.random.default_rng(0)
    spread = seen.sd * np.sqrt((seen.count - 1) / random.chisquare(seen.count - 1, DRAWS))
    mean = seen.mean + spread / math.sqrt(seen.count) * random.normal(size=DRAWS)
    more = mean[:, None] + spread[:, None] * random.normal(size=(DRAWS, future[-1] - seen.count))
    looks = Looks.planned(design.looks)
    inside, outside = (bounds(looks, level) for level in levels(region, design, finding.num_tests))
    is_open, supported = np.ones(DRAWS, bool), np.zeros(DRAWS, bool)
    for k, look in enumerate(design.looks):
        if look not in future:
            continue
        low, high = _ends(seen.mean, seen.sd, seen.count, more[:, : look - seen.count])
        half = (high - low) / 2
        middle = low + half
        is_in = (middle - inside[k] * half > region.low) & (middle + inside[k] * half < region.high)
        is_out = (middle + outside[k] * half < region.low) | (middle - outside[k] * half > region.high)
        supported |= is_open & is_in
        is_open &= ~(is_in | is_out)
    return float((~is_open).mean()), float((~is_open & ~supported).mean())


def _ends(mean: float, sd: float, count: int, more: Array) -> tuple[Array, Array]:
    """One standard error below and above the mean of the values seen and more of them, (draws,)."""
    total = count + more.shape[1]
    means = (count * mean + more.sum(1)) / total
    squares = (count - 1) * sd**2 + count * mean**2 + (more**2).sum(1) - total * means**2
    error = np.sqrt(squares / (total - 1) / total)
    return means - error, means + error


def _of_rate(finding: Finding, design: Design, future: list[int]) -> tuple[float, float]:
    """As many as agree of the seeds so far may go on in any way; each number of them has its probability."""
    seen = finding.agrees
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(200):
        rate = random.beta(sum(seen) + 0.5, len(seen) - sum(seen) + 0.5)
        drawn = [*seen, *(random.random(future[-1] - len(seen)) < rate)]
        outcomes.append(judge_rate(drawn, finding.needed_rate, design, finding.num_tests).outcome)
    decided = [outcome for outcome in outcomes if outcome != "undecided"]
    return len(decided) / 200, decided.count("contradicted") / 200
