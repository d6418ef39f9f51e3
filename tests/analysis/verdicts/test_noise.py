"""Pairing and the two sources of noise, on simulations of known truth."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from analysis.frames.load import load_runs
from analysis.verdicts.pairing import pairing
from analysis.verdicts.two_sources import Sources, decode, last_correct, sources, sources_of_runs
from tests.run_folders import settings, write_run


def correct(
    random: np.random.Generator, seeds: int, images: int, of_seed: float, of_image: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two variants; seeds shift the accuracy of one, and images are easy for one and hard for the other."""
    shift = random.normal(0, of_seed, (seeds, 1)) if of_seed else 0.0
    hard = random.normal(0, of_image, (1, images)) if of_image else 0.0
    chance = np.clip(0.7 + shift + hard, 0, 1)
    return random.random((seeds, images)) < chance, random.random((seeds, images)) < 0.7


@pytest.mark.parametrize(("of_seed", "of_image"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.2), (0.03, 0.1)])
def test_the_parts_add_up_to_how_means_vary(of_seed: float, of_image: float) -> None:
    """The variance of the mean over new seeds and new images, and each part where only one of them is at work."""
    random = np.random.default_rng(0)
    found = [sources(*correct(random, 6, 150, of_seed, of_image)) for _ in range(1500)]
    means = np.array([each.mean for each in found])
    assert np.mean([each.variance for each in found]) / means.var() == pytest.approx(1, abs=0.15)
    share = {name: np.mean([each.shares[name] for each in found]) for name in found[0].shares}
    assert (share["seeds"] > 0.3) == (of_seed == 0.05)
    assert (share["test images"] > 0.2) == (of_image == 0.2)


def test_the_sentence_names_what_would_help() -> None:
    assert "more seeds would help most" in Sources(2.0, 0.6, 0.4, 0.1, 0.1, 5, 1000).sentence
    text = Sources(-2.0, 0.5, 0.1, 0.4, 0.0, 5, 1000).sentence
    assert "20 % is the seeds', 80 % the images'" in text
    assert "more test images would help most" in text


def test_correctness_is_read_from_runs(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tables = correct(random, 3, 101, 0.0, 0.1)
    runs: list[dict[int, Path]] = []
    for config, table in zip((settings(), settings(target__stop_gradient=False)), tables, strict=True):
        runs.append({})
        for seed, row in enumerate(table):
            folder = write_run(tmp_path, config, seed)
            text = base64.b64encode(np.packbits(row).tobytes()).decode()
            point = {"epoch": 8.0, "step": 161, "knn_top1": 70.0, "knn_correct": text, "num_queries": 101}
            path = folder / "metrics.jsonl"
            path.write_text(path.read_text() + json.dumps(point) + "\n")
            runs[-1][seed] = folder
    assert sources_of_runs(*runs) == sources(*tables)
    known = last_correct(runs[0][0])
    assert known is not None
    assert (known == tables[0][0]).all()
    _, frame = load_runs(tmp_path, use_cache=False)
    assert not frame["note"].str.contains("knn_correct").any()
    assert last_correct(runs[0][0], "linear_correct") is None
    assert decode("AAA=", 101) is None, "another length"
    assert decode("not base64!", 8) is None


@pytest.mark.parametrize(("correlation", "words"), [(0.9, "takes"), (0.0, "not sure"), (-0.9, "does not help")])
def test_pairing_is_measured(correlation: float, words: str) -> None:
    random = np.random.default_rng(2)
    covariance = [[1, correlation], [correlation, 1]]
    values = random.multivariate_normal([70, 60], covariance, (4, 40))
    pairs = [(dict(enumerate(one)), dict(enumerate(other))) for one, other in values.transpose(0, 2, 1)]
    found = pairing(pairs)
    assert found is not None
    assert found.correlation == pytest.approx(correlation, abs=0.15)
    assert found.variance_ratio == pytest.approx(1 - correlation, abs=0.15)
    if correlation:
        assert words in found.sentence
    assert pairing([({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})]) is None, "too few seeds"
