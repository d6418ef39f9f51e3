"""No report takes the place of another, and one page lists them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from commands.report import report
from experiments.plan import make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint
from simsiam.errors import SettingsError
from tests.analysis.test_pages import Page
from tests.conftest import Command
from tests.run_folders import write_run

STUDY = "title: {}\nsettings: {{epochs: 4}}\nvariants: {{a: {{}}, b: {{settings: {{target.stop_gradient: false}}}}}}\n"


def runs_of(study: str, runs: Path, data: Path, *overrides: str) -> Path:
    for planned in make_plan(load_study(study), load_scale("smoke"), [0], list(overrides), runs, data).cells:
        write_run(runs, planned.cell.settings, 0, fingerprint=fingerprint(planned.cell.settings.data, data) or "")
    return runs


def test_reports_of_different_things_lie_side_by_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("analysis.report.one_study.drawings", lambda *_: [])  # they take long, and are tested elsewhere
    monkeypatch.delenv("ABLATION_RUNS", raising=False)
    data, runs = Path("data"), Path("runs")
    own = Path("studies/stop-gradient.yaml")  # the name of one that ships
    own.parent.mkdir()
    own.write_text(STUDY.format("My own study"))
    other = runs_of("initialisation", Path("old/runs"), data)
    runs_of("initialisation", runs, data)
    runs_of("initialisation", runs, data, "epochs=3")
    runs_of("stop-gradient", runs, data)
    runs_of(str(own), runs, data)

    def pages() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in Path("reports").glob("*/index.html")}

    kept: dict[str, bytes] = {}
    for name, folder, overrides in (
        ("initialisation", runs, None),
        ("initialisation", runs, ["epochs=3"]),
        ("initialisation", other, None),
        ("stop-gradient", runs, None),
        (str(own), runs, None),
    ):
        report(name, folder, data, "smoke", overrides)
        now = pages()
        assert len(now) == len(kept) + 1
        assert {name: now[name] for name in kept} == kept, "those before are as they were"
        kept = now
    assert {"initialisation-smoke", "initialisation-smoke-epochs-3", "initialisation-smoke-in-old-runs"} < set(kept)
    report(str(own), runs, data, "smoke")
    assert pages().keys() == kept.keys(), "the same report again is made in its place"
    listed = Page(tmp_path / "reports" / "reports.html")
    assert {link.partition("/")[0] for link in listed.links} == set(kept)
    assert "My own study" in listed.text
    assert "These are no results." in capsys.readouterr().out
    for name in kept:
        text = Page(tmp_path / "reports" / name / "index.html").text
        assert text.index("These are no results.") < text.index("Result."), "across the head"

    with pytest.raises(SettingsError, match=r"holds another report .*set \['epochs=3'\]"):
        report("initialisation", runs, data, "smoke", out=Path("reports/initialisation-smoke-epochs-3"))


@pytest.mark.parametrize("name", ["index.html", "table.md", "figure.pdf"])
def test_a_report_takes_no_file_that_is_not_its_own(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.report.one_study.drawings", lambda *_: [])
    runs = runs_of("initialisation", tmp_path / "runs", tmp_path / "data")
    arguments = ("initialisation", runs, tmp_path / "data", "smoke")
    theirs, out, document = tmp_path / "mine" / name, tmp_path / "report", tmp_path / "document.md"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    with pytest.raises(SettingsError, match=f"holds {name}, which is of no report"):
        report(*arguments, out=theirs.parent)
    with pytest.raises(SettingsError, match="holds run folders"):
        report(*arguments, out=runs)
    with pytest.raises(SettingsError, match=f"{name} is there, and is no document"):
        report(*arguments, out=out, markdown=theirs)
    assert theirs.read_text() == "precious"
    assert not out.exists()
    for _ in range(2):  # what it has made itself it makes anew
        report(*arguments, out=out, markdown=document)
    assert "precious" not in document.read_text()


def test_the_list_has_the_papers_tables_and_its_paths_start_at_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    runs_of("stop-gradient", Path("old/runs"), Path("data"))
    report("paper", Path("old/runs"), Path("data"), "smoke")
    (row,) = json.loads(Path("reports/paper-smoke-in-old-runs/report.json").read_text())["runs"].split()
    assert Path("reports/paper-smoke-in-old-runs", row).resolve() == (tmp_path / "old/runs").resolve()
    listed = Page(tmp_path / "reports" / "reports.html")
    assert listed.links == ["paper-smoke-in-old-runs/index.html"]
    assert "../old/runs" in listed.text.split()


def test_reports_of_an_archive_have_its_name_and_one_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    runs_of("initialisation", tmp_path / "runs", tmp_path / "data")
    assert command("archive", "all.tar.xz").returncode == 0
    pages = []
    for _ in range(2):
        done = command("report", "initialisation", "--scale", "smoke", "--runs", "all.tar.xz")
        assert done.returncode == 0, done.stderr
        pages.append((tmp_path / "reports/initialisation-smoke-in-all.tar.xz/index.html").read_bytes())
    assert pages[0] == pages[1]
    assert [path.name for path in (tmp_path / "reports").iterdir() if path.is_dir()] == [
        "initialisation-smoke-in-all.tar.xz"
    ]
    assert "../all.tar.xz" in Page(tmp_path / "reports" / "reports.html").text.split()


def test_a_forgotten_scale_is_named(tmp_path: Path) -> None:
    from commands.report import verify
    from experiments.runs.folder import StoreError

    runs_of("stop-gradient", tmp_path / "runs", tmp_path / "data")
    for call in (verify, report):
        with pytest.raises(StoreError, match=r"at scale cpu to .* \(it holds runs of it at scale smoke: --scale\)"):
            call("stop-gradient", tmp_path / "runs", tmp_path / "data", "cpu")
    with pytest.raises(StoreError, match=r"holds no run of any study at scale cpu .* at scale smoke: --scale"):
        report("paper", tmp_path / "runs", tmp_path / "data", "cpu")


def test_evaluate_of_nothing_fails(tmp_path: Path) -> None:
    from commands.weights import evaluate
    from experiments.runs.folder import StoreError

    with pytest.raises(StoreError, match="holds no run of stop-gradient at scale smoke that has ended"):
        evaluate("stop-gradient", runs=tmp_path / "runs", data=tmp_path, scale="smoke", device="cpu")
    with pytest.raises(StoreError, match="nothing was evaluated"):
        evaluate("stop-gradient", runs=tmp_path / "runs", data=tmp_path, scale="smoke", device="cpu", as_json=True)


@pytest.mark.parametrize("width", [60, 80])
def test_a_report_s_table_fits_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("analysis.report.one_study.drawings", lambda *_: [])
    monkeypatch.setattr("commands.report.make_console", lambda: Console(width=width, markup=False, highlight=False))
    runs_of("stop-gradient", Path("runs"), Path("data"))
    report("stop-gradient", Path("runs"), Path("data"), "smoke")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > width and str(tmp_path) not in line] == []
    assert any("Not shown at this width" in line and "cost per run" in " ".join(lines) for line in lines)
    assert any(line.startswith(" variant") for line in lines), "a table, not a record for each row"
