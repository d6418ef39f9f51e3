"""Which column of a log is which measure, and the log as a frame of points like those of :func:`analysis.load_runs`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.frames.foreign_files import Column, Table
from simsiam.errors import SettingsError, nearest
from simsiam.record.catalogue import METRICS

STEP, EPOCH, LEVEL = "step", "epoch", "collapse_level"
ROUNDING = 1e-3  # by which a value may leave its range
MOST_POINTS = 20_000  # of a longer log every k-th row is taken, which keeps the noise of its values as it is

_LOSS = r"(neg_?cos\w*|neg(ative)?_cosine(_similarity)?|\w*loss\w*|objective)"
_OTHER = r"(val|valid|validation|test|eval|online|linear|probe|classifier|cls|supervised|ce|min|max|grad|lr|weight)"
# In order: the first one that fits a column's name, in lower case and with _ for all signs, has it.
_PATTERNS: tuple[tuple[str, str, str], ...] = (  # measure, what fits the whole name, a word that rules it out
    (STEP, r"(train(er|ing)?_|opt(imizer)?_|n_|num_)?(global_step|step|iter(ation)?|it|update)s?", ""),
    (EPOCH, r"(train(er|ing)?_|current_|num_|n_)?(epoch|ep)s?", ""),
    (LEVEL, r"(.*_)?collapse_level(_.*)?", ""),
    ("z_std_relative", r"(.*_)?(std_(relative|rel|x_sqrt_d|sqrt_d|times_sqrt_d)|relative_std)(_.*)?", _OTHER),
    ("z_std", r"(.*_)?(std|stddev|std_of_l2_normalized|std_of_z)(_(z|step|epoch|of_z|mean|avg))*", _OTHER),
    ("effective_rank", r"(.*_)?(effective_rank|eff_rank|erank|rank_?me)(_.*)?", "log"),
    ("centre", r"(.*_)?centre(_norm_sq)?", ""),
    ("knn_top1", r"(.*_)?knn(_.*)?", "loss|time|top_?5|k"),
    ("loss", rf"(.*_)?{_LOSS}(_.*)?", _OTHER),
    ("knn_top1", r"(.*_)?(acc|accuracy|acc1|top1|top_1)(_.*)?", "loss|time|top_?5|acc5"),
)
MEANINGS = {
    STEP: "updates of the weights, or rows",
    EPOCH: "passes over the training set",
    LEVEL: "1 - std x sqrt(d), as in lightly's tutorial",
}
MEASURES = (STEP, EPOCH, LEVEL, *(name for name, metric in METRICS.items() if metric.is_curve and name != "lr"))


def measure_of(name: str) -> str | None:
    """The measure that a column's name stands for; None if it says nothing."""
    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()).strip("_")
    plain = plain.replace("k_nn", "knn")
    if plain in MEASURES:
        return plain
    for measure, pattern, without in _PATTERNS:
        if re.fullmatch(pattern, plain) and not (without and re.search(rf"(^|_)({without})(_|$)", plain)):
            return measure
    return None


def parse_columns(assignments: Iterable[str]) -> dict[str, str]:
    """``MEASURE=COLUMN`` of the command line: the column of each measure. Raises SettingsError."""
    chosen: dict[str, str] = {}
    for assignment in assignments:
        measure, equals, column = assignment.partition("=")
        if not equals or not column:
            raise SettingsError(f"{assignment!r} is not of the form MEASURE=COLUMN, e.g. loss=train/loss  [--column]")
        if measure not in MEASURES:
            raise SettingsError(
                f"column: {measure!r} is no measure{nearest(measure, list(MEASURES))}; there are "
                f"{', '.join(MEASURES)}  [--column {assignment}]"
            )
        chosen[measure] = column
    return chosen


def choose_columns(names: Iterable[str], given: Mapping[str, str]) -> list[str]:
    """The columns that may be of use: those given, and all whose name stands for another measure."""
    names = list(names)
    guessed = [name for name in names if (measure := measure_of(name)) is not None and measure not in given]
    return [*(name for name in given.values() if name in names), *guessed]


@dataclass
class Log:
    """A log as the rules read it."""

    points: pd.DataFrame  # run, step, epoch, diverged and a column for each measure
    matched: dict[str, str]  # measure -> column
    unit: str  # of the time in `epoch`: epoch, step or row
    num_rows: int
    notes: list[str] = field(default_factory=list)  # what was done to the rows
    not_finite: int = 0  # losses that were logged and are not finite, from which the run came back


def match(table: Table, given: Mapping[str, str]) -> dict[str, str]:
    """The column of each measure; of several that fit, the one with most values, then the shortest name.

    Raises SettingsError for a given column that the file has not.
    """
    for measure, name in given.items():
        if name not in table.columns:
            known = ", ".join(map(repr, table.names[:20]))
            raise SettingsError(
                f"{table.source}: has no column {name!r}{nearest(name, table.names)}; it has {known}"
                f"{' ...' if len(table.names) > 20 else ''}  [--column {measure}={name}]"
            )
    matched = dict(given)
    fitting: dict[str, list[str]] = {}
    for name in table.columns:
        guessed = measure_of(name)
        if guessed is not None and guessed not in given and name not in given.values():
            fitting.setdefault(guessed, []).append(name)
    for of, names in fitting.items():
        counts = {name: int((~np.isnan(table.columns[name])).sum()) for name in names}
        knn = [name for name in names if "knn" in name.lower().replace("-", "")]
        names = [name for name in (knn if of == "knn_top1" and knn else names) if counts[name]]
        if names:
            matched[of] = min(names, key=lambda name: (-counts[name], len(name)))
    return matched


def cannot_be(measure: str, values: Column) -> str:
    """Why a column is not this measure: values that it cannot have, by the catalogue. Empty: there is none.

    A rank of 0, where it is at least 1, is a collapsed one as some write it; so lower ends above 0 count as 0.
    """
    if measure not in METRICS:
        return ""
    metric = METRICS[measure]
    low = min(metric.low, 0.0)
    outside = np.isfinite(values) & ((values < low - ROUNDING) | (values > metric.high + ROUNDING))
    if not outside.any():
        return ""
    span = f"at least {low:g}" if math.isinf(metric.high) else f"from {low:g} to {metric.high:g}"
    return f"{metric.title} is {span}, and {outside.sum():,} of its values are not, {values[outside][0]:g} the first"


def as_log(table: Table, given: Mapping[str, str]) -> Log:
    """A table as points in order of step: restarts resolved, a time for each row, percent for shares.

    Raises SettingsError if none of its columns is a measure that tells anything.
    """
    matched = match(table, given)
    measures = {name: table.columns[column] for name, column in matched.items() if name not in (STEP, EPOCH)}
    if not measures:
        if empty := [name for name in table.columns if measure_of(name) not in (None, STEP, EPOCH)]:
            raise SettingsError(f"{table.source}: there is no number in {', '.join(map(repr, empty))}")
        names = ", ".join(map(repr, table.names[:20])) or "none"
        raise SettingsError(
            f"{table.source}: none of its columns has a name that is known ({names}); say which is which with"
            " --column loss=NAME, --column z_std=NAME"
        )
    num_rows = len(next(iter(measures.values())))
    notes: list[str] = []
    for name, values in list(measures.items()):
        if not (reason := cannot_be(name, values)):
            continue
        column = matched[name]
        if name in given:
            raise SettingsError(f"{table.source}: {column!r} is not {name}: {reason}  [--column {name}={column}]")
        notes.append(f"{column} is not taken for {name}: {reason}")
        del matched[name], measures[name]
    if not measures:
        raise SettingsError(f"{table.source}: {'; '.join(notes)}")
    step, epoch, rows = _times(table, matched, num_rows, notes)
    measures = {name: values[rows] for name, values in measures.items()}
    loss = measures.get("loss")
    nothing = np.all([np.isnan(values) for values in measures.values()], axis=0)
    diverged_at, came_back = _divergence(loss, nothing) if loss is not None else (None, 0)
    kept = np.arange(len(rows))
    if len(rows) > MOST_POINTS:
        kept = kept[:: math.ceil(len(rows) / MOST_POINTS)]
        evaluations = [np.flatnonzero(~np.isnan(values)) for values in measures.values()]
        kept = np.unique(np.concatenate([kept, *(found for found in evaluations if len(found) <= MOST_POINTS)]))
        notes.append(f"of its {num_rows:,} rows about every {math.ceil(len(rows) / MOST_POINTS)}th is judged")
    if diverged_at is not None:
        kept = np.unique([*kept[kept < diverged_at], diverged_at])
    frame = {"step": step[kept], "epoch": epoch[kept]}
    for name, values in measures.items():
        chosen = np.where(np.isfinite(values[kept]), values[kept], math.nan)
        if METRICS.get(name) and METRICS[name].unit == "%" and np.nanmax(chosen, initial=0) <= 1:
            chosen = 100 * chosen
            notes.append(f"{matched[name]} is taken for a share and shown in percent")
        frame[name] = chosen
    points = pd.DataFrame(frame)
    points["diverged"] = kept == diverged_at if diverged_at is not None else False
    points.insert(0, "run", table.name)
    unit = "epoch" if EPOCH in matched else "step" if STEP in matched else "row"
    return Log(points, matched, unit, num_rows, notes, came_back)


def _times(
    table: Table, matched: Mapping[str, str], num_rows: int, notes: list[str]
) -> tuple[Column, Column, NDArray[np.int64]]:
    """Step and epoch of the rows that count, and which rows these are, in order."""
    rows = np.arange(num_rows)
    epoch = _filled(table.columns[matched[EPOCH]]) if EPOCH in matched else None
    step = _filled(table.columns[matched[STEP]]) if STEP in matched else None
    time = step if step is not None else epoch
    if time is not None and num_rows > 1:
        falls = np.flatnonzero(np.diff(time) < 0) + 1
        if step is not None and epoch is not None and len(falls) > 1 and (np.diff(epoch)[falls - 1] > 0).mean() > 0.9:
            notes.append(f"{matched[STEP]} begins anew in each epoch; rows are counted instead")
            step, falls = rows.astype(float), np.flatnonzero(np.diff(epoch) < 0) + 1
            time = epoch
        if len(falls) > max(20, num_rows // 20):
            notes.append("its rows are out of order and are sorted")
            rows = np.argsort(time, kind="stable")
        elif len(falls):
            rows = _resumed(time, falls)
            times = "once" if len(falls) == 1 else f"{len(falls)} times"
            notes.append(f"it was resumed {times}; {num_rows - len(rows)} rows that were trained again are left out")
    step = step[rows] if step is not None else rows.astype(float)
    if np.any(np.diff(step) < 0):
        step = np.maximum.accumulate(step)
    if epoch is None:
        return step, step, rows
    epoch = np.maximum.accumulate(epoch[rows])
    if num_rows > 1 and np.all(epoch == np.floor(epoch)):
        epoch = _within(epoch)
    return step, epoch, rows


def _resumed(time: Column, falls: NDArray[np.int64]) -> NDArray[np.int64]:
    """As attempts of a run are merged: a later one wins from the row on at which it begins."""
    begins = np.full(len(time) + 1, math.inf)
    begins[falls] = time[falls]
    earliest = np.minimum.accumulate(begins[::-1])[::-1][1:]  # of the attempts that begin after each row
    return np.flatnonzero(time < earliest)


def _within(epoch: Column) -> Column:
    """Whole epochs, counted from 0 or 1, as a time that also grows within each: the epochs that are over."""
    starts = np.flatnonzero(np.diff(epoch, prepend=-1) > 0)
    lengths = np.diff(starts, append=len(epoch))
    place = np.arange(len(epoch)) - np.repeat(starts, lengths)
    grown: Column = epoch - epoch[0] + (place + 1) / np.repeat(lengths, lengths)
    return grown


def _filled(values: Column) -> Column:
    """Times without gaps: a row without one has that of the row before."""
    series = pd.Series(np.where(np.isfinite(values), values, math.nan)).ffill().bfill().fillna(0.0)
    filled: Column = series.to_numpy(float)
    return filled


def _divergence(loss: Column, nothing: NDArray[np.bool_]) -> tuple[int | None, int]:
    """The row in which a loss stopped being finite for good, and how many it came back from otherwise.

    A loss that is not finite at the end counts where that stretch is longer than any from which the loss came back: a
    program may write NaN in rows that are not of training, and mixed precision skips steps whose gradient overflows.
    Some programs write an empty cell for NaN: three rows of ``nothing``, twice as many as ever before.
    """
    logged = np.flatnonzero(np.isfinite(loss))
    bad = np.flatnonzero(np.isinf(loss))
    if not len(logged):
        return (int(bad[0]), 0) if len(bad) else (None, 0)
    last = int(logged[-1])
    gaps = np.diff(logged) - 1
    longest = int(gaps.max(initial=0))
    tail = len(loss) - 1 - last
    came_back = int((bad < last).sum())
    trailing_bad = bad[bad > last]
    if len(trailing_bad) and tail > longest:
        return int(trailing_bad[0]), came_back
    if tail >= 3 and tail > 2 * longest and nothing[last + 1 :].all():
        return last + 1, came_back
    return None, came_back
