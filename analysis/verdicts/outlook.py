"""How likely more seeds are to decide an open check, given what was seen: the predictive probability.

Mean and spread are as uncertain as the seeds so far leave them (a posterior with the usual flat prior, of the rate
Jeffreys'), the next seeds are drawn from them, and the share of the draws in which a look decides is the answer. Where
it falls below FUTILE a claim is given up. That is not binding: stopping for it never makes a false verdict more likely,
it only costs some verdicts, docs/claims.md says how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.verdicts.intervals import Region, levels
from analysis.verdicts.rates import judge_rate
from analysis.verdicts.sequential import Array, Looks, bounds
from analysis.verdicts.verdicts import Finding, Verdict
from experiments.studies.design import Design

FUTILE = 0.05
DRAWS = 1000


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
    seen = finding.interval
    decided, contradicted = predictive(
        np.array([seen.mean]), np.array([seen.sd]), seen.count, finding.region, design, future, finding.num_tests
    )
    return float(decided[0]), float(contradicted[0])


def predictive(
    means: Array, sds: Array, count: int, region: Region, design: Design, future: Sequence[int], num_tests: int = 1
) -> tuple[Array, Array]:
    """The probabilities that future looks decide, and that they contradict.

    means, sds: of the ``count`` seeds so far of each of several studies, (studies,).
    """
    random = np.random.default_rng(0)
    spread = sds[:, None] * np.sqrt((count - 1) / random.chisquare(count - 1, DRAWS))
    truth = means[:, None] + spread / math.sqrt(count) * random.normal(size=DRAWS)
    noise = random.normal(size=(DRAWS, future[-1] - count))
    looks = Looks.planned(design.looks)
    inside, outside = (bounds(looks, level) for level in levels(region, design, num_tests))
    is_open, contradicted = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    for look, to_support, to_contradict in zip(design.looks, inside, outside, strict=True):
        if look not in future:
            continue
        added = look - count
        total, squares = noise[:, :added].sum(1), (noise[:, :added] ** 2).sum(1)
        mean = (count * means[:, None] + added * truth + spread * total) / look
        # Sums of squares about the mean of the seeds so far, then about the mean of all.
        apart = truth - means[:, None]
        about = (count - 1) * sds[:, None] ** 2 + added * apart**2 + 2 * apart * spread * total + spread**2 * squares
        error = np.sqrt((about - look * (mean - means[:, None]) ** 2) / (look - 1) / look)
        is_in = (mean - to_support * error > region.low) & (mean + to_support * error < region.high)
        is_out = (mean + to_contradict * error < region.low) | (mean - to_contradict * error > region.high)
        contradicted |= is_open & is_out & ~is_in
        is_open &= ~(is_in | is_out)
    return 1 - is_open.mean(1), contradicted.mean(1)


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
