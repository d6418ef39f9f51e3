"""The frames of one study for a notebook: with its variants, and what happened to each run.

::

    points, runs = load_study("stop-gradient", "runs")
    runs.groupby("variant")["final_knn_top1"].describe()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.diagnosis.rules import diagnose_runs
from analysis.report.one_study import gather, report_variants
from experiments.plan import make_plan
from experiments.studies.study import default_scale, load_scale
from experiments.studies.study import load_study as read_study
from simsiam.settings.fields import flatten


def load_study(
    study: str,
    runs_dir: str | Path = "runs",
    *,
    scale: str | None = None,
    data: str | Path = "data",
    overrides: Sequence[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points and runs of a study, as of :func:`analysis.load_runs`, all seeds that are there.

    ``study``: its name, or the path of its file. ``scale``: as ``--scale``; None: this machine's own. ``data``: where
    its images are. ``overrides``: as ``--set``. Beside the columns of ``load_runs`` both frames have ``study`` and
    ``variant``, and the runs ``diagnosis``, the verdict of ``diagnose``. A run that is not there is a row with the
    state ``missing``. Raises SettingsError for a study, scale or setting that there is not.
    """
    read = read_study(study)
    made = make_plan(read, load_scale(scale or default_scale()), None, overrides, Path(runs_dir), Path(data))
    variants = report_variants(read, made, None)
    points, runs = gather(variants, Path(runs_dir))
    planned = {variant.name: flatten(variant.settings) for variant in variants}
    rows = [planned[name] for name in runs["variant"]]  # for the settings of runs that are not there
    wanted = pd.DataFrame(rows, index=runs.index, dtype=object).drop(columns="seed")
    known = runs.reindex(columns=wanted.columns).astype(object)
    known[runs["state"] == "missing"] = wanted
    runs = pd.concat([runs.drop(columns=wanted.columns, errors="ignore"), known.infer_objects()], axis=1)
    return points.assign(study=read.name), runs.assign(study=read.name)


def with_diagnosis(points: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with the column ``diagnosis``: what happened to each run, in the words of ``diagnose``."""
    diagnosed: pd.DataFrame = runs.assign(diagnosis=[each.verdict for each in diagnose_runs(points, runs)])
    return diagnosed
