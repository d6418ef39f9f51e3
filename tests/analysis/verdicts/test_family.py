"""The whole set of claims: Holm against statsmodels, and the family-wise rate of simulated sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.verdicts.family import family, holm
from analysis.verdicts.verdicts import Verdict, verdicts
from experiments.studies.claims import Claim, Order
from experiments.studies.design import Design
from tests.analysis.verdicts.test_inference import frames

multitest = pytest.importorskip("statsmodels.stats.multitest")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_holm_is_statsmodels_s(p_values: list[float]) -> None:
    expected = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(list(expected))


def verdicts_of(differences: np.ndarray) -> list[Verdict]:
    """Of as many claims as there are rows, each that a variant is better by 1 than a baseline that all share."""
    names = [f"v{i}" for i in range(len(differences))]
    base = np.random.default_rng(0).normal(70, 1, differences.shape[1])
    values = {"base": list(base)} | {name: list(base + row) for name, row in zip(names, differences, strict=True)}
    claims = [
        Claim(name=name, says="x.", checks=(Order(kind="order", higher=(name,), lower=("base",), by=1.0),))
        for name in names
    ]
    return verdicts(claims, *frames(values), "cpu", Design())


def test_a_set_of_which_none_is_true_has_a_false_verdict_as_rarely_as_stated() -> None:
    """54 claims that lie on the edge, with a baseline in common: so often unadjusted, so rarely adjusted."""
    random, sets = np.random.default_rng(1), 15
    unadjusted = adjusted = 0
    for _ in range(sets):
        shared = random.normal(0, 0.5, 8)
        whole = family(verdicts_of(1.0 + random.normal(0, 0.5, (54, 8)) + shared))
        unadjusted += any(each.outcome == "supported" for each in whole.verdicts)
        adjusted += whole.holds("supported") > 0
        assert whole.expected_false == pytest.approx(54 * 0.025)
    assert adjusted / sets <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / sets)
    assert unadjusted / sets > 0.2


def test_what_is_plain_holds_for_the_whole_set() -> None:
    differences = np.full((10, 8), 1.0) + np.random.default_rng(2).normal(0, 0.3, (10, 8))
    differences[0] += 20
    differences[1] -= 20
    found = verdicts_of(differences)
    whole = family(found)
    assert [whole.of(each) for each in found[:2]] == ["supported", "contradicted"]
    assert "1 of the 1 supported and 1 of the 1 contradicted hold" in whole.sentences[1]
    assert "0.25 are false on average" in whole.sentences[0]
    assert whole.as_json()["hold"] == {"supported": 1, "contradicted": 1}
