"""What is logged of a step and of an evaluation: the measures of ``diagnostics``, on the tensors they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from simsiam.evaluation.diagnostics import (
    OF_A_SPECTRUM,
    OF_A_VIEW,
    OF_VIEWS,
    effective_rank,
    output_std,
    predictor_alignment,
    spectrum,
)
from simsiam.model.siamese import Siamese
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import spectrum_ranks
from simsiam.record.curves import Point

EMBEDDINGS = 1000  # held-out images whose z is kept for pictures


def relative_std(z1: Tensor, z2: Tensor) -> float:
    """The output std of each view, their mean, times sqrt(d): 1 for an isotropic Gaussian z, 0 for a constant.

    z1, z2: (B, d) of the whole batch.
    """
    std = (output_std(z1) + output_std(z2)) / 2
    return std.item() * math.sqrt(z1.shape[1])


def of_step(model: Siamese, z1: Tensor, z2: Tensor, *, more: bool) -> Point:
    """Of a training step, after its backward: z1, z2 (B, d) of the whole batch, and the gradients of the weights.

    With ``more`` also what later literature measures, and the gradient of each part.
    """
    std = relative_std(z1, z2)
    point: Point = {
        "z_std": std / math.sqrt(z1.shape[1]),
        "z_std_relative": std,
        "grad_norm": _gradient_norm(model.parameters()),
    }
    if more:
        point |= {
            **{name: measure(z1, z2).item() for name, measure in OF_VIEWS.items()},
            **{name: (measure(z1) + measure(z2)).item() / 2 for name, measure in OF_A_VIEW.items()},
        }
        parts = {"backbone": model.backbone, "projector": model.projector, "predictor": model.predictor}
        norms = {f"grad_norm_{name}": _gradient_norm(part.parameters()) for name, part in parts.items()}
        point |= {name: norm for name, norm in norms.items() if norm is not None}
        if isinstance(model.predictor, nn.Linear) and not model.settings.target.num_prototypes:
            point["predictor_alignment"] = predictor_alignment(model.predictor.weight.detach(), z1).item()
    return point


def of_projections(z: Tensor, *, more: bool) -> Point:
    """Of an evaluation: z (N, d) of held-out images, N >= 4d wanted, BN in evaluation mode."""
    point: Point = {"effective_rank": effective_rank(z)}
    if more:
        singular = spectrum(z)
        kept = singular.cpu().numpy()[spectrum_ranks(len(singular)) - 1]
        point |= {name: measure(singular) for name, measure in OF_A_SPECTRUM.items()}
        point["spectrum"] = kept.tolist()
    return point


def _gradient_norm(weights: Iterable[nn.Parameter]) -> float | None:
    """Euclidean norm; None where nothing is trained."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else None


def save_embeddings(folder: Path, z: Tensor, labels: Tensor, step: int, attempt: int) -> None:
    """Write ``embeddings.npz``: z (n, d) float16 of the first held-out images, their labels (n,), the step (scalar)."""
    kept, truth = z[:EMBEDDINGS].half().cpu().numpy(), labels[:EMBEDDINGS].cpu().numpy()
    write_atomically(
        folder / "embeddings.npz",
        lambda file: np.savez(file, z=kept, labels=truth[: len(kept)], step=np.array(step)),
        aside=str(attempt),
    )
