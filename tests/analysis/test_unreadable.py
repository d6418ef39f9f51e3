"""Runs that the user may not read, say another's on a shared disk: they are named, and the others are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.plan import Plan, make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint
from tests.analysis.test_pages import Page
from tests.ordinary_user import call, open_to_all
from tests.run_folders import write_run

OPTIONS = ("--scale", "smoke", "--seeds", "2", "--runs", "../runs", "--data", "../data")


@pytest.fixture(params=["folder", "file"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plan]:
    """Two variants with two seeds; of the first run no file may be read, or only the curves may not."""
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0, 1], [], tmp_path / "runs", tmp_path / "data")
    for planned in made.cells:
        settings = planned.cell.settings
        write_run(made.runs, settings, planned.cell.seed, fingerprint=fingerprint(settings.data, made.data) or "")
    folder = made.runs / made.cells[0].run_id
    locked = folder if request.param == "folder" else folder / "metrics.jsonl"
    locked.chmod(0)
    yield made
    locked.chmod(0o700)


def test_report_diagnose_and_status_name_it_and_go_on(plan: Plan, tmp_path: Path) -> None:
    where = open_to_all(tmp_path)
    unreadable, *others = (planned.run_id for planned in plan.cells)
    whole = (plan.runs / unreadable).stat().st_mode & 0o777 == 0

    done = call(where, "report", "stop-gradient", *OPTIONS, "--out", "out")
    assert done.returncode == 0, done.stderr
    page = Page(where / "out" / "index.html").text
    note = f"{'config.yaml' if whole else 'metrics.jsonl'} cannot be read"
    assert note in page
    assert "Traceback" not in done.stderr
    assert all(run in page for run in (unreadable, *others))

    done = call(where, "diagnose", "stop-gradient", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert note in done.stdout
    done = call(where, "diagnose", "stop-gradient", *OPTIONS, "--json")
    verdicts = {each["run"]: each["verdict"] for each in json.loads(done.stdout)}
    assert verdicts[unreadable] == "too early to say"
    assert set(others) < verdicts.keys()
    assert not {verdicts[run] for run in others} & {"too early to say", "divergence"}

    done = call(where, "status", "stop-gradient", *OPTIONS, "--json")
    assert done.returncode == 0, done.stderr
    states = {cell["run"]: cell["state"] for cell in json.loads(done.stdout)["cells"]}
    assert states == {unreadable: "unreadable" if whole else "done", **dict.fromkeys(others, "done")}
    text = call(where, "status", "stop-gradient", *OPTIONS).stdout
    assert "4 runs" in text
    assert ("1 unreadable" in text) == whole
