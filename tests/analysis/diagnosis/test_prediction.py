"""Rank correlations of diagnostics with accuracy, on runs whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from analysis.diagnosis.prediction import DISTANCE, FEWEST, correlation, predictions, tells_from


def runs_with(num: int, *, tells_after: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs whose rank orders them by accuracy from a share of the run on, and whose centre is noise."""
    random = np.random.default_rng(0)
    points, rows = [], []
    for config in range(num):
        accuracy = random.uniform(30, 90)
        for seed in (0, 1):
            run = f"{config}-s{seed}"
            for epoch in range(11):
                rank = accuracy if epoch / 10 >= tells_after else random.uniform(30, 90)
                point = {"run": run, "epoch": epoch, "step": 10 * epoch, "effective_rank": rank, "lr": 0.1}
                points.append(point | {"centre": random.random(), "alpha_req": 1 + 1 / accuracy})
            row = {"run": run, "config": str(config), "state": "done", "outcome": "healthy", "epoch": 10.0}
            rows.append(row | {"final_linear_top1": accuracy + seed / 10, "final_knn_top1": math.nan})
    return pd.DataFrame(points), pd.DataFrame(rows)


def test_the_correlation_is_spearmans_and_its_interval_covers_the_truth() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        a = random.normal(size=40)
        pairs = np.stack([a, 0.6 * a + 0.8 * random.normal(size=40)], 1)
        value, low, high = correlation(pairs)
        assert value == pytest.approx(spearmanr(*pairs.T).statistic)
        truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair of correlation 0.6
        hits += low <= truth <= high
    assert hits >= 85


def test_what_predicts_is_told_from_noise_and_from_when_on() -> None:
    points, runs = runs_with(20, tells_after=0.5)
    found = predictions({"study": runs["run"].tolist()}, points, runs)
    assert set(found["num"]) == {20}  # configurations, not runs
    in_order = tells_from(found)
    assert in_order["group"].is_monotonic_increasing, "those of a group stand together"
    for _, of_group in in_order.groupby("group"):
        assert of_group["correlation"].abs().fillna(0).is_monotonic_decreasing
    ends = in_order.set_index("diagnostic")
    assert ends.loc["effective_rank", "correlation"] == pytest.approx(1)
    assert ends.loc["effective_rank", "from"] == 0.5
    assert ends.loc[DISTANCE, "correlation"] == pytest.approx(-1)
    assert ends.loc[DISTANCE, "from"] == 0.1
    assert ends.loc["centre", "low"] < 0 < ends.loc["centre", "high"]
    assert math.isnan(ends.loc["centre", "from"])
    assert "lr" not in ends.index


def test_few_configurations_and_runs_that_diverged_say_nothing() -> None:
    points, runs = runs_with(FEWEST)
    found = predictions({"study": runs["run"].tolist()}, points, runs)
    assert found["correlation"].notna().any()
    runs.loc[runs["config"] == "0", "outcome"] = "diverged"
    found = predictions({"study": runs["run"].tolist()}, points, runs)
    assert found["correlation"].isna().all()
    with pytest.raises(ValueError, match="logged knn_top1"):
        predictions({}, points, runs.drop(columns="final_knn_top1"), "knn_top1")


def test_levels_of_different_losses_are_not_compared() -> None:
    points, runs = runs_with(6)
    points["loss"] = np.arange(len(points), dtype=float)
    for names, is_there in ((["cosine"] * 6, True), (["cosine"] * 3 + ["nt-xent"] * 3, False)):
        of_losses = runs.assign(**{"loss.name": np.repeat(names, 2)})
        found = predictions({"study": runs["run"].tolist()}, points, of_losses)
        assert ("loss" in set(found["diagnostic"])) == is_there
