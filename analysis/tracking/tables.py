"""Runs as two tables for other programs, CSV or Parquet: one row per logged point, one row per run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report.one_study import ReportVariant, gather
from simsiam.errors import SettingsError
from simsiam.record.atomic_files import write_atomically

FORMATS = ("csv", "parquet")


def write_tables(kind: str, variants: Sequence[ReportVariant], runs_dir: Path, out: Path) -> dict[str, str]:
    """Write ``points`` and ``runs`` of a study into ``out``, each replaced in one step.

    Returns the state of each run. Raises SettingsError for Parquet without pyarrow.
    """
    points, runs = gather(variants, runs_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("points", points), ("runs", runs)):
        plain = _plain(frame)

        def write(file: Any, plain: pd.DataFrame = plain) -> None:
            if kind == "csv":
                file.write(plain.to_csv(index=False).encode())
                return
            try:
                file.write(plain.to_parquet(index=False))
            except ImportError:
                raise SettingsError(
                    "to: pyarrow is not installed here: pip install 'simsiam-ablations[parquet]'  [--to]"
                ) from None

        write_atomically(out / f"{name}.{kind}", write, aside=str(os.getpid()))
    return {str(row["run"]): str(row["state"]) for row in runs.to_dict("records")}


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each: what holds lists, or texts beside numbers, is written as text."""
    plain: pd.DataFrame = frame.assign(variant=frame["variant"].astype(str))
    for name in [name for name in plain if pd.api.types.is_object_dtype(plain[name])]:
        plain[name] = [
            None if value is None or value is pd.NA or value != value else str(value) for value in plain[name]
        ]
    return plain
