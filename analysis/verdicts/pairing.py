"""Whether runs of two variants with the same seed have something in common: measured, not assumed.

Such runs see the same images in the same order, and start from the same weights where their layers are the same. If
that makes one of them good where the other is, their difference varies less than that of runs with seeds of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SEEDS = 5  # below which a correlation says nothing


@dataclass(frozen=True)
class Pairing:
    """The correlation of paired runs, pooled over the variants of a study and their baselines."""

    correlation: float
    low: float  # of its 95 % interval, Fisher's, as if only one pair of variants had been measured
    high: float
    variance_ratio: float  # of a paired difference to one of runs without anything in common
    num_variants: int
    num_seeds: int  # the fewest of a variant

    @property
    def sentence(self) -> str:
        """What pairing does, in plain words."""
        minus = "\N{MINUS SIGN}"
        values = (f"{each:.2f}".replace("-", minus) for each in (self.correlation, self.low, self.high))
        measured = "Runs with the same seed correlate by {} ({} to {})".format(*values)
        if self.correlation <= 0:
            return f"{measured}: pairing seeds does not help in this study."
        if self.low <= 0:
            return f"{measured}: whether pairing seeds helps in this study is not sure."
        saved = 100 * (1 - self.variance_ratio)
        return f"{measured}: pairing seeds takes {saved:.0f} % off the variance of a difference."


def pairing(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> Pairing | None:
    """Of values by seed, of variants and their baselines; None with fewer than five common seeds of any."""
    sums, counts = np.zeros(3), []
    for one, other in pairs:
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) < LEAST_SEEDS:
            continue
        values = np.array([[one[seed], other[seed]] for seed in seeds])
        products = np.cov(values.T)
        if products[0, 0] > 0 and products[1, 1] > 0:
            scale = math.sqrt(products[0, 0] * products[1, 1])  # so that a variant that varies more counts no more
            sums += np.array([products[0, 1] / scale, 1, 2 * products[0, 1] / (products[0, 0] + products[1, 1])])
            counts.append(len(seeds))
    if not counts:
        return None
    correlation = min(max(sums[0] / sums[1], -1 + 1e-9), 1 - 1e-9)
    middle, half = math.atanh(correlation), 1.96 / math.sqrt(max(min(counts) - 3, 1))
    ratio = 1 - sums[2] / sums[1]
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Pairing(float(correlation), low, high, float(ratio), len(counts), min(counts))
