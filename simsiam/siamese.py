"""The method: Algorithm 1 of the paper, with its switches."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simsiam.backbones import make_backbone, zero_last_bn
from simsiam.config import Settings
from simsiam.heads import make_predictor, make_projector
from simsiam.losses import LOSSES
from simsiam.randomness import generator


class Output(NamedTuple):
    """What a step gives: the loss (scalar), and projections and predictions of both views, each (N, d)."""

    loss: Tensor
    z1: Tensor
    z2: Tensor
    p1: Tensor
    p2: Tensor


class Siamese(nn.Module):
    """Encoder f = backbone + projector, predictor h, target, loss D.

    ``forward`` takes two views x1, x2, each (N, C, S, S), of the same N images. Each view is a forward of its own,
    x1 then x2, with its own batch statistics.
    """

    def __init__(self, settings: Settings, num_channels: int) -> None:
        super().__init__()
        self.backbone, num_features = make_backbone(settings.backbone, num_channels)
        self.projector = make_projector(settings.projector, num_features)
        self.predictor = make_predictor(settings.predictor, settings.projector.output_dim)
        self.stop_gradient = settings.target.stop_gradient
        self.distance = LOSSES[settings.loss.name]
        initialise(self, settings.seed)

    def f(self, x: Tensor) -> Tensor:
        """The encoder: x (N, C, S, S) -> z (N, d)."""
        z: Tensor = self.projector(self.backbone(x))
        return z

    def h(self, z: Tensor) -> Tensor:
        """The predictor: z (N, d) -> p (N, d)."""
        p: Tensor = self.predictor(z)
        return p

    def target(self, z: Tensor) -> Tensor:
        """What a prediction is compared with: z, as a constant if the gradient stops here."""
        return z.detach() if self.stop_gradient else z

    def forward(self, x1: Tensor, x2: Tensor) -> Output:
        """Algorithm 1: L = D(p1, z2)/2 + D(p2, z1)/2."""
        z1, z2 = self.f(x1), self.f(x2)  # projections, (N, d)
        p1, p2 = self.h(z1), self.h(z2)  # predictions, (N, d)
        t1, t2 = self.target(z1), self.target(z2)

        loss = self.D(p1, t2) / 2 + self.D(p2, t1) / 2
        return Output(loss, z1, z2, p1, p2)

    def D(self, p: Tensor, z: Tensor) -> Tensor:  # noqa: N802 - the paper's name
        """The loss between a prediction and a target, in float32 whatever the networks' precision."""
        with torch.autocast(p.device.type, enabled=False):
            return self.distance(_at_least_float32(p), _at_least_float32(z))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


@torch.no_grad()
def initialise(model: Siamese, seed: int) -> None:
    """Draw all weights anew, each module's from (seed, its path): removing h leaves f's start unchanged.

    Convolutions: He normal, fan-out (torchvision's ResNet). Fully connected layers: PyTorch's default, uniform in
    -+ 1/sqrt(fan_in). BN: scale 1, shift 0, but the last scale of each residual block 0 (App. A).
    """
    for path, module in model.named_modules():
        draws = generator(seed, "weights", path)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=draws)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=draws)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=draws)
    zero_last_bn(model.backbone)
