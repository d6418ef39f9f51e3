"""The paper's tables in their own form: against the paper, typed from it, and against known runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import escape

from analysis.formats import DASH
from analysis.report.one_study import gather, report_variants
from analysis.report.paper_tables import StudyResults, layouts, studies, tables, write
from analysis.report.table import Table
from experiments.plan import make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint
from tests.analysis.test_analysis import compile_latex
from tests.run_folders import write_run

CPU = load_scale("cpu")
SETTINGS = ["data.name=synthetic"]  # which need not be prepared


def results(runs: Path) -> dict[str, StudyResults]:
    found = {}
    for name in studies():
        study = load_study(name)
        variants = report_variants(study, make_plan(study, CPU, [0, 1], SETTINGS, runs, runs), [0, 1])
        found[name] = StudyResults(study, gather(variants, runs)[1])
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """The tables where Table 1's baseline has two healthy runs, and its "no predictor" two collapsed ones."""
    runs = tmp_path_factory.mktemp("runs")
    cells = {
        cell.cell.variant: cell for cell in make_plan(load_study("predictor"), CPU, [0], SETTINGS, runs, runs).cells
    }
    for seed, knn in ((0, 40.0), (1, 44.0)):
        for variant, kind, accuracy in (
            ("baseline, rate decayed", "healthy", knn),
            ("no predictor", "collapsed", 10.0),
        ):
            settings = cells[variant].cell.settings
            write_run(runs, settings, seed, kind, knn=accuracy, fingerprint=fingerprint(settings.data, runs) or "")
    return {table.caption.partition(":")[0]: table for table in tables(results(runs), CPU)}


def paper_columns(table: Table) -> list[list[str]]:
    """The rows, without ours."""
    kept = [at for at, column in enumerate(table.columns) if column.heading != "ours"]
    return [[row[at].text for at in kept] for row in table.rows]


def test_table_4_is_the_papers(shown: dict[str, Table]) -> None:
    assert paper_columns(shown["Table 4"]) == [
        ["SimCLR", "4096", "yes", DASH, "66.5", "68.3", "69.8", "70.4"],
        ["MoCo v2", "256", "yes", "yes", "67.4", "69.9", "71.0", "72.2"],
        ["BYOL", "4096", DASH, "yes", "66.5", "70.6", "73.2", "74.3"],
        ["SwAV", "4096", DASH, DASH, "66.5", "69.1", "70.7", "71.8"],
        ["SimSiam", "256", DASH, DASH, "68.1", "70.0", "70.8", "71.3"],
    ]


def test_tables_1_to_3_are_the_papers(shown: dict[str, Table]) -> None:
    assert [row[2:] for row in paper_columns(shown["Table 1"])] == [["67.7"], ["0.1"], ["1.5"], ["68.1"]]
    batch_sizes = shown["Table 2"]
    assert [column.heading for column in batch_sizes.columns[1:]] == ["64", "128", "256", "512", "1024", "2048", "4096"]
    assert paper_columns(batch_sizes)[0][1:] == ["66.1", "67.3", "68.1", "68.1", "68.0", "67.9", "64.0"]
    assert paper_columns(shown["Table 3"]) == [
        ["(a)", "none", DASH, DASH, DASH, DASH, "34.6"],
        ["(b)", "hidden only", "BN", DASH, "BN", DASH, "67.4"],
        ["(c)", "default", "BN", "BN", "BN", DASH, "68.1"],
        ["(d)", "all", "BN", "BN", "BN", "BN", "unstable"],
    ]


def test_table_c1_is_the_papers(shown: dict[str, Table]) -> None:
    assert paper_columns(shown["Table C.1"]) == [
        ["the originals", "66.6", "67.5", "70.1"],
        ["the paper's reproduction", "68.3", "69.9", "70.7"],
    ]


def test_ours_stand_beside_them_with_what_they_came_to(shown: dict[str, Table]) -> None:
    ours = [row[-1] for row in shown["Table 1"].rows]
    mean, sd = 46.0, 4 / 2**0.5  # linear is four points above kNN in these runs
    assert ours[0].exact["_mean"] == pytest.approx(mean, abs=1)
    assert ours[0].exact["_sd"] == pytest.approx(sd, abs=1)
    assert ours[1].text.endswith(", complete collapse")
    assert ours[2].full == f"{DASH} (not run)"


def test_what_is_not_at_a_scale_says_so(shown: dict[str, Table]) -> None:
    assert shown["Table 4"].rows[0][-1].full == f"{DASH} (not at this scale)"


def test_each_variant_is_named_once_and_the_batch_norm_switches_are_those_of_its_settings() -> None:
    for layout in layouts():
        names = [layout.place(name) for row in layout.rows for name in row.of]
        assert len(set(names)) == len(names)
        assert all(len(row.of) == len(layout.results) and len(row.text) == len(layout.text) for row in layout.rows)
    study = load_study("batch-norm")
    cells = make_plan(study, CPU, [0], SETTINGS, Path("runs"), Path("data")).cells
    settings = {cell.cell.variant: cell.cell.settings for cell in cells}
    (layout,) = [layout for layout in layouts() if layout.study == "batch-norm"]
    for row in layout.rows:
        (variant,) = row.of
        of = settings[variant]
        switches = [of.projector.bn_hidden, of.projector.bn_output, of.predictor.bn_hidden, of.predictor.bn_output]
        assert [text == "BN" for text in row.text[2:]] == switches


def test_one_page_and_one_document(tmp_path: Path) -> None:
    page = write(results(tmp_path / "runs"), CPU, tmp_path / "out", command="x <y>", no_results="")
    html, markdown = page.read_text(), (tmp_path / "out" / "tables.md").read_text()
    assert "x &lt;y&gt;" in html
    for layout in layouts():
        assert f"## {layout.title}" in markdown
        assert escape(layout.title) in html
    assert "Ours: no run has ended at cpu scale." in html
    assert "kNN" not in markdown, "no measure of ours without a run"


def test_the_latex_leaves_the_numbers_of_tables_to_latex_and_fits(tmp_path: Path, shown: dict[str, Table]) -> None:
    write(results(tmp_path / "runs"), CPU, tmp_path / "out", command="", no_results="")
    text = (tmp_path / "out" / "tables.tex").read_text()
    assert r"\caption{Effect of the predictor (Table 1 of the paper).}" in text
    assert r"\caption{Table" not in text
    log = compile_latex(tmp_path, text, *(table.latex() for table in shown.values()), options="twocolumn")
    assert "Overfull" not in log
