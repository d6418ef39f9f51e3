"""A study's results in words: the answer to its question, the numbers, what to be wary of, the figure's caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.figures.groups import make_groups
from analysis.figures.layout import reference_values
from analysis.formats import format_estimate, percent_range
from analysis.frames.load import accuracy_of, counts, describe_state
from analysis.report.study_table import decimals_of
from analysis.verdicts.verdicts import Verdict
from simsiam.record.catalogue import METRICS

VERBS = {  # of what a run came to
    "complete collapse": "z collapsed",
    "collapsed": "z collapsed",
    "dimensional collapse": "dimensional collapse",
    "divergence": "the loss diverged",
    "diverged": "the loss diverged",
}


def no_results(scale: str, images: Iterable[str]) -> str:
    """Why numbers cannot be taken for results, across the head of a page; "" where they can. ``images``: data sets."""
    if scale == "smoke":
        return (
            "The smoke scale trains a tiny network on generated images for seconds, to see that everything works. Its"
            " numbers and verdicts say nothing about the paper or about any method."
        )
    if "synthetic" in set(images):
        return "The images are generated, to see that everything works; no number says anything about a method."
    return ""


@dataclass(frozen=True)
class Summary:
    """What the runs of one variant came to."""

    name: str
    accuracy: float  # mean over the runs that ended, percent; NaN if there is none
    accuracy_text: str
    measure: str  # of the accuracy, in words
    knn: float  # likewise, of the kNN
    num_runs: int
    num_seeds: int  # that the accuracy rests on
    outcomes: dict[str, int]  # what runs came to, or how far they are, and how many
    loss: float
    z_std_relative: float

    @property
    def sentence(self) -> str:
        """``NAME: linear top-1 84.1 ± 0.3 % (3 seeds; healthy)``."""
        states = ", ".join(_phrase(what, count, self.num_runs) for what, count in self.outcomes.items())
        if not self.accuracy_text:
            return f"{self.name}: no result ({states})"
        seeds = f"{self.num_seeds} seed{'s' if self.num_seeds != 1 else ''}"
        return f"{self.name}: {self.measure} {self.accuracy_text} % ({seeds}; {states})"


def _phrase(what: str, count: int, num_runs: int) -> str:
    verb = VERBS.get(what.partition(",")[0])
    if verb:
        return verb if num_runs == 1 else f"{verb} in {count} of {num_runs} runs"
    return what if count == num_runs else f"{count} {what}"


def summaries(runs: pd.DataFrame) -> list[Summary]:
    """Each variant in a few numbers, in the order of the study."""
    found, metric = [], METRICS[accuracy_of(runs)]
    of_variants = {group.label: runs[runs["run"].isin(group.runs)] for group in make_groups(runs, "variant")}
    decimals = decimals_of(of_variants.values(), metric)
    for name, of_variant in of_variants.items():
        ended = of_variant[counts(of_variant)]
        values = ended[f"final_{metric.name}"].dropna()
        text = format_estimate(float(values.mean()), float(values.std()), decimals) if len(values) else ""
        outcomes = of_variant.apply(describe_state, axis=1).value_counts(sort=False).to_dict()
        found.append(
            Summary(
                name=name,
                accuracy=float(values.mean()),
                accuracy_text=text,
                measure=metric.name_in_table,
                knn=float(ended["final_knn_top1"].mean()),
                num_runs=len(of_variant),
                num_seeds=len(values),
                outcomes=outcomes,
                loss=float(ended["final_loss"].mean()),
                z_std_relative=float(ended["final_z_std_relative"].mean()),
            )
        )
    return found


def _from_best(variants: Sequence[Summary]) -> list[Summary]:
    """The variants with a result, the best first; of equal ones the first in the study."""
    return sorted((variant for variant in variants if variant.accuracy_text), key=lambda variant: -variant.accuracy)


_TALLY = {  # of one claim, and of several
    "supported": ("is supported", "are supported"),
    "contradicted": ("is contradicted", "are contradicted"),
    "agrees": ("is open, and agrees so far", "are open, and agree so far"),
    "disagrees": ("is open, and disagrees so far", "are open, and disagree so far"),
    "unclear": ("is open", "are open"),
    "not run": ("waits for runs", "wait for runs"),
}


def answer(verdicts: Sequence[Verdict], runs: pd.DataFrame) -> str:
    """What the runs say to the question of their study: of its first claim, and how many of the others went so.

    A study without claims has the numbers for an answer (:func:`in_numbers`).
    """
    if not verdicts:
        return in_numbers(runs)
    first, others = verdicts[0], verdicts[1:]
    says, at = first.claim.says.rstrip("."), f"at {first.scale} scale"
    seeds = f"{first.num_seeds} seed{'s' if first.num_seeds != 1 else ''}"
    open_ending = f"{seeds} {'do' if first.num_seeds != 1 else 'does'} not decide it"
    if first.outcome == "supported":
        text = f"{says}: yes, {at} ({seeds})."
    elif first.outcome == "contradicted":
        text = f"{says}: no, not {at} ({seeds})." + f" {first.conclusion}" * first.conclusion.startswith("At")
    elif first.direction == "not run":
        return f"No answer yet: the runs that decide it have not ended. It is claimed: {says[0].lower()}{says[1:]}."
    else:
        so_far = {"agrees": "so it looks", "disagrees": "it does not look so", "unclear": "it is open"}
        joined = ": " if first.direction == "unclear" else ", but "
        text = f"{says}: {so_far[first.direction]} {at}{joined}{open_ending}."
    if others:
        found = Counter(_TALLY.get(verdict.outcome) or _TALLY[verdict.direction] for verdict in others)
        parts = [f"{number} {many if number > 1 else one}" for (one, many), number in found.items()]
        if len(others) == 1:
            text += f" The other claim {parts[0][2:]}."
        elif len(parts) == 1:
            text += f" The other claims {parts[0].partition(' ')[2]}."
        else:
            text += f" Of {len(others)} other claims {', '.join(parts)}."
    return text


def in_numbers(runs: pd.DataFrame) -> str:
    """The results in one sentence: each variant if there are a few, else the ends of the range and what failed."""
    variants = summaries(runs)
    if len(variants) <= 4:
        return "; ".join(variant.sentence for variant in variants) + "."
    known = _from_best(variants)
    parts = []
    if known:
        parts.append(f"of {len(variants)} variants, the best is {known[0].sentence}")
    if len(known) > 1:
        parts.append(f"the lowest is {known[-1].sentence}")
    for verb in dict.fromkeys(VERBS.values()):
        names = [v.name for v in variants if any(VERBS.get(what.partition(",")[0]) == verb for what in v.outcomes)]
        if names:
            parts.append(f"{verb} in runs of {', '.join(names)}")
    failed = {"diverged", "divergence"}
    missing = [v.name for v in variants if not v.accuracy_text and not failed & v.outcomes.keys()]
    if missing:
        parts.append(f"no result yet for {', '.join(missing)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def warnings(runs: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers, in plain sentences."""
    found = []
    best = next(iter(_from_best(summaries(runs))), None)
    measure = METRICS[accuracy_of(runs)].heading.removesuffix(" (%)")
    references = {name: ends for name, ends, _ in reference_values(runs, accuracy_of(runs))}
    if best and "raw pixels" in references and best.accuracy < references["raw pixels"][1]:
        found.append(
            f"Even the best variant ({best.name}, {best.accuracy_text} %) is below a classifier on raw pixels "
            f"({measure} {percent_range(*references['raw pixels'])}). This can happen without any collapse: training "
            "is short, and where the objects of a data set are aligned and centred, comparing pixels place by place is "
            "hard to beat, while the crops of the augmentation teach the network to ignore place. Read the differences "
            "between variants and to the untrained network; do not take this for a good representation."
        )
    if best and "untrained" in references and best.accuracy <= references["untrained"][1]:
        found.append(
            f"No variant is above the untrained network ({measure} {percent_range(*references['untrained'])}): "
            "at this scale nothing was shown to be learnt."
        )
    states = Counter(runs.loc[runs["state"] != "done", "state"].replace(["missing", "pending"], "not run"))
    if states:
        text = ", ".join(f"{count} {state}" for state, count in states.items())
        found.append(f"{states.total()} of {len(runs)} runs have not ended ({text}): numbers and curves will change.")
    for column, what in (("code", "versions of the code"), ("versions", "sets of library versions")):
        count = runs[column].nunique()
        if count > 1:
            found.append(f"The runs were made with {count} different {what} (see Provenance): compare them with care.")
    if runs["git_dirty"].eq(True).any():
        found.append("Some runs were made from a checkout with uncommitted changes (see Provenance).")
    return found
