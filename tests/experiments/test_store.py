"""Ownership of runs: one owner, takeover of the dead, nothing reused for other settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from commands import app
from experiments.runs import folder as store
from experiments.runs.folder import Attempt, Heartbeats, LeaseLostError, RunFolder, StoreError
from experiments.runs.provenance import commit_of
from experiments.runs.states import State
from simsiam.distributed.ranks import RankLostError
from simsiam.errors import DataError, SettingsError
from simsiam.record import curves
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from simsiam.settings.identity import run_id, run_name, split_run_name
from tests.conftest import ROOT, SMALL

Small = Callable[..., Settings]


def claim(
    runs: Path, settings: Settings, *, retry_failed: bool = False, beats: Heartbeats | None = None
) -> Attempt | None:
    return RunFolder(runs, "run-s0").claim(settings, beats or Heartbeats(), retry_failed=retry_failed)


def owned_by_a_dead_process(runs: Path) -> None:
    """A claim by a process that is then gone, as after kill -9."""
    script = (
        "import sys, json; from pathlib import Path\n"
        "from experiments.runs.folder import *; from experiments.runs.states import State\n"
        "from simsiam.settings.checks import validate\n"
        "folder, settings = RunFolder(Path(sys.argv[1]), 'run-s0'), validate(json.loads(sys.argv[2]))\n"
        "attempt = folder.claim(settings, Heartbeats(), retry_failed=False)\n"
        "attempt.progress = {'step': 7}; attempt.write_state(State.RUNNING)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(runs), json.dumps(SMALL)], cwd=ROOT, check=True)


@pytest.mark.parametrize(("config", "seed"), [("3f9a0c41b2d7", 0), ("a-s1", 12)])
def test_a_run_s_name_says_its_configuration_and_seed(config: str, seed: int) -> None:
    assert split_run_name(run_name(config, seed)) == (config, seed)
    assert split_run_name("reports") is None


def test_a_run_has_one_owner(small: Small, tmp_path: Path) -> None:
    first = claim(tmp_path, small())
    assert first is not None
    assert first.number == 1
    first.write_state(State.RUNNING)
    assert claim(tmp_path, small()) is None
    assert RunFolder(tmp_path, "run-s0").status().state == "running"


def test_of_many_contenders_one_wins(small: Small, tmp_path: Path) -> None:
    settings, won, start = small(), list[int | None](), threading.Barrier(16)

    def contend() -> None:
        start.wait()
        attempt = claim(tmp_path, settings)
        won.append(attempt.number if attempt else None)

    threads = [threading.Thread(target=contend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=str) == [1] + [None] * 15
    assert len(list((tmp_path / "run-s0").glob("lease.*"))) == 1


def test_a_dead_owner_is_taken_over_at_once_on_the_same_machine(small: Small, tmp_path: Path) -> None:
    owned_by_a_dead_process(tmp_path)
    status = RunFolder(tmp_path, "run-s0").status()
    assert (status.state, status.detail["step"]) == ("interrupted", 7)
    second = claim(tmp_path, small())
    assert second is not None
    assert second.number == 2


def test_a_pid_that_was_recycled_is_not_the_owner(small: Small, tmp_path: Path) -> None:
    assert claim(tmp_path, small()) is not None
    lease = tmp_path / "run-s0" / "lease.1"
    owner = json.loads(lease.read_text())
    assert owner["pid"] == os.getpid()
    lease.write_text(json.dumps({**owner, "start_time": "1"}))
    assert RunFolder(tmp_path, "run-s0").status().state == "interrupted"


def test_another_machine_is_dead_when_its_heartbeat_stands_still(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is the observer's own; what the other machine's clock says does not matter."""
    now = 1000.0
    monkeypatch.setattr(store.time, "monotonic", lambda: now)
    owner = claim(tmp_path, small())
    assert owner is not None
    owner.write_state(State.RUNNING)
    lease = tmp_path / "run-s0" / "lease.1"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "machine": "another", "pid": 1}))
    beats = Heartbeats()
    assert claim(tmp_path, small(), beats=beats) is None
    now += 299
    assert claim(tmp_path, small(), beats=beats) is None
    owner.write_state(State.RUNNING)  # it beats again
    now += 299
    assert claim(tmp_path, small(), beats=beats) is None
    now += 299
    assert claim(tmp_path, small(), beats=beats) is None
    now += 2
    second = claim(tmp_path, small(), beats=beats)
    assert second is not None
    assert second.number == 2


def test_an_owner_that_was_taken_over_publishes_nothing_more(small: Small, tmp_path: Path) -> None:
    first = claim(tmp_path, small())
    assert first is not None
    (tmp_path / "run-s0" / "lease.2").write_text("{}")
    for publish in (
        first.check_ownership,
        lambda: first.write_state(State.RUNNING),
        lambda: first.finish([], {}),
        lambda: first.fail("no"),
    ):
        with pytest.raises(LeaseLostError):
            publish()
    assert not (tmp_path / "run-s0" / "result.json").exists()
    assert not (tmp_path / "run-s0" / "state.json").exists()


@pytest.mark.parametrize("state", ["stopped", "failed", "done"])
def test_what_has_ended(small: Small, tmp_path: Path, state: str) -> None:
    attempt = claim(tmp_path, small())
    assert attempt is not None
    if state == "done":
        attempt.finish([{"epoch": 0.0, "step": 0}], {"outcome": "healthy", "final": {}})
    elif state == "failed":
        attempt.fail("Traceback: boom")
        assert (tmp_path / "run-s0" / "failure.txt").read_text() == "Traceback: boom"
    else:
        attempt.write_state(State.STOPPED)
    assert RunFolder(tmp_path, "run-s0").status().state == state
    again, retried = claim(tmp_path, small()), claim(tmp_path, small(), retry_failed=True)
    assert (again is not None) == (state == "stopped")
    assert (retried is not None) == (state == "failed")


def test_time_adds_up_over_attempts(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(store.time, "monotonic", lambda: now)
    first = claim(tmp_path, small())
    assert first is not None
    now += 10
    first.write_state(State.STOPPED)
    now += 1000
    second = claim(tmp_path, small())
    assert second is not None
    now += 5
    assert second.seconds() == pytest.approx(15)


def test_a_folder_with_other_settings_is_refused(small: Small, tmp_path: Path) -> None:
    attempt = claim(tmp_path, small())
    assert attempt is not None
    attempt.write_state(State.STOPPED)
    with pytest.raises(StoreError, match="other settings"):
        claim(tmp_path, small(epochs=3))
    (tmp_path / "run-s0" / "config.yaml").write_text("{: not yaml")
    with pytest.raises(StoreError, match="damaged"):
        claim(tmp_path, small())


def test_a_folder_serves_all_settings_of_its_name(small: Small, tmp_path: Path) -> None:
    """Two studies may differ in what has no effect, such as the rate of a predictor that is not there."""
    assert claim(tmp_path, small(predictor__kind="none")) is not None
    other = small(predictor__kind="none", predictor__lr_schedule="cosine", predictor__hidden_dim=4)
    assert claim(tmp_path, other) is None, "it is running; its settings are not refused"
    with pytest.raises(StoreError, match="holds other settings"):
        claim(tmp_path, small())


def test_a_folder_that_is_older_than_a_switch_is_still_good(small: Small, tmp_path: Path) -> None:
    attempt = claim(tmp_path, small())
    assert attempt is not None
    attempt.write_state(State.STOPPED)
    path = tmp_path / "run-s0" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["target"]
    del config["augment"]["hue"]
    path.write_text(yaml.safe_dump(config))
    assert claim(tmp_path, small()) is not None


def test_config_is_the_resolved_settings(small: Small, tmp_path: Path) -> None:
    settings = small(optimizer__lr=0.123)
    assert claim(tmp_path, settings) is not None
    content = yaml.safe_load((tmp_path / "run-s0" / "config.yaml").read_text())
    assert content["optimizer"]["lr"] == 0.123
    assert content == settings.model_dump(mode="json")


# --- curves of several attempts ----------------------------------------------------------------------------------


def test_later_attempts_win_from_their_resume_step_on(tmp_path: Path) -> None:
    first = curves.MetricsWriter(tmp_path, 1, None)
    for step in (0, 5, 10, 15):
        first.write({"epoch": step / 10, "step": step, "loss": 1.0})
    second = curves.MetricsWriter(tmp_path, 2, 10)
    second.write({"epoch": 1.5, "step": 15, "loss": float("nan")})
    third = curves.MetricsWriter(tmp_path, 10, 15)  # ten comes after two
    third.write({"epoch": 2.0, "step": 20, "loss": 3.0})
    (tmp_path / "metrics.10.jsonl").open("a").write('{"epoch": 2.5, "st')  # killed in mid-line
    points = curves.merge(tmp_path)
    assert [(point["step"], point["loss"]) for point in points] == [
        (0, 1.0),
        (5, 1.0),
        (10, 1.0),
        (15, None),
        (20, 3.0),
    ]
    curves.MetricsWriter(tmp_path, 11, None).write({"epoch": 0.0, "step": 0, "loss": 4.0})
    assert [point["loss"] for point in curves.merge(tmp_path)] == [4.0]


# --- names of runs -----------------------------------------------------------------------------------------------


def test_a_run_is_named_by_what_it_computes() -> None:
    base = validate(SMALL)
    name = run_id(base, "data")
    assert run_id(validate({**SMALL, "optimizer.lr": 0.05}), "data") == name, "a default that is written out"
    folder = {**SMALL, "data.name": "folder"}
    moved = run_id(validate({**folder, "data.path": "elsewhere"}), "data")
    assert moved == run_id(validate(folder), "data"), "where an image folder is"
    others = [
        run_id(base, "other data"),
        run_id(validate({**SMALL, "seed": 1}), "data"),
        run_id(validate({**SMALL, "target.stop_gradient": False}), "data"),
        run_id(validate({**SMALL, "precision": "bfloat16"}), "data"),
    ]
    assert len({name, *others}) == 5
    assert run_id(validate({**SMALL, "seed": 1}), "data").split("-")[0] == name.split("-")[0]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(SMALL).seed = 1  # type: ignore[misc]
    with pytest.raises(SettingsError):
        validate({"nothing": 1})


def test_another_user_s_checkout_tells_its_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org")
    (tmp_path / "file").write_text("1")
    for arguments in (("init",), ("add", "file"), ("commit", "-m", "one")):
        subprocess.run((*git, *arguments), check=True, capture_output=True)
    head = subprocess.run((*git, "rev-parse", "HEAD"), check=True, capture_output=True, text=True).stdout.strip()
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 12345, 12345)
    assert commit_of(tmp_path) == {"git_commit": head, "git_dirty": False}
    (tmp_path / "file").write_text("22")
    assert commit_of(tmp_path) == {"git_commit": head, "git_dirty": True}
    assert capsys.readouterr().err == ""
    (tmp_path / ".git" / "HEAD").write_text("nonsense")
    assert commit_of(tmp_path) == {"git_commit": None, "git_dirty": None}
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(tmp_path) in told


@pytest.mark.parametrize(
    "kind", [type("OfStore", (StoreError,), {}), type("OfData", (DataError,), {}), LeaseLostError, RankLostError]
)
def test_a_user_s_error_and_every_kind_of_it_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("what is wrong")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert (ended.value.code, capsys.readouterr().err) == (1, "error: what is wrong\n")


def test_a_mistake_of_ours_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        app.main()
