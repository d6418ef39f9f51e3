"""`report --watch`: it follows runs in progress, and leaves a page that reloads no more, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.report.one_study import report, report_variants
from analysis.report.page import Live, make_still
from commands import report as results
from experiments.plan import Plan, make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint
from tests.conftest import ROOT
from tests.run_folders import write_run

REFRESH = '<meta http-equiv="refresh"'
# As the command, but it looks every fifth of a second.
COMMAND = "from commands import report; report.WATCH_SECONDS = 0.2; from commands.app import main; main()"


def planned(tmp_path: Path) -> Plan:
    return make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], tmp_path / "runs", tmp_path / "data")


def write(plan: Plan, index: int, state: str, until: float = 1e9) -> None:
    """The run of a cell as it stands; replaces what was there."""
    cell = plan.cells[index].cell
    print_of = fingerprint(cell.settings.data, plan.data) or ""
    shutil.rmtree(plan.runs / plan.cells[index].run_id, ignore_errors=True)
    write_run(plan.runs, cell.settings, cell.seed, state=state, until=until, fingerprint=print_of)


def heed_signals() -> None:
    """A shell starts what it puts into the background with Ctrl-C ignored, and so would these tests."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        arguments = ["report", "stop-gradient", "--scale", "smoke", "--seeds", "1", "--watch", "--out", "out"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_signals,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(page: Path, *texts: str) -> str:
    """The page, once it has all of the texts."""
    end, content = time.monotonic() + 120, ""
    while time.monotonic() < end:
        content = page.read_text(encoding="utf-8") if page.exists() else ""
        if content and all(text in content for text in texts):
            return content
        time.sleep(0.05)
    raise AssertionError(content[:2000])


def test_it_follows_runs_until_all_have_ended(tmp_path: Path, watch: Callable[[], subprocess.Popen[str]]) -> None:
    plan, page = planned(tmp_path), tmp_path / "out" / "index.html"
    write(plan, 0, "done")
    write(plan, 1, "running", until=0.5)
    process = watch()
    wait_for(page, REFRESH, "running, epoch 0/")
    write(plan, 1, "running", until=1.5)
    wait_for(page, REFRESH, "running, epoch 1/", "In progress: as of 20")
    write(plan, 1, "done")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "1 done, 1 running" in out
    assert "2 runs: 2 done" in out
    assert "Page: " in out, "at the end it prints what `report` prints"
    content = page.read_text(encoding="utf-8")
    assert REFRESH not in content
    assert "In progress" not in content
    assert "running" not in content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_leaves_the_page_without_the_reloading(
    tmp_path: Path, watch: Callable[[], subprocess.Popen[str]], number: int
) -> None:
    plan, page = planned(tmp_path), tmp_path / "out" / "index.html"
    write(plan, 0, "done")
    write(plan, 1, "running", until=1.5)
    process = watch()
    wait_for(page, REFRESH)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    content = page.read_text(encoding="utf-8")
    assert REFRESH not in content
    assert "In progress" not in content
    assert "running, epoch 1/" in content
    assert content.rstrip().endswith("</html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_the_index_reloads_itself_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = planned(tmp_path), tmp_path / "out"
    write(plan, 0, "done")
    during: list[str] = []

    def pages() -> list[Path]:  # the place of the runs is in their names
        return sorted([*out.glob("index-smoke*.html"), *out.glob("stop-gradient-smoke*/index.html")])

    wait = threading.Event.wait

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        if timeout != results.WATCH_SECONDS:  # another's
            return wait(event, timeout)
        during.extend(page.read_text(encoding="utf-8") for page in pages())
        return True  # as after Ctrl-C

    monkeypatch.setattr("experiments.studies.study.study_names", lambda: ["stop-gradient"])
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyboardInterrupt):
            results.report("all", plan.runs, plan.data, "smoke", out=out, watch=True)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(during) == 2
    for page, content in zip(pages(), during, strict=True):
        assert REFRESH in content
        assert REFRESH not in page.read_text(encoding="utf-8")


def test_a_page_that_was_live_is_the_one_that_never_was(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    write(plan, 0, "done")
    variants = report_variants(plan.studies[0], plan, [0])
    texts = []
    for live in (None, Live(30, "2026-01-02 03:04:05")):
        page = report(plan.studies[0], variants, plan.runs, tmp_path / "out", scale="smoke", live=live).page
        texts.append(page.read_text(encoding="utf-8"))
        make_still(page)
        assert page.read_text(encoding="utf-8") == texts[0]
    assert texts[0] != texts[1]
