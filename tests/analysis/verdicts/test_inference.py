"""Verdicts against an independent truth: scipy's tests, and simulated studies whose effect is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from analysis.report.differences import direction
from analysis.verdicts.intervals import Region, judge, mean_interval, rise
from analysis.verdicts.verdicts import verdicts
from experiments.studies.claims import Claim, Order, Same, Trend
from experiments.studies.design import Design

STUDIES = 2000
# Eighths are exact in binary, so that moving both variants by a constant changes no difference.
eighths = st.integers(-400, 400).map(lambda number: number / 8)
pairs = st.lists(st.tuples(eighths, eighths), min_size=2, max_size=8)


def within(rate: float, level: float) -> bool:
    """Not above the level, but for what 2,000 draws leave to chance (3.5 standard errors)."""
    return rate <= level + 3.5 * math.sqrt(level * (1 - level) / STUDIES)


# --- against scipy -----------------------------------------------------------------------------------------------


@given(pairs, st.integers(-40, 40).map(lambda number: number / 8))
def test_an_ordering_is_scipy_s_paired_t_test(values: list[tuple[float, float]], by: float) -> None:
    one, other = np.array(values).T
    difference = one - other
    assume(difference.std() > 0)
    p_above = stats.ttest_rel(one, other + by, alternative="greater").pvalue
    p_below = stats.ttest_rel(one, other + by, alternative="less").pvalue
    assume(min(abs(p_above - 0.025), abs(p_below - 0.025)) > 1e-9)
    expected = "supported" if p_above < 0.025 else "contradicted" if p_below < 0.025 else "undecided"
    assert judge(difference, Region(low=by)).outcome == expected


@given(pairs, st.integers(1, 80).map(lambda number: number / 8))
def test_equivalence_is_two_one_sided_tests(values: list[tuple[float, float]], margin: float) -> None:
    one, other = np.array(values).T
    difference = one - other
    assume(difference.std() > 0)
    p_low = stats.ttest_rel(one, other - margin, alternative="greater").pvalue
    p_high = stats.ttest_rel(one, other + margin, alternative="less").pvalue
    assume(abs(max(p_low, p_high) - 0.05) > 1e-9)
    assert (judge(difference, Region(-margin, margin)).outcome == "supported") == (max(p_low, p_high) < 0.05)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_the_interval_is_scipy_s(values: list[float]) -> None:
    assume(np.std(values) > 1e-6)
    interval = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_rise_is_the_least_squares_line() -> None:
    random = np.random.default_rng(0)
    x, y = np.sort(random.normal(size=12)), random.normal(size=12)
    assert rise(x, y) == pytest.approx(stats.linregress(x, y).slope * (x.max() - x.min()))
    assert math.isnan(rise([1], [2]))


# --- simulated studies -------------------------------------------------------------------------------------------


def differences(effect: float, seeds: int, spread: float = 0.5) -> Iterator[np.ndarray]:
    random = np.random.default_rng(1)
    for _ in range(STUDIES):
        yield random.normal(effect, spread, seeds)


def share(outcome: str, studies: Iterable[np.ndarray], region: Region) -> float:
    return float(np.mean([judge(values, region).outcome == outcome for values in studies]))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_false_verdicts_on_an_ordering_are_as_rare_as_stated(seeds: int) -> None:
    """At the boundary, where the true effect is the smallest one that counts, both errors are at their largest."""
    outcomes = [judge(values, Region(low=1.0)).outcome for values in differences(1.0, seeds)]
    assert within(outcomes.count("supported") / STUDIES, 0.025)
    assert within(outcomes.count("contradicted") / STUDIES, 0.025)
    for effect in (-1.0, 0.0, 0.7):
        assert within(share("supported", differences(effect, 3), Region(low=1.0)), 0.025)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("effect", [-0.5, 0.5])
def test_false_equivalence_is_as_rare_as_stated(seeds: int, effect: float) -> None:
    outcomes = [judge(values, Region(-0.5, 0.5)).outcome for values in differences(effect, seeds, 0.3)]
    assert within(outcomes.count("supported") / STUDIES, 0.05)
    assert within(outcomes.count("contradicted") / STUDIES, 0.025)


def test_a_large_effect_is_found_and_so_is_none() -> None:
    assert share("supported", differences(4.0, 3), Region(low=1.0)) > 0.8
    assert share("contradicted", differences(-2.0, 3), Region(low=1.0)) > 0.8
    assert share("supported", differences(0.0, 5, 0.1), Region(-0.5, 0.5)) > 0.95


def frames(values: dict[str, list[float]], loss: str = "cosine") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs that ended with these kNN accuracies, by variant and seed."""
    rows = [
        {"run": f"{name}-s{seed}", "variant": name, "seed": seed, "state": "done", "outcome": "healthy"}
        | {"final_linear_top1": value, "final_loss": -value / 100, "data.name": "made-up", "loss.name": loss}
        | {"stopped_early": False, "projector.bn_output": True, "projector.bn_output_affine": True}
        for name, of_name in values.items()
        for seed, value in enumerate(of_name)
    ]
    return pd.DataFrame({"run": []}), pd.DataFrame(rows)


def verdict(check: Order | Same | Trend, values: dict[str, list[float]], **claim: str) -> str:
    made = Claim(name="it", says="It is so.", checks=(check,), **claim)
    design = Design(looks=(min(map(len, values.values())),))
    return verdicts([made], *frames(values), "cpu", design)[0].outcome


@given(pairs, st.integers(-800, 800).map(lambda number: number / 8))
def test_swapping_the_variants_flips_an_ordering_and_moving_both_changes_nothing(
    values: list[tuple[float, float]], constant: float
) -> None:
    one, other = (list(column) for column in zip(*values, strict=True))
    given_order = verdict(Order(kind="order", higher="a", lower="b", by=0), {"a": one, "b": other})
    assert given_order == judge(np.subtract(one, other), Region(low=0)).outcome
    swapped = verdict(Order(kind="order", higher="b", lower="a", by=0), {"a": one, "b": other})
    flipped = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}
    assert swapped == flipped[given_order]
    moved = {"a": [value + constant for value in one], "b": [value + constant for value in other]}
    for check in (Order(kind="order", higher="a", lower="b", by=1), Same(kind="same", of=("a", "b"), within=2)):
        assert verdict(check, moved) == verdict(check, {"a": one, "b": other})


def test_what_seeds_share_does_not_hide_a_difference() -> None:
    """Differences are paired: seeds that differ by ten points say nothing about the variants."""
    values = {"a": [70.0, 80.0, 90.0], "b": [67.9, 78.1, 88.0]}
    assert verdict(Order(kind="order", higher="a", lower="b", by=1), values) == "supported"
    assert stats.ttest_ind(*values.values()).pvalue > 0.5


def test_the_whole_way_from_frames_errs_as_rarely_as_stated() -> None:
    """Four variants that are the same but for one, which is off by just the margin: a claim of six tests."""
    random = np.random.default_rng(2)
    check, wrong = Same(kind="same", of=("a", "b", "c", "d"), within=0.5), 0
    for _ in range(200):
        values = {name: list(random.normal(80, 0.2, 4)) for name in "abc"}
        values["d"] = list(random.normal(80.5, 0.2, 4))
        wrong += verdict(check, values) == "supported"
    assert wrong / 200 <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 200)
    contradicted = 0
    for _ in range(200):
        values = {name: list(random.normal(80 + 0.5 * (name == "d"), 0.2, 4)) for name in "abcd"}
        contradicted += verdict(check, values) == "contradicted"
    assert contradicted / 200 <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 200), "Bonferroni holds over the six"


def test_a_trend_over_a_swept_factor() -> None:
    random = np.random.default_rng(3)
    check = Trend(kind="trend", across=("a", "b", "c", "d"), direction="rises", by=1)
    rising = {name: list(70 + i + random.normal(0, 0.1, 3)) for i, name in enumerate("abcd")}
    assert verdict(check, rising) == "supported"
    flat = {name: list(70 + random.normal(0, 0.1, 3)) for name in "abcd"}
    assert verdict(check, flat) == "contradicted"
    falling = {name: list(reversed(values)) for name, values in zip("abcd", reversed(rising.values()), strict=True)}
    assert verdict(Trend(kind="trend", across=("a", "b", "c", "d"), direction="falls", by=1), falling) == "supported"


# --- the way of the paper's difference ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paper", "ours", "way"),
    [
        (-3.3, [-2.0], "agrees"),
        (-3.3, [-0.6], "unclear"),  # one seed, less than a point
        (-3.3, [2.0], "disagrees"),
        (0.1, [0.6], "agrees"),  # none in the paper, none here
        (0.1, [1.6], "disagrees"),
        (-3.3, [-0.6, -0.7, -0.5], "agrees"),  # with seeds the interval decides
        (-3.3, [-0.6, 0.7, -0.5], "unclear"),
        (-3.3, [0.6, 0.7, 0.5], "disagrees"),
        (0.1, [0.1, -0.1, 0.0], "agrees"),
        (0.1, [2.1, 1.9, 2.0], "disagrees"),
    ],
)
def test_directions(paper: float, ours: list[float], way: str) -> None:
    assert direction(paper, dict(enumerate(ours))) == way
