"""Published numbers of others, beside the paper's."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import pytest

from analysis.report.one_study import gather, report_variants
from analysis.report.study_table import study_table
from analysis.report.table import Table
from experiments.plan import make_plan
from experiments.studies.published import published, published_names
from experiments.studies.study import SCALES, load_scale, load_study
from simsiam.errors import SettingsError


def table_of(name: str, scale: str, tmp_path: Path) -> Table:
    study = load_study(name)
    made = make_plan(study, load_scale(scale), [0], [], tmp_path / "runs", tmp_path / "data")
    variants = report_variants(study, made, [0])
    _, runs = gather(variants, tmp_path / "runs")
    others = {variant.name: variant.published for variant in variants}
    return study_table(runs, {variant.name: variant.paper for variant in variants}, "x", scale, None, others)


def test_the_column_has_the_range_and_the_notes_have_every_number(tmp_path: Path) -> None:
    table = table_of("cifar10", "cifar", tmp_path)
    assert "Others: top-1 (%)" in table.headings()
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(table.csv()))}
    assert rows["SimSiam"]["published_linear_lowest"] == "90.51"  # solo-learn's README
    assert rows["SimSiam"]["published_linear_highest"] == "91.94"  # Reza-Safdari's README
    assert rows["SimSiam"]["published_knn_lowest"] == "76.4"  # lightly's benchmarks
    assert "linear 90.5 to 91.9; kNN 76.4 to 90.4" in table.markdown()
    (note,) = (note for note in table.notes if note.startswith("Others, 'SimSiam'"))
    for number in published("cifar", "SimSiam"):
        assert f"{number.top1:g} ({number.epochs} epochs" in note
        assert number.source in note


def test_elsewhere_there_is_no_such_column(tmp_path: Path) -> None:
    """The numbers belong to a data set and a network."""
    assert not any("Others" in heading for heading in table_of("cifar10", "smoke", tmp_path).headings())
    assert not any("Others" in heading for heading in table_of("similarity", "cifar", tmp_path).headings())


def test_every_number_stands_in_a_table_of_a_study() -> None:
    named = {variant.published for study in ("cifar10", "comparison") for variant in load_study(study).variants}
    assert set(published_names()) <= named
    for scale, name in itertools.product(SCALES, published_names()):
        for number in published(scale, name):
            assert 10 < number.top1 < 100
            assert number.source


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: Mine\nvariants:\n  a: {published: SimSim}\n")
    with pytest.raises(SettingsError, match=r"variants\.a\.published: 'SimSim' is not one of .*SimSiam.*mine\.yaml:3"):
        load_study(str(tmp_path / "mine.yaml"))
