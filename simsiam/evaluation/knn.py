"""The kNN monitor: the weighted classifier of Wu et al. 2018 on frozen features, and its raw-pixel reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 2**24  # similarities that are held at once: 64 MiB in float32


@torch.inference_mode()
def knn_top1(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, k: int = 200, temperature: float = 0.1
) -> float:
    """Share of queries (percent) whose class :func:`knn_classes` gives rightly."""
    classes = knn_classes(bank, bank_labels, queries, k=k, temperature=temperature)
    return 100 * (classes == labels).sum().item() / len(queries)


@torch.inference_mode()
def knn_classes(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """The class of each query by the votes of the k nearest of the bank: (N,) int64.

    bank: (M, d), queries: (N, d), any scale; bank_labels: (M,) int64. Similarity is the cosine; each of the
    k = min(k, M) nearest votes for its class with weight exp(cosine / temperature).
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    num_classes = int(bank_labels.max()) + 1
    classes = []
    rows = min(max(1, TILE // len(bank)), len(queries))
    similar = torch.empty(rows, len(bank), device=bank.device)  # one for all tiles: fresh memory is a sixth of the time
    for tile in torch.split(queries, rows):
        similarity = torch.mm(tile, bank.T, out=similar[: len(tile)])
        cosine, nearest = similarity.topk(min(k, len(bank)), dim=1, sorted=False)  # (n, k)
        votes = torch.zeros(len(tile), num_classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[nearest], (cosine / temperature).exp())
        classes.append(votes.argmax(1))
    return torch.cat(classes)


def raw_pixel_top1(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray, *, k: int, temperature: float
) -> float:
    """kNN on the pixels themselves, centred by the bank's mean image: a feature that scores lower learnt nothing.

    bank: (M, C, H, W) uint8, queries: (N, C, H, W) uint8.
    """
    flat = torch.from_numpy(bank.reshape(len(bank), -1)).float()
    centre = flat.mean(0)
    return knn_top1(
        flat - centre,
        torch.from_numpy(bank_labels),
        torch.from_numpy(queries.reshape(len(queries), -1)).float() - centre,
        torch.from_numpy(labels),
        k=k,
        temperature=temperature,
    )
