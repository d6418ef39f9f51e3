"""What the diagnosis measures on a curve: its end, its swings, its trend; and the points that a drawing shows of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Values = NDArray[np.float64]  # (n,), in order of step


def end_of(values: Values) -> float:
    """The mean of the last tenth of a curve, of three values at least."""
    return float(np.mean(values[-max(3, len(values) // 10) :]))


def smooth(values: Values, width: int = 5) -> Values:
    """The mean of each value and the ones around it, fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def residual(values: Values) -> Values:
    """What is left of a curve when the better of its best falling and its best rising curve is taken off."""
    both = [values - isotonic_regression(values, increasing=increasing).x for increasing in (False, True)]
    return min(both, key=lambda left: float(np.sum(left**2)))


def num_turns(values: Values, swing: float) -> int:
    """How often a curve turns round after moving by ``swing`` or more."""
    turns, direction, extreme = 0, 0, values[0]
    for value in values:
        if (direction >= 0 and value < extreme - swing) or (direction <= 0 and value > extreme + swing):
            turns += direction != 0
            direction, extreme = (-1 if value < extreme else 1), value
        elif (value - extreme) * direction > 0:
            extreme = value
    return turns


def trailing(holds: NDArray[np.bool_]) -> int:
    """Where the last unbroken stretch begins in which something holds; the length if it does not hold at the end."""
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if len(broken) else 0
