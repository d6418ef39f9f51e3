"""The optimiser and the schedule of its rates: linear scaling rule, warm-up, cosine, the predictor's own rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from simsiam.model.siamese import Siamese
from simsiam.settings.fields import OptimizerSettings, Settings


def make_optimizer(settings: Settings, model: Siamese) -> torch.optim.Optimizer:
    """SGD or LARS over the encoder f and the predictor h; what is frozen is in no group.

    Each group carries ``constant``, whether its rate skips the decay, and ``multiplier``, on the rate.
    """
    f = {"constant": settings.optimizer.schedule == "constant", "multiplier": 1.0}
    h = {"constant": settings.predictor.lr_schedule == "constant", "multiplier": settings.predictor.lr_multiplier}
    own = [part for part in (model.D, model.transform) if isinstance(part, nn.Module)]
    groups = _groups(settings, (model.backbone, model.projector, model.prototypes, *own), f)
    groups += _groups(settings, (model.predictor,), h)
    options: dict[str, Any] = {
        "lr": peak_rate(settings),
        "momentum": settings.optimizer.momentum,
        "weight_decay": settings.optimizer.weight_decay,
    }
    if settings.optimizer.name == "lars":
        from timm.optim.lars import Lars

        # Without weight decay timm's Lars leaves the rate of a group alone, which is what the exclusion asks for.
        return Lars(groups, trust_coeff=0.001, always_adapt=False, **options)
    return torch.optim.SGD(groups, foreach=True, **options)


def _groups(settings: Settings, parts: tuple[nn.Module, ...], schedule: dict[str, Any]) -> list[dict[str, Any]]:
    """One group, or two where BN scales and biases (all that is one-dimensional) have no weight decay."""
    trained = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    if not settings.optimizer.exclude_bn_and_bias:
        split: list[dict[str, Any]] = [{"params": trained}]
    else:
        split = [
            {"params": [weight for weight in trained if weight.dim() > 1]},
            {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
        ]
    return [{**group, **schedule} for group in split if group["params"]]


def peak_rate(settings: Settings) -> float:
    """The linear scaling rule (Sec. 3): lr x batch_size / 256."""
    return settings.optimizer.lr * settings.batch_size / 256


def rate(settings: OptimizerSettings, step: int, steps_per_epoch: int, num_steps: int, *, constant: bool) -> float:
    """The factor on the peak rate for the update that follows ``step`` updates.

    A linear warm-up that ends at 1, step by step; then half a cosine to 0, which moves by step or by epoch, or 1
    throughout if ``constant``.
    """
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if constant:
        return 1.0
    if settings.schedule_by == "epoch":
        step = max(step - step % steps_per_epoch, warmup_steps)  # a warm-up may end within an epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def set_rates(
    optimizer: torch.optim.Optimizer, settings: Settings, step: int, steps_per_epoch: int, num_steps: int
) -> float:
    """Set each group's rate for the coming update; returns the encoder's."""
    for group in optimizer.param_groups:
        factor = rate(settings.optimizer, step, steps_per_epoch, num_steps, constant=group["constant"])
        group["lr"] = peak_rate(settings) * group["multiplier"] * factor
    encoder_rate: float = optimizer.param_groups[0]["lr"]
    return encoder_rate
