"""What happened to a run, from its curves and settings: a verdict, the evidence, when it set in, and the usual causes.

::

    points, runs = load_runs("runs")
    for diagnosis in diagnose_runs(points, runs):
        print(diagnosis.run, diagnosis.verdict, *diagnosis.evidence, sep="\\n")

The outcome in a run's result is its own record, made while it trained; this is the reader's finer view of the same
curves. Every threshold below says whether it comes from theory or from data. docs/diagnosis.md explains the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.diagnosis.causes import Cause, causes_of
from analysis.diagnosis.loss_range import LossRange, loss_range, needed_for
from analysis.diagnosis.shape_of_curve import end_of, num_turns, residual, smooth, trailing
from analysis.formats import format_apart
from simsiam.record.catalogue import ONE_LINE_BELOW, collapse_threshold

VERDICTS = (  # in the order in which one hides another
    "divergence",
    "complete collapse",
    "oscillation",
    "no convergence",
    "dimensional collapse",
    "slow optimisation",
    "healthy",
    "too early to say",
    "cannot tell",  # what is logged does not tell health from a collapse, or has no scale
)

# Theory: 60 degrees between two directions. From where on a loss has converged: LossRange.converged_from.
COSINE_ALIKE = 0.5
# Theory: an exponential approach that needs a quarter of the run for its first half ends with 1/16 of the way ahead.
SLOW_HALF_AFTER = 0.25
# Convention: a loss that gains a tenth of the way in the second half of a run is still falling.
STILL_FALLING = 0.1
# Theory: log2(1 + 1) / 2 bits (Shannon), of a direction in which classes vary as much as the images of one class do.
BITS_PER_DIRECTION = 0.5
# Convention, where accuracy is at its best all the same: of ten classes, runs with 4.5 directions and fewer were
# labelled a collapse, runs with 6.0 and more were not (docs/diagnosis.md).
BITS_WITH_ACCURACY = 0.6
# Theory: half as many directions is one bit less of entropy in the spectrum.
SHARE_OF_HIGHEST_RANK = 0.5
# Theory: three standard deviations, sqrt(2 p (1 - p) / N) each, of a difference in accuracy over N = 10,000 images.
ACCURACY_FALL = 2.0
# Theory: one standard deviation of the same.
ACCURACY_NOISE = ACCURACY_FALL / 3
# Convention: swings smaller than a twentieth of the way from chance to the optimum are of no account. The other limit,
# the noise that the draw of batches explains, is theory: see LossRange.sampling_noise.
SMALLEST_SWING = 0.05
# Theory: the variances of z/|z| over channels and its centre sum to 1 (Zhang et al. 2022). Half variance is no point.
POINT_FROM = 0.5
NUM_TURNS = 4  # two whole swings: fewer are a bump
# Theory: ten times as far above the optimum as chance is; no normalised loss starts there.
DIVERGED_FROM = -9.0
# Convention: half of the std, which is three quarters of the variance, has gone.
SHARE_OF_HIGHEST_STD = 0.5
# Convention: the cosine loss of two random views that are told apart from other images has not come nearer to its
# minimum than this in any run that we know; without stop-gradient it ends at -0.999 and less (Fig. 2).
AT_THE_MINIMUM = 0.995
# Convention: an accuracy that rose by so many points since it was first measured shows that something was learnt.
ACCURACY_RISE = 5.0
# Convention: what has to be logged before a curve is judged, and how much of the run has to be over.
NUM_POINTS = 8
NUM_IN_A_ROW = 3
SHARE_OF_RUN = 0.25

Curve = NDArray[np.float64]  # (n, 3): step, epoch, value


@dataclass(frozen=True)
class Finding:
    """One thing that the curves show."""

    verdict: str
    evidence: tuple[str, ...]
    step: float = math.nan  # when it set in; NaN where that means nothing
    epoch: float = math.nan


@dataclass(frozen=True)
class Diagnosis:
    """What happened to a run."""

    run: str
    verdict: str  # one of VERDICTS
    evidence: tuple[str, ...]  # sentences with numbers
    step: float  # when it set in, NaN for healthy, too early to say and cannot tell
    epoch: float
    also: tuple[Finding, ...]  # what else the curves show
    causes: tuple[Cause, ...]  # that this run's settings show
    other_causes: tuple[Cause, ...]  # known for the verdict, but not in this run's settings
    unknown_causes: tuple[Cause, ...]  # known for the verdict, and this run's settings do not tell
    recorded: str | None  # the outcome in its result

    def __str__(self) -> str:
        since = "" if math.isnan(self.step) else f", from step {self.step:,.0f} on"
        of_settings, possible = "usual cause, in its settings", "possible cause"
        causes = [f"{of_settings if self.causes else possible}: {cause.sentence}" for cause in self.likely_causes]
        return "\n  ".join([f"{self.run}: {self.verdict}{since}", *self.evidence, *causes])

    @property
    def likely_causes(self) -> tuple[Cause, ...]:
        """Those that the settings show; where they show none, those that they do not exclude."""
        return self.causes or self.unknown_causes

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        return {
            "run": self.run,
            "verdict": self.verdict,
            "set_in": {"step": _plain(self.step), "epoch": _plain(self.epoch)},
            "evidence": list(self.evidence),
            "also": [
                {"verdict": one.verdict, "set_in": {"step": _plain(one.step), "epoch": _plain(one.epoch)}}
                | {"evidence": list(one.evidence)}
                for one in self.also
            ],
            "causes": [_cause(cause) for cause in self.causes],
            "other_causes": [_cause(cause) for cause in self.other_causes],
            "unknown_causes": [_cause(cause) for cause in self.unknown_causes],
            "recorded_outcome": self.recorded,
        }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cause(cause: Cause) -> dict[str, str]:
    return {"setting": cause.setting, "why": cause.why, "study": cause.study, "where": cause.where}


def diagnose_runs(points: pd.DataFrame, runs: pd.DataFrame) -> list[Diagnosis]:
    """The diagnosis of each row of ``runs``, see :func:`analysis.load_runs`."""
    by_run = dict(iter(points.groupby("run", sort=False)))
    return [diagnose(by_run.get(row["run"], points.iloc[:0]), row) for row in runs.to_dict("records")]


def diagnose(points: pd.DataFrame, run: Mapping[Any, Any]) -> Diagnosis:
    """What happened to one run: its rows of the frame of points, and its row of the frame of runs."""
    signs = _Signs(points, run)
    found = sorted(_findings(signs), key=lambda finding: VERDICTS.index(finding.verdict))
    first = found[0]
    shown, others, unknown = causes_of(first.verdict, run)
    facts = [*_rank_sentences(signs), *_context(signs)]
    recorded = run.get("outcome")
    return Diagnosis(
        run=str(run["run"]),
        verdict=first.verdict,
        evidence=(*first.evidence, *(fact for fact in facts if fact not in first.evidence)),
        step=first.step,
        epoch=first.epoch,
        also=tuple(found[1:]),
        causes=shown,
        other_causes=others,
        unknown_causes=unknown,
        recorded=recorded if isinstance(recorded, str) else None,
    )


@dataclass
class _Signs:
    """The curves of a run, and what its settings say they are to be judged against."""

    points: pd.DataFrame
    run: Mapping[Any, Any]
    loss: Curve = field(init=False)
    std: Curve = field(init=False)
    rank: Curve = field(init=False)
    centre: Curve = field(init=False)
    positive: Curve = field(init=False)
    knn: Curve = field(init=False)
    scale: LossRange | None = field(init=False)

    def __post_init__(self) -> None:
        self.loss, self.std = self.curve("loss"), self.curve("z_std_relative")
        self.rank, self.knn = self.curve("effective_rank"), self.curve("knn_top1")
        self.centre, self.positive = self.curve("centre"), self.curve("positive_cosine")
        self.scale = loss_range(self.run, self.loss[0, 2] if len(self.loss) else math.nan)

    def curve(self, name: str) -> Curve:
        """The finite values of a column; none if nothing of that name was logged."""
        if name not in self.points:
            return np.empty((0, 3))
        values: Curve = self.points[["step", "epoch", name]].to_numpy(float)
        return values[np.isfinite(values).all(axis=1)]

    def number(self, name: str) -> float:
        value = self.run.get(name)
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def width(self) -> float:
        """d; NaN where it is not known."""
        return math.nan if self.std_of_highest else self.number("projector.output_dim")

    @property
    def std_of_highest(self) -> bool:
        """Whether the std is relative to its own highest, since d is not known."""
        return self.run.get("std_of_highest") is True

    @property
    def enough(self) -> int:
        """How many values in a row decide: one where each is of many images, as that of an embedding file is."""
        return 1 if self.of_embeddings else NUM_IN_A_ROW

    @property
    def of_embeddings(self) -> bool:
        return self.run.get("of_embeddings") is True

    @property
    def unit(self) -> str:
        """In which the column ``epoch`` counts: epochs, but for logs of other programs that have none."""
        unit = self.run.get("unit_of_time")
        return unit if isinstance(unit, str) else "epoch"

    def end(self, curve: Curve) -> float:
        """The value at the end: that of the last file of embeddings, the mean of the last steps of a training."""
        return float(curve[-1, 2]) if self.of_embeddings else end_of(curve[:, 2])

    @property
    def ended(self) -> bool:
        return bool(self.run.get("state") == "done")

    @property
    def share(self) -> float:
        """How much of the planned run is over, 0 to 1."""
        if self.ended:
            return 1.0
        share = self.number("epoch") / self.number("epochs") if self.number("epochs") > 0 else 0.0
        return share if math.isfinite(share) else 0.0


def _findings(signs: _Signs) -> Iterator[Finding]:
    """All that the curves show, in no order; something in any case."""
    trouble = [*_divergence(signs), *_complete_collapse(signs)]
    yield from trouble
    if signs.of_embeddings or (not len(signs.loss) and signs.share >= SHARE_OF_RUN and len(signs.std) >= NUM_POINTS):
        yield from _without_loss(signs) if not trouble else ()
        return
    if len(signs.loss) < NUM_POINTS or signs.share < SHARE_OF_RUN:
        if not trouble:
            yield Finding("too early to say", (_how_far(signs),))
        return
    more = [*_oscillation(signs), *_dimensional_collapse(signs)] if not trouble else []
    more += _convergence(signs) if not trouble else []
    yield from more
    if trouble or more:
        return
    name = str(signs.run.get("loss.name")).partition("@")[0]
    if signs.scale is None and ":" in name and signs.ended:  # one's own, which says nothing of its ends
        text = f"The loss ({name}) names no chance and no optimum, so that its output alone was judged."
        yield Finding("healthy", (*_std_sentences(signs), text))
    elif signs.scale is None and ":" in name:
        yield Finding("too early to say", (_how_far(signs),))
    elif signs.scale is None:
        lacking = [path for path in needed_for(name) if path not in signs.run]
        text = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'}" if lacking else "Its settings are"
        yield Finding("cannot tell", (f"{text} not known, so that its loss has no scale.", *_std_sentences(signs)))
    elif (
        not signs.ended
        and signs.scale.level_tells
        and end_of(signs.scale.progress(signs.loss[:, 2])) < signs.scale.converged_from
    ):
        yield Finding("too early to say", (_how_far(signs), _loss_sentence(signs, signs.scale)))
    elif not _is_spread(signs):
        yield Finding("cannot tell", (*_why_not_spread(signs), _loss_sentence(signs, signs.scale)))
    else:
        yield Finding("healthy", (*_std_sentences(signs), _loss_sentence(signs, signs.scale)))


def _without_loss(signs: _Signs) -> Iterator[Finding]:
    """What can be said where no loss is known: of embeddings, and of a log that has none."""
    if found := [*_dimensional_collapse(signs)]:
        yield from found
    elif signs.of_embeddings:
        yield Finding("healthy", (*_std_sentences(signs), *_centre_sentences(signs)))
    else:
        text = "No loss is logged, so that nothing tells whether training converged."
        yield Finding("cannot tell", (text, *_std_sentences(signs)))


def _is_spread(signs: _Signs) -> bool:
    """Whether anything that is logged excludes a collapse: a loss near its optimum does not."""
    std_kept = len(signs.std) > 0 and signs.end(signs.std) >= SHARE_OF_HIGHEST_STD * signs.std[:, 2].max()
    return bool(std_kept or len(signs.rank) or _has_learnt(signs))


def _has_learnt(signs: _Signs) -> bool:
    """Whether kNN accuracy rose since it was first measured, and was not lost again."""
    knn = signs.knn[:, 2]
    return len(knn) > 1 and knn[-1] >= knn[0] + ACCURACY_RISE and knn[-1] > knn.max() - ACCURACY_FALL


def _at_its_best(signs: _Signs) -> bool:
    """Whether kNN accuracy rose, and ends at its highest but for the noise of a test set."""
    return _has_learnt(signs) and bool(signs.knn[-1, 2] > signs.knn[:, 2].max() - ACCURACY_NOISE)


def _why_not_spread(signs: _Signs) -> Iterator[str]:
    if len(signs.std):
        high, low = signs.std[:, 2].max(), signs.end(signs.std)
        yield f"The std fell to {100 * low / high:.0f} % of its highest, and nothing else excludes a collapse."
        yield from _std_sentences(signs)
    else:
        yield (
            "Nothing that is logged tells health from a collapse: a collapsed network has a low loss, too. Log the std"
            " of z/|z| (z_std), which is 1/sqrt(d) in health and goes to 0 in a collapse."
        )


# --- the rules ---------------------------------------------------------------------------------------------------


def _divergence(signs: _Signs) -> Iterator[Finding]:
    marked = signs.points[signs.points["diverged"]] if "diverged" in signs.points else signs.points.iloc[:0]
    if len(marked):
        step, epoch = float(marked["step"].iloc[0]), float(marked["epoch"].iloc[0])
        evidence = [f"The loss was NaN or infinite in step {step:,.0f}."]
        if len(signs.loss):
            evidence.append(f"The last loss before it was {signs.loss[-1, 2]:.4g}, the first {signs.loss[0, 2]:.4g}.")
        yield Finding("divergence", tuple(evidence), step, epoch)
    elif signs.of_embeddings and signs.number("not_finite") > 0:
        bad, num = signs.number("not_finite"), signs.number("num_vectors")
        text = f"{bad:,.0f} of {num:,.0f} vectors {'is' if bad == 1 else 'are'} not finite (NaN or infinite)."
        rest = "The others are measured without them." if bad < num else ""
        yield Finding("divergence", (text, *([rest] if rest else [])))
    elif signs.run.get("outcome") == "diverged":
        yield Finding("divergence", ("Its result says that it diverged; the curves do not show where.",))
    elif signs.scale is not None and len(signs.loss):
        low = signs.scale.progress(signs.loss[:, 2]) < DIVERGED_FROM
        start = trailing(low)
        if start < len(low):
            text = f"The loss is {signs.loss[-1, 2]:.4g}: more than ten times as far from {signs.scale.optimum_text}"
            yield Finding("divergence", (f"{text} as chance ({signs.scale.chance_text}).",), *signs.loss[start, :2])


def _complete_collapse(signs: _Signs) -> Iterator[Finding]:
    """The std below its threshold from some point on to the last (Fig. 2), unless z varies in a few channels.

    Also a rank of one line through a centre that is a point: the other half of the rule that training uses.
    """
    start = trailing(signs.std[:, 2] < threshold_of(signs.run))
    line = trailing(signs.rank[:, 2] < ONE_LINE_BELOW)
    is_point = len(signs.centre) and signs.end(signs.centre) >= POINT_FROM
    if len(signs.std) - start < signs.enough and is_point and len(signs.rank) - line >= min(2, signs.enough):
        evidence = [*_rank_sentences(signs), *_centre_sentences(signs), *_std_sentences(signs)]
        yield Finding("complete collapse", tuple(evidence), *signs.rank[line, :2])
    if len(signs.std) - start >= signs.enough:
        evidence = [*_std_sentences(signs), *_centre_sentences(signs), *_rank_sentences(signs)]
        if len(signs.centre) and signs.end(signs.centre) < POINT_FROM:
            yield Finding("dimensional collapse", tuple(evidence), *signs.std[start, :2])
            return
        if told := _too_far_for_a_point(signs):
            yield Finding("dimensional collapse", (told, *evidence), *signs.std[start, :2])
            return
        if signs.scale is not None and len(signs.loss):
            evidence.insert(1, _loss_sentence(signs, signs.scale))
        yield Finding("complete collapse", tuple(evidence), *signs.std[start, :2])
    elif told := _no_better_than_a_point(signs):
        start = trailing(smooth(signs.std[:, 2]) ** 2 < 1 - POINT_FROM)
        yield Finding(
            "complete collapse", (told, *_std_sentences(signs)), *signs.std[min(start, len(signs.std) - 1), :2]
        )
    elif not len(signs.std) and not len(signs.rank) and signs.scale is not None and signs.scale.name == "cosine":
        start = trailing(signs.scale.progress(signs.loss[:, 2]) > AT_THE_MINIMUM)
        if len(signs.loss) - start >= max(NUM_IN_A_ROW, len(signs.loss) // 10):
            text = "Two random views do not agree so well unless all images do; the std of z/|z| would prove it."
            yield Finding("complete collapse", (_loss_sentence(signs, signs.scale), text), *signs.loss[start, :2])


def _cosines(signs: _Signs) -> tuple[float, float] | None:
    """The cosine of p and z at the end, and what a constant p would reach if all channels of z vary alike.

    Where no centre is logged and p follows z; else None. The centre is then 1 - std^2 d, and a constant p has its root
    as its mean cosine with z.
    """
    if len(signs.centre) or not len(signs.std) or signs.scale is None or signs.scale.name != "cosine":
        return None
    cosine = -end_of(signs.loss[:, 2]) if len(signs.loss) else math.nan
    of_constant = math.sqrt(max(1 - signs.end(signs.std) ** 2, 0.0))
    return (cosine, of_constant) if cosine >= COSINE_ALIKE else None


def _too_far_for_a_point(signs: _Signs) -> str:
    """A sentence where the std is low, but p is further from z than from a z near one point; else ""."""
    cosines = _cosines(signs)
    if cosines is None or cosines[0] >= cosines[1] - SMALLEST_SWING:
        return ""
    return (
        f"The std is low, but z is no point: a constant p would have a cosine of {cosines[1]:.2f} with it, and p has"
        f" {cosines[0]:.2f}. So z varies in a few channels only."
    )


def _no_better_than_a_point(signs: _Signs) -> str:
    """A sentence where the std is above its limit, but most of z/|z| is its centre and a constant p would do; or ""."""
    cosines = _cosines(signs)
    if cosines is None or len(signs.std) < NUM_IN_A_ROW or len(signs.rank):
        return ""
    if signs.end(signs.std) ** 2 >= 1 - POINT_FROM or cosines[0] >= cosines[1] + SMALLEST_SWING:
        return ""
    return (
        f"A constant p would have a cosine of {cosines[1]:.2f} with such a z, and p has {cosines[0]:.2f}: hardly more,"
        " so that the loss is that of a z near one point."
    )


def threshold_of(run: Mapping[Any, Any]) -> float:
    """The relative std below which this run's z is collapsed; that of an affine output BN if settings are missing."""
    batch_size = run.get("batch_size")
    known = isinstance(batch_size, int | float) and batch_size > 0
    return collapse_threshold(
        int(batch_size) if known else 1,  # type: ignore[arg-type]
        bn_output=known and run.get("projector.bn_output") is True,
        bn_output_affine=run.get("projector.bn_output_affine") is not False,
    )


def _dimensional_collapse(signs: _Signs) -> Iterator[Finding]:
    """The std is healthy, but z has too few directions for the classes, or has lost many and accuracy with them."""
    trained = signs.rank[signs.rank[:, 0] > 0]
    enough = 1 if signs.of_embeddings else min(2, max(len(trained), 1))  # evaluations in a row, to the last
    limit, meaning = rank_limit(signs)
    start = trailing(trained[:, 2] < limit)
    if len(trained) - start >= enough:
        uses, *history = _rank_sentences(signs)
        evidence = (uses, f"{meaning}.", *history, *_std_sentences(signs))
        yield Finding("dimensional collapse", evidence, *trained[start, :2])
        return
    yield from _lost_std(signs)
    if not len(trained):
        return
    (_, _, rank), then, now = _before_the_loss(signs)
    start = trailing(trained[:, 2] < SHARE_OF_HIGHEST_RANK * rank)
    if len(trained) - start >= enough and then - now >= ACCURACY_FALL:  # False where no accuracy is logged: NaN
        evidence = (*_rank_sentences(signs), "So directions were lost, and accuracy with them.", *_std_sentences(signs))
        yield Finding("dimensional collapse", evidence, *trained[start, :2])


def _lost_std(signs: _Signs) -> Iterator[Finding]:
    """Where no rank is logged: the std is above its limit, but below half of its highest, and accuracy was lost."""
    if len(signs.rank) or not len(signs.std) or not len(signs.knn) or signs.end(signs.std) < threshold_of(signs.run):
        return
    highest = int(np.argmax(signs.std[:, 2]))
    start = trailing(smooth(signs.std[:, 2]) < SHARE_OF_HIGHEST_STD * signs.std[highest, 2])
    then = float(np.interp(signs.std[highest, 0], signs.knn[:, 0], signs.knn[:, 2]))
    now = float(signs.knn[-1, 2])
    if len(signs.std) - start >= NUM_IN_A_ROW and then - now >= ACCURACY_FALL:
        share = signs.end(signs.std) / signs.std[highest, 2]
        text = f"The std fell to {100 * share:.0f} % of its highest, kNN accuracy by {then - now:.1f} points since."
        yield Finding("dimensional collapse", (text, *_std_sentences(signs)), *signs.std[start, :2])


def _before_the_loss(signs: _Signs) -> tuple[NDArray[np.float64], float, float]:
    """The evaluation since which the rank has more than halved, kNN accuracy then, and at the end.

    Of several, the one with the best accuracy; where the rank has not halved, that with the highest rank. Accuracies
    are NaN where none is logged.
    """
    highest = signs.rank[np.argmax(signs.rank[:, 2])]
    if not len(signs.knn):
        return highest, math.nan, math.nan
    before = signs.rank[signs.rank[-1, 2] < SHARE_OF_HIGHEST_RANK * signs.rank[:, 2]]
    before = before if len(before) else highest[None]
    accuracy = np.interp(before[:, 0], signs.knn[:, 0], signs.knn[:, 2])
    best = int(np.argmax(accuracy))
    return before[best], float(accuracy[best]), float(signs.knn[-1, 2])


def rank_limit(signs: _Signs) -> tuple[float, str]:
    """The effective rank below which z cannot tell the classes apart, and what it means to be below."""
    if not 0 < signs.number("reference_chance") < 100:
        return ONE_LINE_BELOW, f"That is below {ONE_LINE_BELOW}: all of z lies on one line"
    return _limit_at(signs, BITS_WITH_ACCURACY if _at_its_best(signs) else BITS_PER_DIRECTION)


def _limit_at(signs: _Signs, bits: float) -> tuple[float, str]:
    """The directions that the classes need if each carries so many bits."""
    num_classes = 100 / signs.number("reference_chance")
    limit = math.log2(num_classes) / bits
    shown = format_apart(signs.rank[-1, 2], limit, 1)[1] if len(signs.rank) else f"{limit:.1f}"
    each = "half a bit" if bits == BITS_PER_DIRECTION else f"{bits:g} bits"
    return limit, f"That is fewer than the {shown} that {num_classes:.0f} classes need, at {each} for each direction"


def _oscillation(signs: _Signs) -> Iterator[Finding]:
    """The loss goes up and down by more than the draw of batches explains (Table 3d), in the second half of the run."""
    if signs.scale is None:
        return
    late = signs.loss[len(signs.loss) // 2 :]
    if len(late) < 2 * NUM_POINTS:
        return
    swings = residual(late[:, 2])
    noise = signs.scale.sampling_noise(float(np.mean(late[:, 2])))
    limit = max(SMALLEST_SWING * signs.scale.span, noise)
    size, turns = float(np.sqrt(np.mean(swings**2))), num_turns(swings, 2 * limit)
    if size <= limit or turns < NUM_TURNS:
        return
    whole = residual(signs.loss[:, 2])
    first = int(np.argmax(np.abs(whole) > 2 * limit)) if (np.abs(whole) > 2 * limit).any() else len(signs.loss) // 2
    yield Finding(
        "oscillation",
        (
            f"In the second half the loss swings by {size:.3g} (rms) around its best monotone curve, turning"
            f" {turns} times; the draw of batches of {signs.scale.batch_size} explains at most {noise:.3g}.",
            _loss_sentence(signs, signs.scale),
            *_std_sentences(signs),
        ),
        *signs.loss[first, :2],
    )


def _convergence(signs: _Signs) -> Iterator[Finding]:
    """Whether the loss came from chance to its optimum, and how fast; of runs that have ended."""
    if signs.scale is None or not signs.ended:
        return
    sentence = _loss_sentence(signs, signs.scale)
    progress = signs.scale.progress(smooth(signs.loss[:, 2]))
    if not signs.scale.level_tells:
        if end_of(progress) < -SMALLEST_SWING:
            yield Finding("no convergence", (sentence, "That is worse than chance.", *_std_sentences(signs)))
        return
    warmup = signs.number("optimizer.warmup_epochs")
    epochs = signs.loss[:, 1] - (warmup if math.isfinite(warmup) else 0)
    half = np.flatnonzero(progress >= end_of(progress) / 2)  # of the way that it came
    quarter = len(progress) // 4
    gain = float(progress[-max(quarter, 1) :].mean() - progress[quarter : 2 * quarter + 1].mean())
    if end_of(progress) < signs.scale.converged_from:
        text = f"From the second to the last quarter of the run it gained {100 * gain:.0f} % of the way"
        if gain >= STILL_FALLING:
            yield Finding("slow optimisation", (sentence, f"{text}, and is still falling.", *_std_sentences(signs)))
        else:
            yield Finding(
                "no convergence", (sentence, f"{text}.", *_view_sentences(signs, signs.scale), *_std_sentences(signs))
            )
    elif epochs[half[0]] > SLOW_HALF_AFTER * max(epochs[-1], 1e-12):
        text = (
            f"It took {epochs[half[0]]:.3g} of {epochs[-1]:.3g} {signs.unit}s after the warm-up for the first half of"
        )
        yield Finding("slow optimisation", (f"{text} the way that it came.", sentence, *_std_sentences(signs)))


# --- sentences ---------------------------------------------------------------------------------------------------


def _std_sentences(signs: _Signs) -> list[str]:
    if not len(signs.std):
        return []
    threshold = threshold_of(signs.run)
    end = signs.end(signs.std)
    side = "below" if end < threshold else "above"
    value, limit = format_apart(end, threshold, 2)
    unit = "of its highest" if signs.std_of_highest else "/ sqrt(d)"
    found = [f"The std of z/|z| is {value} {unit} at the end, {side} the limit of a collapse, {limit}."]
    if signs.run.get("projector.bn_output") is True and signs.run.get("projector.bn_output_affine") is False:
        found.append("Its output BN has no scale and shift, which hides a collapse from the std: see the rank.")
    return found


def _centre_sentences(signs: _Signs) -> list[str]:
    """Whether a low std comes from z being one point, or from few channels in which it varies."""
    if not len(signs.centre):
        return []
    end = signs.end(signs.centre)
    low = len(signs.std) > 0 and signs.end(signs.std) < threshold_of(signs.run)
    meaning = "z is no point, but varies in a few channels only" if low else "z is no point"
    meaning = "z is near one point" if end >= POINT_FROM else meaning
    return [f"The centre |E z/|z||^2 is {end:.2f}: {meaning} (1 is a point)."]


def _view_sentences(signs: _Signs, scale: LossRange) -> list[str]:
    """Where the loss compares p with z: whether z itself agrees between views."""
    if not len(signs.positive) or scale.name != "cosine":
        return []
    end = signs.end(signs.positive)
    meaning = "the encoder makes views alike, p does not follow" if end >= COSINE_ALIKE else "views are not alike"
    return [f"The z of two views of an image have a cosine of {end:.2f} at the end: {meaning}."]


def _rank_sentences(signs: _Signs) -> list[str]:
    """How many directions z uses: a fact that is no verdict by itself."""
    if not len(signs.rank):
        return []
    first, highest, last = signs.rank[0], signs.rank[np.argmax(signs.rank[:, 2])], signs.rank[-1, 2]
    of = f"{signs.width:.0f}" if math.isfinite(signs.width) else "many"
    exact = format_apart(last, rank_limit(signs)[0], 1)[0]
    start = f"{first[2]:.1f} {'before training' if first[0] == 0 else 'when first measured'}"
    most = f" and at most {highest[2]:.1f} ({signs.unit} {highest[1]:.3g})" if highest[0] != first[0] else ""
    found = [f"z uses about {last:.0f} of its {of} directions (effective rank {exact})."]
    limit = rank_limit(signs)[0]
    if limit <= last < BITS_WITH_ACCURACY / BITS_PER_DIRECTION * limit and _at_its_best(signs):
        found.append(f"{_limit_at(signs, BITS_PER_DIRECTION)[1]}; but kNN accuracy rose, and is at its best.")
    if len(signs.rank) > 1 or not signs.of_embeddings:
        found.append(f"The rank was {start}{most}.")
    (_, since, rank), then, now = _before_the_loss(signs)
    if last < SHARE_OF_HIGHEST_RANK * rank and math.isfinite(then):
        when = f"{signs.unit} {since:.3g}"
        found.append(f"It has more than halved since {when}, while kNN accuracy went from {then:.1f} to {now:.1f} %.")
    return found


def _loss_sentence(signs: _Signs, scale: LossRange) -> str:
    end = end_of(signs.loss[:, 2])
    if not scale.level_tells:
        return (
            f"The loss ({scale.name}) is {end:.3g} at the end; chance is {scale.chance:.3g} ({scale.chance_text})."
            " How low it can get depends on the scale of z, so that its level does not tell how far training came."
        )
    return (
        f"The loss ({scale.name}) is {end:.3g} at the end: {100 * scale.progress(end):.0f} % of the way from chance"
        f" ({scale.chance:.3g}: {scale.chance_text}) to {scale.optimum_text} ({scale.optimum:.3g})."
    )


def _how_far(signs: _Signs) -> str:
    """What is lacking for a verdict: losses, or time."""
    num, epoch, epochs = len(signs.loss), signs.number("epoch"), signs.number("epochs")
    counted = "no loss is" if not num else "1 loss is" if num == 1 else f"{num} losses are"
    if num >= NUM_POINTS:
        text = f"{counted} logged"
    elif not signs.ended:
        text = f"{counted} logged so far, {NUM_POINTS} are needed"
    else:
        every = signs.run.get("logged_every")  # of a CollapseMonitor
        how = f" (every={every:.0f} now)" if isinstance(every, int | float) else ""
        text = f"{counted} logged, {NUM_POINTS} are needed: log more often{how}"
    if not signs.ended and epochs > 0 and not math.isnan(epoch):
        text += f"; {epoch:.2f} of {epochs:g} {signs.unit}s are over"
        text += f", and {SHARE_OF_RUN * epochs:g} are needed" if signs.share < SHARE_OF_RUN else ""
    return f"{text[0].upper()}{text[1:]}."


def _context(signs: _Signs) -> Iterator[str]:
    """The accuracy, and how it is to be read: it decides nothing (footnote 4)."""
    if not len(signs.knn):
        return
    last, untrained, chance = signs.knn[-1, 2], signs.number("untrained_knn_top1"), signs.number("reference_chance")
    others = [("untrained", untrained), ("chance", chance)]
    known = ", ".join(f"{name} {value:.1f} %" for name, value in others if not math.isnan(value))
    yield f"kNN accuracy is {last:.1f} %{f' ({known})' if known else ''}."
    if last < 2 * chance:
        yield "Accuracy near chance is not by itself a collapse (footnote 4)."
    elif last <= untrained:
        yield "That is not above the untrained network: nothing that kNN sees was learnt."
        if len(signs.positive) and len(signs.centre):
            alike, all_alike = signs.end(signs.positive), signs.end(signs.centre)
            if alike - all_alike >= COSINE_ALIKE:  # the centre is the mean cosine of any two images
                yield (
                    f"Yet z tells images apart (cosine of two views {alike:.2f}, of any two images {all_alike:.2f}): by"
                    " something that is not their class, a shortcut."
                )
