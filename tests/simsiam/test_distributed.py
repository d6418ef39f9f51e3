"""Many ranks against one: real processes that speak gloo, in float64."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from simsiam.distributed.ranks import ONE_RANK, RankLostError
from simsiam.distributed.rendezvous import Rendezvous, join
from simsiam.errors import SettingsError
from simsiam.record import checkpoint
from simsiam.record import curves as metrics
from simsiam.record.curves import unpack
from simsiam.settings.checks import check_ranks, validate
from tests import rank_cases
from tests.conftest import ROOT, SMALL, Command
from tests.experiments.test_local import CELL, children, curves, start, wait_for
from tests.rank_cases import CPU, Answers

__all__ = ["start"]  # a fixture

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def start_rank(rank: int, world_size: int, folder: Path, *only: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rank_cases", str(rank), str(world_size), str(folder), *only],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_ranks(world_size: int, folder: Path) -> list[Answers]:
    """Start all ranks, where an earlier job has left its rendezvous file and its port now belongs to another."""
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other.set("token", "another's")
    left = {"token": "mine", "addresses": ["127.0.0.1"], "port": other.port}
    (folder / "rendezvous.json").write_text(json.dumps(left))
    processes = [start_rank(rank, world_size, folder) for rank in range(world_size)]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * (world_size - 1) + [-signal.SIGKILL], "\n".join(outputs)
    assert not list(folder.glob("rendezvous*"))
    return [torch.load(folder / f"answers.{rank}.pt", weights_only=False) for rank in range(world_size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Answers]:
    """What two ranks answer; the runs they wrote are under ``two[0]["folder"]``."""
    folder = tmp_path_factory.mktemp("two")
    answers = run_ranks(2, folder)
    answers[0]["folder"] = folder / "runs"
    return answers


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    return {"folder": folder / "runs", **rank_cases.all_cases(folder / "runs", ONE_RANK)}


def check_steps(case: str, expected: Answers, found: list[Answers]) -> None:
    """Loss, std and gradient's size of each step; then weights, BN statistics, target encoder, queue, averages."""
    for answers in found:
        differences = answers[f"steps {case}"]["curves"] - expected[f"steps {case}"]["curves"]
        loss, std, size = differences.abs().amax(0).tolist()
        assert loss < 1e-9
        assert size < 1e-9
        assert std < 1e-6  # measured in float32
        model, wanted = answers[f"steps {case}"]["model"], expected[f"steps {case}"]["model"]
        assert list(model) == list(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(model[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
            assert torch.equal(model[name], found[0][f"steps {case}"]["model"][name]), f"ranks differ in {name}"


@pytest.mark.parametrize("case", rank_cases.METHODS)
def test_two_ranks_give_the_curves_and_weights_of_one(case: str, one: Answers, two: list[Answers]) -> None:
    check_steps(case, one, two)


def test_a_gradient_flows_to_every_rank_through_what_was_gathered(one: Answers, two: list[Answers]) -> None:
    for answers in two:
        torch.testing.assert_close(answers["gather"], one["gather"], **CLOSE)


def test_batch_norm_over_ranks_is_batch_norm_over_the_whole_batch(one: Answers, two: list[Answers]) -> None:
    """One rank's are nn.BatchNorm and GroupedBatchNorm, which tests/test_batch_norm.py compares with the definition."""
    for answers in two:
        for key, expected in one["bn"].items():
            for found, value in zip(answers["bn"][key], expected, strict=True):
                torch.testing.assert_close(
                    found, value, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
                )


@pytest.mark.parametrize("kind", ["images", "files"])
def test_an_image_is_augmented_alike_on_every_rank(kind: str, one: Answers, two: list[Answers]) -> None:
    for answers in two:
        for found, expected in zip(answers[kind], one[kind], strict=True):
            assert torch.equal(found, expected)


def test_points_are_those_of_one_rank(one: Answers, two: list[Answers]) -> None:
    """kNN, effective rank, loss ... of a whole run, in float32, in which differences grow from step to step."""
    assert two[1]["points"] == []
    assert len(two[0]["points"]) == len(one["points"])
    for found, expected in zip(two[0]["points"], one["points"], strict=True):
        assert set(found) == set(expected)
        for name, value in expected.items():
            if name in ("knn_top1", "linear_top1"):
                assert found[name] == pytest.approx(value, abs=2), found
            elif name in ("knn_correct", "linear_correct"):
                ours, theirs = (unpack(text, expected["num_queries"]) for text in (found[name], value))
                assert (ours == theirs).mean() > 0.95  # but for images between two classes
            elif name != "images_per_s":
                assert found[name] == pytest.approx(value, rel=1e-3), (name, found)


def test_in_bfloat16_the_curves_are_about_those_of_one_rank(one: Answers, two: list[Answers]) -> None:
    """Eight bits of each number: after a whole run the two agree as two seeds would not."""
    assert len(two[0]["bfloat16"]) == len(one["bfloat16"])
    for found, expected in zip(two[0]["bfloat16"], one["bfloat16"], strict=True):
        assert set(found) == set(expected)
        for name in ("loss", "z_std_relative"):
            if name in expected:  # an evaluation has points of its own
                assert found[name] == pytest.approx(expected[name], abs=0.05)


def test_linear_evaluation_is_that_of_one_rank(one: Answers, two: list[Answers]) -> None:
    for answers in two:
        for found, expected in zip(answers["linear"], one["linear"], strict=True):
            assert found["ranks"] == 2
            assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
            assert found["num_test"] == expected["num_test"] == 500
            for name in ("top1", "top5"):
                assert found[name] == pytest.approx(expected[name], abs=0.41)  # two images at a tie
    assert one["linear"][1]["train_loss"] < 2.1  # it has learnt its 320 images; guessing gives log 10


def test_a_stopped_run_goes_on_bit_for_bit(two: list[Answers]) -> None:
    whole, parts = two[0]["folder"] / "whole", two[0]["folder"] / "parts"
    points = [[{**point, "images_per_s": 0} for point in metrics.merge(folder)] for folder in (whole, parts)]
    assert points[0] == points[1]
    states = [checkpoint.load(folder) for folder in (whole, parts)]
    assert states[0] is not None
    assert states[1] is not None
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_all_ranks_agree_that_a_run_has_diverged(two: list[Answers]) -> None:
    assert [answers["diverges"] for answers in two] == ["diverged", "diverged"]


def test_how_gradients_are_put_into_buckets_changes_nothing(two: list[Answers]) -> None:
    for name, value in two[0]["steps SimSiam"]["model"].items():
        assert torch.equal(value, two[0]["buckets"][name]), name


def test_what_ranks_tell_each_other(two: list[Answers]) -> None:
    for answers in two:
        assert answers["any"] == (True, False, True)
        assert answers["broadcast"]["rank"] == 0
        assert torch.equal(answers["broadcast"]["x"], torch.zeros(3, dtype=torch.int64))
        assert torch.equal(answers["uneven"], torch.arange(14.0).view(7, 2))


# --- when a rank fails, or is gone -------------------------------------------------------------------------------


def test_the_traceback_of_the_rank_that_failed_is_kept(two: list[Answers]) -> None:
    rank_0, rank_1 = (answers["fails"] for answers in two)
    assert (rank_0["state"], rank_0["status"], rank_1["state"]) == ("failed", "failed", "failed")
    assert "rank 1 on" in rank_0["reason"]
    assert "ArithmeticError: the twelfth step is too hard" in rank_0["reason"]
    text = (two[0]["folder"].parent / "faults" / "fails" / "failure.txt").read_text()
    assert "Traceback" in text
    assert "in fail" in text


def test_a_killed_rank_ends_the_attempt_soon_and_leaves_the_run_to_be_claimed(two: list[Answers]) -> None:
    killed = two[0]["is-killed"]
    assert (killed["state"], killed["status"]) == ("interrupted", "interrupted")
    assert killed["seconds"] < 30, "long before the time limit of 120 s"
    folder = two[0]["folder"].parent / "faults" / "is-killed"
    state = checkpoint.load(folder)
    assert state is not None
    assert state["step"] == 10
    assert not (folder / "failure.txt").exists()


def test_a_rank_that_falls_silent_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    """Its process lives and its connections stay open, as those of a machine that is gone seem to."""
    processes = [start_rank(rank, 2, tmp_path, "falls silent") for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    first, silent = (torch.load(tmp_path / f"answers.{rank}.pt", weights_only=False) for rank in range(2))
    assert first["state"] == silent["state"] == "interrupted"
    assert first["status"] == "interrupted"  # to be claimed at once
    limit = rank_cases.SILENCE / 4
    assert limit < first["seconds"] < rank_cases.SILENCE
    assert silent["seconds"] > rank_cases.SILENCE


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_nobody_joins_gives_up_in_time(rank: int, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RankLostError), join(Rendezvous(rank, 2, tmp_path / "rendezvous.json"), CPU, timeout_seconds=1):
        pass
    assert time.monotonic() - started < 10
    assert not list(tmp_path.iterdir())


def test_a_port_that_does_not_answer_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens at the port that an earlier job has left, but says nothing."""
    monkeypatch.setattr("simsiam.distributed.rendezvous.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        left = {"token": "x", "addresses": ["127.0.0.1"], "port": silent.getsockname()[1]}
        (tmp_path / "rendezvous.json").write_text(json.dumps(left))
        with pytest.raises(RankLostError), join(Rendezvous(1, 2, tmp_path / "rendezvous.json"), CPU, timeout_seconds=1):
            pass


def test_the_batch_must_be_a_multiple_of_the_ranks(command: Command) -> None:
    with pytest.raises(SettingsError, match="batch_size: 32 must be a multiple of the 3 ranks"):
        check_ranks(validate(SMALL), 3)
    run = command("run", "stop-gradient", "--scale", "smoke", "--ranks", "7")
    assert run.returncode == 2
    assert "multiple of the 7 ranks" in run.stderr


ONE_CELL = ["grid", "optimizer.lr=0.05", "--scale", "smoke", *CELL, "--set", "epochs=6"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a rank's process in /proc")
def test_stopped_killed_and_taken_up_a_run_on_two_ranks_ends_as_undisturbed(
    command: Command, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"

    def trained(attempt: int) -> bool:
        return any(len(path.read_text().splitlines()) > 3 for path in runs.glob(f"*/metrics.{attempt}.jsonl"))

    def rank_0() -> int:
        pid: int = json.loads(next(runs.glob("*/state.json")).read_text())["pid"]
        return pid

    # Ctrl-C reaches all processes of the terminal.
    process = start(*ONE_CELL, "--ranks", "2")
    wait_for(lambda: trained(1), 300)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    # kill -9 of rank 0: its other rank ends too, and a new pair goes on.
    process = start(*ONE_CELL, "--ranks", "2")
    wait_for(lambda: trained(2), 300)
    others = children(rank_0(), "spawn_main")
    assert len(others) == 1
    os.kill(rank_0(), signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{others[0]}").exists())
    wait_for(lambda: trained(3), 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # kill -9 of the other rank.
    process = start(*ONE_CELL, "--ranks", "2")
    wait_for(lambda: trained(4), 300)
    os.kill(children(rank_0(), "spawn_main")[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    whole, alone = start(*ONE_CELL, "--ranks", "2", "--runs", "whole"), start(*ONE_CELL, "--runs", "alone")
    for process in (whole, alone):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    assert curves(runs) == curves(tmp_path / "whole")
    results = [json.loads(next((tmp_path / name).glob("*/result.json")).read_text()) for name in ("whole", "alone")]
    assert results[0]["device_seconds"] == pytest.approx(2 * results[0]["seconds"], rel=0.01)
    for name, value in results[1]["final"].items():
        if name != "images_per_s":
            assert results[0]["final"][name] == pytest.approx(value, rel=1e-2, abs=1), name
    attempts = json.loads(next(runs.glob("*/provenance.json")).read_text())["attempts"]
    assert [attempt["ranks"] for attempt in attempts] == [2] * 5
