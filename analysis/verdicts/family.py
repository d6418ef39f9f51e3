"""The claims of a family together: how many verdicts may be false, and which hold with an error kept for the whole set.

The family is all claims of the paper at a scale, or those of a study of one's own; it is declared, not chosen after the
fact. Holm (1979): of m p-values, in order, the first must be at most alpha / m, the next alpha / (m - 1) and so on. It
needs no independence, and claims that share a baseline have none. "Supported" and "contradicted" are adjusted each for
itself, so the probability of even one false "supported" is at most alpha, and so is that of one false "contradicted".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.verdicts.intervals import Outcome
from analysis.verdicts.verdicts import Verdict
from experiments.studies.design import LEVEL

ALPHA = 1 - LEVEL


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for each other, in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found = np.empty(len(p))
    found[order] = adjusted
    return [float(value) for value in found]


@dataclass(frozen=True)
class Family:
    """Verdicts with those that hold for the whole set."""

    verdicts: tuple[Verdict, ...]
    adjusted: tuple[Outcome, ...]  # of each

    @property
    def expected_false(self) -> float:
        """How many verdicts are false on average, at most: if the truth lies on the edge of each claim."""
        return sum(verdict.error for verdict in self.verdicts)

    def of(self, verdict: Verdict) -> Outcome:
        """The adjusted outcome of a verdict; undecided if its claim is not checked at the scale."""
        pairs = zip(self.verdicts, self.adjusted, strict=True)
        return next((found for each, found in pairs if each is verdict), "undecided")

    def holds(self, outcome: Outcome) -> int:
        """How many verdicts of an outcome hold for the whole set."""
        return self.adjusted.count(outcome)

    @property
    def sentences(self) -> list[str]:
        """What the whole set is worth, in plain words; nothing for a single claim."""
        if len(self.verdicts) < 2:
            return []
        kept = [
            f"{self.holds(outcome)} of the {total} {outcome}"
            for outcome in ("supported", "contradicted")
            if (total := sum(verdict.outcome == outcome for verdict in self.verdicts))
        ]
        found = [
            f"Of these {len(self.verdicts)} verdicts at most {self.expected_false:.2g} are false on average: "
            "that many if the truth lay on the edge of every claim."
        ]
        if kept:
            hold = "hold" if len(kept) > 1 or not kept[0].startswith("1 ") else "holds"
            found.append(
                f"With the error kept for the whole set, {' and '.join(kept)} {hold} (Holm: a false verdict of "
                f"a kind comes up in at most {100 * ALPHA:.0f} % of such sets)."
            )
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "claims": len(self.verdicts),
            "alpha": round(ALPHA, 10),
            "expected_false_at_most": self.expected_false,
            "hold": {outcome: self.holds(outcome) for outcome in ("supported", "contradicted")},
        }


def family(verdicts: Sequence[Verdict]) -> Family:
    """The family of verdicts; claims that are not checked at the scale are none of it."""
    checked = [verdict for verdict in verdicts if verdict.findings]
    supported, contradicted = (
        holm(p) for p in ([each.p_supported for each in checked], [each.p_contradicted for each in checked])
    )
    adjusted: list[Outcome] = []
    for verdict, p_supported, p_contradicted in zip(checked, supported, contradicted, strict=True):
        p = {"supported": p_supported, "contradicted": p_contradicted, "undecided": 1.0}[verdict.outcome]
        adjusted.append(verdict.outcome if p <= ALPHA else "undecided")
    return Family(tuple(checked), tuple(adjusted))
