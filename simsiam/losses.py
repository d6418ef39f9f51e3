"""What compares a prediction p with its target z. Each takes two (N, d) batches and gives the mean over images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) = -<p/|p|, z/|z|>, eq. 1; in [-1, 1], -1 when all pairs point the same way."""
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()


def squared_distance(p: Tensor, z: Tensor) -> Tensor:
    """|p - z|^2, without normalisation (Sec. 5.1); for unit vectors it is 2 + 2 D(p, z)."""
    return (p - z).square().sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": negative_cosine,
    "squared-distance": squared_distance,
}
