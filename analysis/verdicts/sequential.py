"""Bounds on the t statistic that keep the error over several looks: group-sequential, with an error that is spent.

Who looks after 3, 5, 8, 12 and 16 seeds, and stops when the interval lies where it should, errs more often than who
looks once. Lan and DeMets (1983) give each look a part of the error: after the share s of the last look's seeds,
alpha x log(1 + (e - 1) s) of it may have been spent. That function is theirs of Pocock's type: it leaves enough to the
first look for a large effect to be decided there.

The bounds are exact for normal values of unknown spread, not borrowed from the normal distribution, which would be
wrong by a factor at 3 seeds. Let phi be the angle with t = sqrt(n - 1) tan(phi), so that sin(phi) is the cosine between
the values and a constant. If the mean is zero, the direction of the values is uniform on the sphere, and independent of
how their length divides between an earlier and a later look. Hence the angles at the looks are a Markov chain, and the
density of those that have crossed no bound yet is carried on from look to look by one integral, as Armitage, McPherson
and Rowe (1969) do for the normal distribution. Errors of the numerics are below 1e-5 of a probability, which a test
holds against simulations and against published bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.special import betaln, stdtr, stdtrit

Array = NDArray[np.float64]

SMALLEST_LEVEL, LARGEST_LEVEL = 1e-7, 0.4  # between which p-values are told apart
_NODES, _GRID = 24, 129  # of an integral over one angle; on which a density is kept


def spent(share: float) -> float:
    """Which part of the error may have been spent once this share of the last look's seeds is there."""
    return math.log1p((math.e - 1) * share)


@dataclass(frozen=True)
class Looks:
    """When one looks: at how many values, at least 2 and growing by at least 2, and what may have been spent then."""

    counts: tuple[int, ...]
    shares: tuple[float, ...]  # of the error, growing; 1 at the last look

    @staticmethod
    def planned(counts: tuple[int, ...]) -> Looks:
        """Looks at these numbers of seeds, each of which has a value."""
        return Looks(counts, tuple(spent(count / counts[-1]) for count in counts))


@cache
def bounds(looks: Looks, level: float) -> tuple[float, ...]:
    """The bounds that t exceeds at any of the looks with probability ``level`` if the true mean is zero, one-sided.

    With one look it is the quantile of Student's t.
    """
    counts, shares = looks.counts, looks.shares
    first = counts[0]
    found = [-float(stdtrit(first - 1, level * shares[0]))]
    start = -_reach(first)
    end = math.atan(found[0] / math.sqrt(first - 1))
    grid = _chebyshev(start, end)
    density = CubicSpline(grid, np.exp((first - 2) * np.log(np.cos(grid)) - betaln(0.5, (first - 1) / 2)))
    for before, now, spend in zip(counts, counts[1:], np.diff(shares), strict=False):
        furthest = math.asin(min(1.0, math.sqrt((before * math.sin(end) ** 2 + now - before) / now)))
        grid = _chebyshev(-_reach(now), min(furthest, _reach(now)))
        density = CubicSpline(grid, _carried_on(density, start, end, grid, before, now))
        mass = density.antiderivative()
        beyond = mass(grid[-1]) - level * spend
        start, end = grid[0], float(brentq(lambda angle, m=mass, b=beyond: m(angle) - b, grid[0], grid[-1]))
        found.append(math.sqrt(now - 1) * math.tan(end))
    return tuple(found)


def _reach(seeds: int) -> float:
    """The angle beyond which there is no mass to speak of."""
    return min(math.pi / 2 - 1e-9, 12 / math.sqrt(seeds))


def _chebyshev(low: float, high: float, num: int = _GRID) -> Array:
    """Points from low to high that are dense at both ends."""
    return low + (high - low) * (1 - np.cos(np.linspace(0, math.pi, num))) / 2


def _carried_on(density: CubicSpline, start: float, end: float, grid: Array, before: int, now: int) -> Array:
    """The density on ``grid`` of the angle at ``now`` seeds, of those whose angle at ``before`` seeds is below end."""
    added = now - before
    x = np.sin(grid)[:, None]
    # An x that the new seeds alone cannot bring about needs at least this sine before them.
    needed = np.arcsin(np.sqrt(np.clip((now * x**2 - added) / before, 0, 1)))
    low = np.where(x > math.sqrt(added / now), needed, start)
    high = np.minimum(np.where(x < -math.sqrt(added / now), -needed, end), end)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES + 4 * math.isqrt(now))
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Dense at both ends, where the density may begin like a square root or at once.
    angles = low + (high - low) * (1 - np.cos(math.pi * nodes)) / 2
    weights = weights * (high - low) * np.sin(math.pi * nodes) * math.pi / 2
    values = density(angles) * _transition(x, np.sin(angles), before, now)
    carried: Array = np.where(high > low, weights * values, 0).sum(1) * np.cos(grid)
    return carried


def _transition(x: Array, c: Array, before: int, now: int) -> Array:
    """The density of x = sin(phi) at ``now`` seeds, given c = sin(phi) at ``before``.

    x = sqrt(before/now) u c + sqrt(added/now) sqrt(1 - u^2) w, where u^2 is the share of the squared length that the
    earlier values have, of a beta distribution, and w is a coordinate of a random direction among the added ones. The
    integral over u has (quadratic in u)^((added - 3) / 2) in it, which u = middle + half sin(psi) makes smooth.
    """
    added = now - before
    square = 1 + before * c**2 / added
    middle = x * c * math.sqrt(before * now) / added / square
    half = np.sqrt(np.clip(square - now * x**2 / added, 0, None)) / square
    lowest = np.arcsin(np.clip(-middle / np.where(half > 0, half, 1), -1, 1))
    nodes, weights = np.polynomial.legendre.leggauss(16 + 3 * math.isqrt(now))
    width = math.pi / 2 - lowest
    psi = lowest[..., None] + width[..., None] * (nodes + 1) / 2
    with np.errstate(divide="ignore"):
        log_u = np.log(np.clip(middle[..., None] + half[..., None] * np.sin(psi), 0, None))
        log_half = np.log(half)
    cosine = np.clip(np.cos(psi), 1e-300, None)
    inner = np.exp(
        (before - 1) * log_u
        + (added - 2) * np.log(cosine)
        + ((added - 3) / 2) * np.log(square)[..., None]
        + ((added - 2) * log_half[..., None] if added > 2 else 0)
        + math.log(2)
        + 0.5 * math.log(now / added)
        - betaln(before / 2, added / 2)
        - betaln(0.5, (added - 1) / 2)
    )
    density: Array = np.where(half > 0, (inner * weights).sum(-1) * width / 2, 0)
    return density


def p_value(statistics: Sequence[float], looks: Looks) -> float:
    """The smallest level at which one of these t statistics, of the first looks, exceeds its bound.

    At a true mean of zero or less it is at most p with probability p, however many of the looks there are. Between
    levels that differ by a factor of four, bounds are interpolated as logarithms of their tail probabilities, in which
    they are nearly straight lines.
    """
    levels, tails = _tails(looks)
    found = 1.0
    for k, tail in enumerate(_log_tail(np.array(statistics, float), np.array(looks.counts[: len(statistics)]))):
        if tail <= tails[-1, k]:
            found = min(found, math.exp(np.interp(tail, tails[:, k], levels)))
    return found


def _log_tail(statistics: Array, seeds: Array) -> Array:
    """The logarithm of the probability that Student's t exceeds a statistic."""
    tail: Array = np.log(np.clip(stdtr(seeds - 1, -statistics), 1e-300, None))
    return tail


@cache
def _tails(looks: Looks) -> tuple[Array, Array]:
    """Logarithms of levels, growing, and of the tail probability of each look's bound at each of them."""
    count = 1 + math.ceil(math.log(LARGEST_LEVEL / SMALLEST_LEVEL, 4))
    levels = np.geomspace(SMALLEST_LEVEL, LARGEST_LEVEL, count)
    tails = [_log_tail(np.array(bounds(looks, float(level))), np.array(looks.counts)) for level in levels]
    return np.log(levels), np.array(tails)
