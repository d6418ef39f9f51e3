"""Codes, queue, momentum encoder and image averages against slow versions written from the formulas."""

from __future__ import annotations

import copy
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simsiam.model.losses import info_nce
from simsiam.model.targets import ImageAverage, KeyQueue, Prototypes, momentum_at, momentum_update, sinkhorn
from simsiam.settings.fields import TargetSettings


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- prototypes ---------------------------------------------------------------------------------------------------


def test_scores_are_cosines_with_each_prototype() -> None:
    prototypes, z = Prototypes(5, 7).double(), normal(4, 5)
    scores = prototypes(z)
    for i in range(4):
        for k in range(7):
            w = prototypes.weight[k]
            assert scores[i, k].item() == pytest.approx((z[i] @ w / z[i].norm() / w.norm()).item(), abs=1e-12)
    assert list(prototypes.state_dict()) == ["weight"]


def test_the_normalisation_of_the_prototypes_is_part_of_the_gradient() -> None:
    prototypes, z = Prototypes(5, 7).double(), normal(4, 5).requires_grad_()

    def scores(weight: Tensor, z: Tensor) -> Tensor:
        out = torch.func.functional_call(prototypes, {"weight": weight}, (z,))
        assert isinstance(out, Tensor)
        return out

    weight = prototypes.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(scores, (weight, z))
    (scores(weight, z) * normal(4, 7, seed=1)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 1e-3
    along = (weight.grad * weight).sum(1)  # the length of a row changes nothing, so no gradient points along the row
    torch.testing.assert_close(along, torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)


def test_scores_are_float32_under_autocast() -> None:
    prototypes, z = Prototypes(5, 7), normal(4, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        scores = prototypes(z.bfloat16())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, prototypes(z.bfloat16().float()))


# --- Sinkhorn-Knopp -----------------------------------------------------------------------------------------------


def sinkhorn_by_hand(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """SwAV's loop on Q (K x B) without logarithms, as its appendix writes it."""
    num_samples, num_prototypes = len(scores), len(scores[0])
    q = [[math.exp(scores[b][k] / epsilon) for b in range(num_samples)] for k in range(num_prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        for k in range(num_prototypes):
            mass = sum(q[k])
            q[k] = [value / mass / num_prototypes for value in q[k]]
        for b in range(num_samples):
            mass = sum(q[k][b] for k in range(num_prototypes))
            for k in range(num_prototypes):
                q[k][b] /= mass * num_samples
    return [[q[k][b] * num_samples for k in range(num_prototypes)] for b in range(num_samples)]


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(1, 10),
    k=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0.03, 2),
    iterations=st.integers(1, 6),
)
def test_codes_are_swavs(b: int, k: int, seed: int, epsilon: float, iterations: int) -> None:
    scores = 2 * torch.rand(b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    codes = sinkhorn(scores, epsilon, iterations)
    expected = torch.tensor(sinkhorn_by_hand(scores.tolist(), epsilon, iterations), dtype=torch.float64)
    torch.testing.assert_close(codes, expected, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(codes.sum(1), torch.ones(b, dtype=torch.float64), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(1, 64),
    k=st.integers(1, 32),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([0.0, 1.0, 1e3, 1e6, 1e30]),
    iterations=st.integers(1, 5),
)
def test_samples_sum_to_1_whatever_the_scores(b: int, k: int, seed: int, size: float, iterations: int) -> None:
    codes = sinkhorn(size * normal(b, k, seed=seed, dtype=torch.float32), 0.05, iterations)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(b), atol=1e-5, rtol=0)


def test_prototypes_share_the_samples_in_the_limit_only() -> None:
    scores = normal(24, 6).clamp(-1, 1) + torch.linspace(-1, 1, 6, dtype=torch.float64)  # some are liked by all
    share = 24 / 6
    few, many = (sinkhorn(scores, 0.3, iterations).sum(0) for iterations in (1, 500))
    assert (few - share).abs().max() > 0.1
    torch.testing.assert_close(many, torch.full((6,), share, dtype=torch.float64), atol=1e-6, rtol=0)


def test_codes_of_equal_scores_are_uniform_and_float32_agrees_with_float64() -> None:
    torch.testing.assert_close(sinkhorn(torch.full((5, 4), 3.0), 0.05, 3), torch.full((5, 4), 0.25))
    scores = normal(64, 16).clamp(-1, 1)
    torch.testing.assert_close(sinkhorn(scores.float(), 0.05, 3).double(), sinkhorn(scores, 0.05, 3), atol=1e-4, rtol=0)
    assert torch.equal(sinkhorn(scores.bfloat16(), 0.05, 3), sinkhorn(scores.bfloat16().float(), 0.05, 3))


def test_codes_move_with_the_samples_and_ignore_a_common_offset() -> None:
    scores, order = normal(10, 5), torch.randperm(10, generator=torch.Generator().manual_seed(0))
    codes = sinkhorn(scores, 0.1, 3)
    torch.testing.assert_close(sinkhorn(scores[order], 0.1, 3), codes[order])
    torch.testing.assert_close(sinkhorn(scores + 7, 0.1, 3), codes)


def test_gradient_of_the_codes() -> None:
    """SwAV without stop-gradient differentiates them."""
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, 0.5, 3), (normal(4, 3).requires_grad_(),))


# --- queue --------------------------------------------------------------------------------------------------------


def new_queue(size: int, dim: int, seed: int = 0) -> KeyQueue:
    return KeyQueue(size, dim, torch.Generator().manual_seed(seed))


def oldest_first(queue: KeyQueue) -> Tensor:
    return queue.keys.roll(-int(queue.pointer), 0)


@settings(deadline=None, max_examples=30)
@given(num=st.integers(1, 4), multiple=st.integers(1, 5), calls=st.integers(0, 12), seed=st.integers(0, 2**31))
def test_queue_is_a_deque(num: int, multiple: int, calls: int, seed: int) -> None:
    size = num * multiple
    queue = new_queue(size, 3, seed)
    truth = deque(queue.keys.tolist(), maxlen=size)
    for call in range(calls):
        keys = normal(num, 3, seed=call, dtype=torch.float32)
        queue.enqueue(keys)
        truth.extend((keys / keys.norm(dim=1, keepdim=True)).tolist())
    torch.testing.assert_close(oldest_first(queue), torch.tensor(list(truth)))
    assert int(queue.pointer) == calls * num % size


def test_queue_starts_as_unit_vectors_in_random_directions_of_the_generator() -> None:
    queue = new_queue(2000, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(2000))
    assert queue.keys.mean(0).norm() < 3 / math.sqrt(2000)  # isotropic: its expected square is 1 / 2000
    torch.testing.assert_close(queue.keys.T @ queue.keys / 2000, torch.eye(16) / 16, atol=0.02, rtol=0)
    assert torch.equal(new_queue(2000, 16).keys, queue.keys)
    assert not torch.equal(new_queue(2000, 16, seed=1).keys, queue.keys)


@pytest.mark.parametrize("num", [0, 4, 16])
def test_queue_refuses_what_does_not_divide_it(num: int) -> None:
    queue = new_queue(10, 3)
    before = copy.deepcopy(queue.state_dict())
    with pytest.raises(ValueError, match=f"10 must be a multiple of the {num} keys"):
        queue.enqueue(normal(num, 3))
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


def test_queue_goes_on_from_its_state() -> None:
    queue, resumed = new_queue(6, 3), new_queue(6, 3, seed=1)
    queue.enqueue(normal(2, 3))
    resumed.load_state_dict(queue.state_dict())
    for each in (queue, resumed):
        each.enqueue(normal(2, 3, seed=5).bfloat16())
    assert set(queue.state_dict()) == {"keys", "pointer"}
    assert torch.equal(queue.keys, resumed.keys)
    assert queue.keys.dtype == torch.float32
    assert int(resumed.pointer) == 4


def test_a_queue_that_changes_before_the_backward_is_an_error_not_a_wrong_gradient() -> None:
    queue, p = new_queue(6, 3), normal(2, 3).float().requires_grad_()
    loss = info_nce(p, normal(2, 3, seed=1).float(), queue.keys, 0.2)
    queue.enqueue(p)
    assert not queue.keys.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- momentum encoder ---------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    for i, weight in enumerate(net.parameters()):
        weight.data = normal(*weight.shape, seed=100 * seed + i, dtype=torch.float32)
    return net


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.996, 1.0])
def test_momentum_encoder_of_constant_weights_has_a_closed_form(momentum: float) -> None:
    target, online = network(0).requires_grad_(False), network(1)
    start = [weight.double() for weight in target.parameters()]
    identities = [id(weight) for weight in target.parameters()]
    for _ in range(7):
        momentum_update(target, online, momentum)
    for first, now, weight in zip(start, target.parameters(), online.parameters(), strict=True):
        expected = momentum**7 * first + (1 - momentum**7) * weight.detach().double()
        torch.testing.assert_close(now.double(), expected, atol=1e-5, rtol=1e-5)
        if momentum in (0.0, 1.0):
            assert torch.equal(now.double(), expected)
    assert [id(weight) for weight in target.parameters()] == identities
    assert all(not weight.requires_grad for weight in target.parameters())
    assert all(weight.requires_grad for weight in online.parameters())


def test_momentum_encoder_keeps_its_own_statistics() -> None:
    target, online = network(0), network(1)
    online(normal(8, 1, 4, 4, dtype=torch.float32))
    before = {name: value.clone() for name, value in target.named_buffers()}
    online_before = copy.deepcopy(online.state_dict())
    momentum_update(target, online, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in target.named_buffers())
    assert all(torch.equal(value, online_before[name]) for name, value in online.state_dict().items())
    with pytest.raises(ValueError, match="zip"):
        momentum_update(target, nn.Sequential(*online[:-1]), 0.5)


@settings(deadline=None, max_examples=50)
@given(base=st.floats(0, 0.9999), num_steps=st.integers(1, 10**6), data=st.data())
def test_momentum_schedule(base: float, num_steps: int, data: st.DataObject) -> None:
    constant = TargetSettings(momentum=base)
    cosine = TargetSettings(momentum=base, momentum_schedule="cosine")
    step = data.draw(st.integers(0, num_steps))
    now = momentum_at(cosine, step, num_steps)
    assert momentum_at(constant, step, num_steps) == base
    # Half-angle: (cos x + 1) / 2 = cos^2(x / 2).
    expected = 1 - (1 - base) * math.cos(math.pi / 2 * step / num_steps) ** 2
    assert now == pytest.approx(expected, abs=1e-12)
    assert base - 1e-12 <= now <= 1
    assert momentum_at(cosine, 0, num_steps) == pytest.approx(base, abs=1e-15)
    assert momentum_at(cosine, num_steps, num_steps) == 1
    assert momentum_at(cosine, num_steps, 2 * num_steps) == pytest.approx((1 + base) / 2, abs=1e-12)


# --- image averages -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), momentum=st.sampled_from([0.0, 0.5, 0.8]), visits=st.integers(1, 8))
def test_image_averages_are_the_formula(seed: int, momentum: float, visits: int) -> None:
    """Sec. 5.2: eta_t is made with this visit's z, and the step is solved against it."""
    averages = ImageAverage(num_images := 9, dim := 4, momentum).double()
    draws = torch.Generator().manual_seed(seed)
    truth: dict[int, list[float]] = {}
    for visit in range(visits):
        index, z = torch.randperm(num_images, generator=draws)[:3], normal(3, dim, seed=seed + visit)
        value = averages.value(index, z)
        averages.update(index, z)
        for i, row, got in zip(index.tolist(), z.tolist(), value.tolist(), strict=True):
            row = [x / math.hypot(*row) for x in row]
            if i in truth:
                row = [momentum * eta + (1 - momentum) * x for eta, x in zip(truth[i], row, strict=True)]
            truth[i] = [x / math.hypot(*row) for x in row]
            assert got == pytest.approx(truth[i], abs=1e-12)
    for i in range(num_images):
        assert bool(averages.visited[i]) == (i in truth)
        assert averages.average[i].tolist() == pytest.approx(truth.get(i, [0.0] * dim), abs=1e-12)


def test_image_averages_are_constants_and_a_value_survives_the_update() -> None:
    averages, index = ImageAverage(5, 3, 0.8), torch.tensor([4, 1])
    z = normal(2, 3, dtype=torch.float32).requires_grad_()
    for _ in range(2):  # the first visit, then a later one
        value = averages.value(index, z)
        assert not value.requires_grad
        before = value.clone()
        p = normal(2, 3, seed=9, dtype=torch.float32).requires_grad_()
        loss = (p * value).sum()
        averages.update(index, -3 * z.bfloat16())
        loss.backward()
        assert torch.equal(value, before)
        assert torch.equal(p.grad, before)
    assert averages.average.dtype == torch.float32
    assert not averages.average.requires_grad


def test_an_average_never_becomes_zero() -> None:
    averages, index = ImageAverage(2, 3, 0.5), torch.tensor([1])
    z, zero = torch.tensor([[3.0, 0.0, 4.0]]), torch.zeros(1, 3)
    averages.update(index, zero)
    assert not averages.visited.any()
    averages.update(index, z)
    unit = torch.tensor([[0.6, 0.0, 0.8]])
    torch.testing.assert_close(averages.value(index, zero), unit)
    averages.update(index, zero)  # 0.5 eta + 0 has eta's direction
    averages.update(index, -z)  # 0.5 eta - 0.5 eta has none
    torch.testing.assert_close(averages.value(index, zero), unit)
    averages.update(index, torch.full((1, 3), torch.nan))
    assert averages.value(index, z).isnan().all()  # a diverged run is not hidden


def test_image_averages_go_on_from_their_state() -> None:
    averages, resumed = ImageAverage(5, 3, 0.8), ImageAverage(5, 3, 0.8)
    averages.update(torch.tensor([0, 2]), normal(2, 3))
    resumed.load_state_dict(averages.state_dict())
    for each in (averages, resumed):
        each.update(torch.tensor([2, 3]), normal(2, 3, seed=1))
    assert torch.equal(averages.average, resumed.average)
    assert torch.equal(averages.visited, resumed.visited)
    assert set(averages.state_dict()) == {"average", "visited"}
