"""What tells a healthy representation from a collapsed one (Sec. 4.1, and later literature)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from simsiam.record.catalogue import ONE_LINE_BELOW, collapse_threshold
from simsiam.settings.fields import Settings


def output_std(z: Tensor) -> Tensor:
    """The paper's collapse measure (Sec. 4.1): std over samples of z/|z| in each channel, averaged over channels.

    z: (N, d), N >= 2 -> scalar in [0, 1/sqrt(d)]: 0 for a constant z, 1/sqrt(d) for a zero-mean isotropic Gaussian.
    The population std (divided by N, not N - 1) over the batch.
    """
    return F.normalize(z.float(), dim=1).std(0, correction=0).mean()


def _perplexity(values: Tensor) -> float:
    """The exp of the entropy of values >= 0 (n,) float64 over their sum: in [1, n]; 1 where all are 0."""
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return math.exp(torch.special.entr(share).sum().item())


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values of z, uncentred.

    z: (N, d); N >= 4d is wanted, since N caps the rank. In [1, min(N, d)]; 1 for a constant z.
    """
    z = z.double()
    # The singular values through the Gram matrix: squares of what svd gives, at a fraction of its cost.
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return _perplexity(singular)


def spectrum(z: Tensor) -> Tensor:
    """Singular values of the centred unit vectors z/|z| over sqrt(N), largest first (Jing et al. 2022).

    z: (N, d) -> (d,) float64, >= 0. Their squares are the eigenvalues of the covariance of z/|z| and sum to 1 minus
    :func:`centre`. A tail that falls to 0 is dimensional collapse, which the std does not show.
    """
    return eigenvalues(F.normalize(z.double(), dim=1)).sqrt()


def explained_variance_area(singular: Tensor) -> float:
    """Area under the cumulative explained variance (Li, Efros, Pathak 2022): the mean over k of the first k's share.

    singular: (d,), as of :func:`spectrum`. From (d + 1) / 2d for a flat spectrum to 1 where one direction carries all;
    1 also where there is nothing to explain.
    """
    total = singular.sum()
    return 1.0 if total == 0 else float((singular.cumsum(0) / total).mean())


def eigenvalues(features: Tensor) -> Tensor:
    """Of the covariance of features, largest first: (N, d) -> (d,) float64, >= 0."""
    centred = features.double() - features.mean(0, dtype=torch.float64)
    values: Tensor = torch.linalg.eigvalsh(centred.T @ centred / len(centred))
    return values.flip(0).clamp_min(0)


def alpha_req(features: Tensor) -> float:
    """alpha-ReQ (Agrawal et al. 2022): the power alpha with which the eigenvalues of the covariance fall, as i^-alpha.

    features: (N, d), N >= 4d wanted. The least-squares slope of log eigenvalue against log i, for i from 5 (the first
    few follow no power law) to 100, as far as there are eigenvalues above a 1e-10th of the first. About 1 is the value
    that its authors find best; larger: few directions carry all. NaN where fewer than 5 eigenvalues are left.
    """
    values = eigenvalues(features)
    kept = values[values > 1e-10 * values[0]][:100][4:]
    if len(kept) < 5:
        return math.nan
    x = torch.arange(5, 5 + len(kept), dtype=torch.float64, device=kept.device).log()
    x = x - x.mean()
    return -(x @ kept.log() / (x @ x)).item()


def nesum(features: Tensor) -> float:
    """NESum (He and Ozay 2022): the sum of the covariance's eigenvalues over the largest.

    features: (N, d) -> in [1, d]: d where all directions vary alike, 1 where one carries all or nothing varies.
    """
    values = eigenvalues(features)
    return 1.0 if values[0] == 0 else (values.sum() / values[0]).item()


def stable_rank(features: Tensor) -> float:
    """Stable rank (as in Tsitsulin et al. 2023): squared Frobenius norm over squared spectral norm, uncentred.

    features: (N, d) -> in [1, d]. The mean counts as a direction, which is what tells it from :func:`nesum`.
    """
    x = features.double()
    values = torch.linalg.eigvalsh(x.T @ x)
    return 1.0 if values[-1] == 0 else (values.clamp_min(0).sum() / values[-1]).item()


LIDAR_RIDGE = 1e-4  # delta of the paper, on the within-image covariance


def lidar(z: Tensor) -> float:
    """LiDAR (Thilak et al. 2024): effective rank of the linear discriminants that tell images apart.

    z: (n, q, d), q views of n images, n > d wanted. Each image is a class: S_b is the covariance of the images' means,
    S_w that of views about their image's mean, plus 1e-4; the exp of the entropy of the normalised eigenvalues of
    S_w^(-1/2) S_b S_w^(-1/2). In [1, min(n - 1, d)]: what the views change counts for nothing. 1 for a constant z.
    """
    z = z.double()
    means = z.mean(1)  # (n, d)
    between, within = means - means.mean(0), (z - means[:, None]).flatten(0, 1)
    scatter = within.T @ within / len(within)
    root = torch.linalg.cholesky(scatter + LIDAR_RIDGE * torch.eye(z.shape[2], dtype=z.dtype, device=z.device))
    whitened = torch.linalg.solve_triangular(root, between.T, upper=False)  # the same eigenvalues as with S_w^(-1/2)
    values = torch.linalg.eigvalsh(whitened @ whitened.T / len(between)).clamp_min(0)
    return _perplexity(values)


def positive_cosine(z1: Tensor, z2: Tensor) -> Tensor:
    """The mean cosine of positive pairs, z1, z2: (N, d) -> scalar in [-1, 1].

    Alignment (Wang and Isola 2020), E |z1/|z1| - z2/|z2||^2, is 2 minus twice this, and so is not logged.
    """
    cosine: Tensor = F.cosine_similarity(z1.float(), z2.float(), dim=1)
    return cosine.mean()


def uniformity(z: Tensor) -> Tensor:
    """log E exp(-2 |z/|z| - z'/|z'||^2) over pairs of different images (Wang and Isola 2020).

    z: (N, d) -> scalar in [-8, 0]: 0 for a constant z; about -4 + 8/d for directions that are uniform in d dimensions.
    """
    unit = F.normalize(z.float(), dim=1)
    exponents = 4 * (unit @ unit.T) - 4  # -2 |a - b|^2 for unit vectors
    exponents.fill_diagonal_(-torch.inf)
    return exponents.flatten().logsumexp(0) - math.log(len(z) * (len(z) - 1))


def centre(z: Tensor) -> Tensor:
    """|E z/|z||^2 (Zhang et al. 2022): z (N, d) -> scalar in [0, 1]; 1 for a collapse to a point.

    The rest to 1 is the sum over channels of the squared std of z/|z|.
    """
    return F.normalize(z.float(), dim=1).mean(0).square().sum()


def predictor_alignment(weight: Tensor, z: Tensor) -> Tensor:
    """How far a linear predictor commutes with the correlation of z (Tian et al. 2021): |WC - CW| / (|W| |C|).

    weight: W (d, d), z: (N, d), C = E z z^T, Frobenius norms -> scalar in [0, sqrt(2)]; 0: the same eigenvectors.
    """
    z, weight = z.float(), weight.float()
    correlation = z.T @ z / len(z)
    commutator = weight @ correlation - correlation @ weight
    norms = weight.square().sum() * correlation.square().sum()
    return (commutator.square().sum() / norms.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


def is_collapsed(settings: Settings, z_std_relative: float, rank: float) -> bool:
    """Complete collapse: the std is gone, or all of z lies on one line. The std alone would not prove health."""
    projector = settings.projector
    threshold = collapse_threshold(
        settings.batch_size, bn_output=projector.bn_output, bn_output_affine=projector.bn_output_affine
    )
    return z_std_relative < threshold or rank < ONE_LINE_BELOW


# What is logged where ``evaluation.diagnostics`` is on, by its name in the catalogue: to log another, add it here.
OF_VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"positive_cosine": positive_cosine}  # of z1, z2 of a batch
OF_A_VIEW: dict[str, Callable[[Tensor], Tensor]] = {"uniformity": uniformity, "centre": centre}  # mean of both views
OF_FEATURES: dict[str, Callable[[Tensor], float]] = {  # of the backbone, (N, num_features), held-out images
    "alpha_req": alpha_req,
    "nesum": nesum,
    "stable_rank": stable_rank,
}
OF_HELD_OUT_VIEWS: dict[str, Callable[[Tensor], float]] = {"lidar": lidar}  # z (n, q, d) of q views of n images
OF_A_SPECTRUM: dict[str, Callable[[Tensor], float]] = {"explained_variance_area": explained_variance_area}  # held-out z
