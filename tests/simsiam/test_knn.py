"""kNN against a brute-force computation with scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from simsiam.evaluation import knn
from simsiam.evaluation.knn import knn_top1, raw_pixel_top1


def brute_force(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray, k: int, t: float
) -> float:
    k = min(k, len(bank))
    neighbours = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank)
    distances, nearest = neighbours.kneighbors(queries)
    correct = 0
    for row, places, truth in zip(distances, nearest, labels, strict=True):
        votes = np.zeros(bank_labels.max() + 1)
        for distance, place in zip(row, places, strict=True):
            votes[bank_labels[place]] += np.exp((1 - distance) / t)
        correct += int(votes.argmax() == truth)
    return 100 * correct / len(queries)


def clusters(n: int, seed: int, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(7, 16))
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 7, n)
    return (centres[labels] + noise * draws.normal(size=(n, 16))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 5, 200, 5000])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_agrees_with_brute_force(k: int, temperature: float) -> None:
    bank, bank_labels = clusters(1000, 1)
    queries, labels = clusters(300, 2)
    ours = knn_top1(
        torch.from_numpy(bank),
        torch.from_numpy(bank_labels),
        torch.from_numpy(queries),
        torch.from_numpy(labels),
        k=k,
        temperature=temperature,
    )
    assert 20 < ours < 95
    assert ours == pytest.approx(brute_force(bank, bank_labels, queries, labels, k, temperature), abs=0.34)  # one tie


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, bank_labels = (torch.from_numpy(part) for part in clusters(500, 1))
    queries, labels = (torch.from_numpy(part) for part in clusters(130, 2))
    whole = knn_top1(bank, bank_labels, queries, labels)
    monkeypatch.setattr(knn, "TILE", 32 * 500)
    assert knn_top1(bank, bank_labels, queries, labels) == whole


def test_raw_pixels_are_centred() -> None:
    """Without centring, the cosine of bright images is near 1 whatever they show."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 400)
    patterns = draws.integers(0, 30, (4, 1, 6, 6))
    images = (200 + patterns[labels] + draws.integers(0, 10, (400, 1, 6, 6))).astype(np.uint8)
    top1 = raw_pixel_top1(images[:300], labels[:300], images[300:], labels[300:], k=20, temperature=0.1)
    flat = images.reshape(400, -1).astype(np.float64)
    flat -= flat[:300].mean(0)
    assert top1 == pytest.approx(brute_force(flat[:300], labels[:300], flat[300:], labels[300:], 20, 0.1))
    assert top1 > 90
