"""Verdicts on a study's claims: supported, contradicted or undecided, each with what it rests on (docs/claims.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis.formats import MINUS
from analysis.verdicts.intervals import MOST_SEEDS, Interval, Outcome, judge
from analysis.verdicts.quantities import Count, Quantity, StudyRuns
from experiments.studies.claims import Band, Check, Claim, Event, Order, Same, Trend
from simsiam.record.catalogue import METRICS

Direction = Literal["agrees", "disagrees", "unclear", "not run"]

EVENT_SEEDS = 3  # of which all must agree; what happens to half of all seeds happens to three in a row once in eight


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    check: Check
    outcome: Outcome
    direction: Direction  # where the seeds so far point, decided or not
    reading: str  # one sentence with the numbers; "" if there are none
    num_seeds: int
    interval: Interval | None = None  # of a numeric check with two seeds or more
    more_seeds: int | None = None  # that would decide it, where that can be told
    is_smaller: bool = False  # the effect has the sign of the claim, but not the size
    waiting: tuple[str, ...] = ()  # for runs that have not ended


@dataclass(frozen=True)
class Verdict:
    """What came of a claim: of all of its checks together."""

    claim: Claim
    scale: str
    outcome: Outcome
    direction: Direction
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what a reader must know beside the numbers
    difference_in_kind: tuple[str, ...]  # how what was checked differs from what the paper claims

    @property
    def num_seeds(self) -> int:
        """Of the check that has the fewest."""
        return min((finding.num_seeds for finding in self.findings), default=0)

    @property
    def is_the_papers_scale(self) -> bool:
        return not self.claim.where or self.claim.made_at == self.scale

    @property
    def label(self) -> str:
        """The outcome, and the scale if it is not the paper's; of an open one where it points, on how many seeds."""
        if self.outcome != "undecided":
            return self.outcome if self.is_the_papers_scale else f"{self.outcome} at {self.scale} scale"
        if self.direction == "not run":
            return "undecided"
        seeds = "direction only (1 seed)" if self.num_seeds == 1 else "direction so far"
        return f"undecided; {seeds}: {self.direction}"

    @property
    def reading(self) -> str:
        """What it waits for, and what each check came to, in a sentence each."""
        waiting = list(dict.fromkeys(text for finding in self.findings for text in finding.waiting))
        sentences = [f"Waiting for {_listed(waiting)}."] if waiting else []
        return " ".join([*sentences, *(_sentence(finding.reading) for finding in self.findings if finding.reading)])

    @property
    def conclusion(self) -> str:
        """Said where the paper's effect does not show at another scale than the paper's; else ""."""
        if self.is_the_papers_scale or self.outcome == "supported":
            return ""
        if self.outcome == "contradicted":
            if all(finding.is_smaller for finding in self.findings if finding.outcome == "contradicted"):
                return f"At {self.scale} scale the effect goes the paper's way, but is smaller than what counts."
            return f"The {self.scale} scale does not show the paper's effect."
        if self.direction == "disagrees":
            seeds = "1 seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"
            return f"At {self.scale} scale the paper's effect was not seen ({seeds}: not decided)."
        return ""


def verdicts(claims: Sequence[Claim], points: pd.DataFrame, runs: pd.DataFrame, scale: str) -> list[Verdict]:
    """A verdict on each claim, from the frames of :func:`analysis.report.one_study.gather`."""
    study_runs = StudyRuns(points, runs)
    return [_verdict(claim, study_runs, scale) for claim in claims]


def _verdict(claim: Claim, study_runs: StudyRuns, scale: str) -> Verdict:
    if scale not in claim.scales:
        notes: tuple[str, ...] = (f"This claim is checked at {' and '.join(claim.scales)} scale only.",)
        return Verdict(claim, scale, "undecided", "not run", (), notes, ())
    num_tests = sum(max(1, len(study_runs.quantities(check))) for check in claim.checks)
    findings = tuple(_finding(check, study_runs, num_tests) for check in claim.checks)
    outcome = _together([finding.outcome for finding in findings])
    directions = {finding.direction for finding in findings}
    order: tuple[Direction, ...] = ("not run", "disagrees", "unclear", "agrees")  # the first one that there is
    direction = next(each for each in order if each in directions)
    notes, kind = _notes(claim, study_runs), _difference_in_kind(claim, study_runs, scale)
    return Verdict(claim, scale, outcome, direction, findings, notes, kind)


def _notes(claim: Claim, study_runs: StudyRuns) -> tuple[str, ...]:
    notes = [claim.note] if claim.note else []
    metrics = {getattr(check, "metric", "") for check in claim.checks}
    if metrics & {"z_std", "z_std_relative"} and study_runs.hides_collapse(claim.variants()):
        notes.append("An output BN without scale and shift keeps the std from showing a collapse.")
    return tuple(notes)


def _difference_in_kind(claim: Claim, study_runs: StudyRuns, scale: str) -> tuple[str, ...]:
    sentences = []
    if claim.where and claim.made_at != scale:
        data = sorted({str(name) for each in claim.variants() for name in study_runs.ended(each)["data.name"].dropna()})
        on = f" on {' and '.join(data)}" if data else ""
        sentences.append(f"The paper's claim is at {claim.made_at} scale; it was checked here at {scale} scale{on}.")
    if claim.where and any(_compares_accuracies(check) for check in claim.checks):
        sentences.append("The paper compares accuracies of linear evaluation; here they are those of kNN.")
    return tuple(sentences)


def _compares_accuracies(check: Check) -> bool:
    """Variants against each other; the kNN curve of one variant is a kNN curve in the paper, too."""
    return isinstance(check, Order | Same | Trend) and check.metric == "knn_top1" and len(check.variants()) > 1


# --- one check ---------------------------------------------------------------------------------------------------


def _finding(check: Check, study_runs: StudyRuns, num_tests: int) -> Finding:
    variants = list(dict.fromkeys(check.variants()))
    waiting = study_runs.waiting(variants)
    finding = (
        _count_finding(check, study_runs.count(check))
        if isinstance(check, Band | Event)
        else _numeric_finding(check, study_runs, variants, num_tests)
    )
    if not waiting:
        return finding
    reading = finding.reading if finding.num_seeds else ""
    return replace(finding, outcome="undecided", reading=reading, more_seeds=None, waiting=tuple(waiting))


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _count_finding(check: Check, count: Count) -> Finding:
    num, happened = len(count.happened), sum(count.happened.values())
    if not num:
        return Finding(check, "undecided", "not run", f"{count.name}: no run has the numbers to tell.", 0)
    text = f"{count.name} in {happened} of {num} {'seed' if num == 1 else 'seeds'}; "
    if count.how_often == "some":
        reading = f"{text}the claim says that it can happen, for which one is enough."
        return Finding(check, *(("supported", "agrees") if happened else ("undecided", "unclear")), reading, num)
    agreeing = happened if count.how_often == "all" else num - happened
    direction: Direction = "agrees" if agreeing == num else "disagrees" if agreeing == 0 else "unclear"
    needed = "all" if count.how_often == "all" else "none"
    reading = f"{text}needed: {needed}, of at least {EVENT_SEEDS}."
    if num < EVENT_SEEDS:
        more = EVENT_SEEDS - num if direction != "unclear" else None
        return Finding(check, "undecided", direction, reading, num, more_seeds=more)
    outcome: Outcome = (
        "supported" if direction == "agrees" else "contradicted" if direction == "disagrees" else "undecided"
    )
    return Finding(check, outcome, direction, reading, num)


def _numeric_finding(check: Check, study_runs: StudyRuns, variants: list[str], num_tests: int) -> Finding:
    quantities = study_runs.quantities(check)
    metric = quantities[0].metric
    if metric in ("loss", "loss_roughness") and len(study_runs.losses(variants)) > 1:
        return Finding(check, "undecided", "unclear", "The variants have different losses, which do not compare.", 0)
    left_out = study_runs.left_out(variants)
    without = f" Left out: {_listed(left_out)} (diverged)." if left_out else ""
    num_seeds = min(len(quantity.values) for quantity in quantities)
    if num_seeds == 0:
        why = f"no value from {_listed(left_out)} (diverged)" if left_out else "no seed has all the runs that it needs"
        return Finding(check, "undecided", "not run", f"{quantities[0].name} is not known: {why}.", 0)
    # Of several differences the one that is furthest from what the claim says is shown.
    worst = max(quantities, key=_excess)
    if num_seeds == 1:
        value = next(iter(worst.values.values()))
        direction = _direction(value, worst)
        text = f"{worst.name} is {_number(value, worst)}{_unit(worst)} (1 seed: direction only)"
        return Finding(check, "undecided", direction, f"{text}; needed: {_needs(worst)}.{without}", 1)
    judged = [judge(list(quantity.values.values()), quantity.region, num_tests) for quantity in quantities]
    outcome = _together([each.outcome for each in judged])
    shown = next((i for i, each in enumerate(judged) if each.outcome == "contradicted"), quantities.index(worst))
    quantity, interval = quantities[shown], judged[shown].interval
    mean, low, high = (_number(end, quantity) for end in (interval.mean, interval.low, interval.high))
    reading = (
        f"{quantity.name} is {mean}{_unit(quantity)} ({100 * interval.level:.3g} % interval {low} to {high}; "
        f"{interval.count} seeds); needed: {_needs(quantity)}."
    )
    is_smaller = _is_smaller(interval.mean, quantity)
    reading += " It goes the way of the claim, but is smaller than what counts." if is_smaller else ""
    more = None
    if outcome == "undecided":
        needed = [each.more_seeds for each in judged if each.outcome == "undecided"]
        known = [number for number in needed if number is not None]
        more = max(known) if len(known) == len(needed) else None
        reading += (
            f" If mean and spread stay so, about {more} more {'seed' if more == 1 else 'seeds'} would decide it."
            if more is not None
            else f" If mean and spread stay so, {MOST_SEEDS} seeds would not decide it."
        )
    direction = _direction(interval.mean, quantity)
    return Finding(check, outcome, direction, f"{reading}{without}", num_seeds, interval, more, is_smaller)


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """Of tests that must all hold."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if set(outcomes) == {"supported"} else "undecided"


def _direction(value: float, quantity: Quantity) -> Direction:
    """Where a value points, decided or not."""
    if value in quantity.region:
        return "agrees"
    return "unclear" if abs(value) < quantity.unclear_within else "disagrees"


def _is_smaller(value: float, quantity: Quantity) -> bool:
    """Whether a difference has the sign that the claim names, but is not as large."""
    region = quantity.region
    if not quantity.is_difference or region.has_two_ends or value in region:
        return False
    return value > 0 if math.isfinite(region.low) else value < 0


def _excess(quantity: Quantity) -> float:
    """How far the mean lies outside of the region; negative inside."""
    mean = sum(quantity.values.values()) / len(quantity.values)
    return max(quantity.region.low - mean, mean - quantity.region.high)


# --- numbers in words --------------------------------------------------------------------------------------------


def _number(value: float, quantity: Quantity) -> str:
    """A value, with its sign if it is a difference."""
    sign = "+" if quantity.is_difference else ""
    decimals = METRICS[quantity.metric].decimals if quantity.metric in METRICS else 2  # a ratio is no metric
    return f"{value:{sign}.{decimals}f}".replace("-", MINUS)


def _needs(quantity: Quantity) -> str:
    """``more than 1 point``, ``less than 0.2``, ``between -1 and 1 points``."""
    low, high = (f"{end:g}".replace("-", MINUS) for end in (quantity.region.low, quantity.region.high))
    if quantity.region.has_two_ends:
        return f"between {low} and {high}{_unit(quantity)}"
    bound = f"more than {low}" if math.isfinite(quantity.region.low) else f"less than {high}"
    unit = _unit(quantity)
    return bound + (" point" if unit == " points" and bound.endswith(" 1") else unit)


def _unit(quantity: Quantity) -> str:
    metric = METRICS.get(quantity.metric)  # a ratio is no metric
    unit = "" if metric is None else metric.unit_of_difference if quantity.is_difference else metric.unit
    return f" {unit}" if unit else ""


def _sentence(text: str) -> str:
    return text if text.startswith("kNN") else text[:1].upper() + text[1:]


def as_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data, for scripts; what is not known is null."""
    return {
        "claim": verdict.claim.name,
        "says": verdict.claim.says,
        "where": verdict.claim.where,
        "verdict": verdict.outcome,
        "direction": verdict.direction,
        "scale": verdict.scale,
        "made_at": verdict.claim.made_at if verdict.claim.where else None,
        "seeds": verdict.num_seeds,
        "checks": [
            {
                "check": finding.check.model_dump(mode="json", exclude_none=True),
                "verdict": finding.outcome,
                "direction": finding.direction,
                "reading": finding.reading,
                "seeds": finding.num_seeds,
                "more_seeds": finding.more_seeds,
                **_interval_json(finding.interval),
            }
            for finding in verdict.findings
        ],
        "reading": verdict.reading,
        "notes": [*verdict.notes, *verdict.difference_in_kind, *([verdict.conclusion] if verdict.conclusion else [])],
    }


def _interval_json(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"mean": None, "low": None, "high": None, "level": None}
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "level": interval.level}
