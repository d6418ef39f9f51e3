"""The weighted kNN classifier of 10,000 queries against 50,000 features, 512-d: ``python -m benchmarks.knn``.

scikit-learn and faiss find the neighbours; the vote after them is the same few lines for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Bench, Contender, Reach, machine
from simsiam.evaluation.knn import knn_top1

K, TEMPERATURE, CLASSES = 200, 0.1, 10


def features(num: int, labels: Tensor, seed: int) -> Tensor:
    """(num, 512): noisy copies of a direction for each class, not negative, as after a ReLU and pooling."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(0))
    return (centres[labels] + 3 * torch.randn(num, 512, generator=draws)).relu()


def accuracy(cosine: np.ndarray, nearest: np.ndarray, bank_labels: Tensor, labels: Tensor) -> float:
    """The vote over what another library has found."""
    votes = torch.zeros(len(labels), CLASSES)
    weights = (torch.from_numpy(cosine) / TEMPERATURE).exp()
    votes.scatter_add_(1, bank_labels[torch.from_numpy(nearest)], weights)
    return 100 * (votes.argmax(1) == labels).float().mean().item()


def load_faiss() -> Any:
    """faiss at its best: its OpenBLAS, of 2021, takes an AMD processor that it does not know for one without AVX."""
    if "AMD" in machine():
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")  # what it has for those that it knows
    import faiss

    return faiss


def main() -> None:
    faiss_module = load_faiss()
    bench = Bench("knn", "kNN of 10,000 queries against 50,000 features of 512 dimensions.", threads=2)
    num_bank, num_queries = (20_000, 2_000) if bench.quick else (50_000, 10_000)
    draws = torch.Generator().manual_seed(1)
    bank_labels = torch.randint(CLASSES, (num_bank,), generator=draws)
    labels = torch.randint(CLASSES, (num_queries,), generator=draws)
    bank, queries = features(num_bank, bank_labels, 2), features(num_queries, labels, 3)
    found: dict[str, float] = {}

    def keep(name: str, run: Callable[[], float]) -> Contender:
        return Contender(name, lambda: found.update({name: run()}), num_queries)

    def ours() -> float:
        return knn_top1(bank, bank_labels, queries, labels, k=K, temperature=TEMPERATURE)

    def lightly() -> float:
        from lightly.utils.benchmarking import knn_predict

        feature_bank = F.normalize(bank, dim=1).t().contiguous()
        right = 0
        for tile, truth in zip(torch.split(F.normalize(queries, dim=1), 256), torch.split(labels, 256), strict=True):
            predicted = knn_predict(tile, feature_bank, bank_labels, CLASSES, K, TEMPERATURE)
            right += int((predicted[:, 0] == truth).sum())
        return 100 * right / num_queries

    def sklearn() -> float:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(bank.numpy())
        distance, nearest = search.kneighbors(queries.numpy())
        return accuracy(1 - distance, nearest, bank_labels, labels)

    def faiss() -> float:
        faiss_module.omp_set_num_threads(bench.threads)
        index = faiss_module.IndexFlatIP(512)
        index.add(F.normalize(bank, dim=1).numpy())
        cosine, nearest = index.search(F.normalize(queries, dim=1).numpy(), K)
        return accuracy(cosine, nearest, bank_labels, labels)

    bench.compare(
        f"kNN, {num_queries} queries, bank of {num_bank}, 512-d, k {K}",
        "queries/s",
        keep("ours", ours),
        [
            (keep("lightly, knn_predict", lightly), Reach(1)),
            (keep("scikit-learn, brute", sklearn), Reach(1)),
            (keep("faiss, IndexFlatIP", faiss), Reach(1)),
        ],
        repeats=bench.repeats(7),
        warm_up=False,
        note="all the same accuracy",
    )
    assert max(found.values()) - min(found.values()) < 0.2, found


if __name__ == "__main__":
    main()
