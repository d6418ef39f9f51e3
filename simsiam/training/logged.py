"""What is logged of a step and of an evaluation: the measures of ``diagnostics``, on the tensors they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simsiam.evaluation.diagnostics import (
    OF_A_SPECTRUM,
    OF_A_VIEW,
    OF_FEATURES,
    OF_HELD_OUT_VIEWS,
    OF_VIEWS,
    output_std,
    predictor_alignment,
    spectrum,
)
from simsiam.model.siamese import Siamese
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import spectrum_ranks
from simsiam.record.curves import Point, pack

EMBEDDINGS = 1000  # held-out images whose z and features are kept for pictures


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


def of_evaluation(features: Tensor, z: Tensor, views: Tensor) -> Point:
    """What later literature measures of held-out images, BN in evaluation mode.

    features: (M, num_features), z: (N, d), N >= 4d wanted, views: z of several views of images, (n, q, d).
    """
    singular = spectrum(z)
    kept = singular.cpu().numpy()[spectrum_ranks(len(singular)) - 1]
    return {
        **{name: measure(features) for name, measure in OF_FEATURES.items()},
        **{name: measure(views) for name, measure in OF_HELD_OUT_VIEWS.items()},
        **{name: measure(singular) for name, measure in OF_A_SPECTRUM.items()},
        "spectrum": kept.tolist(),
    }


def _gradient_norm(weights: Iterable[nn.Parameter]) -> float | None:
    """Euclidean norm; None where nothing is trained."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else None


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation saw of the test images, in the order of the test set."""

    z: Tensor  # (N, d) of a sample of them
    places: NDArray[np.int64]  # (N,) of that sample among all, in random order
    features: Tensor  # (M, num_features)
    labels: Tensor  # (M,) int64
    classes: dict[str, Tensor]  # by kind of classifier, knn or linear: the class of each image (M,) int64
    class_names: tuple[str, ...]  # of the data set, by label

    def correctness(self) -> Point:
        """For each classifier its top-1 (percent), and whether each image was right, packed in a text."""
        right = {name: classes == self.labels for name, classes in self.classes.items()}
        return {
            **{f"{name}_top1": 100 * of_images.sum().item() / len(self.labels) for name, of_images in right.items()},
            **{f"{name}_correct": pack(of_images.cpu().numpy()) for name, of_images in right.items()},
        }

    def save(self, folder: Path, step: int, attempt: int) -> None:
        """Write ``embeddings.npz``: z and features (n, ...) in float16 of some images, all labels and classes."""
        places = self.places[:EMBEDDINGS]
        features = self.features[torch.from_numpy(places).to(self.features.device)]
        arrays: dict[str, Any] = {
            "z": self.z[:EMBEDDINGS].half().cpu().numpy(),
            "features": features.half().cpu().numpy(),
            "places": places,
            "labels": self.labels.cpu().numpy(),
            **{f"{name}_classes": classes.cpu().numpy().astype(np.uint16) for name, classes in self.classes.items()},
            "class_names": np.array(self.class_names, dtype=str),
            "step": np.array(step),
        }
        write_atomically(folder / "embeddings.npz", lambda file: np.savez(file, **arrays), aside=str(attempt))
