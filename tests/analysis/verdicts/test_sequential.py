"""Bounds over several looks against published tables and simulations; rates against scipy; all with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.verdicts import sequential
from analysis.verdicts.intervals import Region, judge, mean_interval
from analysis.verdicts.rates import clopper_pearson, judge_rate
from analysis.verdicts.sequential import Looks, bounds, p_value
from experiments.studies.design import LOOKS, Design

FIXED = Design(looks=(8,))


def crossed(values: np.ndarray, looks: tuple[int, ...], limits: tuple[float, ...]) -> np.ndarray:
    """At which looks the t statistic is above its bound, (studies, looks)."""
    statistics = [
        values[:, :n].mean(1) / values[:, :n].std(1, ddof=1) * math.sqrt(n) > limit
        for n, limit in zip(looks, limits, strict=True)
    ]
    return np.stack(statistics, 1)


# --- bounds of t ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spend", "published"),
    [
        # Five equal looks, two-sided 5 %: Jennison and Turnbull 2000; the R package ldbounds gives the digits.
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
        ("o'brien-fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
    ],
)
def test_bounds_of_many_values_are_those_published_for_the_normal_distribution(
    spend: str, published: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if spend == "o'brien-fleming":
        monkeypatch.setattr(
            sequential, "spent", lambda share: 2 * stats.norm.sf(stats.norm.isf(0.0125) / math.sqrt(share)) / 0.025
        )
    looks = (150, 300, 450, 600, 750)
    found = bounds(Looks.planned(looks), 0.025)
    as_normal = [stats.norm.isf(stats.t.sf(bound, n - 1)) for bound, n in zip(found, looks, strict=True)]
    assert as_normal == pytest.approx(published, abs=4e-3)


@pytest.mark.parametrize("looks", [LOOKS, (2, 4, 6), (4, 20), (5, 7, 30)])
@pytest.mark.parametrize("level", [0.05, 0.004])
def test_each_look_spends_what_it_may(looks: tuple[int, ...], level: float) -> None:
    random, num, times = np.random.default_rng(0), 200_000, np.zeros(len(looks))
    for _ in range(5):
        at = crossed(random.normal(size=(num, looks[-1])), looks, bounds(Looks.planned(looks), level))
        times += np.bincount(at[at.any(1)].argmax(1), minlength=len(looks))
    expected = level * np.diff([0, *(sequential.spent(n / looks[-1]) for n in looks)]) * 5 * num
    assert (np.abs(times - expected) < 4 * np.sqrt(expected)).all(), (times, expected)


def test_one_look_is_student_s_t() -> None:
    assert bounds(Looks.planned((8,)), 0.025) == pytest.approx((stats.t.isf(0.025, 7),))
    values = np.random.default_rng(0).normal(1, 1, 8)
    found, expected = judge(values, Region(low=0), FIXED).interval, mean_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    p = stats.ttest_1samp(values, 0).pvalue
    assert judge(values, Region(low=0), FIXED).p_supported == pytest.approx(p, rel=0.02)


@given(st.sampled_from(range(5)), st.floats(1e-6, 0.1))
def test_the_p_value_is_the_level_whose_bound_is_met(look: int, level: float) -> None:
    statistics = [-1.0] * look + [bounds(Looks.planned(LOOKS), level)[look]]
    assert p_value(statistics, Looks.planned(LOOKS)) == pytest.approx(level, rel=0.02)


def test_p_values_are_valid_at_every_level() -> None:
    values = np.random.default_rng(1).normal(size=(2000, 16))
    found = np.array([judge(row, Region(low=0), Design()).p_supported for row in values])
    for level in (0.01, 0.05, 0.2):
        assert (found <= level).mean() <= level / 2 + 4 * math.sqrt(level / 2 / 2000), "one side has half of it"


# --- studies of known truth ---------------------------------------------------------------------------------------


def outcomes(values: np.ndarray, region: Region) -> list[str]:
    return [judge(row, region, Design()).outcome for row in values]


def at_most(rate: float, level: float, num: int) -> bool:
    return rate <= level + 3.5 * math.sqrt(level * (1 - level) / num)


@pytest.mark.parametrize(("region", "level"), [(Region(low=1.0), 0.025), (Region(-1.0, 1.0), 0.05)])
def test_looking_five_times_errs_as_rarely_as_stated(region: Region, level: float) -> None:
    values = np.random.default_rng(2).normal(1.0, 0.5, (2000, 16))
    found = outcomes(values, region)
    assert at_most(found.count("supported") / 2000, level, 2000)
    assert at_most(found.count("contradicted") / 2000, 0.025, 2000)
    assert sum("supported" in (judge(row[:n], region).outcome for n in LOOKS) for row in values) / 2000 > 1.5 * level, (
        "looking five times at the fixed interval does not"
    )


def test_the_first_look_that_decides_stands() -> None:
    values = [2.0, 2.1, 1.9, -9.0, -9.0]
    assert judge(values, Region(low=0), Design()).outcome == "supported"
    assert judge(values, Region(low=0), Design()).interval.count == 3
    assert judge([*values[:2], 2.4, 2.0], Region(low=0), Design()).interval.count == 3, "no look at four"
    assert judge(values[:2], Region(low=0), Design()).outcome == "undecided"


def test_an_open_one_says_which_look_should_decide() -> None:
    random = np.random.default_rng(3)
    seen = np.array([1.5, 2.0, 2.5])  # mean 2, spread 0.5
    needed = judge(seen, Region(low=1.4), Design()).seeds_to_decide
    assert needed in LOOKS[1:]
    assert outcomes(random.normal(2.0, 0.5, (400, needed)), Region(low=1.4)).count("supported") > 0.78 * 400
    assert judge([1.0, 2.0, 3.0], Region(low=1.9), Design()).seeds_to_decide is None, "too close to the edge"


def test_seeds_without_a_value_leave_the_error_as_it_is() -> None:
    """Every look then has fewer values; one that adds less than two is left out."""
    values = np.random.default_rng(5).normal(1.0, 0.5, (2000, 16))
    values[:, [1, 3, 6]] = math.nan
    found = outcomes(values, Region(low=1.0))
    assert at_most(found.count("supported") / 2000, 0.025, 2000)
    assert found.count("supported") > 0.6 * 0.025 * 2000
    assert judge(values[0], Region(low=-9), Design()).interval.count == 2, "of three seeds"
    of_six = judge([1.0, 1.1, math.nan, 1.2, math.nan, 1.3], Region(low=0), Design(looks=(6,))).interval
    expected = mean_interval([1.0, 1.1, 1.2, 1.3])
    assert (of_six.low, of_six.high) == pytest.approx((expected.low, expected.high)), "a fixed design is Student's"


# --- rates ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.floats(0, 1))
def test_clopper_pearson_is_scipy_s(count: int, share: float) -> None:
    happened = round(share * count)
    expected = stats.binomtest(happened, count).proportion_ci(0.95, method="exact")
    assert clopper_pearson(happened, count, 0.025) == pytest.approx((expected.low, expected.high))


def test_all_of_three_do_not_decide_and_all_of_six_do() -> None:
    for seeds, outcome in ((3, "undecided"), (5, "undecided"), (6, "supported")):
        assert judge_rate([True] * seeds, 0.5, Design(looks=(seeds,))).outcome == outcome
    assert judge_rate([False] * 6, 0.5, Design(looks=(6,))).outcome == "contradicted"
    assert judge_rate([True] * 6, 0.5, Design(looks=(6,))).interval.low == pytest.approx(0.025 ** (1 / 6))
    assert judge_rate([True] * 5, 0.5, Design()).seeds_to_decide == 8
    assert judge_rate([True] * 8, 0.5, Design()).outcome == "supported"
    assert judge_rate([True] * 16, 0.9, Design()).outcome == "undecided", "16 of 16 do not support 90 %"


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_rates_err_as_rarely_as_stated(rate: float) -> None:
    random = np.random.default_rng(4)
    found = [judge_rate(list(random.random(16) < rate), rate, Design()).outcome for _ in range(1000)]
    assert at_most(found.count("supported") / 1000, 0.025, 1000)
    assert at_most(found.count("contradicted") / 1000, 0.025, 1000)
