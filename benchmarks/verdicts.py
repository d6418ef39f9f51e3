"""How often verdicts are wrong, and how many seeds they take: ``python -m benchmarks.verdicts``.

Simulated studies whose truth is known, 10,000 for each row by default; prints the tables of docs/claims.md. The bounds,
the rule for events, Holm's adjustment and the rule for giving up are the program's own. One core, a few minutes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from analysis.verdicts.family import ALPHA, holm
from analysis.verdicts.intervals import Region, levels
from analysis.verdicts.outlook import FUTILE, predictive
from analysis.verdicts.rates import judge_rate
from analysis.verdicts.sequential import Looks, bounds
from experiments.studies.design import Design

Array = NDArray[np.float64]
Random = np.random.Generator
DESIGN = Design()
LOOKS = DESIGN.looks


@dataclass(frozen=True)
class Found:
    """What came of simulated studies, one entry each."""

    supported: NDArray[np.bool_]
    contradicted: NDArray[np.bool_]
    seeds: Array  # that were trained until it was decided, or the last look


def statistics(values: Array, looks: tuple[int, ...]) -> tuple[Array, Array]:
    """Means and their standard errors at each look, (studies, looks). values: (studies, seeds)."""
    means = [values[:, :look].mean(1) for look in looks]
    errors = [values[:, :look].std(1, ddof=1) / math.sqrt(look) for look in looks]
    return np.stack(means, 1), np.stack(errors, 1)


def judge_all(values: Array, region: Region, design: Design = DESIGN) -> Found:
    """As ``judge`` does, for many studies at once."""
    inside, outside = (np.array(bounds(Looks.planned(design.looks), level)) for level in levels(region, design))
    means, errors = statistics(values, design.looks)
    is_in = (means - inside * errors > region.low) & (means + inside * errors < region.high)
    is_out = (means + outside * errors < region.low) | (means - outside * errors > region.high)
    return first_decision(is_in, is_out & ~is_in, design.looks)


def first_decision(is_in: NDArray[np.bool_], is_out: NDArray[np.bool_], looks: tuple[int, ...]) -> Found:
    decides = is_in | is_out
    at = np.where(decides.any(1), decides.argmax(1), len(looks) - 1)
    each = np.arange(len(at))
    return Found(is_in[each, at], is_out[each, at], np.array(looks, float)[at])


def with_giving_up(values: Array, region: Region) -> Found:
    """As :func:`judge_all`, but a study whose chance to be decided is small is stopped at its look."""
    found = judge_all(values, region)
    seeds, given_up = found.seeds.copy(), np.zeros(len(values), bool)
    means, errors = statistics(values, LOOKS)
    for k, look in enumerate(LOOKS[:-1]):
        (still,) = np.nonzero((found.seeds > look) & ~given_up)
        for part in np.array_split(still, max(1, len(still) // 250)):
            sds = errors[part, k] * math.sqrt(look)
            chance, _ = predictive(means[part, k], sds, look, region, DESIGN, LOOKS[k + 1 :])
            stopped = part[chance < FUTILE]
            given_up[stopped], seeds[stopped] = True, look
    return Found(found.supported & ~given_up, found.contradicted & ~given_up, seeds)


# --- differences of mean zero and standard deviation one -------------------------------------------------------------


def _pair(correlation: float) -> Callable[[Random, tuple[int, int]], Array]:
    def draw(random: Random, shape: tuple[int, int]) -> Array:
        shared, one, other = random.normal(size=(3, *shape))
        seed, own = math.sqrt(correlation), math.sqrt(1 - correlation)
        difference: Array = (seed * shared + own * one) - (seed * shared + own * other)
        return difference / math.sqrt(2 - 2 * correlation)

    return draw


def _gamma(shape: float, sign: int) -> Callable[[Random, tuple[int, int]], Array]:
    return lambda random, size: sign * (random.gamma(shape, size=size) - shape) / math.sqrt(shape)


def _skewed_pair(random: Random, size: tuple[int, int]) -> Array:
    """Two variants, each with a long tail of bad seeds, one of them with twice the spread: skewness 0.9."""
    one, other = random.gamma(2, size=(2, *size)) - 2
    difference: Array = (2 * other - one) / math.sqrt(10)
    return difference


DIFFERENCES: dict[str, Callable[[Random, tuple[int, int]], Array]] = {
    "normal, pairs without correlation": _pair(0.0),
    "normal, pairs with correlation 0.8": _pair(0.8),
    "heavy tails: t with 3 degrees of freedom": lambda random, size: random.standard_t(3, size) / math.sqrt(3),
    "skewed variants with the same spread": lambda random, size: (
        (random.gamma(2, size=size) - random.gamma(2, size=size)) / 2
    ),
    "skewed variants, one with twice the spread": _skewed_pair,
    "skewed differences, skewness 1": _gamma(4, 1),
    "skewed differences, skewness -1": _gamma(4, -1),
    "exponential differences, skewness -2": _gamma(1, -1),
}


# --- the tables -------------------------------------------------------------------------------------------------------


def percent(share: float, num: int) -> str:
    """With the simulation's own standard error, of two digits."""
    return f"{100 * share:.2f} ± {100 * math.sqrt(max(share * (1 - share), 1 / num) / num):.2f}"


def errors(num: int) -> list[list[str]]:
    """False verdicts where the truth lies on the edge of what the claim says, which is where they are most frequent."""
    rows = [["differences", "false supported (2.5)", "false contradicted (2.5)", "false same (5)", "looked at naively"]]
    for seed, (name, draw) in enumerate(DIFFERENCES.items()):
        values = draw(np.random.default_rng(seed), (num, LOOKS[-1]))
        order = judge_all(values, Region(low=0.0))
        # At either edge of a margin of 3 standard deviations; where it is skewed one is worse.
        same = max(judge_all(values + edge, Region(-3.0, 3.0)).supported.mean() for edge in (-3.0, 3.0))
        means, standard = statistics(values, LOOKS)
        fixed = stats.t.isf(0.025, np.array(LOOKS) - 1)
        naive = (means > fixed * standard).any(1).mean()
        shares = (order.supported.mean(), order.contradicted.mean(), same, naive)
        rows.append([name, *(percent(float(share), num) for share in shares)])
    random = np.random.default_rng(99)
    outcome = [judge_rate(list(row), 0.5, DESIGN).outcome for row in random.random((num, LOOKS[-1])) < 0.5]
    events = [percent(outcome.count(kind) / num, num) for kind in ("supported", "contradicted")]
    rows.append(["events at a rate of 1/2", *events, "", ""])
    return rows


def power(num: int) -> list[list[str]]:
    """The share that is supported, and the mean number of seeds, where the truth lies inside by so many spreads."""
    always = always_valid()
    rows = [["beyond the edge", "five looks", "always valid", *(f"fixed {n}" for n in LOOKS)]]
    for effect in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0):
        values = np.random.default_rng(7).normal(effect, 1, (num, LOOKS[-1]))
        region = Region(low=0.0)
        found = judge_all(values, region)
        means, standard = statistics(values, LOOKS)
        mixture = first_decision(means > always * standard, means < -always * standard, LOOKS)
        fixed = [judge_all(values[:, :n], region, Design(looks=(n,))).supported.mean() for n in LOOKS]
        rows.append(
            [f"{effect:g} sd", *(_share_and_seeds(each) for each in (found, mixture))]
            + [f"{100 * share:.0f} %" for share in fixed]
        )
    return rows


def _share_and_seeds(found: Found) -> str:
    return f"{100 * found.supported.mean():.0f} %, {found.seeds.mean():.1f} seeds"


def always_valid(width: float = 4.0) -> Array:
    """Bounds of t that hold at every number of seeds: a normal mixture of effects with this variance (Lai 1976)."""
    found = []
    for n in LOOKS:
        ratio = 1 + n * width

        def log_evidence(log_t: float, n: int = n, ratio: float = ratio) -> float:
            square = math.exp(2 * log_t) / (n - 1)
            return float(n / 2 * (np.log1p(square) - np.log1p(square / ratio)) - math.log(ratio) / 2 - math.log(20))

        found.append(math.exp(brentq(log_evidence, 0, 30)) if log_evidence(30) > 0 else math.inf)
    return np.array(found)


def given_up(num: int) -> list[list[str]]:
    """Verdicts lost and seeds saved by giving up; a fifth of the studies, since each draws 1,000 futures a look."""
    num = max(num // 5, 100)
    rows = [["truth", "decided without giving up", "with", "seeds without", "with"]]
    for name, region, mean in (
        ("on the edge", Region(low=0.0), 0.0),
        ("0.25 sd inside", Region(low=0.0), 0.25),
        ("0.5 sd inside", Region(low=0.0), 0.5),
        ("1 sd inside", Region(low=0.0), 1.0),
        ("in the middle of a margin of 0.5 sd", Region(-0.5, 0.5), 0.0),
        ("in the middle of a margin of 1 sd", Region(-1.0, 1.0), 0.0),
    ):
        values = np.random.default_rng(11).normal(mean, 1, (num, LOOKS[-1]))
        without, giving_up = judge_all(values, region), with_giving_up(values, region)
        shares = [percent(float((each.supported | each.contradicted).mean()), num) for each in (without, giving_up)]
        rows.append([name, *shares, f"{without.seeds.mean():.1f}", f"{giving_up.seeds.mean():.1f}"])
    return rows


def whole_set(num: int, claims: int = 54) -> list[list[str]]:
    """Sets of claims that all lie on the edge, with a baseline in common or not."""
    levels_, looks = np.geomspace(1e-6, 0.3, 60), Looks.planned(LOOKS)
    limits = np.array([bounds(looks, float(level)) for level in levels_])
    rows = [["correlation of claims", "false supported a set", "any, unadjusted", "any, with Holm (5)"]]
    for correlation in (0.0, 0.5):
        random, counts, kept = np.random.default_rng(13), [], 0
        for _ in range(num):
            shared, own = random.normal(size=(1, LOOKS[-1])), random.normal(size=(claims, LOOKS[-1]))
            means, standard = statistics(math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own, LOOKS)
            crossed = (means / standard > limits[:, None, :]).any(2)  # (levels, claims)
            p = np.where(crossed.any(0), levels_[crossed.argmax(0)], 1.0)
            counts.append((p <= ALPHA / 2).sum())
            kept += min(holm(list(np.minimum(1, 2 * p)))) <= ALPHA
        unadjusted = float(np.mean(np.array(counts) > 0))
        rows.append([f"{correlation:g}", f"{np.mean(counts):.2f}", percent(unadjusted, num), percent(kept / num, num)])
    return rows


def table(rows: list[list[str]]) -> str:
    """As Markdown."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description="How often verdicts are wrong.")
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies for each row")
    num = parser.parse_args().studies
    for title, rows in (
        ("False verdicts, in % of studies (the level in brackets)", errors),
        ("Power: supported, and seeds until decided", power),
        ("Giving up", given_up),
        ("54 claims together, in % of sets", whole_set),
    ):
        print(f"{title}:\n\n{table(rows(num))}\n", flush=True)


if __name__ == "__main__":
    main()
