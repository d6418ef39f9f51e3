"""What compares a prediction with its target: scalars, means over images.

The losses of ``LOSSES`` take a prediction p and a target z, both (N, d). Those of SimCLR, MoCo and SwAV compare with
more than one target and take what they need. A loss computes in its arguments' precision, which should be float32 or
float64, and passes a gradient to each of them: stop-gradient is the caller's ``detach``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from simsiam.distributed.ranks import ONE_RANK, Ranks
from simsiam.settings.fields import LossSettings


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) = -<p/|p|, z/|z|>, eq. 1; in [-1, 1], -1 when all pairs point the same way."""
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()


def squared_distance(p: Tensor, z: Tensor) -> Tensor:
    """|p - z|^2, without normalisation (Sec. 5.1); for unit vectors it is 2 + 2 D(p, z)."""
    return (p - z).square().sum(1).mean()


def cross_entropy_similarity(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) = -softmax(z) . log softmax(p), softmax over the d channels (Sec. 4.5), in nats.

    At least the entropy of softmax(z), which it reaches when the two distributions agree; not symmetric in p and z.
    """
    return swapped_prediction(p, z.softmax(1), temperature=1.0)


def nt_xent(anchors1: Tensor, anchors2: Tensor, keys1: Tensor, keys2: Tensor, temperature: float) -> Tensor:
    """SimCLR's NT-Xent, with anchors that may differ from the keys (Sec. 6.2: SimCLR + predictor, + stop-gradient).

    anchors1, anchors2, keys1, keys2: (N, d), of any length; row i of each belongs to image i, 1 and 2 are its views.
    The anchors are the predictions p, the keys the projections z. The mean over all 2N anchors of
    :func:`nt_xent_direction`. Without a predictor, p = z, this is NT-Xent (Chen et al. 2020, eq. 1).
    """
    first = nt_xent_direction(anchors1, keys2, keys1, temperature)
    return (first + nt_xent_direction(anchors2, keys1, keys2, temperature)) / 2


def nt_xent_direction(
    p: Tensor, other_view: Tensor, own_view: Tensor, temperature: float, first_image: int = 0
) -> Tensor:
    """NT-Xent of one view's anchors, in nats: picking the other view of the same image among 2N - 1 keys.

    p: (n, d), other_view, own_view: (N, d), of any length. The keys of an anchor are those of both views of all N
    images, but its own. The anchors are of n consecutive images of these, from ``first_image`` on: of all of them on
    one rank, of a rank's own among several. The logits are cosines over temperature.
    """
    p, other_view, own_view = (F.normalize(x, dim=1) for x in (p, other_view, own_view))
    image = torch.arange(first_image, first_image + len(p), device=p.device)
    itself = image[:, None] == torch.arange(len(own_view), device=p.device)
    others = (p @ own_view.T).masked_fill(itself, -torch.inf)
    logits = torch.cat([p @ other_view.T, others], dim=1) / temperature  # (n, 2N)
    return F.cross_entropy(logits, image)


def info_nce(p: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's InfoNCE, one direction (He et al. 2020, eq. 1): picking the positive among it and the queue, in nats.

    p, positive: (N, d), of any length; row i of both belongs to image i. queue: (K, d) unit vectors, the negatives of
    every image. The logits are cosines over temperature.
    """
    p, positive = F.normalize(p, dim=1), F.normalize(positive, dim=1)
    logits = torch.cat([(p * positive).sum(1, keepdim=True), p @ queue.T], dim=1) / temperature  # (N, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(p), dtype=torch.long, device=p.device))


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """SwAV's loss, one direction (Caron et al. 2020, eq. 2): -codes . log softmax(scores / temperature), in nats.

    scores: (N, K) prototype scores of one view. codes: (N, K) of the other; each row sums to 1.
    """
    return -(codes * (scores / temperature).log_softmax(1)).sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": negative_cosine,
    "cross-entropy": cross_entropy_similarity,
    "squared-distance": squared_distance,
}


def make_distance(settings: LossSettings, ranks: Ranks = ONE_RANK) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """D(p, target, others), one direction of the loss that the settings name, in float32 at least.

    p is a prediction; target what it is compared with, of the same image; others what it is told apart from: the queue
    (K, d) of info-nce, the targets (N, d) of p's own view of nt-xent; the rest do not look at it. All but the queue are
    of this rank's images, and the result is the mean over them; nt-xent gathers the targets of all ranks by itself.
    """
    temperature = settings.temperature

    def compare(p: Tensor, target: Tensor, others: Tensor) -> Tensor:
        match settings.name:
            case "nt-xent":
                keys = ranks.gather(target), ranks.gather(others)
                return nt_xent_direction(p, *keys, temperature, first_image=ranks.rank * len(p))
            case "info-nce":
                return info_nce(p, target, others, temperature)
            case "swapped-prediction":
                return swapped_prediction(p, target, temperature)
        return LOSSES[settings.name](p, target)

    def distance(p: Tensor, target: Tensor, others: Tensor) -> Tensor:
        with torch.autocast(p.device.type, enabled=False):
            return compare(*(x if x.dtype == torch.float64 else x.float() for x in (p, target, others)))

    return distance
