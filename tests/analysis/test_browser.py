"""The pages of studies and their index in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from analysis.report.all_studies import write_index
from analysis.report.one_study import ReportFiles, report, report_variants
from analysis.report.page import Live
from experiments.plan import make_plan
from experiments.studies.study import load_scale, load_study
from tests.analysis.browser import measure, open_page
from tests.run_folders import write_run

DESK, PHONE = 1280, 390  # CSS pixels
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[ReportFiles]:
    """A study that has ended, with a collapse; one in progress, with a failed and a diverged run; one not begun."""
    folder = tmp_path_factory.mktemp("pages")
    scale, files = load_scale("cpu"), []
    for name in ("stop-gradient", "batch-norm", "similarity"):
        study = load_study(name)
        made = make_plan(study, scale, SEEDS, [], folder / "runs", folder / "data")
        for planned in made.cells:
            cell, kind, state = planned.cell, "healthy", "done"
            if (folder / "runs" / planned.run_id).exists() or name == "similarity":
                continue
            if name == "stop-gradient":
                kind = "healthy" if cell.settings.target.stop_gradient else "collapsed"
            elif cell.seed == 2:
                state = "running"
            elif cell.seed == 1 and not cell.settings.projector.bn_hidden:
                state = "failed"
            elif cell.settings.predictor.bn_output:
                kind = "diverged"
            until = 1e9 if state == "done" else 2.2
            write_run(
                folder / "runs", cell.settings, cell.seed, kind, state=state, until=until, fingerprint="unprepared"
            )
        variants = report_variants(study, made, SEEDS)
        out = folder / "reports" / name
        live = Live(30, "2026-01-02 03:04:05") if name == "batch-norm" else None
        command = f"python run_ablation.py report {name}"
        files.append(report(study, variants, made.runs, out, scale="cpu", note=scale.note, command=command, live=live))
    write_index(files, scale, "python run_ablation.py report all", folder / "reports" / "index.html")
    return files


@pytest.fixture(params=["stop-gradient", "batch-norm", "similarity", "index"])
def page(request: pytest.FixtureRequest, reports: list[ReportFiles]) -> Path:
    by_name = {files.study.name: files.page for files in reports}
    return by_name.get(request.param, reports[0].page.parent.parent / "index.html")


def test_a_page_opens_without_a_complaint(page: Path) -> None:
    opened = open_page(page)
    assert not opened.console
    assert re.search(r"<h1>.+?</h1>", opened.dom)
    assert ("In progress" in opened.dom) == (page.parent.name == "batch-norm")
    assert not re.findall(r"""(?:src|srcset|href|url\()=?["']?\s*(?:https?:)?//[^"' >]*""", opened.dom)


def test_the_browser_of_this_test_does_complain(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><body><img src="http://localhost:1/x.png" alt=""><div style="width: 500px">wide</div>'
        '<p style="color: #999">pale</p>'
        "<script>missing()</script></body>"
    )
    assert "missing is not defined" in " ".join(open_page(bad).console)
    found = measure(bad, PHONE)
    assert found["scroll_width"] > found["width"] == PHONE
    assert len(found["too_wide"]) == 1
    assert found["requests"] == ["http://localhost:1/x.png"]
    assert [round(text["contrast"], 2) for text in found["texts"]] == [21, 2.85]  # as published for #999 on white


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_layout_contrast_and_headings(page: Path, width: int) -> None:
    found = measure(page, width)
    assert found["width"] == width
    assert found["scroll_width"] <= width
    assert not found["too_wide"]
    assert found["requests"] == []
    if width == DESK:
        assert not found["cut"], "no table has to be scrolled"
    pale = [text for text in found["texts"] if text["contrast"] < 4.5]
    assert not pale
    assert min(text["size"] for text in found["texts"]) >= 12
    levels = [level for level, _ in found["headings"]]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(found["ids"]) == len(set(found["ids"]))
    assert not found["unnamed"]


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_study_s_page_shows_verdicts_figure_and_tables(reports: list[ReportFiles], width: int) -> None:
    for files in reports:
        found = measure(files.page, width)
        text = " ".join(found["text"].split())
        assert " ".join(files.answer.split()) in text
        for verdict in files.verdicts:
            assert f"{verdict.label[0].upper()}{verdict.label[1:]}. {' '.join(verdict.claim.says.split())}" in text
        for row in files.table.rows:
            for _, entry, _ in files.table.cells(row):
                assert " ".join(entry.full.split()) in text
        for image in found["images"]:
            assert image["alt"]
            assert image["natural_width"] > 0
            assert 0.5 * width < image["width"] <= width
        assert len(found["images"]) == sum(not drawing.absent for drawing in files.drawings) > 0
        for run in files.runs["run"]:
            assert run in text
        headings = [name for _, name in found["headings"]]
        assert ("Figures" if len(files.drawings) > 1 else "Curves") in headings
        assert {"What differs between the variants", "Runs", "Provenance"} < set(headings)


def test_a_phone_gets_the_narrow_figure(reports: list[ReportFiles]) -> None:
    wide, narrow = (measure(reports[0].page, width)["images"][0]["source"] for width in (DESK, PHONE))
    assert wide != narrow


def test_the_index_leads_to_the_pages_and_has_the_verdicts(reports: list[ReportFiles]) -> None:
    index = reports[0].page.parent.parent / "index.html"
    text = " ".join(measure(index, PHONE)["text"].split())
    for files in reports:
        assert f'href="{files.study.name}/index.html"' in open_page(index).dom
        assert " ".join(files.study.title.split()) in text
        for verdict in files.verdicts:
            assert " ".join(verdict.claim.says.split()) in text
