"""The schedule against its formula, and what the optimiser may move."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simsiam.model.siamese import Siamese
from simsiam.settings.fields import OptimizerSettings, Settings
from simsiam.training.optim import make_optimizer, peak_rate, rate, set_rates

Small = Callable[..., Settings]


@given(step=st.integers(0, 999), warmup=st.integers(0, 5))
def test_rate_is_warm_up_then_half_a_cosine(step: int, warmup: int) -> None:
    settings = OptimizerSettings(warmup_epochs=float(warmup))
    factor = rate(settings, step, steps_per_epoch=100, num_steps=1000, constant=False)
    warm = warmup * 100
    if step < warm:
        assert factor == pytest.approx((step + 1) / warm)
    else:
        assert factor == pytest.approx((1 + math.cos(math.pi * (step - warm) / (1000 - warm))) / 2)
    assert 0 < factor <= 1


def test_constant_rate_skips_the_decay_but_not_the_warm_up() -> None:
    settings = OptimizerSettings(warmup_epochs=1.0)
    factors = [rate(settings, step, 10, 100, constant=True) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10:] == [1.0] * 90


@given(step=st.integers(0, 999), warmup=st.sampled_from([0.0, 0.25, 2.0]))
def test_a_cosine_by_epoch_is_the_release_s(step: int, warmup: float) -> None:
    """adjust_learning_rate of the authors' release, which has no warm-up; ours moves with each step."""
    settings = OptimizerSettings(warmup_epochs=warmup, schedule_by="epoch")
    factor = rate(settings, step, steps_per_epoch=100, num_steps=1000, constant=False)
    warm = 100 * warmup
    if step < warm:
        assert factor == pytest.approx((step + 1) / warm)
    elif warmup == 0.25 and step < 100:
        assert factor == 1
    else:
        epoch, epochs = step // 100 - warmup, 10 - warmup
        assert factor == pytest.approx(0.5 * (1 + math.cos(math.pi * epoch / epochs)))
    assert rate(settings, step, 100, 1000, constant=True) == min(1, (step + 1) / warm if warm else 1)


def test_linear_scaling_rule(small: Small) -> None:
    assert peak_rate(small(optimizer__lr=0.05, batch_size=32)) == pytest.approx(0.05 / 8)


def test_each_group_has_its_own_rate(small: Small) -> None:
    settings = small(optimizer__lr=0.05, predictor__lr_schedule="constant")
    optimizer = make_optimizer(settings, Siamese(settings, 3))
    assert set_rates(optimizer, settings, 50, 10, 100) == pytest.approx(0.05 / 8 / 2)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05 / 8)
    settings = small(optimizer__lr=0.05, predictor__lr_schedule="cosine")
    optimizer = make_optimizer(settings, Siamese(settings, 3))
    set_rates(optimizer, settings, 50, 10, 100)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05 / 8 / 2)


@pytest.mark.parametrize("kind", ["mlp", "none", "fixed"])
def test_groups_hold_every_trained_parameter_once_and_no_frozen_one(small: Small, kind: str) -> None:
    settings = small(predictor__kind=kind)
    network = Siamese(settings, 3)
    optimizer = make_optimizer(settings, network)
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    assert len(held) == len(set(map(id, held)))
    assert set(map(id, held)) == set(map(id, trained))


def test_fixed_predictor_does_not_move_though_its_bn_buffers_may(small: Small) -> None:
    """Weight decay would shrink it if it were in the optimiser."""
    settings = small(predictor__kind="fixed", optimizer__weight_decay=0.1, optimizer__lr=1.0)
    network = Siamese(settings, 3)
    optimizer = make_optimizer(settings, network)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)).loss.backward()
        optimizer.step()
    for name, weight in network.named_parameters():
        assert torch.equal(weight, before[name]) == name.startswith("predictor"), name
    assert network.predictor[1].num_batches_tracked.item() == 6


def test_step_is_sgd_with_weight_decay_on_every_parameter(small: Small) -> None:
    """One step by the formula: v = g + wd w; w <- w - lr v, BN scales and biases included (App. A)."""
    settings = small(optimizer__weight_decay=0.01)
    network = Siamese(settings, 3)
    optimizer = make_optimizer(settings, network)
    lr = set_rates(optimizer, settings, 0, 10, 20)
    network(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)).loss.backward()
    expected = {name: w.detach() - lr * (w.grad + 0.01 * w.detach()) for name, w in network.named_parameters()}
    optimizer.step()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], msg=name)
