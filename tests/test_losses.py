"""The losses against plain re-derivations, and the paper's identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simsiam.losses import LOSSES, negative_cosine, squared_distance


def batches(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=draws, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def by_hand(p: list[list[float]], z: list[list[float]]) -> float:
    """Eq. 1, image by image, with nothing but arithmetic."""
    total = 0.0
    for a, b in zip(p, z, strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        total -= dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
    return total / len(p)


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
