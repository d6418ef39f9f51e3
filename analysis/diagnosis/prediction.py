"""Which diagnostic predicts accuracy: rank correlations over configurations, and from which part of a run on they tell.

::

    from analysis import load_runs
    from analysis.diagnosis.prediction import predictions
    points, runs = load_runs("runs")
    predictions({"all": list(runs["run"])}, points, runs)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.frames.load import counts
from simsiam.record.catalogue import CATALOGUE

Values = NDArray[np.float64]

SHARES = (0.1, 0.25, 0.5, 1.0)  # of a run
FEWEST = 5  # configurations: of fewer no interval means anything
RESAMPLES = 2000
LEVEL = 0.95
ACCURACIES = ("linear_top1", "knn_top1")
NO_DIAGNOSTICS = ("lr", "z_std", *ACCURACIES)  # z_std says what z_std_relative says
DISTANCE = "|alpha_req - 1|"  # its authors find 1 best, so that no monotone relation is claimed for alpha itself


def predictions(
    groups: Mapping[str, Sequence[str]], points: pd.DataFrame, runs: pd.DataFrame, accuracy: str | None = None
) -> pd.DataFrame:
    """Spearman's correlation of each diagnostic with the final accuracy, over the configurations of each group.

    groups: the runs of each study, say. points, runs: of :func:`analysis.load_runs`. accuracy: ``linear_top1`` or
    ``knn_top1``; None: the first of these that is logged. A configuration is the mean over its runs that have ended
    and did not diverge. A diagnostic is its last value up to a share of the run. The loss is one of them only in a
    group whose runs have one loss.

    Columns: ``group``, ``diagnostic``, ``share`` (of the run that was over), ``num`` (configurations), ``correlation``,
    ``low``, ``high`` (95 %, percentiles of a bootstrap over configurations), NaN where there are fewer than
    :data:`FEWEST`. Raises ValueError where no accuracy is logged.
    """
    ended = runs[counts(runs)]
    name = accuracy or next((one for one in ACCURACIES if ended.get(f"final_{one}", pd.Series()).notna().any()), None)
    if name is None or f"final_{name}" not in ended:
        raise ValueError(f"none of the runs that have ended logged {name or ' or '.join(ACCURACIES)}")
    ended = ended[ended[f"final_{name}"].notna()]
    by_run: dict[Any, pd.DataFrame] = dict(iter(points.groupby("run", sort=False)))
    at = {share: _values(ended, by_run, share) for share in SHARES}
    rows = []
    for group, chosen in groups.items():
        of_group = ended[ended["run"].isin(set(chosen))]
        final = of_group.groupby("config", sort=False)[f"final_{name}"].mean()
        one_loss = "loss.name" not in of_group or of_group["loss.name"].nunique() <= 1  # else levels do not compare
        for share, values in at.items():
            means = values.loc[of_group["run"]].groupby(of_group["config"].to_numpy(), sort=False).mean()
            for diagnostic in means if one_loss else means.columns.drop("loss", errors="ignore"):
                pair = pd.concat([means[diagnostic], final], axis=1).dropna().to_numpy(float)
                rows.append((group, diagnostic, share, len(pair), *correlation(pair)))
    made: pd.DataFrame = pd.DataFrame(
        rows, columns=["group", "diagnostic", "share", "num", "correlation", "low", "high"]
    )
    return made


def tells_from(found: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of the runs, with ``from``: the share from which on the interval is on one side of 0.

    In the order of the groups, and in each the strongest correlation first.
    """
    rows = []
    for _, of_one in found.groupby(["group", "diagnostic"], sort=False):
        of_one = of_one.sort_values("share")
        last = of_one.iloc[-1]
        sign = np.sign(last["correlation"])
        start = math.nan
        for _, row in of_one.iloc[::-1].iterrows():
            if not (row["low"] * sign > 0 and row["high"] * sign > 0):
                break
            start = float(row["share"])
        rows.append({**last.to_dict(), "from": start})
    places = {group: place for place, group in enumerate(dict.fromkeys(found["group"]))}
    rows.sort(key=lambda row: (places[row["group"]], -abs(np.nan_to_num(row["correlation"]))))
    made: pd.DataFrame = pd.DataFrame(rows)
    return made


def _values(runs: pd.DataFrame, by_run: Mapping[Any, pd.DataFrame], share: float) -> pd.DataFrame:
    """The last value of each diagnostic of each run up to a share of its epochs, not those before training."""
    names = [metric.name for metric in CATALOGUE if metric.is_curve and metric.name not in NO_DIAGNOSTICS]
    rows = {}
    for run, epochs in zip(runs["run"], runs["epoch"], strict=True):
        of_run = by_run.get(run)
        if of_run is None:
            continue
        early = of_run[(of_run["epoch"] <= share * epochs * (1 + 1e-9)) & (of_run["step"] > 0)]
        found = {}
        for name in names:
            if name in early and len(logged := early[name].dropna()):
                found[name] = float(logged.iloc[-1])
        if "alpha_req" in found:
            found[DISTANCE] = abs(found["alpha_req"] - 1)
        rows[run] = found
    made: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index").reindex(runs["run"])
    return made


def correlation(pairs: Values) -> tuple[float, float, float]:
    """Spearman's correlation of (n, 2) and its interval by a bootstrap over rows, drawn from a fixed seed.

    NaN where there are too few rows, or one side is the same in all.
    """
    if len(pairs) < FEWEST or (np.ptp(pairs, axis=0) == 0).any():
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    of_samples = _spearman(pairs[drawn, 0], pairs[drawn, 1])
    low, high = np.nanquantile(of_samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(_spearman(pairs[None, :, 0], pairs[None, :, 1])[0]), float(low), float(high)


def _spearman(a: Values, b: Values) -> Values:
    """Of each row of (m, n) arrays; NaN where a row has one value only."""
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Values = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return result
