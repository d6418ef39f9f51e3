"""Claims as they are written, and the verdicts on them from generated run folders whose truth is known."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.formats import DASH, MINUS
from analysis.report.one_study import ReportVariant, gather
from analysis.verdicts.verdicts import Verdict, as_json, verdicts
from commands.options import register
from commands.report import report
from experiments.plan import make_plan
from experiments.runs.provenance import register_claims, registered_claims
from experiments.studies.claims import KINDS, SCALES, Claim
from experiments.studies.design import Design
from experiments.studies.study import Study, load_scale, load_study, make_cells, study_names
from simsiam.data.sets import fingerprint
from simsiam.errors import SettingsError
from simsiam.settings.fields import Settings
from simsiam.settings.identity import config_id
from tests.analysis.test_pages import Page
from tests.conftest import Command
from tests.run_folders import FINGERPRINT, settings, write_run

# --- as written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", study_names())
def test_every_study_claims_something_of_variants_that_it_runs(name: str) -> None:
    study = load_study(name)
    assert study.claims
    for scale in SCALES:
        run = {cell.variant for cell in make_cells(study, load_scale(scale), [0])}
        for claim in study.claims:
            assert claim.says.endswith(".")
            assert claim.where
            assert scale not in claim.scales or set(claim.variants()) <= run


def test_every_kind_of_check_is_used() -> None:
    used = {check.kind for name in study_names() for claim in load_study(name).claims for check in claim.checks}
    assert used == set(KINDS) - {"band"}  # a rate over runs, which takes more seeds than the studies that ship have


def test_collapse_is_never_judged_by_the_std_of_an_output_bn_that_hides_it() -> None:
    for name in study_names():
        study = load_study(name)
        cells = {cell.variant: cell.settings for cell in make_cells(study, load_scale("cpu"), [0])}
        for claim in study.claims:
            for check in claim.checks:
                if str(getattr(check, "metric", "")).startswith("z_std"):
                    assert all(cells[each].projector.bn_output_affine for each in check.variants())


def write_study(folder: Path, claims: str, variants: str = "{a: {}, b: {settings: {epochs: 3}}}") -> str:
    path = folder / "mine.yaml"
    path.write_text(f"title: Mine\nvariants: {variants}\nclaims:\n{claims}")
    return str(path)


CHECK = "  first:\n    says: It is so.\n    checks:\n      - {%s}\n"


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ("  first: {says: x.}\n", ["claims.first.checks", "is missing", "mine.yaml:4"]),
        ("  first: {checks: [{kind: same, of: [a, b], within: 1}]}\n", ["claims.first.says: is missing"]),
        ("  first: {says: x., checks: []}\n", ["claims.first.checks", "at least 1"]),
        ("  first: {say: x., checks: []}\n", ["claims.first.say: no such key", "did you mean 'says'"]),
        (
            "  first: {says: x., scales: [gpu], checks: [{kind: same}]}\n",
            ["'gpu'", "no such scale", "smoke, fashion"],
        ),
        (CHECK % "of: a", ["claims.first.checks.0.kind: is missing", "final, ratio", "mine.yaml:7"]),
        (CHECK % "kind: ordering", ["'ordering' is not a kind of check", "did you mean 'order'"]),
        (CHECK % "kind: order, higher: a, lower: c, by: 1", ["no variant 'c'", "mine.yaml:7"]),
        (CHECK % "kind: order, higher: a, lower: b", ["checks.0.by: is missing"]),
        (CHECK % "kind: order, higher: a, lower: b, by: -1", ["checks.0.by: -1", "greater than or equal to 0"]),
        (CHECK % "kind: order, higher: a, lower: a, by: 1", ["are the same"]),
        (CHECK % "kind: order, higher: [a, b], lower: a, by: 1", ["both variants or both pairs"]),
        (CHECK % "kind: order, higer: a, lower: b, by: 1", ["checks.0.higer", "did you mean 'higher'"]),
        (CHECK % "kind: final, of: a, metric: knn_top, above: 1", ["no such metric", "did you mean 'knn_top1'"]),
        (CHECK % "kind: final, of: a", ["above, below, or near"]),
        (CHECK % "kind: final, of: a, near: 1", ["near and within go together"]),
        (CHECK % "kind: final, of: a, above: 2, below: 1", ["above must be less than below"]),
        (CHECK % "kind: final, of: a, above: .nan", ["checks.0.above", "finite number"]),
        (CHECK % "kind: ratio, of: a, metric: loss, to: chance, above: 1", ["loss has no ratio to chance"]),
        (CHECK % "kind: ratio, of: a, to: luck, above: 1", ["no such reference", "raw pixels"]),
        (CHECK % "kind: trend, direction: rises, by: 1", ["either of", "or across"]),
        (CHECK % "kind: trend, of: a, direction: up, by: 1", ["checks.0.direction", "'rises' or 'falls'"]),
        (CHECK % "kind: trend, across: [a, b], direction: rises, by: 1", ["checks.0.across", "at least 3"]),
        (CHECK % "kind: same, of: [a], within: 1", ["checks.0.of", "at least 2"]),
        (CHECK % "kind: same, of: [a, b], within: 0", ["checks.0.within", "greater than 0"]),
        (CHECK % "kind: band, of: a, metric: loss", ["low, high or both"]),
        (CHECK % "kind: event, of: a, event: colapsed", ["no such event", "did you mean 'collapsed'"]),
        (CHECK % "kind: event, of: a, event: healthy, how_often: never", ["checks.0.how_often", "'none'"]),
        (CHECK % "kind: event, of: 3, event: healthy", ["checks.0", "no variant '3'"]),
        ("  first: 3\n", ["claims.first", "3 is not allowed"]),
        ("  first: {says: x., checks: [3]}\n", ["claims.first.checks.0: 3 is not allowed"]),
    ],
)
def test_a_bad_claim_is_refused_with_its_place(tmp_path: Path, claims: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_study(write_study(tmp_path, claims))
    for word in words:
        assert word in str(caught.value)
    assert "mine.yaml:" in str(caught.value)


def test_a_claim_on_a_variant_that_is_not_run_at_its_scales_is_refused(tmp_path: Path) -> None:
    variants = "{a: {}, b: {only: [imagenet], settings: {epochs: 3}}}"
    claim = CHECK % "kind: order, higher: a, lower: b, by: 1"
    with pytest.raises(SettingsError, match="'b' is not run at smoke, fashion, cpu, cifar; it is run at imagenet"):
        load_study(write_study(tmp_path, claim, variants))
    allowed = claim.replace("    checks:", "    scales: [imagenet]\n    checks:")
    assert load_study(write_study(tmp_path, allowed, variants)).claims[0].scales == ("imagenet",)


def test_a_baseline_of_a_grid_is_answered_by_names_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\nvariants: {weak: {}, strong: {settings: {epochs: 3}}}\ngrid: {batch_size: [8, 16]}\n")
    names = [variant.name for variant in load_study(str(path)).variants]
    path.write_text(path.read_text() + "baseline: strong\n")
    with pytest.raises(SettingsError, match=r"no variant 'strong'") as raised:
        load_study(str(path))
    assert any(f"'{name}'" in str(raised.value) for name in names)


@pytest.mark.parametrize("line", ["baseline: c\n", "variants: {a: {}, b: {against: c, settings: {epochs: 3}}}\n"])
def test_an_unknown_baseline_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\n" + ("" if "variants" in line else "variants: {a: {}}\n") + line)
    with pytest.raises(SettingsError, match=r"no variant 'c'.*mine\.yaml:"):
        load_study(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("looks: [3, 4]", r"looks.*at least 2 seeds more.*mine\.yaml:"),
        ("looks: 1", r"looks.*2.*mine\.yaml:"),
        ("level: 95", r"level.*95.*mine\.yaml:"),
    ],
)
def test_bad_looks_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"title: x\nvariants: {{a: {{}}}}\n{line}\n")
    with pytest.raises(SettingsError, match=message) as raised:
        load_study(str(path))
    print(raised.value)


def test_a_bad_claim_stops_a_run_before_it_begins(command: Command, tmp_path: Path) -> None:
    path = write_study(tmp_path, CHECK % "kind: event, of: c, event: collapsed")
    done = command("run", path, "--scale", "smoke")
    assert done.returncode == 2
    assert "no variant 'c'" in done.stderr
    assert not (tmp_path / "runs").exists()


# --- verdicts on run folders -------------------------------------------------------------------------------------

WITH, WITHOUT = settings(), settings(target__stop_gradient=False)
NONE = settings(predictor__kind="none")


def judged(runs: Path, *checks: dict[str, Any], seeds: int = 6, scale: str = "cpu", **claim: Any) -> Verdict:
    """The verdict on one claim about the variants with, without and none, in a study of a fixed number of seeds."""
    configs: dict[str, Settings] = {"with": WITH, "without": WITHOUT, "none": NONE}
    variants = [
        ReportVariant(name, config_id(config, FINGERPRINT), load_paper(), config, tuple(range(seeds)))
        for name, config in configs.items()
    ]
    design = claim.pop("design", Design(looks=(max(seeds, 2),)))
    made = Claim(name="it", says="It is so.", checks=checks, **claim)
    return verdicts([made], *gather(variants, runs), scale, design)[0]


def load_paper() -> Any:
    return load_study("stop-gradient").variants[0].paper


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seeds: healthy with, collapsed without; none has healthy, collapsed and diverged runs."""
    runs = tmp_path_factory.mktemp("six")
    for seed, kind in enumerate(2 * ("healthy", "collapsed", "diverged")):
        write_run(runs, WITH, seed)
        write_run(runs, WITHOUT, seed, "collapsed", knn=61)
        write_run(runs, NONE, seed, kind)
    return runs


@pytest.mark.parametrize(
    ("check", "outcome", "reading"),
    [
        ({"kind": "event", "of": "without", "event": "collapsed"}, "supported", "complete collapse in 6 of 6"),
        ({"kind": "event", "of": "with", "event": "collapsed"}, "contradicted", "complete collapse in 0 of 6"),
        ({"kind": "event", "of": "with", "event": "collapsed", "how_often": "none"}, "supported", "less than 50 %"),
        ({"kind": "event", "of": "without", "event": "collapsed", "how_often": "none"}, "contradicted", "6 of 6"),
        ({"kind": "event", "of": "none", "event": "collapsed"}, "undecided", "in 2 of 6 seeds"),
        ({"kind": "event", "of": "none", "event": "diverged", "how_often": "some"}, "supported", "can happen"),
        ({"kind": "event", "of": "with", "event": "diverged", "how_often": "some"}, "undecided", "0 of 6"),
        ({"kind": "event", "of": "none", "event": ["healthy", "collapsed", "diverged"]}, "supported", "6 of 6"),
        ({"kind": "event", "of": "with", "event": "nothing learnt"}, "contradicted", "0 of 6"),
        ({"kind": "final", "of": "without", "metric": "z_std_relative", "below": 0.2}, "supported", "less than 0.2"),
        ({"kind": "final", "of": "with", "metric": "z_std_relative", "below": 0.2}, "contradicted", "0.97"),
        ({"kind": "final", "of": "with", "near": 88.0, "within": 2.0}, "supported", "between 86 and 90 %"),
        ({"kind": "final", "of": "with", "near": 80.0, "within": 2.0}, "contradicted", "6 seeds"),
        ({"kind": "ratio", "of": "with", "to": "chance", "above": 5}, "supported", "divided by chance"),
        ({"kind": "ratio", "of": "with", "to": "raw pixels", "below": 0.9}, "contradicted", "1.06"),
        ({"kind": "ratio", "of": "with", "to": "untrained", "above": 1.2}, "supported", "divided by untrained"),
        (
            {"kind": "ratio", "of": "with", "metric": "z_std", "to": "1/sqrt(d)", "near": 1, "within": 0.1},
            "supported",
            "0.97",
        ),
        ({"kind": "trend", "of": "with", "direction": "rises", "by": 5}, "supported", "over the training of 'with'"),
        ({"kind": "trend", "of": "with", "direction": "falls", "by": 0}, "contradicted", "less than"),
        ({"kind": "order", "higher": "with", "lower": "without", "by": 10}, "supported", "more than 10 points"),
        ({"kind": "order", "higher": "without", "lower": "with", "by": 0}, "contradicted", "6 seeds"),
        ({"kind": "order", "higher": "with", "lower": "without", "by": 40}, "contradicted", "smaller than what counts"),
        ({"kind": "order", "higher": "with", "lower": "none", "by": 1}, "contradicted", "Left out: 'none', seed 2"),
        ({"kind": "same", "of": ["with", "without"], "within": 1}, "contradicted", f"between {MINUS}1 and 1 points"),
        ({"kind": "same", "of": ["with", "without"], "within": 30}, "supported", "90 % interval"),
        ({"kind": "band", "of": "without", "metric": "loss", "high": -0.9, "after": 0.5}, "supported", "6 of 6"),
        ({"kind": "band", "of": "with", "metric": "z_std_relative", "high": 0.2}, "contradicted", "0 of 6"),
        ({"kind": "order", "metric": "loss_roughness", "higher": "with", "lower": "without", "by": 0}, "supported", ""),
    ],
)  # fmt: skip
def test_verdicts_on_known_runs(six: Path, check: dict[str, Any], outcome: str, reading: str) -> None:
    verdict = judged(six, check)
    assert verdict.outcome == outcome, verdict.reading
    assert reading in verdict.reading
    assert "Waiting" not in verdict.reading
    json.dumps(as_json(verdict), allow_nan=False)


def test_all_checks_must_hold_and_one_contradicts(six: Path) -> None:
    good = {"kind": "event", "of": "without", "event": "collapsed"}
    open_ = {"kind": "event", "of": "none", "event": "collapsed"}
    bad = {"kind": "order", "higher": "without", "lower": "with", "by": 0}
    assert judged(six, good, good).outcome == "supported"
    assert judged(six, good, open_).outcome == "undecided"
    assert judged(six, good, open_, bad).outcome == "contradicted"


def test_another_scale_than_the_paper_s_is_said(six: Path) -> None:
    bad = {"kind": "order", "metric": "knn_top1", "higher": "without", "lower": "with", "by": 1}
    verdict = judged(six, bad, where="Table 1")
    assert verdict.label == "contradicted at cpu scale"
    assert verdict.conclusion == "The cpu scale does not show the paper's effect."
    assert "imagenet scale; it was checked here at cpu scale on images from a folder" in verdict.difference_in_kind[0]
    assert "linear evaluation" in verdict.difference_in_kind[1]
    assert len(judged(six, {**bad, "metric": "linear_top1"}, where="Table 1").difference_in_kind) == 1
    small = judged(six, {"kind": "order", "higher": "with", "lower": "without", "by": 40}, where="Table 1")
    assert "smaller than what counts" in small.conclusion
    assert judged(six, bad, where="Table 1", made_at="cpu").label == "contradicted"
    assert judged(six, bad).difference_in_kind == (), "a claim of one's own has no other scale"
    elsewhere = judged(six, bad, scales=("imagenet",))
    assert (elsewhere.outcome, elsewhere.notes) == ("undecided", ("This claim is checked at imagenet scale only.",))


def test_runs_that_have_not_ended_leave_a_claim_undecided(tmp_path: Path) -> None:
    check = {"kind": "order", "higher": "with", "lower": "without", "by": 1}
    nothing = judged(tmp_path / "nowhere", check, seeds=3)
    assert (nothing.outcome, nothing.direction, nothing.num_seeds) == ("undecided", "not run", 0)
    assert "Waiting for 'with' (3 of 3 seeds: not run), 'without' (3 of 3 seeds: not run)." in nothing.reading
    for seed in range(2):
        write_run(tmp_path, WITH, seed)
        write_run(tmp_path, WITHOUT, seed, "collapsed", knn=61)
    write_run(tmp_path, WITH, 2, state="running", until=3.2)
    write_run(tmp_path, WITHOUT, 2, state="failed", until=3.2)
    verdict = judged(tmp_path, check, seeds=3)
    assert (verdict.outcome, verdict.direction, verdict.num_seeds) == ("undecided", "agrees", 2)
    assert (
        "'with' (1 of 3 seeds: running, epoch 3/8), 'without' (1 of 3 seeds: failed: see failure.txt)"
        in verdict.reading
    )


def test_one_seed_gives_a_direction_only(tmp_path: Path) -> None:
    write_run(tmp_path, WITH, 0)
    write_run(tmp_path, WITHOUT, 0, "collapsed", knn=61)
    for check, direction in (
        ({"kind": "order", "higher": "with", "lower": "without", "by": 1}, "agrees"),
        ({"kind": "order", "higher": "without", "lower": "with", "by": 1}, "disagrees"),
        ({"kind": "order", "higher": "without", "lower": "with", "by": 60}, "unclear"),
        ({"kind": "same", "of": ["with", "without"], "within": 1}, "disagrees"),
        ({"kind": "event", "of": "without", "event": "collapsed"}, "agrees"),
    ):
        verdict = judged(tmp_path, check, seeds=1)
        assert (verdict.outcome, verdict.direction) == ("undecided", direction)
        assert verdict.label == f"undecided; direction only (1 seed): {direction}"


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, WITH, seed, knn=84)
    for seed in (2, 3, 4):
        write_run(tmp_path, WITHOUT, seed, "collapsed", knn=61)
    verdict = judged(tmp_path, {"kind": "order", "higher": "with", "lower": "without", "by": 1}, seeds=0)
    assert verdict.num_seeds == 1


def test_too_few_seeds_say_how_many_more(tmp_path: Path) -> None:
    for seed, gap in enumerate((1.5, 2.5, 3.5)):
        write_run(tmp_path, WITH, seed, knn=80)
        write_run(tmp_path, WITHOUT, seed, knn=80 - gap)
    check = {"kind": "order", "higher": "with", "lower": "without", "by": 1}
    verdict = judged(tmp_path, check, seeds=3, design=Design())
    assert verdict.outcome == "undecided"
    assert verdict.findings[0].seeds_to_decide in (8, 12)
    assert f"it is decided at {verdict.findings[0].seeds_to_decide} seeds" in verdict.reading
    assert "the effect is there, but whether it is as large as claimed is open" not in verdict.reading
    fixed = judged(tmp_path, check, seeds=3)
    assert "It stays so: the study's number of seeds is fixed." in fixed.reading


def test_a_run_that_failed_keeps_those_after_it_from_being_looked_at(tmp_path: Path) -> None:
    """They are there because they went well."""
    for seed in range(5):
        write_run(tmp_path, WITH, seed, knn=80 + seed / 10)
        write_run(tmp_path, WITHOUT, seed, "collapsed", knn=60, **({"state": "failed"} if seed == 2 else {}))
    check = {"kind": "order", "higher": "with", "lower": "without", "by": 1}
    verdict = judged(tmp_path, check, seeds=5, design=Design())
    assert (verdict.outcome, verdict.num_seeds) == ("undecided", 2)
    assert "Waiting for 'without' (1 of 5 seeds: failed" in verdict.reading


def test_different_losses_are_not_compared(tmp_path: Path) -> None:
    other = settings(loss__name="squared-distance")
    for seed in range(3):
        write_run(tmp_path, WITH, seed)
        write_run(tmp_path, other, seed)
    variants = [
        ReportVariant(name, config_id(config, FINGERPRINT), load_paper(), config, (0, 1, 2))
        for name, config in {"a": WITH, "b": other}.items()
    ]
    check = {"kind": "order", "metric": "loss", "higher": "a", "lower": "b", "by": 0}
    (verdict,) = verdicts([Claim(name="it", says="x.", checks=(check,))], *gather(variants, tmp_path), "cpu", Design())
    assert (verdict.outcome, verdict.reading) == (
        "undecided",
        "The variants have different losses, which do not compare.",
    )


def test_an_output_bn_that_hides_a_collapse_is_named(tmp_path: Path) -> None:
    hidden = settings(projector__bn_output_affine=False)
    write_run(tmp_path, hidden, 0)
    variant = ReportVariant("a", config_id(hidden, FINGERPRINT), load_paper(), hidden, (0,))
    check = {"kind": "final", "of": "a", "metric": "z_std_relative", "above": 0.5}
    (verdict,) = verdicts([Claim(name="it", says="x.", checks=(check,))], *gather([variant], tmp_path), "cpu", Design())
    assert "keeps the std from showing a collapse" in verdict.notes[0]


# --- the commands ------------------------------------------------------------------------------------------------

OWN: dict[str, Any] = {
    "title": "Of my own",
    "seeds": 6,
    "looks": 6,
    "variants": {"with": {}, "without": {"settings": {"target.stop_gradient": False}}},
    "claims": {
        "collapse": {
            "says": "Without stop-gradient z collapses.",
            "checks": [{"kind": "event", "of": "without", "event": "collapsed"}],
        },
        "order": {
            "says": "It is better without.",
            "checks": [{"kind": "order", "higher": "without", "lower": "with", "by": 1}],
        },
    },
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A study of one's own at smoke scale, and its runs: the first claim holds, the second does not."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(OWN, sort_keys=False))
    made = make_plan(load_study(str(path)), load_scale("smoke"), None, [], tmp_path / "runs", tmp_path / "data")
    for planned in made.cells:
        config, seed = planned.cell.settings, planned.cell.seed
        kind, knn = ("healthy", 84.0) if config.target.stop_gradient else ("collapsed", 61.0)
        print_of = fingerprint(config.data, tmp_path / "data") or ""
        folder = write_run(tmp_path / "runs", config, seed, kind, knn=knn, fingerprint=print_of)
        assert folder.name == planned.run_id
    return path


def test_verify(command: Command, own: Path, tmp_path: Path) -> None:
    done = command("verify", str(own), "--scale", "smoke")
    assert done.returncode == 1, done.stderr
    assert "SUPPORTED  Without stop-gradient z collapses." in done.stdout
    assert "CONTRADICTED  It is better without." in done.stdout
    assert "Of 2 claims 1 is supported, 1 is contradicted." in done.stdout
    content = json.loads(command("verify", str(own), "--scale", "smoke", "--json").stdout)
    assert [claim["verdict"] for claim in content["studies"]["own"]] == ["supported", "contradicted"]
    assert content["studies"]["own"][1]["checks"][0]["high"] < 0
    for folder in (tmp_path / "runs").glob("*-s[1-5]"):
        shutil.rmtree(folder)
    open_ = command("verify", str(own), "--scale", "smoke")
    assert (open_.returncode, "2 are undecided" in open_.stdout) == (0, True)
    assert command("verify", str(own), "--scale", "smoke", "--strict").returncode == 1
    nothing = command("verify", str(own), "--scale", "smoke", "--runs", "nowhere")
    assert (nothing.returncode, "nowhere: holds no run of own" in nothing.stderr) == (1, True)


def test_report_of_a_study_of_one_s_own(command: Command, own: Path, tmp_path: Path) -> None:
    done = command("report", str(own), "--scale", "smoke", "--markdown", "mine.md")
    assert done.returncode == 0, done.stderr
    html = next((tmp_path / "reports").glob("own*/index.html")).read_text()
    assert html.index('id="claims"') < html.index('id="curves"'), "verdicts come first"
    table = next((tmp_path / "reports").glob("own*/table.md")).read_text()
    assert "Paper" not in table + html.replace("paper", ""), "no column of a paper that has no such study"
    assert "difference (points)" in table
    assert "as in the paper" not in table
    document = (tmp_path / "mine.md").read_text()
    assert "**Contradicted.** It is better without." in document
    assert "python run_ablation.py report" in document
    again = command("report", str(own), "--scale", "smoke", "--markdown", "mine.md")
    assert again.returncode == 0
    assert (tmp_path / "mine.md").read_text() == document, "the same runs give the same document"


def test_report_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index and a document of every study; here of two, one of which has not been run."""
    names = ["initialisation", "stop-gradient"]
    monkeypatch.setattr("experiments.studies.study.study_names", lambda: names)
    runs, data, out = tmp_path / "runs", tmp_path / "data", tmp_path / "out"
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], runs, data)
    for planned in made.cells:
        print_of = fingerprint(planned.cell.settings.data, data) or ""
        write_run(runs, planned.cell.settings, 0, fingerprint=print_of)
    monkeypatch.setenv("ABLATION_RUNS", str(runs))  # else they are other runs than the usual, and the names say so
    report("all", runs, data, "smoke", out=out, markdown=tmp_path / "all.md")
    document, index = (tmp_path / "all.md").read_text(), (out / "index-smoke.html").read_text()
    for name in names:
        assert f"## {load_study(name).title}" in document
        assert f'href="{name}-smoke/index.html"' in index
        assert (out / f"{name}-smoke" / "index.html").exists()
    assert f"{DASH} (not run)" in document
    assert "nan" not in document
    assert "node1" not in document + index, "no host"
    assert "2026-01" not in document + index, "no date"
    assert "c0de" in document
    assert "At smoke scale the paper's effect was not seen (1 seed: not decided)." in document
    Page(out / "index-smoke.html")


# --- put down beforehand -----------------------------------------------------------------------------------------


def test_a_claim_that_was_changed_after_its_runs_says_so(tmp_path: Path) -> None:
    """What changes no claim changes nothing, and runs keep what was put down when they began."""
    path, runs = tmp_path / "own.yaml", tmp_path / "runs"
    runs.mkdir()

    def load(content: dict[str, Any]) -> Study:
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study(str(path))

    def notes(study: Study) -> dict[str, str]:
        variants = [
            ReportVariant(name, config_id(config, FINGERPRINT), load_paper(), config, (0,))
            for name, config in {"with": WITH, "without": WITHOUT}.items()
        ]
        found = verdicts(study.claims, *gather(variants, runs), "cpu", study.design, study.name)
        return {verdict.claim.name: " ".join(verdict.notes) for verdict in found}

    before = load(OWN)
    register([before], runs)
    kept = registered_claims(runs)["own"]
    assert set(kept) == {"collapse", "order"}
    for config in (WITH, WITHOUT):
        provenance = write_run(runs, config, 0) / "provenance.json"
        content = json.loads(provenance.read_text())
        content["attempts"][0]["claims"] = registered_claims(runs)
        provenance.write_text(json.dumps(content))
    assert set(notes(before).values()) == {""}
    changed = copy.deepcopy(OWN)
    changed["title"] = "Another title"
    changed["claims"]["order"]["note"] = "A note."
    assert notes(load(changed)) == {"collapse": "", "order": "A note."}
    changed["claims"]["order"]["checks"][0]["by"] = 0.5
    changed["claims"]["new"] = copy.deepcopy(changed["claims"]["collapse"])
    after = load(changed)
    register([after], runs)
    found = notes(after)
    date = kept["order"]["since"][:10]
    assert found["collapse"] == ""
    assert f"changed after 2 of its 2 runs had begun, for which it was put down on {date} as it was" in found["order"]
    assert "added after 1 of its 1 runs had begun" in found["new"]
    assert registered_claims(runs)["own"]["collapse"] == kept["collapse"], "what is as before keeps its date"
    assert registered_claims(runs)["own"]["order"]["hash"] != kept["order"]["hash"]
    other_looks = notes(load({**OWN, "looks": [3, 6]}))
    assert all("changed after" in text for text in other_looks.values())


def test_users_who_share_a_folder_put_their_claims_down_side_by_side(tmp_path: Path) -> None:
    """In a folder of everybody's, where each may replace his own files only."""
    theirs = tmp_path / ".claims.99999.json"
    old = {"a": {"hash": "1", "since": "2020-01-01T00:00:00Z"}}
    theirs.write_text(json.dumps({"shared": old, "only theirs": old, "damaged": 3}))
    before = theirs.read_bytes()
    register_claims(tmp_path, {"shared": {"a": "1"}})
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name], "it is put down already"
    register_claims(tmp_path, {"shared": {"a": "2"}, "only mine": {"b": "3"}})
    assert theirs.read_bytes() == before
    found = registered_claims(tmp_path)
    assert {study: claims[next(iter(claims))]["hash"] for study, claims in found.items()} == {
        "shared": "2", "only theirs": "1", "only mine": "3",
    }  # fmt: skip
