"""What tells a healthy representation from a collapsed one (Sec. 4.1, and later literature)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from simsiam.collapse import ONE_LINE_BELOW, collapse_threshold
from simsiam.config import Settings


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


def is_collapsed(settings: Settings, z_std_relative: float, rank: float) -> bool:
    """Complete collapse: the std is gone, or all of z lies on one line. The std alone would not prove health."""
    projector = settings.projector
    threshold = collapse_threshold(
        settings.batch_size, bn_output=projector.bn_output, bn_output_affine=projector.bn_output_affine
    )
    return z_std_relative < threshold or rank < ONE_LINE_BELOW
