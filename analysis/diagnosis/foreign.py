"""The diagnosis of a log of another program: what it rests on, and what would change it.

A log says less than a run's folder. What its owner gives (:class:`Given`) is used; what is not given is taken as the
curves suggest, and is asked for only where another value would change the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.diagnosis.loss_range import loss_range
from analysis.diagnosis.rules import VERDICTS, Diagnosis, diagnose
from analysis.frames.foreign_columns import LEVEL, Log
from simsiam.record.catalogue import OUTPUT_BN

BYOL = "byol"  # 2 - 2 cosine
USUAL_BATCH = 256
USUAL_WIDTHS = tuple(2**power for power in range(4, 14))
NEAR = 0.03  # a std this near to 1/sqrt(d) of a usual width tells d
HIGHEST_STD = 0.25  # of z/|z| with sixteen channels or more


@dataclass(frozen=True)
class Given:
    """What the owner of a log says of the training."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted path, as in a run's config.yaml
    byol: bool = False  # the loss is 2 - 2 cosine
    epochs: float | None = None  # planned, in the unit of the log's time
    classes: int | None = None


@dataclass(frozen=True)
class ForeignDiagnosis:
    """A diagnosis and what it rests on."""

    diagnosis: Diagnosis
    rests_on: tuple[str, ...]  # sentences
    asks: tuple[str, ...]  # options that would change the verdict, each with what it would do
    points: pd.DataFrame
    run: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        return {**self.diagnosis.as_json(), "rests_on": list(self.rests_on), "asks": list(self.asks)}


@dataclass(frozen=True)
class _Guess:
    """What was taken for something that was not given, and what else it might be."""

    option: str
    taken: str  # a sentence
    path: str  # "" for the loss
    others: tuple[Any, ...]


CLASSES = _Guess("--classes", "the number of classes is not known", "reference_chance", (10, 100, 1000))


def diagnose_log(log: Log, given: Given) -> ForeignDiagnosis:
    """The diagnosis of a log, judged by the rules that judge runs."""
    settings, guesses = dict(given.settings), list[_Guess]()
    points = _in_our_units(log.points, given, settings, guesses)
    row = _row(log, given, settings, points)
    found = diagnose(_relative(points, settings), row)
    rests_on = [*log.notes, *(guess.taken for guess in guesses)]
    if log.not_finite:
        rests_on.append(
            f"the loss was not finite in {log.not_finite} of {log.num_rows:,} rows and came back; mixed precision skips"
            " such steps"
        )
    found, asks = _with_other_guesses(found, guesses, points, settings, row)
    has_scale = loss_range(row, 1.0) is not None  # whatever the first loss, of one that has its scale from that
    if "loss" in log.matched and "loss.name" not in settings and not has_scale and found.verdict == "cannot tell":
        asks.append("--loss, or of a loss that it does not name --chance and --optimum: they give the loss a scale")
    return ForeignDiagnosis(found, tuple(rests_on), tuple(asks), _relative(points, settings), row)


def diagnose_embeddings(points: pd.DataFrame, row: Mapping[str, Any], classes: int | None) -> ForeignDiagnosis:
    """The diagnosis of embeddings, a row of ``points`` for each file of a series; see experiments.weights.embeddings.

    classes: how many the images have, where the files hold no labels.
    """
    settings = {"projector.output_dim": row["projector.output_dim"]}
    guesses = []
    if classes is not None:
        row = {**row, "reference_chance": 100 / classes}
    elif "reference_chance" not in row and "effective_rank" in points:
        guesses.append(CLASSES)
    found, asks = _with_other_guesses(diagnose(points, row), guesses, points, settings, row)
    return ForeignDiagnosis(found, tuple(guess.taken for guess in guesses), tuple(asks), points, row)


def _with_other_guesses(
    found: Diagnosis,
    guesses: list[_Guess],
    points: pd.DataFrame,
    settings: Mapping[str, Any],
    row: Mapping[str, Any],
) -> tuple[Diagnosis, list[str]]:
    """What to ask for; and no health where that might prove a collapse."""
    asks = []
    plain = found
    for guess in guesses:
        verdicts = {value: _verdict_with(guess, value, points, settings, row) for value in guess.others}
        if changed := {value: verdict for value, verdict in verdicts.items() if verdict != plain.verdict}:
            asks.append(f"{guess.option}: {_in_words(changed)}")
            doubted = "complete collapse" in changed.values() or guess.others[0] in changed
            if found.verdict == "healthy" and doubted:
                found = _undecided(found, guess.option)
    return found, asks


def _undecided(found: Diagnosis, option: str) -> Diagnosis:
    """No health on the strength of a guess."""
    text = f"It looks healthy, but what {option} would say decides whether it is."
    evidence = (text, *found.evidence)
    return Diagnosis(found.run, "cannot tell", evidence, math.nan, math.nan, found.also, (), (), (), found.recorded)


def _in_our_units(points: pd.DataFrame, given: Given, settings: dict[str, Any], guesses: list[_Guess]) -> pd.DataFrame:
    """The measures as the rules read them, and in ``settings`` what the curves suggest and nobody gave."""
    points = points.copy()
    if given.byol:
        settings["loss.name"] = "cosine"
        if "loss" in points:
            points["loss"] = points["loss"] / 2 - 1
    elif "loss.name" not in settings and "reference_loss_chance" not in settings and "loss" in points:
        loss = points["loss"].dropna()
        if len(loss) and loss.between(-1.0001, 1.0001).all() and loss.min() < -0.01:
            settings["loss.name"] = "cosine"
            guesses.append(
                _Guess("--loss", "the loss is taken for the negative cosine: it is between -1 and 1", "", ())
            )
    if "batch_size" not in settings:
        settings["batch_size"] = USUAL_BATCH
        guesses.append(_Guess("--batch", f"the batch is taken for {USUAL_BATCH}", "batch_size", (32, 4096)))
    if "projector.bn_output" not in settings:
        settings |= OUTPUT_BN["affine"]
        text = "BN on the output, if any, is taken to have scale and shift"
        guesses.append(_Guess("--output-bn", text, "projector.bn_output_affine", ("plain",)))
    if "effective_rank" in points and given.classes is None:
        guesses.append(CLASSES)
    if LEVEL in points and "z_std_relative" not in points:
        points["z_std_relative"] = 1 - points[LEVEL]
    if "z_std" in points and "z_std_relative" not in points:
        highest = float(points["z_std"].max())
        dim = settings.get("projector.output_dim")
        if highest > 1.05 or (dim is None and highest > HIGHEST_STD) or (dim and highest * math.sqrt(dim) > 1.3):
            relative = highest <= 1.05
            points = points.rename(columns={"z_std": "z_std_relative"}) if relative else points.drop(columns="z_std")
            taken = "in units of 1/sqrt(d)" if relative else "of no unit vectors, and is not used"
            guesses.append(_Guess("--column", f"the std, up to {highest:.3g}, is taken to be {taken}", "", ()))
        elif dim is None and highest > 0:
            _guess_width(points, settings, guesses, highest)
    return points


def _guess_width(points: pd.DataFrame, settings: dict[str, Any], guesses: list[_Guess], highest: float) -> None:
    first = float(points["z_std"].dropna().iloc[0])
    near = [dim for dim in USUAL_WIDTHS if abs(first * math.sqrt(dim) - 1) < NEAR]
    if near:
        settings["projector.output_dim"] = near[0]
        text = f"d is taken for {near[0]}: the first std, {first:.4g}, is 1/sqrt(d)"
        guesses.append(_Guess("--dim", text, "projector.output_dim", ()))
        return
    settings |= {"projector.output_dim": 1 / highest**2, "std_of_highest": True}
    text = f"d is not known; the std is compared with its highest, {highest:.4g}, which is at most 1/sqrt(d)"
    others = tuple(dim for dim in USUAL_WIDTHS[2:] if highest * math.sqrt(dim) <= 1.05)
    guesses.append(_Guess("--dim", text, "projector.output_dim", others))


def _relative(points: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    if "z_std" not in points or "z_std_relative" in points:
        return points
    made: pd.DataFrame = points.assign(
        z_std_relative=points["z_std"] * math.sqrt(settings.get("projector.output_dim", math.nan))
    )
    return made


def _row(log: Log, given: Given, settings: Mapping[str, Any], points: pd.DataFrame) -> dict[str, Any]:
    """What the frame of runs would hold of it."""
    last = float(points["epoch"].iloc[-1]) if len(points) else math.nan
    ended = given.epochs is None or last >= given.epochs - 1
    row: dict[str, Any] = {
        "run": str(points["run"].iloc[0]) if len(points) else "",
        "state": "done" if ended else "running",
        "outcome": None,
        "epoch": last,
        "epochs": last if given.epochs is None else given.epochs,
        "unit_of_time": log.unit,
        "reference_chance": math.nan if given.classes is None else 100 / given.classes,
    }
    knn = points["knn_top1"].dropna() if "knn_top1" in points else pd.Series(dtype=float)
    if len(knn) and points.loc[knn.index[0], "step"] == 0:
        row["untrained_knn_top1"] = float(knn.iloc[0])
    return {**row, **settings}


def _verdict_with(
    guess: _Guess, value: Any, points: pd.DataFrame, settings: Mapping[str, Any], row: Mapping[str, Any]
) -> str:
    change: dict[str, Any] = {guess.path: value}
    if guess.option == "--output-bn":
        change = OUTPUT_BN[value]
    elif guess.option == "--classes":
        change = {guess.path: 100 / value}
    changed = {**settings, **change}
    return diagnose(_relative(points, changed), {**row, **change}).verdict


def _in_words(verdicts: Mapping[Any, str]) -> str:
    """``64 to 256: complete collapse; 512: healthy``."""
    groups: dict[str, list[Any]] = {}
    for value, verdict in verdicts.items():
        groups.setdefault(verdict, []).append(value)
    texts = []
    for verdict in sorted(groups, key=VERDICTS.index):
        values = groups[verdict]
        texts.append(f"with {values[0]}{f' to {values[-1]}' if len(values) > 1 else ''} it would be: {verdict}")
    return "; ".join(texts)
