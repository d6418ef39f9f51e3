"""Targets, symmetry, BN and optimiser switches, in whole training steps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.plan import num_passes
from simsiam.data.sets import load
from simsiam.model.losses import negative_cosine
from simsiam.model.siamese import Siamese
from simsiam.model.targets import ImageAverage, momentum_at
from simsiam.settings.fields import Settings
from simsiam.training.loop import Hooks, Training
from simsiam.training.optim import make_optimizer
from tests.simsiam.test_train import CPU, assert_same_run, curves, run, weights

Small = Callable[..., Settings]
BYOL = {"target__encoder": "momentum", "target__momentum": 0.9, "target__momentum_schedule": "cosine"}
MOCO = {
    "predictor__kind": "none", "target__encoder": "momentum", "target__momentum": 0.9, "loss__name": "info-nce",
    "target__momentum_update": "before-forward", "target__queue_size": 128, "batch_norm__groups": 4,
}  # fmt: skip
SWAV = {
    "predictor__kind": "none", "target__transform": "sinkhorn", "target__num_prototypes": 12,
    "loss__name": "swapped-prediction",
}  # fmt: skip


def training(settings: Settings, folder: Path) -> Training:
    folder.mkdir(exist_ok=True)
    return Training(settings, load(settings.data, folder), folder, 1, CPU, Hooks())


def step(run_: Training) -> Any:
    return run_.update(next(iter(run_.source.epoch(*divmod(run_.step, run_.steps_per_epoch)))))


# --- multi-step alternation ------------------------------------------------------------------------------------


def test_one_step_of_alternation_is_plain_simsiam_bit_for_bit(small: Small, tmp_path: Path) -> None:
    """Sec. 5.2: k = 1 goes through the cache, and gives SimSiam."""
    run(small(), tmp_path / "plain")
    run(small(target__cache_steps=1), tmp_path / "cached")
    assert_same_run(tmp_path / "plain", tmp_path / "cached")


def test_cached_targets_are_those_of_the_block_s_first_weights(small: Small, tmp_path: Path) -> None:
    """For k = 3: the targets of step 2 are f's outputs on step 2's views with the weights of step 0."""
    settings = small(target__cache_steps=3)
    whole = training(settings, tmp_path / "run")
    start = copy.deepcopy(whole.model)
    batches = list(whole.source.epoch(0, 0))[:3]
    outputs = [whole.update(batch) for batch in batches]
    for output, batch in zip(outputs, batches, strict=True):
        expected = start.f(batch.pairs[0][0]), start.f(batch.pairs[0][1])  # train mode: this batch's statistics
        assert torch.equal(output.t1, expected[0])
        assert torch.equal(output.t2, expected[1])
    assert not torch.equal(outputs[2].t1, outputs[2].z1)


def test_filling_the_cache_moves_no_running_statistics(small: Small, tmp_path: Path) -> None:
    whole = training(small(target__cache_steps=5), tmp_path / "run")
    before = copy.deepcopy(whole.model.state_dict())
    whole.cache.fill(whole.model, whole.batches_from(0, 5))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "changes", [{"target__cache_steps": 4}, {"target__cache_steps": 7}, {"target__cache_epoch": True}]
)
@pytest.mark.parametrize("stop_at", [5, 8, 13])
def test_a_run_that_is_stopped_within_a_block_goes_on_bit_for_bit(
    small: Small, tmp_path: Path, changes: dict[str, Any], stop_at: int
) -> None:
    settings, done = small(**changes), 0
    run(settings, tmp_path / "whole")

    def count(at: int) -> None:
        nonlocal done
        done = at

    assert run(settings, tmp_path / "parts", 1, on_step=count, should_stop=lambda: done >= stop_at) is None
    run(settings, tmp_path / "parts", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# --- moving average of each image ------------------------------------------------------------------------------


def test_image_averages_against_a_direct_computation(small: Small, tmp_path: Path) -> None:
    """Sec. 5.2 by a dictionary, for two epochs: eta moves first, each direction with its other view's z; z2's stays."""
    settings = small(predictor__kind="none", target__image_average=0.8)
    whole = training(settings, tmp_path / "run")
    eta: dict[int, torch.Tensor] = {}
    for epoch in range(2):
        for batch in whole.source.epoch(epoch, 0):
            output = whole.update(batch)
            unit1, unit2 = (torch.nn.functional.normalize(z.detach(), dim=1) for z in (output.z1, output.z2))
            for row, image in enumerate(batch.places.tolist()):
                before = eta.get(image, torch.zeros(16))
                t1, t2 = (0.8 * before + 0.2 * unit[row] for unit in (unit1, unit2))
                torch.testing.assert_close(output.t1[row], t1 / t1.norm())
                torch.testing.assert_close(output.t2[row], t2 / t2.norm())
                eta[image] = t2 / t2.norm()
    assert len(eta) == 320


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_an_average_with_momentum_0_is_simsiam_without_h(small: Small, symmetry: str) -> None:
    """Sec. 5.2: eta_t is then this step's own z of the other view; at every visit, and for all gradients."""
    draws = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(8, 3, 16, 16, generator=draws, dtype=torch.float64) for _ in range(2))
    plain, averaged = (Siamese(small(predictor__kind="none", loss__symmetry=symmetry), 3).double() for _ in range(2))
    averaged.averages = ImageAverage(num_images=8, dim=16, momentum=0.0).double()
    index = torch.arange(8)
    for visit in range(3):
        first, second = (network(x1, x2 + visit, index=index) for network in (plain, averaged))
        averaged.after_step(second, index, visit, 3)
        assert second.loss.item() == pytest.approx(first.loss.item(), abs=1e-12)
        for network, output in ((plain, first), (averaged, second)):
            network.zero_grad()
            output.loss.backward()
        for mine, other in zip(averaged.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changes", [{"predictor__kind": "none", "target__image_average": 0.8}, BYOL, MOCO, SWAV])
def test_what_a_target_remembers_is_in_the_checkpoint(small: Small, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings, done = small(**changes), 0
    run(settings, tmp_path / "whole")

    def count(at: int) -> None:
        nonlocal done
        done = at

    run(settings, tmp_path / "parts", 1, on_step=count, should_stop=lambda: done >= 13)
    run(settings, tmp_path / "parts", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# --- the loss's weight -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric-2x"])
def test_a_weight_scales_the_gradient_and_not_the_logged_loss(small: Small, tmp_path: Path, symmetry: str) -> None:
    plain, weighted = (
        training(small(loss__weight=weight, loss__symmetry=symmetry), tmp_path / str(weight)) for weight in (1.0, 4.0)
    )
    first, second = step(plain), step(weighted)
    assert second.loss.item() == first.loss.item()
    for mine, other in zip(weighted.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine.grad, 4 * other.grad)  # a power of two rounds nothing


def test_with_lars_a_weight_moves_bn_and_biases_alone(small: Small, tmp_path: Path) -> None:
    """Why the siblings need it: LARS normalises the gradient's length, but for what is left out of it."""
    lars = {"optimizer__name": "lars", "optimizer__exclude_bn_and_bias": True, "optimizer__weight_decay": 1e-9}
    moved = []
    for weight in (1.0, 4.0):
        run_ = training(small(loss__weight=weight, **lars), tmp_path / str(weight))
        before = [w.detach().clone() for w in run_.model.parameters()]
        step(run_)
        moved.append([w.detach() - old for w, old in zip(run_.model.parameters(), before, strict=True)])
    for once, fourfold in zip(*moved, strict=True):
        torch.testing.assert_close(fourfold, once * (4 if once.dim() == 1 else 1), rtol=1e-3, atol=1e-6)


# --- momentum encoder and queue ----------------------------------------------------------------------------------


def test_momentum_encoder_follows_by_its_formula(small: Small, tmp_path: Path) -> None:
    """BYOL: after the optimiser's step, with the momentum of that step; without h; BN buffers of its own."""
    whole = training(small(**BYOL), tmp_path / "run")
    target = whole.model.target_encoder
    assert target is not None
    expected = [weight.clone() for weight in target.parameters()]
    online = [*whole.model.backbone.parameters(), *whole.model.projector.parameters()]
    assert all(torch.equal(mine, other) for mine, other in zip(expected, online, strict=True)), "a copy at the start"
    for i in range(4):
        step(whole)
        momentum = momentum_at(whole.settings.target, i, whole.num_steps)
        expected = [
            momentum * mine + (1 - momentum) * other.detach() for mine, other in zip(expected, online, strict=True)
        ]
    for mine, truth in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(mine, truth)
        assert mine.grad is None
    held = {id(weight) for group in whole.optimizer.param_groups for weight in group["params"]}
    assert not held & {id(weight) for weight in target.parameters()}
    own, others = (dict(part.named_buffers()) for part in (target[1], whole.model.projector))
    assert any(not torch.equal(own[name], others[name]) for name in own if "mean" in name)


def test_moco_moves_its_encoder_before_the_keys_are_made(small: Small, tmp_path: Path) -> None:
    """With momentum 0 the key encoder is the online one in every step."""
    whole = training(small(**{**MOCO, "target__momentum": 0.0, "batch_norm__groups": 1}), tmp_path / "run")
    for _ in range(3):
        output = step(whole)
        torch.testing.assert_close(output.t1, output.z1.detach())


def test_both_terms_use_the_old_queue_and_then_both_sets_of_keys_enter(small: Small, tmp_path: Path) -> None:
    whole = training(small(**MOCO), tmp_path / "run")
    assert whole.model.queue is not None
    before = whole.model.queue.keys.clone()
    output = step(whole)
    expected = torch.nn.functional.normalize(torch.cat((output.t1, output.t2)), dim=1)
    torch.testing.assert_close(whole.model.queue.keys[:64], expected)
    assert torch.equal(whole.model.queue.keys[64:], before[64:])
    loss = whole.model.D(output.z1, output.t2, before) / 2 + whole.model.D(output.z2, output.t1, before) / 2
    torch.testing.assert_close(output.loss, loss)


# --- symmetry ----------------------------------------------------------------------------------------------------


def test_asymmetric_loss_has_weight_1_and_one_direction(small: Small, tmp_path: Path) -> None:
    whole = training(small(loss__symmetry="asymmetric"), tmp_path / "run")
    model = copy.deepcopy(whole.model)
    batch = next(iter(whole.source.epoch(0, 0)))
    output = whole.update(batch)
    z1, z2 = (model.f(x) for x in batch.pairs[0])
    torch.testing.assert_close(output.loss, negative_cosine(model.h(z1), z2.detach()))


def test_2x_is_the_mean_over_two_pairs_of_views(small: Small, tmp_path: Path) -> None:
    whole = training(small(loss__symmetry="asymmetric-2x"), tmp_path / "run")
    model = copy.deepcopy(whole.model)
    batch = next(iter(whole.source.epoch(0, 0)))
    assert len(batch.pairs) == 2
    assert len({float(view.sum()) for pair in batch.pairs for view in pair}) == 4, "four views"
    loss = whole.update(batch).loss
    expected = [negative_cosine(model.h(model.f(x1)), model.f(x2).detach()) for x1, x2 in batch.pairs]
    torch.testing.assert_close(loss, (expected[0] + expected[1]) / 2)


def test_one_forward_for_both_views_shares_their_statistics(small: Small) -> None:
    network = Siamese(small(batch_norm__one_forward=True), 3)
    x1, x2 = torch.randn(8, 3, 16, 16), 5 + torch.randn(8, 3, 16, 16)
    z1 = network(x1, x2).z1
    torch.testing.assert_close(z1, network.f(torch.cat((x1, x2)))[:8])
    assert not torch.allclose(z1, network.f(x1))


def test_the_second_view_has_a_distribution_of_its_own(small: Small, tmp_path: Path) -> None:
    """BYOL's solarisation of x2 alone: x1 stays bit for bit, x2 changes."""
    plain, byol = small(), small(second_view__solarise_probability=1.0)
    batches = [next(iter(training(settings, tmp_path / "run").source.epoch(0, 0))) for settings in (plain, byol)]
    assert torch.equal(batches[0].pairs[0][0], batches[1].pairs[0][0])
    assert not torch.equal(batches[0].pairs[0][1], batches[1].pairs[0][1])


# --- predictor, initialisation, optimiser -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num"), [("linear", 16 * 16), ("bias", 16), ("none", 0)])
def test_small_predictors(small: Small, kind: str, num: int) -> None:
    network = Siamese(small(predictor__kind=kind), 3)
    assert sum(weight.numel() for weight in network.predictor.parameters()) == num
    z = torch.randn(8, 16)
    if kind != "linear":
        assert torch.equal(network.h(z), z), "a bias starts at 0"


def test_fc_std(small: Small) -> None:
    network = Siamese(small(initialisation__fc_std=0.01, projector__hidden_dim=256), 3)
    assert network.projector[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    other = Siamese(small(projector__hidden_dim=256), 3)
    assert torch.equal(network.backbone.conv1.weight, other.backbone.conv1.weight)


def test_the_predictor_s_multiplied_rate(small: Small, tmp_path: Path) -> None:
    whole = training(small(predictor__lr_multiplier=10.0), tmp_path / "run")
    step(whole)
    encoder, predictor = (group["lr"] for group in whole.optimizer.param_groups)
    assert predictor == pytest.approx(10 * encoder)


def test_weight_decay_without_bn_and_biases(small: Small) -> None:
    settings = small(optimizer__exclude_bn_and_bias=True, predictor__lr_schedule="cosine")
    network = Siamese(settings, 3)
    decayed = {
        id(w)
        for group in make_optimizer(settings, network).param_groups
        if group["weight_decay"]
        for w in group["params"]
    }
    for name, weight in network.named_parameters():
        assert (id(weight) in decayed) == (weight.dim() > 1), name


def test_lars_step_is_by_the_formula(small: Small) -> None:
    """You et al. 2017: the rate of a layer is lr x 0.001 |w| / (|g| + wd |w|); BN and biases move by plain SGD."""
    settings = small(
        optimizer__name="lars", optimizer__exclude_bn_and_bias=True, optimizer__weight_decay=1e-3, optimizer__lr=0.8,
        predictor__lr_schedule="cosine",
    )  # fmt: skip
    network = Siamese(settings, 3)
    optimizer = make_optimizer(settings, network)
    network(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)).loss.backward()
    expected = {}
    for name, weight in network.named_parameters():
        w, g = weight.detach().clone(), weight.grad
        if weight.dim() > 1:
            ratio = 0.001 * w.norm() / (g.norm() + 1e-3 * w.norm())
            expected[name] = w - 0.1 * ratio * (g + 1e-3 * w)
        else:
            expected[name] = w - 0.1 * g
    optimizer.step()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], msg=name, rtol=1e-4, atol=1e-6)


# --- SwAV --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_swav_s_stop_gradient_is_on_the_codes(small: Small, tmp_path: Path, stop_gradient: bool) -> None:
    output = step(training(small(**SWAV, target__stop_gradient=stop_gradient), tmp_path / "run"))
    assert output.t1.requires_grad != stop_gradient
    torch.testing.assert_close(output.t1.sum(1), torch.ones(32))
    assert output.t1.shape == (32, 12)
    assert output.z1.shape == (32, 16)


def test_new_switches_left_old_runs_as_they_were(small: Small, tmp_path: Path) -> None:
    """The default of each new switch computes what the code without it did: the plain loss of Algorithm 1."""
    run(small(), tmp_path / "run")
    assert {"loss", "knn_top1"} <= {name for point in curves(tmp_path / "run") for name in point}
    assert not [
        name for name in weights(tmp_path / "run") if name.startswith(("target", "queue", "averages", "prototypes"))
    ]


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"loss__symmetry": "asymmetric"},
        {"loss__symmetry": "asymmetric", "target__stop_gradient": False},
        {"loss__symmetry": "asymmetric-2x"},
        {"target__cache_steps": 2},
        {"target__image_average": 0.8, "predictor__kind": "none"},
        BYOL,
        MOCO,
        SWAV,
    ],
)
def test_the_estimate_counts_the_passes_of_a_step(
    small: Callable[..., Settings], tmp_path: Path, switches: dict[str, Any]
) -> None:
    """Samples that go forward through a backbone, and twice those whose gradient comes back, over two steps."""
    settings = small(**switches)
    run = training(settings, tmp_path)
    passes = 0

    def backward(gradient: Tensor) -> None:
        nonlocal passes
        passes += 2 * len(gradient)

    def forward(module: nn.Module, inputs: Any, features: Tensor) -> None:
        nonlocal passes
        passes += len(features)
        if features.requires_grad:
            features.register_hook(backward)

    target = run.model.target_encoder
    for backbone in (run.model.backbone, *([target[0]] if isinstance(target, nn.Sequential) else [])):
        backbone.register_forward_hook(forward)
    for batch in itertools.islice(run.source.epoch(0, 0), 2):
        run.update(batch)
    assert passes == 2 * settings.batch_size * num_passes(settings)
