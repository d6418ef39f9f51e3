"""The catalogue of metrics against what a run logs, and against the document that explains it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simsiam.data.sets import load, prepare
from simsiam.record.catalogue import CATALOGUE, METRICS, REFERENCES
from simsiam.settings.fields import Settings
from simsiam.training.loop import train
from tests.conftest import ROOT

NOT_METRICS = {
    "epoch",
    "step",
    "images_per_s",
    "num_queries",
    "knn_correct",
    "linear_correct",
    "spectrum",
    "attempt",
    "resumed_at_step",
}


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_what_a_run_logs_is_in_the_catalogue_and_in_its_range(
    tmp_path: Path, small: Callable[..., Settings], kind: str
) -> None:
    settings = small(predictor__kind=kind)
    prepare(settings.data, tmp_path)
    train(settings, load(settings.data, tmp_path), tmp_path, attempt=1, device=torch.device("cpu"))
    logged = set()
    for line in (tmp_path / "metrics.1.jsonl").read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        logged |= point.keys() - NOT_METRICS
        for name in point.keys() & METRICS.keys():
            metric = METRICS[name]
            assert metric.low - 1e-6 <= point[name] <= metric.high + 1e-6, f"{name}={point[name]}"
    expected = {metric.name for metric in CATALOGUE if metric.is_curve}
    assert logged == expected - ({"predictor_alignment"} if kind == "mlp" else set())


def test_the_document_explains_each_metric() -> None:
    names = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")))
    assert {metric.name for metric in CATALOGUE if metric.is_curve} <= names


def test_names_are_unique_and_references_known() -> None:
    assert len(METRICS) == len(CATALOGUE)
    assert {name for metric in CATALOGUE for name in metric.references} == REFERENCES.keys()
