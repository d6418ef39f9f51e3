"""The losses against plain re-derivations, and the paper's identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simsiam.model.losses import (
    LOSSES,
    cross_entropy_similarity,
    info_nce,
    make_distance,
    negative_cosine,
    nt_xent,
    nt_xent_direction,
    squared_distance,
    swapped_prediction,
)
from simsiam.settings.fields import LossSettings


def batches(n: int, d: int, seed: int, num: int = 2) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=draws, dtype=torch.float64) for _ in range(num)]


def cosine_of(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def softmax_of(x: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in x]
    return [value / sum(exponentials) for value in exponentials]


def by_hand(p: list[list[float]], z: list[list[float]]) -> float:
    """Eq. 1, image by image, with nothing but arithmetic."""
    return -sum(cosine_of(a, b) for a, b in zip(p, z, strict=True)) / len(p)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 8), d=st.integers(2, 32), seed=st.integers(0, 2**31))
def test_cosine_is_equation_1(n: int, d: int, seed: int) -> None:
    p, z = batches(n, d, seed)
    assert negative_cosine(p, z).item() == pytest.approx(by_hand(p.tolist(), z.tolist()), abs=1e-12)
    assert -1 - 1e-12 <= negative_cosine(p, z).item() <= 1 + 1e-12


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 8), d=st.integers(2, 32), seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_cosine_ignores_lengths(n: int, d: int, seed: int, scale: float) -> None:
    p, z = batches(n, d, seed)
    assert negative_cosine(scale * p, z / scale).item() == pytest.approx(negative_cosine(p, z).item(), abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 8), d=st.integers(2, 32), seed=st.integers(0, 2**31))
def test_squared_distance_of_unit_vectors_is_2_plus_2_cosine(n: int, d: int, seed: int) -> None:
    p, z = (torch.nn.functional.normalize(x, dim=1) for x in batches(n, d, seed))
    assert squared_distance(p, z).item() == pytest.approx(2 + 2 * negative_cosine(p, z).item(), abs=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_agree_with_finite_differences(name: str) -> None:
    p, z = (x.requires_grad_() for x in batches(3, 5, 0))
    assert torch.autograd.gradcheck(LOSSES[name], (p, z))


def test_cosine_gradient_by_hand() -> None:
    """d/dp of -cos(p, z) is -(z' - cos p') / |p| for unit p', z'; the mean over images divides by N."""
    p, z = batches(4, 6, 1)
    p.requires_grad_()
    negative_cosine(p, z).backward()
    unit_p, unit_z = p.detach() / p.detach().norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
    cosine = (unit_p * unit_z).sum(1, keepdim=True)
    expected = -(unit_z - cosine * unit_p) / p.detach().norm(dim=1, keepdim=True) / 4
    torch.testing.assert_close(p.grad, expected)


def test_equal_directions_reach_the_minimum() -> None:
    p, _ = batches(5, 7, 2)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1)


# --- cross-entropy, Sec. 4.5 --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 8), d=st.integers(2, 32), seed=st.integers(0, 2**31))
def test_cross_entropy_is_the_formula_of_section_4_5(n: int, d: int, seed: int) -> None:
    p, z = batches(n, d, seed)
    by_hand, entropy = 0.0, 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        target, prediction = softmax_of(b), softmax_of(a)
        by_hand -= sum(x * math.log(y) for x, y in zip(target, prediction, strict=True)) / n
        entropy -= sum(x * math.log(x) for x in target) / n
    assert cross_entropy_similarity(p, z).item() == pytest.approx(by_hand, abs=1e-12)
    assert cross_entropy_similarity(p, z).item() >= entropy - 1e-12
    assert cross_entropy_similarity(z, z).item() == pytest.approx(entropy, abs=1e-12)


def test_cross_entropy_of_large_outputs_is_finite() -> None:
    p, z = (1e4 * x.float() for x in batches(4, 8, 0))
    assert cross_entropy_similarity(p, z).isfinite()


# --- NT-Xent ------------------------------------------------------------------------------------------------------


def nt_xent_by_hand(z: list[list[float]], temperature: float) -> float:
    """Chen et al. 2020, Algorithm 1: z[2k] and z[2k + 1] are the two views of image k (from 0)."""
    num = len(z)

    def loss(i: int, j: int) -> float:
        denominator = sum(math.exp(cosine_of(z[i], z[k]) / temperature) for k in range(num) if k != i)
        return -math.log(math.exp(cosine_of(z[i], z[j]) / temperature) / denominator)

    return sum(loss(k, k + 1) + loss(k + 1, k) for k in range(0, num, 2)) / num


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), d=st.integers(2, 16), seed=st.integers(0, 2**31), temperature=st.floats(0.05, 2))
def test_nt_xent_without_predictor_is_simclrs(n: int, d: int, seed: int, temperature: float) -> None:
    z1, z2 = batches(n, d, seed)
    interleaved = torch.stack([z1, z2], dim=1).flatten(0, 1)
    expected = nt_xent_by_hand(interleaved.tolist(), temperature)
    assert nt_xent(z1, z2, z1, z2, temperature).item() == pytest.approx(expected, abs=1e-10)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), d=st.integers(2, 16), seed=st.integers(0, 2**31), temperature=st.floats(0.05, 2))
def test_nt_xent_with_predictor(n: int, d: int, seed: int, temperature: float) -> None:
    """Anchors are p of both views; the keys are both views' z except the anchor's own z."""
    p1, p2, z1, z2 = (x.tolist() for x in batches(n, d, seed, 4))
    anchors, keys, total = p1 + p2, z1 + z2, 0.0
    for i, anchor in enumerate(anchors):
        similar = {j: cosine_of(anchor, key) / temperature for j, key in enumerate(keys) if j != i}
        total += math.log(sum(math.exp(s) for s in similar.values())) - similar[(i + n) % (2 * n)]
    ours = nt_xent(*(torch.tensor(x, dtype=torch.float64) for x in (p1, p2, z1, z2)), temperature)
    assert ours.item() == pytest.approx(total / (2 * n), abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 8), d=st.integers(2, 16), seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_nt_xent_ignores_which_view_is_first_the_order_of_images_and_lengths(
    n: int, d: int, seed: int, scale: float
) -> None:
    p1, p2, z1, z2 = batches(n, d, seed, 4)
    loss = nt_xent(p1, p2, z1, z2, 0.2).item()
    assert nt_xent(p2, p1, z2, z1, 0.2).item() == pytest.approx(loss, abs=1e-12)
    assert nt_xent(scale * p1, p2, z1 / scale, z2, 0.2).item() == pytest.approx(loss, abs=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert nt_xent(*(x[order] for x in (p1, p2, z1, z2)), 0.2).item() == pytest.approx(loss, abs=1e-12)


def test_an_anchors_own_key_has_no_part_in_its_loss() -> None:
    p, other, own = (x.requires_grad_() for x in batches(3, 5, 0, 3))
    moved = own.detach().clone()
    moved[1] += 10  # a negative of anchors 0 and 2, nothing to anchor 1
    before, after = (torch.autograd.grad(nt_xent_direction(p, other, keys, 0.5), p)[0] for keys in (own, moved))
    assert [torch.allclose(x, y) for x, y in zip(before, after, strict=True)] == [False, True, False]
    assert nt_xent_direction(p[:1], other[:1], own[:1], 0.5).item() == 0  # one image: nothing to tell it apart from


def test_stop_gradient_is_the_callers_detach() -> None:
    p1, p2, z1, z2 = (x.requires_grad_() for x in batches(4, 6, 0, 4))
    nt_xent(p1, p2, z1.detach(), z2.detach(), 0.1).backward()
    assert p1.grad is not None
    assert z1.grad is None
    nt_xent(p1, p2, z1, z2, 0.1).backward()
    assert z1.grad is not None


# --- InfoNCE and swapped prediction -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 6),
    size=st.integers(1, 9),
    d=st.integers(2, 16),
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.05, 2),
)
def test_info_nce_is_mocos(n: int, size: int, d: int, seed: int, temperature: float) -> None:
    p, positive = batches(n, d, seed)
    queue = torch.nn.functional.normalize(batches(size, d, seed + 1)[0], dim=1)
    total = 0.0
    for q, k in zip(p.tolist(), positive.tolist(), strict=True):
        right = math.exp(cosine_of(q, k) / temperature)
        wrong = sum(math.exp(cosine_of(q, other) / temperature) for other in queue.tolist())
        total -= math.log(right / (right + wrong))
    assert info_nce(p, positive, queue, temperature).item() == pytest.approx(total / n, abs=1e-10)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), k=st.integers(2, 16), seed=st.integers(0, 2**31), temperature=st.floats(0.05, 2))
def test_swapped_prediction_is_swavs(n: int, k: int, seed: int, temperature: float) -> None:
    scores, codes = batches(n, k, seed)
    codes = codes.softmax(1)
    total = 0.0
    for row, code in zip(scores.tolist(), codes.tolist(), strict=True):
        predicted = softmax_of([score / temperature for score in row])
        total -= sum(q * math.log(x) for q, x in zip(code, predicted, strict=True))
    assert swapped_prediction(scores, codes, temperature).item() == pytest.approx(total / n, abs=1e-10)


def test_gradients_of_the_siblings_losses_agree_with_finite_differences() -> None:
    p1, p2, z1, z2 = (x.requires_grad_() for x in batches(3, 5, 0, 4))
    assert torch.autograd.gradcheck(lambda *x: nt_xent(*x, 0.3), (p1, p2, z1, z2))
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, 0.3), (p1, z2, z1))
    assert torch.autograd.gradcheck(lambda *x: swapped_prediction(*x, 0.3), (p1, z2))


def test_half_the_gradient_holds_for_the_symmetric_similarities_only() -> None:
    """Sec. 4.2: without predictor, stop-gradient halves the gradient; not so for cross-entropy and NT-Xent."""
    for loss, is_half in [
        (lambda a, b: (negative_cosine(a, b.detach()) + negative_cosine(b, a.detach())) / 2, True),
        (lambda a, b: (squared_distance(a, b.detach()) + squared_distance(b, a.detach())) / 2, True),
        (lambda a, b: (cross_entropy_similarity(a, b.detach()) + cross_entropy_similarity(b, a.detach())) / 2, False),
        (lambda a, b: nt_xent(a, b, a.detach(), b.detach(), 0.5), False),
    ]:
        z1, z2 = (x.requires_grad_() for x in batches(4, 6, 0))
        stopped = torch.autograd.grad(loss(z1, z2), z1)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", lambda x: x)
            through = torch.autograd.grad(loss(z1, z2), z1)[0]
        assert torch.allclose(stopped, through / 2) == is_half


# --- by name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_make_distance_names_the_losses_and_keeps_at_least_float32(dtype: torch.dtype) -> None:
    p, target, others = (x.to(dtype) for x in batches(4, 6, 0, 3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    p_, target_, others_ = (x.to(wide) for x in (p, target, others))
    expected = {
        "cosine": negative_cosine(p_, target_),
        "cross-entropy": cross_entropy_similarity(p_, target_),
        "squared-distance": squared_distance(p_, target_),
        "nt-xent": nt_xent_direction(p_, target_, others_, 0.3),
        "info-nce": info_nce(p_, target_, others_, 0.3),
        "swapped-prediction": swapped_prediction(p_, target_, 0.3),
    }
    for name, loss in expected.items():
        distance = make_distance(LossSettings.model_validate({"name": name, "temperature": 0.3}))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            ours = distance(p, target, others)
        assert ours.dtype == wide
        assert torch.equal(ours, loss), name


def test_two_directions_of_nt_xent_average_to_the_whole() -> None:
    p1, p2, z1, z2 = batches(5, 7, 0, 4)
    distance = make_distance(LossSettings(name="nt-xent", temperature=0.3))
    whole = (distance(p1, z2, z1) + distance(p2, z1, z2)) / 2
    torch.testing.assert_close(whole, nt_xent(p1, p2, z1, z2, 0.3))
