"""The optimiser and the schedule of its rates: linear scaling rule, warm-up, cosine, the predictor's own rate."""

from __future__ import annotations

import math

import torch

from simsiam.config import OptimizerSettings, Settings
from simsiam.siamese import Siamese


def make_optimizer(settings: Settings, model: Siamese) -> torch.optim.Optimizer:
    """SGD over two groups, the encoder f and the predictor h; what is frozen is in neither.

    Each group carries ``constant``: whether its rate skips the decay.
    """
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    predictor = [weight for weight in model.predictor.parameters() if weight.requires_grad]
    groups = [
        {"params": encoder, "constant": settings.optimizer.schedule == "constant"},
        {"params": predictor, "constant": settings.predictor.lr_schedule == "constant"},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=peak_rate(settings),
        momentum=settings.optimizer.momentum,
        weight_decay=settings.optimizer.weight_decay,
        foreach=True,
    )


def peak_rate(settings: Settings) -> float:
    """The linear scaling rule (Sec. 3): lr x batch_size / 256."""
    return settings.optimizer.lr * settings.batch_size / 256


def rate(settings: OptimizerSettings, step: int, steps_per_epoch: int, num_steps: int, *, constant: bool) -> float:
    """The factor on the peak rate for the update that follows ``step`` updates; the rate changes with each step.

    A linear warm-up that ends at 1, then half a cosine to 0, or 1 throughout if ``constant``.
    """
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if constant:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def set_rates(
    optimizer: torch.optim.Optimizer, settings: Settings, step: int, steps_per_epoch: int, num_steps: int
) -> float:
    """Set each group's rate for the coming update; returns the encoder's."""
    for group in optimizer.param_groups:
        group["lr"] = peak_rate(settings) * rate(
            settings.optimizer, step, steps_per_epoch, num_steps, constant=group["constant"]
        )
    encoder_rate: float = optimizer.param_groups[0]["lr"]
    return encoder_rate
