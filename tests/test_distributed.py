"""Many ranks against one: real processes that speak gloo, in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simsiam import checkpoint, metrics
from simsiam.distributed import ONE_RANK
from tests import rank_cases
from tests.conftest import ROOT

Answers = dict[str, Any]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def run_ranks(world_size: int, folder: Path) -> list[Answers]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rank_cases", str(rank), str(world_size), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
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


@pytest.mark.parametrize("case", rank_cases.METHODS)
def test_two_ranks_give_the_curves_and_weights_of_one(case: str, one: Answers, two: list[Answers]) -> None:
    """Loss, std and gradient's size of each step; then weights, BN statistics, target encoder, queue, averages."""
    expected = one[f"steps {case}"]
    for answers in two:
        loss, std, size = (answers[f"steps {case}"]["curves"] - expected["curves"]).abs().amax(0).tolist()
        assert loss < 1e-9
        assert size < 1e-9
        assert std < 1e-6  # measured in float32
        found = answers[f"steps {case}"]["model"]
        assert list(found) == list(expected["model"])
        for name, value in expected["model"].items():
            torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
            assert torch.equal(found[name], two[0][f"steps {case}"]["model"][name]), f"ranks differ in {name}"


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


def test_an_image_is_augmented_alike_on_every_rank(one: Answers, two: list[Answers]) -> None:
    for answers in two:
        for found, expected in zip(answers["images"], one["images"], strict=True):
            assert torch.equal(found, expected)


def test_points_are_those_of_one_rank(one: Answers, two: list[Answers]) -> None:
    """kNN, effective rank, loss ... of a whole run, in float32, in which differences grow from step to step."""
    assert two[1]["points"] == []
    assert len(two[0]["points"]) == len(one["points"])
    for found, expected in zip(two[0]["points"], one["points"], strict=True):
        assert set(found) == set(expected)
        for name, value in expected.items():
            if name == "knn_top1":
                assert found[name] == pytest.approx(value, abs=2), found
            elif name != "images_per_s":
                assert found[name] == pytest.approx(value, rel=1e-3), (name, found)


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
