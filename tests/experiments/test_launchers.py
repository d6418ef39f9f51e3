"""Launchers behind one interface: this machine's, and one of the tests that is nothing but the interface."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.launcher import Launcher
from experiments.local.grid import LocalLauncher
from experiments.local.pool import Machine
from experiments.plan import Plan, make_plan
from experiments.runs.states import State
from experiments.status import Watcher
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import prepare
from simsiam.errors import SettingsError
from simsiam.settings.fields import DataSettings
from tests.experiments.test_local import curves, wait_for
from tests.folder_launcher import FolderLauncher, FolderQueue
from tests.simsiam.data.test_data import write_images

CELL = ["data.num_train=320", "batch_size=32", "evaluation.bank_size=200"]


class Silent:
    """A view that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def plan_of(runs: Path, *more: str) -> Plan:
    return make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [*CELL, *more], runs, runs / "data")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[FolderQueue]:
    folder = tmp_path / "queue"
    folder.mkdir()
    yield FolderQueue(folder)
    for job in FolderQueue(folder).jobs().values():
        os.kill(job["pid"], signal.SIGKILL)


def shown(made: Plan, queue: FolderQueue) -> list[tuple[str, str]]:
    return [(row.state, row.queue) for row in Watcher(made, [queue]).look().rows]


def ignore(line: str) -> None:
    pass


def test_each_launcher_trains_a_grid_to_the_same_curves(queue: FolderQueue, tmp_path: Path) -> None:
    here, there = plan_of(tmp_path / "here", "epochs=1"), plan_of(tmp_path / "there", "epochs=1")
    local: Launcher = LocalLauncher(Machine(here.runs, here.data, 1, 1, "cpu"), Silent())
    done = local.submit(here, ignore, command="test")
    assert sorted(done.done) == sorted(planned.run_id for planned in here.cells)
    launcher: Launcher = FolderLauncher(queue)
    launcher.check(there)
    assert len(launcher.preview(there, ignore)) == 2
    submitted = launcher.submit(there, ignore, command="test")
    assert sorted(submitted.submitted) == sorted(done.done)
    assert [view.id for view in queue.launches(there.runs)] == [submitted.launch]
    assert launcher.submit(there, ignore, command="test").submitted == []  # both are in the queue
    assert launcher.supervise(there, ignore)
    assert shown(there, queue) == [("done", "")] * 2
    assert curves(there.runs) == curves(here.runs)
    assert [path.read_text() for path in queue.logs(there, there.cells[0])] == ["done \n"]


def test_images_that_changed_since_the_plan_are_not_trained_on_under_the_old_name(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num=20)
    of_folder = [f"data.path={images}", "data.name=folder", "data.image_size=16", "batch_size=8", "epochs=1"]
    sizes = ["data.num_train=null", "evaluation.bank_size=null"]
    runs, data = tmp_path / "runs", tmp_path / "data"
    settings = DataSettings(name="folder", path=str(images), storage="memory", image_size=16)
    prepare(settings, data)
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [*of_folder, *sizes], runs, data)
    assert not made.unprepared
    path = next(images.rglob("*.png"))
    Image.new("RGB", (16, 16), "red").save(path)
    prepare(settings, data)
    ended = LocalLauncher(Machine(runs, data, 1, 1, "cpu"), Silent()).submit(made, ignore, command="test")
    assert not ended.done
    assert all("have changed since this run was planned" in reason for reason in ended.failures.values())
    assert len(ended.failures) == 2


def test_what_is_cancelled_stops_with_a_checkpoint_and_goes_on(queue: FolderQueue, tmp_path: Path) -> None:
    made = plan_of(tmp_path / "runs", "epochs=200")
    launcher = FolderLauncher(queue)
    launcher.submit(made, ignore, command="test")
    wait_for(lambda: [state for state, _ in shown(made, queue)].count("running") == 1)
    assert sorted(said.partition(" ")[2] for _, said in shown(made, queue)) == ["running", "waits"]
    queue.cancel(made, ignore)
    wait_for(lambda: not queue.jobs())
    states = {
        planned.run_id: status.state for planned, status in zip(made.cells, made.statuses().values(), strict=True)
    }
    assert sorted(states.values()) == [State.PENDING, State.STOPPED]
    stopped = next(run_id for run_id, state in states.items() if state == State.STOPPED)
    assert (made.runs / stopped / "checkpoint.pt").exists()
    # What is killed is shown as lost, since its job is gone, and can be submitted again.
    launcher.submit(made, ignore, command="test")
    wait_for(lambda: made.statuses()[stopped].state == State.RUNNING)
    for job in queue.jobs().values():
        os.kill(job["pid"], signal.SIGKILL)
    wait_for(lambda: not queue.jobs())
    assert sorted(shown(made, queue)) == [("lost", ""), ("pending", "")]
    assert [planned.run_id for planned in launcher.preview(made, ignore)].count(stopped) == 1


def test_a_launcher_refuses_ranks_that_cannot_share_a_batch(queue: FolderQueue, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"batch_size: 32 must be a multiple of the 3 ranks.*num_ranks"):
        FolderLauncher(queue, 3).check(plan_of(tmp_path))
