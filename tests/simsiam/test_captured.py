"""The step whose inputs are tensors alone: the same numbers as the eager one, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.studies.study import load_scale, load_study, make_cells
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.identity import config_id
from tests.simsiam.test_train import assert_same_run, run

Small = Callable[..., Settings]


def methods() -> dict[str, Settings]:
    """The five methods at smoke scale, and what else gives a step inputs of its own."""
    found = {
        cell.variant.removesuffix(", 1x"): cell.settings
        for cell in make_cells(load_study("comparison"), load_scale("smoke"), [0])
        if cell.variant.endswith(", 1x")
    }
    extra: dict[str, dict[str, Any]] = {
        "cached targets": {"target.cache_steps": 3},
        "averages of images": {"target.image_average": 0.8, "predictor.kind": "none"},
        "two pairs": {"loss.symmetry": "asymmetric-2x"},
    }
    return found | {name: validate(flatten(found["SimSiam"]) | changes) for name, changes in extra.items()}


@pytest.mark.parametrize("name", methods())
def test_the_form_for_capture_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    settings = methods()[name]
    short = {"epochs": 1, "data.num_train": 5 * settings.batch_size, "evaluation.every_epochs": 1}
    eager = validate(flatten(settings) | short)
    captured = validate(flatten(eager) | {"execution.cuda_graph": True})
    assert config_id(eager, "images") == config_id(captured, "images")
    run(eager, tmp_path / "eager")
    run(captured, tmp_path / "captured")
    assert_same_run(tmp_path / "eager", tmp_path / "captured")


def test_targets_made_before_a_step_leave_its_gradients_alone(small: Small, tmp_path: Path) -> None:
    """k = 1 is SimSiam, in bfloat16 too: weights that autocast has cast for the targets, without a gradient, must not
    be those of the step."""
    run(small(precision="bfloat16"), tmp_path / "plain")
    run(small(precision="bfloat16", target__cache_steps=1), tmp_path / "cached")
    assert_same_run(tmp_path / "plain", tmp_path / "cached")


def test_tensors_keep_their_place(small: Small, tmp_path: Path) -> None:
    """What a graph would replay reads its inputs where they were at its capture."""
    from tests.simsiam.model.test_step_cost import make_training

    training = make_training(small(execution__cuda_graph=True), tmp_path)
    assert training.captured is not None
    places = []
    for batch, _ in zip(training.source.epoch(0, 0), range(3), strict=False):
        training.update(batch)
        assert training.captured._inputs is not None
        places.append([tensor.data_ptr() for tensor in training.captured._inputs.tensors()])
        for mine, given in zip(training.captured._inputs.pairs[0], batch.pairs[0], strict=True):
            assert torch.equal(mine, given)
    assert places[0] == places[1] == places[2]
