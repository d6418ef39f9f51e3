"""Each variant against its baseline: our paired difference with its interval, and whether it goes the paper's way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import pandas as pd

from analysis.formats import format_signed
from analysis.frames.load import accuracy_of
from analysis.report.table import Entry
from analysis.verdicts.intervals import Region, judge, mean_interval
from analysis.verdicts.quantities import StudyRuns, Values, paired_differences
from experiments.studies.study import PaperResult

Way = Literal["agrees", "disagrees", "unclear"]

# Points below which a difference counts as none: of the paper's numbers, whose spread over trials is 0.1 (so 0.14 for a
# difference, and twice that); and of ours, where a single seed cannot show less (docs/recipe-cpu.md: 1 to 1.5 points).
PAPER_NONE, OURS_NONE = 0.3, 1.0
OTHER_SIZE = 2.0  # convention: a difference of less than half of the paper's, or more than twice, is of another size
WIDEST = 100.0  # points: an interval of more says nothing of an accuracy, and is not printed


def direction(paper: float, ours: Values) -> Way:
    """Whether our differences, by seed, go the way of the paper's, in points.

    With several seeds the 95 % interval decides (90 % where the paper's difference is none: an equivalence test); with
    one seed the number alone, and what is smaller than a point is unclear.
    """
    values = list(ours.values())
    if abs(paper) < PAPER_NONE:
        region = Region(-OURS_NONE, OURS_NONE)
    else:
        region = Region(low=0) if paper > 0 else Region(high=0)
    if len(values) > 1:
        outcomes: dict[str, Way] = {"supported": "agrees", "contradicted": "disagrees", "undecided": "unclear"}
        return outcomes[judge(values, region).outcome]
    if abs(paper) >= PAPER_NONE and abs(values[0]) < OURS_NONE:
        return "unclear"
    return "agrees" if values[0] in region else "disagrees"


class Differences:
    """The differences of a study's variants to their baselines, as entries of its table."""

    def __init__(self, runs: pd.DataFrame, paper: Mapping[str, PaperResult], against: Mapping[str, str | None]) -> None:
        self.study_runs = StudyRuns(pd.DataFrame({"run": []}), runs)
        self.paper, self.against = paper, against
        self.metric = accuracy_of(runs)

    def ours(self, variant: str) -> Values:
        """The accuracy of a variant minus that of its baseline, for each seed that both have ended with, in points."""
        finals = (self.study_runs.finals(name, self.metric) for name in (variant, self.against[variant] or variant))
        return paired_differences(*finals)

    def difference_entry(self, variant: str) -> Entry:
        """``−3.4 (−4.0 to −2.8)``; with one seed ``−3.4 (1 seed)``."""
        exact: dict[str, float | int | str] = {"_mean": math.nan, "_low": math.nan, "_high": math.nan, "_seeds": 0}
        if self.against[variant] is None:
            return Entry(reason="baseline", exact=exact)
        values = list(self.ours(variant).values())
        if not values:
            return Entry(reason=self._why_nothing(variant), exact=exact)
        interval = mean_interval(values)
        ends = {} if len(values) < 2 else {"_low": interval.low, "_high": interval.high}
        exact |= {"_mean": interval.mean, "_seeds": len(values), **ends}
        spread = f"{format_signed(interval.low)} to {format_signed(interval.high)}" if ends else "1 seed"
        if ends and interval.high - interval.low > WIDEST:
            spread = f"{len(values)} seeds"
        return Entry(f"{format_signed(interval.mean)} ({spread})", exact=exact)

    def direction_entry(self, variant: str) -> Entry:
        """``agrees``, ``disagrees`` or ``unclear``, with the paper's difference; of one seed it says so."""
        baseline = self.against[variant]
        if baseline is None:
            return Entry(reason="baseline", exact={"": "baseline"})
        theirs = self.paper_difference(variant)
        if theirs is None:
            return Entry(reason="no number in the paper", exact={"": "no number in the paper"})
        values = self.ours(variant)
        if not values:
            why = self._why_nothing(variant)
            return Entry(reason=why, exact={"": why})
        way = str(direction(theirs, values))
        share = sum(values.values()) / len(values) / theirs if abs(theirs) >= PAPER_NONE else 1.0
        if way == "agrees" and not 1 / OTHER_SIZE <= share <= OTHER_SIZE:
            way = "agrees in sign, not in size"
        text = f"{way} (paper: {format_signed(theirs)})"
        text += "; direction only (1 seed)" if len(values) == 1 else ""
        return Entry(text, exact={"": text})

    def paper_difference(self, variant: str) -> float | None:
        """The paper's number of a variant minus that of its baseline, in points; None if it does not give both."""
        baseline = self.against[variant]
        if baseline is None or baseline not in self.paper:
            return None
        one, other = self.paper[variant].top1, self.paper[baseline].top1
        return None if one is None or other is None else one - other

    def _why_nothing(self, variant: str) -> str:
        pair = [variant, self.against[variant] or variant]
        if self.study_runs.waiting(pair):
            return "not run" if self.study_runs.waiting([variant]) else "baseline not run"
        return "diverged" if self.study_runs.left_out(pair) else "no common seed"
