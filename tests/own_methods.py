"""Parts as a user writes them, who names them in a study's file: ``loss.name: own_methods:barlow_twins``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from simsiam.settings.own import pin


def own(path: str, name: str) -> str:
    """The name of a part in this file, pinned to its source."""
    return pin(path, f"own_methods:{name}", [Path(__file__).parent])


def everything(drop: float = 0.0) -> dict[str, Any]:
    """Settings in which every part of the model is one's own."""
    return {
        "backbone.name": own("backbone.name", "backbone"),
        "backbone.arguments.drop": drop,
        "projector.kind": own("projector.kind", "head"),
        "predictor.kind": own("predictor.kind", "predictor"),
        "target.transform": own("target.transform", "Centre"),
        "loss.name": own("loss.name", "Scaled"),
        "augment.views": own("augment.views", "views"),
        "augment.more_views": 2,
    }


def cosine(p: Tensor, target: Tensor, *, scale: float = 1.0) -> Tensor:
    """Eq. 1 again."""
    return -scale * F.cosine_similarity(p, target).mean()


def barlow_twins(p: Tensor, target: Tensor, *, weight: float = 0.005) -> Tensor:
    """Zbontar et al. 2021: a loss over the whole batch."""
    p, target = ((z - z.mean(0)) / z.std(0) for z in (p, target))
    correlation = p.T @ target / len(p)
    on_diagonal = (correlation.diagonal() - 1).square().sum()
    return on_diagonal + weight * (correlation.square().sum() - correlation.diagonal().square().sum())


class Centre(nn.Module):
    """DINO's centring and sharpening (Caron et al. 2021): the centre is a state, moved in each step."""

    centre: Tensor

    def __init__(self, dim: int, momentum: float = 0.9, temperature: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.momentum, self.temperature = momentum, temperature

    def forward(self, t1: Tensor, t2: Tensor) -> tuple[Tensor, Tensor]:
        out = tuple(((t - self.centre) / self.temperature).softmax(1) for t in (t1, t2))
        self.centre.lerp_(torch.cat((t1, t2)).detach().mean(0).to(self.centre.dtype), 1 - self.momentum)
        return out[0], out[1]


class Scaled(nn.Module):
    """Cross-entropy with a temperature that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, p: Tensor, target: Tensor) -> Tensor:
        return -(target * (p * self.log_scale.exp()).log_softmax(1)).sum(1).mean()


def backbone(num_channels: int, image_size: int, width: int = 8, drop: float = 0.0) -> nn.Module:
    """Two layers, with dropout."""
    return nn.Sequential(
        nn.Conv2d(num_channels, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(drop),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def head(num_features: int, output_dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, output_dim), nn.BatchNorm1d(output_dim))


def predictor(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 8), nn.ReLU(), nn.Linear(8, dim))


def views(size: int, view: int, small: int = 8) -> Callable[[Tensor], Tensor]:
    """torchvision's transforms; from the third view on, smaller crops."""
    side = size if view <= 2 else small
    return v2.Compose([v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)])


def stripes(split: str, num: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Horizontal or vertical stripes in noise."""
    draws = np.random.default_rng(split == "test")
    labels = np.arange(num) % 2
    images = draws.integers(0, 128, (num, 1, 16, 16), dtype=np.uint8)
    images[labels == 0, :, ::2] += 100
    images[labels == 1, :, :, ::2] += 100
    return images, labels, ["horizontal", "vertical"]


def says_where(split: str, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images from a file in the folder of images."""
    with np.load(folder / "mine.npz") as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]
