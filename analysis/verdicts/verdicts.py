"""Verdicts on a study's claims: supported, contradicted or undecided, each with what it rests on (docs/claims.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis.formats import MINUS, format_hours
from analysis.verdicts.intervals import Interval, Judgement, Outcome, Region, judge, levels
from analysis.verdicts.quantities import Count, Quantity, StudyRuns
from analysis.verdicts.rates import RateInterval, judge_rate
from experiments.studies.claims import Band, Check, Claim, Event, Order, Same, Trend, claim_hash
from experiments.studies.design import Design
from simsiam.record.catalogue import METRICS

Direction = Literal["agrees", "disagrees", "unclear", "not run"]


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    check: Check
    outcome: Outcome
    direction: Direction  # where the seeds so far point, decided or not
    reading: str  # the answer, then the numbers; "" if there are none
    num_seeds: int  # that give a value
    interval: Interval | None = None  # of the mean, of a numeric check that was looked at
    rate: RateInterval | None = None  # of a check on events that was looked at
    seeds_to_decide: int | None = None  # the look that would decide an open one, where that can be told
    is_smaller: bool = False  # the effect has the sign of the claim, but not the size
    waiting: tuple[str, ...] = ()  # for runs that have not ended
    p_supported: float = 1.0  # the smallest two-sided level at which it would be supported, over all looks
    p_contradicted: float = 1.0
    error: float = 0.0  # the probability of a false "supported" if the truth lies on the edge of the claim
    num_settled: int = 0  # seeds that have ended, with or without a value
    num_tests: int = 1  # of the claim
    region: Region | None = None  # of a numeric check
    agrees: tuple[bool, ...] = ()  # of a check on events: whether each seed does as the claim says
    needed_rate: float = 0.5  # of those

    @property
    def more_seeds(self) -> int | None:
        """How many more would decide it, where that can be told."""
        return None if self.seeds_to_decide is None else self.seeds_to_decide - self.num_settled


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
    design: Design
    cost: str = ""  # what deciding an open one would take, in a sentence

    @property
    def p_supported(self) -> float:
        """The smallest level at which all checks are supported; each must be, so that no correction is needed."""
        return max((finding.p_supported for finding in self.findings), default=1.0)

    @property
    def p_contradicted(self) -> float:
        """The smallest level at which some check is contradicted; each has been corrected for all of them."""
        return min((finding.p_contradicted for finding in self.findings), default=1.0)

    @property
    def error(self) -> float:
        """The largest probability that this verdict is wrong: the claim is true or false, so only one way counts."""
        return max((finding.error for finding in self.findings), default=0.0)

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
        sentences += [_sentence(self._without_label(finding)) for finding in self.findings if finding.reading]
        return " ".join([*sentences, *([self.cost] if self.cost else [])])

    def _without_label(self, finding: Finding) -> str:
        """A check's reading, without the answer where the label gives it: it is open, and points as the claim does."""
        if finding.outcome != "undecided" or self.outcome != "undecided" or finding.direction != self.direction:
            return finding.reading
        return finding.reading.removeprefix(ANSWERS.get((finding.outcome, finding.direction), "")).lstrip()

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
            return f"At {self.scale} scale the paper's effect was not seen ({_seeds(self.num_seeds)}: not decided)."
        return ""


def verdicts(
    claims: Sequence[Claim], points: pd.DataFrame, runs: pd.DataFrame, scale: str, design: Design, study: str = ""
) -> list[Verdict]:
    """A verdict on each claim, from the frames of :func:`analysis.report.one_study.gather`.

    study: under which the claims were put down before the runs began.
    """
    study_runs = StudyRuns(points, runs)
    return [_verdict(claim, study_runs, scale, design, study) for claim in claims]


def _verdict(claim: Claim, study_runs: StudyRuns, scale: str, design: Design, study: str) -> Verdict:
    if scale not in claim.scales:
        notes: tuple[str, ...] = (f"This claim is checked at {' and '.join(claim.scales)} scale only.",)
        return Verdict(claim, scale, "undecided", "not run", (), notes, (), design)
    num_tests = sum(max(1, len(study_runs.quantities(check))) for check in claim.checks)
    findings = tuple(_finding(check, study_runs, design, num_tests) for check in claim.checks)
    outcome = _together([finding.outcome for finding in findings])
    directions = {finding.direction for finding in findings}
    order: tuple[Direction, ...] = ("not run", "disagrees", "unclear", "agrees")  # the first one that there is
    direction = next(each for each in order if each in directions)
    notes = (*_notes(claim, study_runs), *_changed(claim, study_runs, design, study))
    kind = _difference_in_kind(claim, study_runs, scale)
    cost = _cost(findings, study_runs) if outcome == "undecided" else ""
    return Verdict(claim, scale, outcome, direction, findings, notes, kind, design, cost)


def _cost(findings: Sequence[Finding], study_runs: StudyRuns) -> str:
    """What deciding it would take, as runs of these variants took so far; "" if a look that decides is not known."""
    more: dict[str, int] = {}
    for finding in findings:
        if finding.outcome != "undecided":
            continue
        if not finding.more_seeds:
            return ""
        for variant in finding.check.variants():
            more[variant] = max(more.get(variant, 0), finding.more_seeds)
    hours = [number * study_runs.hours(variant) for variant, number in more.items()]
    if not all(math.isfinite(each) for each in hours):
        return ""
    runs = sum(more.values())
    return f"Deciding it would take {runs} more {'run' if runs == 1 else 'runs'}, about {format_hours(sum(hours))} h."


def _notes(claim: Claim, study_runs: StudyRuns) -> tuple[str, ...]:
    notes = [claim.note] if claim.note else []
    metrics = {getattr(check, "metric", "") for check in claim.checks}
    if metrics & {"z_std", "z_std_relative"} and study_runs.hides_collapse(claim.variants()):
        notes.append("An output BN without scale and shift keeps the std from showing a collapse.")
    return tuple(notes)


def _changed(claim: Claim, study_runs: StudyRuns, design: Design, study: str) -> list[str]:
    """Whether a claim is another than was put down when its runs began."""
    now, found, total = claim_hash(claim, design), [], 0
    for variant in claim.variants():
        for text in study_runs.ended(variant).get("claims", pd.Series(dtype=str)).dropna():
            of_study = json.loads(text).get(study)
            if of_study is not None:
                total += 1
                found += [of_study.get(claim.name)] if (of_study.get(claim.name) or {}).get("hash") != now else []
    if not found:
        return []
    dates = sorted(entry["since"][:10] for entry in found if entry)
    runs = f"{len(found)} of its {total} runs"
    if not dates:
        return [f"The claim was added after {runs} had begun."]
    return [f"The claim was changed after {runs} had begun, for which it was put down on {dates[0]} as it was then."]


def _difference_in_kind(claim: Claim, study_runs: StudyRuns, scale: str) -> tuple[str, ...]:
    sentences = []
    if claim.where and claim.made_at != scale:
        names = {str(name) for each in claim.variants() for name in study_runs.ended(each)["data.name"].dropna()}
        on = " on " + " and ".join(sorted(names)).replace("folder", "images from a folder") if names else ""
        sentences.append(f"The paper's claim is at {claim.made_at} scale; it was checked here at {scale} scale{on}.")
    if claim.where and any(_compares_accuracies(check) for check in claim.checks):
        sentences.append("The paper compares accuracies of linear evaluation; here they are those of kNN.")
    return tuple(sentences)


def _compares_accuracies(check: Check) -> bool:
    """Variants against each other; the kNN curve of one variant is a kNN curve in the paper, too."""
    return isinstance(check, Order | Same | Trend) and check.metric == "knn_top1" and len(check.variants()) > 1


# --- one check ---------------------------------------------------------------------------------------------------


def _finding(check: Check, study_runs: StudyRuns, design: Design, num_tests: int) -> Finding:
    variants = list(dict.fromkeys(check.variants()))
    settled, waiting = study_runs.settled(variants), study_runs.waiting(variants)
    finding = (
        _count_finding(check, study_runs.count(check).of(settled), design, num_tests)
        if isinstance(check, Band | Event)
        else _numeric_finding(check, study_runs, settled, design, num_tests)
    )
    finding = replace(finding, num_settled=len(settled), num_tests=num_tests)
    if not waiting or finding.outcome != "undecided":
        return finding
    reading = finding.reading if finding.num_seeds else ""
    return replace(finding, reading=reading, waiting=tuple(waiting))


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _seeds(number: int) -> str:
    return f"{number} seed" if number == 1 else f"{number} seeds"


ANSWERS = {
    ("supported", "agrees"): "Yes.",
    ("contradicted", "disagrees"): "No.",
    ("undecided", "agrees"): "Not decided, but it looks like yes.",
    ("undecided", "disagrees"): "Not decided, but it looks like no.",
    ("undecided", "unclear"): "Not decided, and it could be either.",
}


def _count_finding(check: Band | Event, count: Count, design: Design, num_tests: int) -> Finding:
    num, happened = len(count.happened), sum(count.happened.values())
    error = (1 - design.level) / 2
    if not num:
        return Finding(check, "undecided", "not run", f"{count.name}: no run has the numbers to tell.", 0, error=error)
    text = f"{count.name} in {happened} of {_seeds(num)}"
    if count.how_often == "some":
        reading = f"{text}; the claim says that it can happen, for which one is enough."
        if happened:
            return Finding(check, "supported", "agrees", f"Yes. {reading}", num, p_supported=0.0)
        return Finding(check, "undecided", "unclear", f"Not decided. {reading}", num)
    needs_none = count.how_often == "none"
    agrees = [it != needs_none for _, it in sorted(count.happened.items())]
    judged = judge_rate(agrees, count.rate, design, num_tests)
    outcome: Outcome = judged.outcome
    share = sum(agrees) / num
    direction: Direction = "agrees" if share == 1 else "disagrees" if share <= min(count.rate, 0.5) else "unclear"
    if outcome != "undecided":
        direction = "agrees" if outcome == "supported" else "disagrees"
    limit = 1 - count.rate if needs_none else count.rate
    needed = f"needed: in {'less' if needs_none else 'more'} than {_percent(limit)} of all runs"
    rate = None
    if num >= design.looks[0]:
        rate = judged.interval
        low, high = (1 - rate.high, 1 - rate.low) if needs_none else (rate.low, rate.high)
        of = "" if rate.count == num else f"after {_seeds(rate.count)} "
        seen = f"its rate is {of}{_percent(low)} to {_percent(high)} ({_level(rate.level, len(design.looks))})"
        text = f"{text}; {seen}"
        happened_then = rate.count - rate.happened if needs_none else rate.happened
        rate = replace(rate, happened=happened_then, low=low, high=high)
    reading = f"{ANSWERS[outcome, direction]} {text}; {needed}."
    seeds_to_decide = judged.seeds_to_decide
    if outcome == "undecided":
        goes_on = "If the next seeds do as most of these"
        reading += _what_next(num, seeds_to_decide, design, goes_on)
    return Finding(
        check,
        outcome,
        direction,
        reading,
        num,
        rate=rate,
        seeds_to_decide=seeds_to_decide,
        p_supported=judged.p_supported,
        p_contradicted=judged.p_contradicted,
        error=error,
        agrees=tuple(agrees),
        needed_rate=count.rate,
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _level(level: float, looks: int) -> str:
    return f"{100 * level:.3g} % interval" + (" over all looks" if looks > 1 else "")


def _what_next(num: int, seeds_to_decide: int | None, design: Design, goes_on: str) -> str:
    """What would decide an open check, or that nothing will."""
    if num >= design.last:
        last = "the study has no more looks" if len(design.looks) > 1 else "the study's number of seeds is fixed"
        return f" It stays so: {last}."
    if seeds_to_decide is not None:
        return f" {goes_on}, it is decided at {_seeds(seeds_to_decide)}."
    return f" {goes_on}, {_seeds(design.last)} will not decide it." if num > 1 else ""


def _numeric_finding(
    check: Check, study_runs: StudyRuns, settled: Sequence[int], design: Design, num_tests: int
) -> Finding:
    variants = list(dict.fromkeys(check.variants()))
    quantities = [quantity.of(settled) for quantity in study_runs.quantities(check)]
    num = len(settled)
    metric = quantities[0].metric
    error = max(levels(quantity.region, design)[0] for quantity in quantities)
    if metric in ("loss", "loss_roughness") and len(study_runs.losses(variants)) > 1:
        return Finding(check, "undecided", "unclear", "The variants have different losses, which do not compare.", 0)
    left_out = study_runs.left_out(variants)
    without = f" Left out: {_listed(left_out)} (diverged)." if left_out else ""
    num_seeds = min(len(quantity.values) for quantity in quantities)
    if num_seeds == 0:
        why = f"no value from {_listed(left_out)} (diverged)" if left_out else "no seed has all the runs that it needs"
        reading = f"{quantities[0].name} is not known: {why}."
        return Finding(check, "undecided", "not run", reading, 0, error=error)
    # Of several differences the one that is furthest from what the claim says is shown.
    worst = max(quantities, key=_excess)
    if num < design.looks[0]:
        mean = sum(worst.values.values()) / len(worst.values)
        text = f"{worst.name} is {_number(mean, worst)}{_unit(worst)}"
        few = "1 seed: direction only" if num_seeds == 1 else _seeds(num_seeds)
        first = f"the first look is at {_seeds(design.looks[0])}" if not design.is_fixed else "not yet all"
        reading = f"{text} ({few}; {first}); needed: {_needs(worst)}.{without}"
        return Finding(check, "undecided", _direction(mean, worst), reading, num_seeds, error=error)
    in_order = [[quantity.values.get(seed, math.nan) for seed in settled] for quantity in quantities]
    judged = [
        judge(values, quantity.region, design, num_tests) for values, quantity in zip(in_order, quantities, strict=True)
    ]
    outcome = _together([each.outcome for each in judged])
    shown = next((i for i, each in enumerate(judged) if each.outcome == "contradicted"), quantities.index(worst))
    quantity, interval = quantities[shown], judged[shown].interval
    direction = _direction(interval.mean, quantity)
    if outcome != "undecided":
        direction = "agrees" if outcome == "supported" else "disagrees"
    is_smaller = _is_smaller(interval.mean, quantity)
    seeds_to_decide = _to_decide(judged) if outcome == "undecided" else None
    reading = f"{_answer(outcome, direction, quantity, interval)} {_numbers(quantity, interval)}"
    if outcome == "undecided":
        reading += _what_next(num, seeds_to_decide, design, "If mean and spread stay as they are")
    return Finding(
        check, outcome, direction, f"{reading}{without}", num_seeds, interval, None, seeds_to_decide, is_smaller,
        p_supported=max(each.p_supported for each in judged), error=error, region=quantity.region,
        p_contradicted=min(each.p_contradicted for each in judged),
    )  # fmt: skip


def _numbers(quantity: Quantity, interval: Interval) -> str:
    mean, low, high = (_number(end, quantity) for end in (interval.mean, interval.low, interval.high))
    seeds = _seeds(interval.count)
    seeds += f" of {len(quantity.values)}" if len(quantity.values) > interval.count else ""
    return (
        f"{quantity.name} is {mean}{_unit(quantity)} ({_level(interval.level, interval.looks)} {low} to {high}; "
        f"{seeds}); needed: {_needs(quantity)}."
    )


def _answer(outcome: Outcome, direction: Direction, quantity: Quantity, interval: Interval) -> str:
    """In words that need no statistics; of an effect that is there, but not as large as claimed, just that."""
    size = _is_smaller(interval.mean, quantity)
    there = interval.low > 0 if math.isfinite(quantity.region.low) else interval.high < 0
    if outcome == "contradicted" and size:
        how = "The effect is there" if there else "It goes the way of the claim"
        return f"No. {how}, but it is smaller than what counts."
    if outcome == "undecided" and quantity.is_effect and there:
        return "Not decided: the effect is there, but whether it is as large as claimed is open."
    return ANSWERS[outcome, direction]


def _to_decide(judged: Sequence[Judgement]) -> int | None:
    needed = [each.seeds_to_decide for each in judged if each.outcome == "undecided"]
    known = [number for number in needed if number is not None]
    return max(known) if len(known) == len(needed) else None


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
    if not quantity.is_effect or value in quantity.region:
        return False
    return value > 0 if math.isfinite(quantity.region.low) else value < 0


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
                "seeds_to_decide": finding.seeds_to_decide,
                **_interval_json(finding.interval),
                "rate": None if finding.rate is None else asdict(finding.rate),
                "p_supported": finding.p_supported,
                "p_contradicted": finding.p_contradicted,
            }
            for finding in verdict.findings
        ],
        "design": verdict.design.as_json(),
        "p_supported": verdict.p_supported,
        "p_contradicted": verdict.p_contradicted,
        "reading": verdict.reading,
        "notes": [*verdict.notes, *verdict.difference_in_kind, *([verdict.conclusion] if verdict.conclusion else [])],
    }


def _interval_json(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"mean": None, "low": None, "high": None, "level": None}
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "level": interval.level}
