"""Images that a benchmark can make by itself: what an operation costs hardly depends on what is to be seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def smooth(num: int, size: int = 32) -> Tensor:
    """(num, 3, size, size) uint8: a few blobs of colour each, and some noise."""
    draws = torch.Generator().manual_seed(0)
    blobs = F.interpolate(torch.rand(num, 3, 4, 4, generator=draws), size, mode="bicubic")
    noise = torch.randn(num, 3, size, size, generator=draws)
    return (255 * blobs + 10 * noise).clamp(0, 255).to(torch.uint8)


def as_arrays(images: Tensor) -> list[np.ndarray]:
    """Each image (H, W, 3) uint8, as Pillow wants it."""
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())
