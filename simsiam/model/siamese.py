"""The method: Algorithm 1 of the paper, with its switches. Every method of Fig. 3 is a point in them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simsiam.distributed.ranks import ONE_RANK, Ranks
from simsiam.model.backbones import zero_last_bn
from simsiam.model.batch_norm import convert, permutation
from simsiam.model.parts import make_backbone, make_distance, make_predictor, make_projector, make_transform
from simsiam.model.targets import ImageAverage, KeyQueue, Prototypes, momentum_at, momentum_update, sinkhorn
from simsiam.randomness import generator
from simsiam.settings.fields import Settings
from simsiam.settings.own import own_parts

Pair = tuple[Tensor, Tensor]
# Where in the model the part of a setting is that may be the user's own.
PARTS = {
    "backbone.name": "backbone",
    "projector.kind": "projector",
    "predictor.kind": "predictor",
    "target.transform": "transform",
    "loss.name": "D",
}


class Output(NamedTuple):
    """What a step gives: the loss (scalar), projections z and targets t of both views, each (N, d).

    With prototypes a target is a code, (N, num_prototypes). All are of this rank's images.
    """

    loss: Tensor
    z1: Tensor
    z2: Tensor
    t1: Tensor
    t2: Tensor


class Siamese(nn.Module):
    """Encoder f = backbone + projector (+ prototypes), predictor h, a target, a loss D.

    ``forward`` takes two views x1, x2, each (N, C, S, S), of the same N images. Each view is a forward of its own,
    x1 then x2, with its own batch statistics, unless ``batch_norm.one_forward`` says otherwise.

    With several ``ranks`` the images are this rank's part of the batch, and the loss is the mean over them. Statistics
    over the whole batch take ``batch_norm.synchronise`` as well.
    """

    def __init__(self, settings: Settings, num_channels: int, num_images: int = 0, ranks: Ranks = ONE_RANK) -> None:
        super().__init__()
        self.settings, self.ranks = settings, ranks
        target, dim = settings.target, settings.projector.output_dim
        self.backbone, num_features = make_backbone(settings, num_channels)
        self.projector = make_projector(settings, num_features)
        self.prototypes = Prototypes(dim, target.num_prototypes) if target.num_prototypes else nn.Identity()
        dim_of_h = target.num_prototypes or dim
        self.predictor = make_predictor(settings, dim_of_h)
        self.D = make_distance(settings, dim_of_h, ranks)
        self.transform = make_transform(settings, dim_of_h, ranks)
        initialise(self, settings)
        convert(self, settings.batch_norm.groups)
        self.target_encoder: nn.Module | None = None
        if target.encoder == "momentum":  # a copy of f at its start, without h; it has BN buffers of its own
            encoder = nn.Sequential(self.backbone, self.projector, self.prototypes)
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue: KeyQueue | None = None
        if target.queue_size:
            self.queue = KeyQueue(target.queue_size, dim, generator(settings.seed, "queue"))
        self.averages: ImageAverage | None = None
        if target.image_average:
            self.averages = ImageAverage(num_images, dim, target.image_average)

    def f(self, x: Tensor) -> Tensor:
        """The encoder up to the projection: x (N, C, S, S) -> z (N, d)."""
        z: Tensor = self.projector(self.backbone(x))
        return z

    def h(self, z: Tensor) -> Tensor:
        """The predictor: (N, d) -> (N, d)."""
        p: Tensor = self.predictor(z)
        return p

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        *,
        more: Sequence[Tensor] = (),
        index: Tensor | None = None,
        shuffle: tuple[Tensor, ...] = (),
        cached: Pair | None = None,
    ) -> Output:
        """Algorithm 1: L = D(p1, t2)/2 + D(p2, t1)/2, where t is z with the gradient stopped, or what takes its place.

        more: further views, each of a size of its own (multi-crop): their predictions are compared with both targets,
        and the loss is the mean over all pairs of a target and another view (SwAV, eq. 6). index: (N,) the images'
        places in the data set, for a target that remembers them. shuffle: of this step, see :meth:`shuffle`. cached:
        targets of an earlier step (Sec. 5.2) in place of this one's.
        """
        z1, z2 = self.encode(x1, x2)  # f(x1), f(x2): projections, (N, d)
        s1, s2 = self.prototypes(z1), self.prototypes(z2)  # z itself; SwAV: its scores, (N, num_prototypes)
        p1, p2 = self.h(s1), self.h(s2)  # predictions
        t1, t2 = (s1.detach(), s2.detach()) if self.settings.target.stop_gradient else (s1, s2)  # stopgrad(z)
        t1, t2 = cached or self.other_targets(t1, t2, x1, x2, index, shuffle)  # Sec. 5.2, and the siblings

        if self.settings.loss.symmetry == "symmetric":
            loss = self.D(p1, t2, self.others(t1)) / 2 + self.D(p2, t1, self.others(t2)) / 2
        else:
            loss = self.D(p1, t2, self.others(t1))
        for x in more:
            p = self.h(self.prototypes(self.f(x)))
            loss = loss + (self.D(p, t1, self.others(t2)) + self.D(p, t2, self.others(t1))) / 2
        if more:
            loss = loss / (1 + len(more))
        return Output(loss, z1, z2, t1, t2)

    def encode(self, x1: Tensor, x2: Tensor) -> Pair:
        """z1 = f(x1), z2 = f(x2), each a forward of its own, or both in one (official SimCLR, SwAV)."""
        if self.settings.batch_norm.one_forward:
            z1, z2 = self.f(torch.cat((x1, x2))).chunk(2)
            return z1, z2
        return self.f(x1), self.f(x2)

    def other_targets(
        self, t1: Tensor, t2: Tensor, x1: Tensor, x2: Tensor, index: Tensor | None, shuffle: tuple[Tensor, ...]
    ) -> Pair:
        """t1, t2, or what takes their place: a momentum encoder's keys, averages of each image's z, SwAV's codes."""
        if self.target_encoder is not None:
            t1, t2 = self.keys(x1, shuffle), self.keys(x2, shuffle)
        if self.averages is not None:
            assert index is not None, "a target that remembers images is asked for them"
            # Each direction is solved against the average moved by its own other view: D(p1, eta with z2), and swapped.
            t1, t2 = self.averages.value(index, t1), self.averages.value(index, t2)
        if self.settings.target.transform == "sinkhorn":
            t1, t2 = self.codes(t1), self.codes(t2)
        if self.transform is not None:
            t1, t2 = self.transform(t1, t2)
        return t1, t2

    def codes(self, scores: Tensor) -> Tensor:
        """SwAV's codes of this rank's images, (N, num_prototypes), shared out over the whole batch."""
        target, whole = self.settings.target, self.ranks.gather(scores)
        return self.ranks.own(sinkhorn(whole, target.sinkhorn_epsilon, target.sinkhorn_iterations))

    def shuffle(self, step: int, device: torch.device) -> tuple[Tensor, ...]:
        """The order in which a step's images go through the target's BN groups, and its inverse; none without groups.

        Each (B,) int64, of the whole batch.
        """
        if self.target_encoder is None or self.settings.batch_norm.groups == 1:
            return ()
        drawn = permutation(self.settings.seed, step, self.settings.batch_size)
        return tuple(places.to(device, non_blocking=True) for places in drawn)  # a GPU is not waited for

    @torch.no_grad()
    def keys(self, x: Tensor, shuffle: tuple[Tensor, ...] = ()) -> Tensor:
        """The momentum encoder's output; with BN groups, of a batch whose images change groups (MoCo's shuffling)."""
        assert self.target_encoder is not None
        if not shuffle:
            t: Tensor = self.target_encoder(x)
            return t
        order, back = shuffle
        shuffled: Tensor = self.target_encoder(self.ranks.own(self.ranks.gather(x)[order]))
        return self.ranks.own(self.ranks.gather(shuffled)[back])

    def others(self, own: Tensor) -> Tensor:
        """What else a prediction is told apart from: the queue (MoCo), or the targets of its own view (SimCLR)."""
        return own if self.queue is None else self.queue.keys

    @torch.no_grad()
    def before_forward(self, step: int, num_steps: int) -> None:
        """MoCo moves the momentum encoder before it makes the keys of a step."""
        if self.settings.target.momentum_update == "before-forward":
            self._move_target(step, num_steps)

    @torch.no_grad()
    def after_step(self, output: Output, index: Tensor, step: int, num_steps: int) -> None:
        """What changes once the optimiser has moved f and h: BYOL's momentum encoder, the queue, the averages."""
        if self.settings.target.momentum_update == "after-step":
            self._move_target(step, num_steps)
        if self.queue is not None:  # both terms of the loss used the same old queue
            views = (output.t1, output.t2) if self.settings.loss.symmetry == "symmetric" else (output.t2,)
            self.queue.enqueue(torch.cat([self.ranks.gather(keys) for keys in views]))
        if self.averages is not None:  # one draw of T' is kept (eq. 10): the second view's, which p1 was compared with
            self.averages.update(self.ranks.gather(index), self.ranks.gather(output.z2.detach()))

    def _move_target(self, step: int, num_steps: int) -> None:
        if self.target_encoder is not None:
            online = nn.Sequential(self.backbone, self.projector, self.prototypes)
            momentum_update(self.target_encoder, online, momentum_at(self.settings.target, step, num_steps))


@torch.no_grad()
def initialise(model: Siamese, settings: Settings) -> None:
    """Draw all weights anew, each module's from (seed, its path): removing h leaves f's start unchanged.

    Convolutions: He normal, fan-out (torchvision's ResNet). Fully connected layers: PyTorch's default, uniform in
    -+ 1/sqrt(fan_in), or normal with a fixed std. BN: scale 1, shift 0, but the last scale of each residual block 0
    (App. A) where ``initialisation.zero_last_bn`` says so. A part of the user's own starts as its author has it.
    """
    their_own = {PARTS[path] for path in own_parts(settings) if path in PARTS}
    for path, module in model.named_modules():
        if path.partition(".")[0] in their_own:
            continue
        draws = generator(settings.seed, "weights", path)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=draws)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            if settings.initialisation.fc_std is None:
                module.weight.uniform_(-bound, bound, generator=draws)
            else:
                module.weight.normal_(0, settings.initialisation.fc_std, generator=draws)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=draws)
    if settings.initialisation.zero_last_bn and "backbone" not in their_own:
        zero_last_bn(model.backbone)
