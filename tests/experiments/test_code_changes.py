"""Runs that other code made are named, with the files that differ, and are made anew beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runs import code_changes
from experiments.runs.code_changes import OtherCode, other_code
from tests.conftest import ROOT

OPTIONS = ("study.yaml", "--scale", "smoke")
STUDY = "title: One\nvariants: {one: {settings: {epochs: 1, data.num_train: 64, evaluation.query_size: 64}}}\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project that a user edits."""
    place = tmp_path / "project"
    for package in ("simsiam", "experiments", "analysis", "commands"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_ablation.py", place)
    (place / "study.yaml").write_text(STUDY)
    return place


def call(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "run_ablation.py", *arguments], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_trained_by_the_code_that_was_called(copy: Path, tmp_path: Path) -> None:
    """From a folder that is none of the project's, where Python by itself finds the installed package."""
    edit(
        copy,
        "simsiam/model/losses.py",
        "* F.normalize(z, dim=1)).sum(1).mean()",
        "* F.normalize(z, dim=1)).sum(1).mean() * 0.5",
    )
    for command in ("run", "status"):
        options = [str(copy / "study.yaml"), *OPTIONS[1:], "--runs", "runs"]
        done = subprocess.run(
            [sys.executable, str(copy / "run_ablation.py"), command, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "other training code" not in done.stdout


def edit(place: Path, file: str, before: str, after: str) -> None:
    text = (place / file).read_text()
    assert before in text
    (place / file).write_text(text.replace(before, after))


def test_edited_training_code_is_said_and_retrained_beside_the_old_runs(copy: Path) -> None:
    call(copy, "run", *OPTIONS)
    old = {path.name for path in (copy / "runs").glob("*-s0")}
    loss = "simsiam/model/losses.py"
    edit(copy, loss, '"""D(p, z) = -<p/|p|', '"""Other words: D(p, z) = -<p/|p|')
    edit(
        copy,
        "simsiam/model/exchange.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nX = 1\n",
    )
    edit(
        copy,
        "analysis/formats.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nX = 1\n",
    )
    told = call(copy, "plan", *OPTIONS, "--retrain")
    assert "nothing is made anew" in told  # words, and what comes after training
    assert "other training code than" not in told

    edit(copy, loss, "* F.normalize(z, dim=1)).sum(1).mean()", "* F.normalize(z, dim=1)).sum(1).mean() * 0.5")
    told = " ".join(call(copy, "status", *OPTIONS).split())
    assert f"1 of 1 done runs were made by other training code than that at hand: {loss} changed since" in told
    call(copy, "report", *OPTIONS, "--out", "report")
    assert "run --retrain" in (copy / "report" / "index.html").read_text()
    assert "retrain" not in (copy / "report" / "table.tex").read_text()  # advice is for the one at the keyboard
    told = call(copy, "run", *OPTIONS, "--retrain")
    (new,) = {path.name for path in (copy / "runs").glob("*-s0")} - old
    option = told[told.index("--set code=") :].split()[1]  # for the report of the new one
    told = " ".join(call(copy, "status", *OPTIONS).split())
    assert f"They count as they are; 1 newer run by the code at hand is there: --set {option}" in told
    assert "--retrain" not in told

    result = copy / "runs" / new / "result.json"
    result.rename(copy / "result.json")
    assert "newer run" not in call(copy, "status", *OPTIONS), "it has not ended"
    (copy / "result.json").rename(result)
    results = [json.loads((copy / "runs" / name / "result.json").read_text()) for name in (*old, new)]
    assert results[1]["final"]["loss"] == pytest.approx(results[0]["final"]["loss"] / 2, rel=0.2)

    edit(copy, loss, "* 0.5", "* 0.25")  # the run that was made anew keeps its name, and is not gone on with
    (copy / "runs" / new / "result.json").unlink()
    for command in ("plan", "run"):
        refused = subprocess.run(
            [sys.executable, "run_ablation.py", command, *OPTIONS, "--set", option],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 2
        assert "code: study: one s0 is to be trained by the code" in refused.stderr


def test_a_run_without_a_record_of_files_is_compared_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(name: str, **attempt: object) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(json.dumps({"attempts": [attempt]}))
        return name

    same = record("same", code=code_changes.training_code())
    dirty = record("dirty", code="0", git_commit="x", git_dirty=True)
    silent = record("silent")
    assert other_code(tmp_path, [same, silent]) is None
    assert other_code(tmp_path, [same, dirty]) == OtherCode(1, 2, (), 1)
    mine = dict(code_changes.training_files())
    monkeypatch.setattr(code_changes, "_files_of_commit", lambda commit, dirty: mine if commit == "mine" else None)
    assert other_code(tmp_path, [record("committed", code="0", git_commit="mine", git_dirty=False)]) is None
    other = record("edited", code="0", files={**mine, "simsiam/model/heads.py": "0"})
    assert other_code(tmp_path, [same, other]) == OtherCode(1, 2, ("simsiam/model/heads.py",), 0)
