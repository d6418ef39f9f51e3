"""Random numbers without state: every draw is a function of (seed, purpose, epoch, image index).

So nothing has to be stored to resume bit-exactly, an image is augmented in the same way whichever rank or batch it
falls into, and two variants with the same seed see the same images, in the same order, in the same views: their
differences are paired.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*purpose: int | str) -> int:
    """A seed of 63 bits for one purpose, e.g. ``derive(seed, "order", epoch)``; distinct purposes are independent."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*purpose: int | str) -> torch.Generator:
    """A CPU generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(*purpose))


def uniform(key: int, index: torch.Tensor, num: int) -> torch.Tensor:
    """``num`` uniform numbers in [0, 1) for each image, from ``key`` (see :func:`derive`) and the image's index alone.

    index: (N,) int64, below 2^47. Returns (N, num) float32 on the index's device, the same on every device.
    The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on the counter ``index * 65536 + draw``.
    """
    import torch

    counter = index[:, None] * 65536 + torch.arange(num, device=index.device)
    x = counter * _signed(0x9E3779B97F4A7C15) + key  # int64 arithmetic wraps around, which is what is wanted
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift(x, 31)
    return _shift(x, 40).float() * 2.0**-24  # 24 bits: exact in float32, so that 1.0 never comes up


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
