"""What a prediction is compared with, where that is more than the other view's z.

SwAV's prototypes and codes, MoCo's queue of keys, the momentum encoder of BYOL and MoCo, and the average of each
image's z of Sec. 5.2. None of these passes a gradient but ``Prototypes`` and ``sinkhorn``; what has a state keeps it in
its ``state_dict``.

Across ranks every state here is to stay the same on each: enqueue and update with what was gathered from all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simsiam.settings.fields import TargetSettings


class Prototypes(nn.Linear):
    """SwAV's prototypes: the cosine of each z with each of K prototypes, (N, d) -> scores (N, K) in [-1, 1].

    A fully connected layer without bias. Its rows are normalised inside the forward, so that the gradient knows of it:
    the paper's change (App. C) to SwAV, which normalises the weight itself after each update, outside the gradient.
    In float32 also under autocast: the scores are divided by temperatures down to 0.05.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """z: (N, d), of any length -> cosines (N, K)."""
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(z.to(self.weight.dtype), dim=1), F.normalize(self.weight, dim=1))


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's codes: soft assignments of B samples that share K prototypes about equally (Caron et al. 2020, eq. 3-5).

    scores: (B, K) of the global batch -> codes (B, K), float32 (float64 if the scores are). From exp(scores / epsilon)
    on, each iteration normalises each prototype's sum over the samples, then each sample's sum over the prototypes. The
    samples come last: each row sums to 1, each column only tends to B / K. Neither large scores nor a small epsilon
    overflow, and no prototype's sum can vanish.

    Differentiable, for SwAV without stop-gradient; otherwise call it on detached scores.
    """
    scores = (scores if scores.dtype == torch.float64 else scores.float()) / epsilon
    # The first iteration works on logarithms. After it each row sums to 1, and each column has a number of at least
    # 1 / (B K), so that from there on no sum is near 0 and the numbers themselves are safe; they need no exponentials.
    # What else would be done with a column, the factor B / K, the rows undo.
    codes = scores.log_softmax(0).softmax(1)
    for _ in range(iterations - 1):
        codes = codes / codes.sum(0)
        codes = codes / codes.sum(1, keepdim=True)
    return codes


class KeyQueue(nn.Module):
    """MoCo's queue: the last K keys, unit vectors, that serve as negatives; a ring in place.

    Its state is ``keys`` (K, d), float32, and ``pointer``, the row of the oldest key, which goes next. It starts as
    random directions. ``enqueue`` after the backward: the loss keeps ``keys`` itself for its gradient, and autograd
    refuses if they have changed since. So both directions of a symmetric loss see the same old queue.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, draws: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=draws), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by these: (n, d), of any length, where n divides K (ValueError otherwise)."""
        size, num = len(self.keys), len(keys)
        if num == 0 or size % num:
            raise ValueError(f"the queue's size {size} must be a multiple of the {num} keys that enter")
        rows = (self.pointer + torch.arange(num, device=self.keys.device)) % size  # on the device: nothing waits
        self.keys.index_copy_(0, rows, F.normalize(keys.to(self.keys.dtype), dim=1))
        self.pointer.add_(num).remainder_(size)


@torch.no_grad()
def momentum_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum x target + (1 - momentum) x online, in place, for all parameters, in their float32.

    ``target`` is a copy of ``online``. Buffers stay as they are: the target's BN statistics come from its own forwards.
    """
    pairs = list(zip(target.parameters(), online.parameters(), strict=True))
    torch._foreach_lerp_([mine for mine, _ in pairs], [other for _, other in pairs], 1 - momentum)


def momentum_at(settings: TargetSettings, step: int, num_steps: int) -> float:
    """The momentum of the update that belongs to training step ``step`` (0, 1, ..., num_steps - 1).

    Constant, or BYOL's 1 - (1 - m) (cos(pi step / num_steps) + 1) / 2, which rises from m and would be 1 at num_steps.
    """
    if settings.momentum_schedule == "constant":
        return settings.momentum
    return 1 - (1 - settings.momentum) * (math.cos(math.pi * step / num_steps) + 1) / 2


class ImageAverage(nn.Module):
    """A moving average eta_x of the direction of each training image's z (Sec. 5.2, footnote 5), instead of h.

    It takes the place of eq. 8, so it moves before the step that is solved against it:
    eta_t = normalise(momentum x eta_(t-1) + (1 - momentum) x z/|z|), the paper's momentum being 0.8. Here z = F(T'(x))
    is this step's own output for the other view than the one that is compared with eta_t, and a constant. So with a
    momentum of 0 the target is that z, and the step is SimSiam's without h. An image's first visit has no eta_(t-1),
    and its target is z/|z|.

    ``value`` gives eta_t and keeps nothing; ``update`` keeps it for the image's next visit.

    Its state is ``average`` (num_images, d), float32, zero where ``visited`` (num_images,) is false. The indices of one
    call must be distinct.
    """

    average: Tensor
    visited: Tensor

    def __init__(self, num_images: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(num_images, dim))
        self.register_buffer("visited", torch.zeros(num_images, dtype=torch.bool))

    @torch.no_grad()
    def value(self, index: Tensor, z: Tensor) -> Tensor:
        """eta_t of images ``index`` (N,), given this step's z (N, d); (N, d) constants. A sum of 0 leaves eta_(t-1)."""
        index = self._on_device(index)
        old = self.average[index]  # zero before the first visit, so that eta_t is z/|z|
        new = F.normalize(self.momentum * old + (1 - self.momentum) * self._unit(z), dim=1)
        vanished = new.norm(dim=1) < 0.5  # false for NaN, which a diverged run shall show
        return torch.where(vanished[:, None], old, new)

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor) -> None:
        """Keep :meth:`value`. An image whose z has only ever been 0 stays unvisited."""
        index = self._on_device(index)
        new = self.value(index, z)
        self.average[index] = new
        self.visited[index] |= (new != 0).any(1)

    def _on_device(self, index: Tensor) -> Tensor:
        return index.to(self.average.device, non_blocking=True)  # indexing by a CPU's tensor would wait for the GPU

    def _unit(self, z: Tensor) -> Tensor:
        return F.normalize(z.to(self.average.dtype), dim=1)
