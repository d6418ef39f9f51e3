"""Trackers are told each point once, as read back by the trackers' own readers, offline."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.report.one_study import ReportVariant
from analysis.tracking.feed import tell
from analysis.tracking.tables import write_tables
from analysis.tracking.trackers import TRACKERS
from experiments.studies.study import PaperResult
from simsiam.settings.identity import config_id
from tests.run_folders import FINGERPRINT, settings, write_run

CONFIG = settings()
VARIANT = ReportVariant("with h", config_id(CONFIG, FINGERPRINT), PaperResult(), CONFIG, (0, 1))
Curve = dict[str, list[tuple[int, float]]]  # of a run: metric to its (step, value)s


def truth(folder: Path, metric: str = "loss") -> list[tuple[int, float]]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(point["step"], point[metric]) for point in lines if point.get(metric) is not None]


def interrupted_twice(runs: Path, look: Callable[[], None]) -> Path:
    """A run that is looked at as it grows, is preempted, makes some points again, and ends."""
    folder = write_run(runs, CONFIG, 0)
    whole = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in whole]
    hidden = {name: (folder / name).read_text() for name in ("metrics.jsonl", "result.json", "state.json")}
    for name in hidden:
        (folder / name).unlink()
    state = json.loads(hidden["state.json"])
    (folder / "state.json").write_text(json.dumps({**state, "state": "stopped"}))
    half = len(whole) // 2
    head = '{"attempt": 1, "resumed_at_step": null}\n'
    (folder / "metrics.1.jsonl").write_text(head + "".join(whole[: half // 2]))
    look()
    (folder / "metrics.1.jsonl").write_text(head + "".join(whole[:half]))
    look()
    resumed = steps[half // 2]  # a checkpoint before what has been told
    later = "".join(line for line, step in zip(whole, steps, strict=True) if step > resumed)
    (folder / "metrics.2.jsonl").write_text(f'{{"attempt": 2, "resumed_at_step": {resumed}}}\n')
    look()
    (folder / "metrics.2.jsonl").write_text(f'{{"attempt": 2, "resumed_at_step": {resumed}}}\n{later}')
    look()
    for name, text in hidden.items():
        (folder / name).write_text(text)
    look()
    look()
    return folder


def from_tensorboard(out: Path, folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for path in sorted((out / "mine" / "with h" / "s0").iterdir()):
        accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0})
        accumulator.Reload()
        for event in accumulator.Tensors("loss") if "loss" in accumulator.Tags()["tensors"] else ():
            found.append((event.step, float(event.tensor_proto.float_val[0])))
    return found


def from_mlflow(out: Path, folder: Path) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("mine")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1, "a run that was preempted is one run"
    run = runs[0]
    assert (run.info.status, run.data.tags["group"]) == ("FINISHED", "mine: with h")
    assert run.data.params["optimizer.lr"] == str(CONFIG.optimizer.lr)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]


def records_of(file: bytes) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format after seven bytes of a header."""
    block, record, at = 32768, b"", 7
    while at + 7 <= len(file):
        if block - at % block < 7:  # no record begins in the last bytes of a block
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", file[at + 4 : at + 7])
        record += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def from_wandb(out: Path, folder: Path) -> list[tuple[int, float]]:
    from wandb.proto import wandb_internal_pb2

    found, ids = [], set()
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.run_group))
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            if "loss" in items:
                found.append((int(items["_step"]), float(items["loss"])))
    assert ids == {(folder.name, "mine: with h")}, "one run, in the group of its seeds"
    return found


def from_trackio(out: Path, folder: Path) -> list[tuple[int, float]]:
    import trackio

    runs = trackio.Api().runs("simsiam-ablations")
    assert [run.name for run in runs] == [folder.name]
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("simsiam-ablations", folder.name)
    return [(int(point["step"]), float(point["loss"])) for point in logs if "loss" in point]


READERS = {
    "tensorboard": from_tensorboard,
    "wandb": from_wandb,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
}


@pytest.mark.parametrize("name", list(READERS))
def test_a_tracker_has_each_point_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    out, runs = tmp_path / "out", tmp_path / "runs"
    numbers: list[int] = []

    def look() -> None:
        send = TRACKERS[name](out)  # as if the command was started anew
        numbers.append(tell(send, "mine", [VARIANT], runs, out)[0])

    folder = interrupted_twice(runs, look)
    expected = truth(folder)
    assert numbers[-1] == 0, "nothing is new the second time"
    found = sorted(READERS[name](out, folder))
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_what_the_run_folder_holds(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    folder = write_run(tmp_path / "runs", CONFIG, 0)
    states = write_tables(kind, [VARIANT], tmp_path / "runs", tmp_path / "out")
    assert states[folder.name] == "done"
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    points, runs = (read(tmp_path / "out" / f"{name}.{kind}") for name in ("points", "runs"))
    of_run = points[(points["run"] == folder.name) & points["loss"].notna()]
    assert of_run["step"].tolist() == [step for step, _ in truth(folder)]
    assert of_run["loss"].tolist() == pytest.approx([loss for _, loss in truth(folder)])
    row = runs.set_index("run").loc[folder.name]
    assert (row["variant"], row["optimizer.lr"], row["state"]) == ("with h", CONFIG.optimizer.lr, "done")
