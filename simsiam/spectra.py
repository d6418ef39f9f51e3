"""Which singular values of a spectrum are kept: the same rule for who writes them and for who draws them; no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPECTRUM_POINTS = 64  # of the spectrum that is kept with each evaluation


def spectrum_ranks(dim: int) -> NDArray[np.int64]:
    """Which of ``dim`` sorted singular values are kept, counted from 1: all of a few, else evenly by logarithm."""
    return np.unique(np.geomspace(1, dim, min(dim, SPECTRUM_POINTS)).round().astype(np.int64))
