"""What tells a healthy representation from a collapsed one (Sec. 4.1, and later literature)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from simsiam.config import Settings

# A run counts as collapsed when its std is below this share of what an isotropic Gaussian z would give.
COLLAPSED_BELOW = 0.2


def output_std(z: Tensor) -> Tensor:
    """The paper's collapse measure (Sec. 4.1): std over samples of z/|z| in each channel, averaged over channels.

    z: (N, d), N >= 2 -> scalar in [0, 1/sqrt(d)]: 0 for a constant z, 1/sqrt(d) for a zero-mean isotropic Gaussian.
    The population std (divided by N, not N - 1) over the batch.
    """
    return F.normalize(z.float(), dim=1).std(0, correction=0).mean()


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values of z, uncentred.

    z: (N, d); N >= 4d is wanted, since N caps the rank. In [1, min(N, d)]; 1 for a constant z.
    """
    z = z.double()
    # The singular values through the Gram matrix: squares of what svd gives, at a fraction of its cost.
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return math.exp(torch.special.entr(share).sum().item())


def collapse_threshold(settings: Settings) -> float:
    """The z_std_relative (std x sqrt(d)) below which z counts as collapsed.

    An output BN without scale and shift gives every channel unit variance whatever happened before it: even if all
    images but one agree, std x sqrt(d) stays near 2/sqrt(B), so there the threshold is relative to that.
    """
    if settings.projector.bn_output and not settings.projector.bn_output_affine:
        return COLLAPSED_BELOW + 2 / math.sqrt(settings.batch_size)
    return COLLAPSED_BELOW


def is_collapsed(settings: Settings, z_std_relative: float, rank: float) -> bool:
    """Complete collapse: the std is gone, or all of z lies on one line. The std alone would not prove health."""
    return z_std_relative < collapse_threshold(settings) or rank < 1.5
