"""When z counts as collapsed: the rule that training and reading share. Imports no torch."""

from __future__ import annotations

import math

# A run counts as collapsed when its std is below this share of what an isotropic Gaussian z would give.
COLLAPSED_BELOW = 0.2
# Effective rank below which all of z lies on one line: halfway between one direction and two.
ONE_LINE_BELOW = 1.5


def collapse_threshold(batch_size: int, *, bn_output: bool, bn_output_affine: bool) -> float:
    """The z_std_relative (std x sqrt(d)) below which z counts as collapsed.

    An output BN without scale and shift gives every channel unit variance whatever happened before it: even if all
    images but one agree, std x sqrt(d) stays near 2/sqrt(B), so there the threshold is relative to that.
    """
    if bn_output and not bn_output_affine:
        return COLLAPSED_BELOW + 2 / math.sqrt(batch_size)
    return COLLAPSED_BELOW
