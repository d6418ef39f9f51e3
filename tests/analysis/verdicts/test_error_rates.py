"""A small version of the table in docs/claims.md: errors over all looks, with the simulation's own error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.verdicts.intervals import Region, judge
from analysis.verdicts.outlook import FUTILE, predictive
from benchmarks.verdicts import DESIGN, DIFFERENCES, LOOKS, judge_all, statistics, whole_set, with_giving_up

STUDIES = 3000
SYMMETRIC = [name for name in DIFFERENCES if "skewness" not in name and "twice the spread" not in name]


def at_most(share: float, level: float, num: int = STUDIES) -> bool:
    return share <= level + 3.5 * math.sqrt(level * (1 - level) / num)


def test_many_studies_at_once_are_judged_as_one_is() -> None:
    values = np.random.default_rng(0).normal(0.8, 1, (200, 16))
    for region in (Region(low=0.0), Region(high=0.5), Region(-1.5, 1.5)):
        found = judge_all(values, region)
        for row, supported, contradicted, seeds in zip(
            values, found.supported, found.contradicted, found.seeds, strict=True
        ):
            one = judge(row, region, DESIGN)
            assert (one.outcome == "supported", one.outcome == "contradicted") == (supported, contradicted)
            assert one.interval.count == seeds


@pytest.mark.parametrize("name", SYMMETRIC)
def test_errors_over_all_looks_are_at_most_as_stated(name: str) -> None:
    values = DIFFERENCES[name](np.random.default_rng(1), (STUDIES, 16))
    order, margin = judge_all(values, Region(low=0.0)), judge_all(values + 3, Region(-3.0, 3.0))
    assert at_most(float(order.supported.mean()), 0.025)
    assert at_most(float(order.contradicted.mean()), 0.025)
    assert at_most(float(margin.supported.mean()), 0.05)


def test_a_set_of_54_claims_errs_as_rarely_as_stated() -> None:
    for row in whole_set(200)[1:]:
        assert at_most(float(row[-1].split()[0]) / 100, 0.05, 200), row


def test_giving_up_saves_seeds_and_loses_hardly_any_verdict() -> None:
    edge = np.random.default_rng(2).normal(0, 1, (200, 16))
    assert with_giving_up(edge, Region(low=0.0)).seeds.mean() < judge_all(edge, Region(low=0.0)).seeds.mean() - 2
    inside = edge + 1
    without, giving_up = judge_all(inside, Region(low=0.0)), with_giving_up(inside, Region(low=0.0))
    assert without.supported.mean() - giving_up.supported.mean() < 0.03
    assert not (giving_up.supported & ~without.supported).any(), "and makes no new one"


def test_the_chance_to_be_decided_is_as_often_right_as_it_says() -> None:
    """Of studies whose mean and spread are drawn as widely as the posterior takes them to be."""
    random = np.random.default_rng(3)
    values = random.uniform(-3, 3, (2000, 1)) + random.normal(0, 1, (2000, 16))
    means, errors = statistics(values, LOOKS)
    found = judge_all(values, Region(low=0.0))
    still = found.seeds > 5
    chance, _ = predictive(means[still, 1], errors[still, 1] * math.sqrt(5), 5, Region(low=0.0), DESIGN, (8, 12, 16))
    decided = (found.supported | found.contradicted)[still]
    assert FUTILE < chance.mean() < 1
    assert chance.mean() == pytest.approx(decided.mean(), abs=0.08)
