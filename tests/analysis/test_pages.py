"""The report of a study: its page, and that it is replaced as a whole."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from analysis.report import in_words, page
from analysis.report.one_study import ReportFiles, ReportVariant, gather, report
from analysis.verdicts.verdicts import Direction, Finding, Outcome, Verdict
from experiments.studies.claims import Claim, Event
from experiments.studies.design import Design
from experiments.studies.study import PaperResult, Study
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.identity import config_id
from tests.run_folders import FINGERPRINT, settings, write_run

WITH, WITHOUT = settings(), settings(target__stop_gradient=False)
ODD = 'a & b_50 % <script>alert("x")</script>'


def variant(name: str, config: Settings, *seeds: int, paper: PaperResult | None = None) -> ReportVariant:
    return ReportVariant(name, config_id(config, FINGERPRINT), paper or PaperResult(), config, seeds)


def study(title: str = "Stop-gradient") -> Study:
    return Study("stop-gradient", title, "Fig. 2", "Does it collapse?", "Without: <collapse>.", None, 3, {}, ())


def make(runs: Path, out: Path, *variants: ReportVariant, title: str = "Stop-gradient") -> ReportFiles:
    return report(study(title), variants, runs, out, scale="cpu", command="run_ablation.py report 'x' & y")


class Page(HTMLParser):
    """What a test wants to know of a page; checks that each element is closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]
        if tag not in ("meta", "img", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def test_a_finished_study(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "my runs", WITH, seed, knn=77)
        write_run(tmp_path / "my runs", WITHOUT, seed, "collapsed", knn=61)
    variants = variant("with", WITH, 0, 1, 2, paper=PaperResult(top1=67.7)), variant("without", WITHOUT, 0, 1, 2)
    files = make(tmp_path / "my runs", tmp_path / "out", *variants)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"index.html", *(path.name for path in (*files.figures, *files.tables))}
    assert {"figure.pdf", "figure.svg", "figure.png", "table.md", "table.tex", "table.csv"} < names
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left beside it"

    parsed = Page(files.page)
    assert re.fullmatch(
        r"with: linear top-1 8\d\.\d+ ± 0\.\d+ % \(3 seeds; healthy\); "
        r"without: linear top-1 6\d\.\d+ ± 0\.\d+ % \(3 seeds; z collapsed in 3 of 3 runs\)\.",
        files.answer,
    )
    assert files.answer in parsed.text
    assert "below a classifier on raw pixels (linear top-1 83.0 %)" in files.warnings[0]
    assert files.warnings[0] in parsed.text
    for link in parsed.links:
        assert link.startswith("data:image/svg+xml") or (tmp_path / "out" / unquote(link)).exists(), link
    images = [attributes for tag, attributes in parsed.elements if tag == "img"]
    assert "with ends at loss -0.8" in (images[0]["alt"] or "")
    assert all("scope" in attributes for tag, attributes in parsed.elements if tag == "th")
    assert [tag for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert "target.stop_gradient" in parsed.text
    assert "run_ablation.py report 'x' & y" in parsed.text
    assert "0123456789abcdef" in parsed.text
    assert "12 min of training, 0.40 core-hours" in parsed.text
    assert "Without: <collapse>." in parsed.text


def test_nothing_comes_from_the_network_and_nothing_is_unescaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", WITH, 0)
    content = json.loads((folder / "provenance.json").read_text())
    content["attempts"][0] |= {"host": "<b>host</b>", "command": "x <i>y</i>"}
    (folder / "provenance.json").write_text(json.dumps(content))
    files = make(tmp_path / "runs", tmp_path / "out", variant(ODD, WITH, 0), variant("$", WITHOUT, 0), title="<u>T</u>")
    text = files.page.read_text()
    outside = re.sub(r'"data:image/svg\+xml;base64,[^"]*"', "", text)
    assert "//" not in outside
    assert not {"<script", "<b>", "<i>", "<u>"} & {tag.lower() for tag in re.findall(r"<\w+>?", outside)}
    parsed = Page(files.page)
    assert ODD in parsed.text
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_a_study_in_progress(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, WITH, 0)
    write_run(runs, WITH, 1, state="running", until=3.2)
    write_run(runs, WITH, 9)  # not asked for, but there
    files = make(runs, tmp_path / "out", variant("with", WITH, 0, 1, 2), variant("without", WITHOUT, 0))
    assert "(2 seeds; 2 healthy, 1 running, epoch 3/8, 1 not run); without: no result (not run)." in files.answer
    assert "3 of 5 runs have not ended (1 running, 2 not run)" in " ".join(files.warnings)
    lines = files.table.lines()
    assert lines[0][1].endswith("(2 of 4)")
    assert lines[1][1] == "– (not run)"
    Page(files.page)


def test_a_study_before_its_first_run(tmp_path: Path) -> None:
    files = make(tmp_path / "none", tmp_path / "out", variant("with", WITH, 0), variant("without", WITHOUT, 0))
    assert files.answer == "with: no result (not run); without: no result (not run)."
    assert "no run has started" in Page(files.page).text


def test_many_variants_are_summed_up(tmp_path: Path) -> None:
    configs = [settings(batch_size=2 ** (i + 1)) for i in range(12)]
    for i, config in enumerate(configs[:10]):
        write_run(tmp_path / "runs", config, 0, ("healthy", "collapsed", "diverged")[i % 3], knn=60 + i)
    names = [f"batch {config.batch_size}" for config in configs]
    _, runs = gather([variant(name, config, 0) for name, config in zip(names, configs, strict=True)], tmp_path / "runs")
    answer = in_words.in_numbers(runs)
    assert answer.startswith("Of 12 variants, the best is batch 1024: linear top-1 72.8 %")
    assert "z collapsed in runs of batch 4, batch 32, batch 256" in answer
    assert "the loss diverged in runs of batch 8, batch 64, batch 512" in answer
    assert answer.endswith("no result yet for batch 2048, batch 4096.")


def test_of_equal_variants_the_first_is_the_best_everywhere(tmp_path: Path) -> None:
    configs = [settings(batch_size=2 ** (i + 1)) for i in range(6)]
    for i, config in enumerate(configs):
        write_run(tmp_path / "runs", config, 0, knn=(30, 40, 40, 20, 20, 35)[i])
    variants = [variant(f"batch {config.batch_size}", config, 0) for config in configs]
    _, runs = gather(variants, tmp_path / "runs")
    assert "the best is batch 4: " in in_words.in_numbers(runs)
    assert "the lowest is batch 32: " in in_words.in_numbers(runs)
    assert "Even the best variant (batch 4, " in " ".join(in_words.warnings(runs))


def test_mixed_code_and_a_useless_network_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path, WITH, 0, knn=52)
    folder = write_run(tmp_path, WITH, 1, knn=40)
    text = (folder / "provenance.json").read_text()
    (folder / "provenance.json").write_text(
        text.replace("c0de", "other").replace('"git_dirty": false', '"git_dirty": true')
    )
    _, runs = gather([variant("with", WITH, 0, 1)], tmp_path)
    found = " ".join(in_words.warnings(runs))
    assert "No variant is above the untrained network" in found
    assert "2 different versions of the code" in found
    assert "uncommitted changes" in found


def test_an_interrupted_report_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs", WITH, 0)
    out = tmp_path / "out"
    out.mkdir()
    (out / "my notes.txt").write_text("mine")
    make(tmp_path / "runs", out, variant("with", WITH, 0))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(page, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "runs", out, variant("another name", WITH, 0))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["out", "runs"]
    make(tmp_path / "runs", out, variant("another name", WITH, 0))
    assert (out / "my notes.txt").read_text() == "mine"
    assert b"another name" in (out / "index.html").read_bytes()


def test_only_what_differs_is_a_switch() -> None:
    differing, shared = page.split_settings({"a": flatten(WITH), "b": flatten(WITHOUT)})
    assert [(path, values) for path, _, values in differing] == [("target.stop_gradient", ["on", "off"])]
    assert ("augment.crop_scale", "[0.2, 1]") in [(path, value) for path, _, value in shared]
    assert len(differing) + len(shared) == len(flatten(WITH)) - 1  # the seed is neither


def verdict(outcome: Outcome, direction: Direction, num_seeds: int = 3) -> Verdict:
    check = Event(kind="event", of="with", event="collapsed", how_often="none")
    claim = Claim(name="a", says="Nothing collapses.", checks=(check,))
    findings = (Finding(check, outcome, direction, "", num_seeds),)
    return Verdict(claim, "cpu", outcome, direction, findings, (), (), Design())


def test_an_open_verdict_says_once_where_it_points() -> None:
    open_one = verdict("undecided", "agrees")
    finding = replace(open_one.findings[0], reading="Not decided, but it looks like yes. 'with': 0 of 3 seeds.")
    assert open_one.label == "undecided; direction so far: agrees"
    assert replace(open_one, findings=(finding,)).reading == "'with': 0 of 3 seeds."
    mixed = replace(verdict("undecided", "disagrees"), findings=(finding,))
    assert mixed.reading == finding.reading, "a check that points elsewhere says so itself"


def test_a_number_says_on_how_many_seeds_it_rests() -> None:
    runs = pd.DataFrame(
        {
            "run": ["a-s0", "a-s1"],
            "variant": "a",
            "config": "a",
            "seed": [0, 1],
            "state": ["done", "pending"],
            "outcome": ["healthy", None],
            "diagnosis": ["dimensional collapse", None],
            "stopped_early": False,
            "final_knn_top1": [13.2, math.nan],
            "final_loss": [-0.9, math.nan],
            "final_z_std_relative": [0.9, math.nan],
        }
    )
    assert in_words.in_numbers(runs) == (
        "a: kNN top-1 13.2 % (1 seed; dimensional collapse in 1 of 2 runs, 1 not run)."
    )


@pytest.mark.parametrize(
    ("outcome", "direction", "says"),
    [
        ("supported", "agrees", "Nothing collapses: yes, at cpu scale (3 seeds). "),
        ("contradicted", "disagrees", "Nothing collapses: no, not at cpu scale (3 seeds). "),
        ("undecided", "agrees", "Nothing collapses: so it looks at cpu scale, but 3 seeds do not decide it. "),
        ("undecided", "disagrees", "Nothing collapses: it does not look so at cpu scale, but 3 seeds do not decide"),
        ("undecided", "unclear", "Nothing collapses: it is open at cpu scale: 3 seeds do not decide it. "),
        ("undecided", "not run", "No answer yet: "),
    ],
)
def test_the_result_answers_by_the_first_claim(outcome: Outcome, direction: Direction, says: str) -> None:
    others = [verdict("supported", "agrees"), verdict("undecided", "unclear"), verdict("undecided", "unclear")]
    found = in_words.answer([verdict(outcome, direction), *others], pd.DataFrame())
    assert found.startswith(says)
    if direction != "not run":
        assert found.endswith(" Of 3 other claims 1 is supported, 2 are open.")
        assert in_words.answer([verdict(outcome, direction), *others[1:]], pd.DataFrame()).endswith(
            " The other claims are open."
        )
        assert in_words.answer([verdict(outcome, direction), others[0]], pd.DataFrame()).endswith(
            " The other claim is supported."
        )
