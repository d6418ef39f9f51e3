"""The collapse measures against theory and numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from simsiam.evaluation.diagnostics import (
    alpha_req,
    centre,
    effective_rank,
    explained_variance_area,
    is_collapsed,
    lidar,
    nesum,
    output_std,
    positive_cosine,
    predictor_alignment,
    spectrum,
    stable_rank,
    uniformity,
)
from simsiam.record.catalogue import collapse_threshold
from simsiam.settings.fields import Settings

Small = Callable[..., Settings]


@pytest.mark.parametrize("d", [64, 256])
def test_std_of_gaussian_z_is_one_over_sqrt_d(d: int) -> None:
    z = torch.randn(4096, d, generator=torch.Generator().manual_seed(0))
    assert output_std(z).item() * math.sqrt(d) == pytest.approx(1, abs=0.01)


def test_std_of_constant_z_is_zero() -> None:
    assert output_std(torch.ones(100, 1) * torch.randn(1, 32)).item() == pytest.approx(0, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 64), d=st.integers(2, 64), seed=st.integers(0, 2**31))
def test_std_against_numpy(n: int, d: int, seed: int) -> None:
    z = np.random.default_rng(seed).normal(1, 1, (n, d))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    assert output_std(torch.from_numpy(z)).item() == pytest.approx(unit.std(axis=0).mean(), rel=1e-4, abs=1e-6)
    # The identity behind the 1/sqrt(d) line: the variances of unit vectors sum to 1 - |mean|^2.
    assert unit.var(axis=0).sum() == pytest.approx(1 - np.linalg.norm(unit.mean(axis=0)) ** 2)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 64), d=st.integers(2, 64), seed=st.integers(0, 2**31))
def test_effective_rank_against_singular_values(n: int, d: int, seed: int) -> None:
    z = np.random.default_rng(seed).normal(0.3, 1, (n, d))
    share = np.linalg.svd(z, compute_uv=False)
    share = share / share.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    assert effective_rank(torch.from_numpy(z)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_of_a_flat_spectrum_is_the_rank(rank: int) -> None:
    basis = torch.linalg.qr(torch.randn(32, rank, dtype=torch.float64)).Q  # (32, rank)
    z = torch.eye(rank, dtype=torch.float64).repeat(50, 1) @ basis.T
    assert effective_rank(z) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_zeros_is_defined() -> None:
    assert math.isfinite(effective_rank(torch.zeros(10, 4)))


def test_output_bn_without_affine_hides_collapse_from_the_std() -> None:
    """The first trap: even when all images but one agree, std x sqrt(d) stays near 2/sqrt(B) after such a BN."""
    batch = 256
    z = torch.zeros(batch, 64)
    z[0] = torch.randn(64)
    after = torch.nn.BatchNorm1d(64, affine=False, eps=1e-12)(z + 1e-3 * torch.randn(1, 64))
    assert output_std(after).item() * 8 == pytest.approx(2 / math.sqrt(batch), rel=0.05)


def test_threshold_is_relative_without_affine(small: Small) -> None:
    assert collapse_threshold(256, bn_output=True, bn_output_affine=True) == 0.2
    assert collapse_threshold(256, bn_output=False, bn_output_affine=False) == 0.2
    assert collapse_threshold(256, bn_output=True, bn_output_affine=False) == pytest.approx(0.2 + 2 / 16)
    without = small(projector__bn_output_affine=False, batch_size=256, data__num_train=512)
    assert is_collapsed(without, 0.3, 20)
    assert not is_collapsed(small(batch_size=256, data__num_train=512), 0.3, 20)
    assert not is_collapsed(small(), 0.9, 20)
    assert is_collapsed(small(), 0.01, 20)
    assert is_collapsed(small(), 0.9, 1.01)  # a healthy std does not prove health


def draw(n: int, d: int, seed: int, mean: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (n, d))


SIZES = {"n": st.integers(2, 48), "d": st.integers(2, 48), "seed": st.integers(0, 2**31)}


@settings(deadline=None, max_examples=25)
@given(**SIZES)
def test_spectrum_area_and_centre_against_numpy(n: int, d: int, seed: int) -> None:
    z = draw(n, d, seed)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T, bias=True).reshape(d, d))[::-1]
    found = spectrum(torch.from_numpy(z))
    np.testing.assert_allclose(found.square().numpy(), eigenvalues, atol=1e-12)
    singular = np.zeros(d)
    own = np.linalg.svd(unit - unit.mean(0), compute_uv=False) / math.sqrt(n)
    singular[: len(own)] = own
    area = trapezoid(np.concatenate([[0], np.cumsum(singular) / singular.sum()]), dx=1 / d)
    # The mean of the heights at 1..d is the trapezia's area and half of the last height more.
    assert explained_variance_area(found) == pytest.approx(area + 0.5 / d, abs=1e-6)
    assert centre(torch.from_numpy(z)).item() == pytest.approx(np.linalg.norm(unit.mean(0)) ** 2, abs=1e-5)
    assert found.square().sum().item() == pytest.approx(1 - centre(torch.from_numpy(z)).item(), abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(**SIZES)
def test_alignment_and_uniformity_against_numpy(n: int, d: int, seed: int) -> None:
    z1, z2 = draw(n, d, seed), draw(n, d, seed + 1)
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    cosine = positive_cosine(torch.from_numpy(z1), torch.from_numpy(z2)).item()
    assert 2 - 2 * cosine == pytest.approx(np.square(a - b).sum(1).mean(), abs=1e-5)
    distances = np.square(a[:, None] - a[None]).sum(2)[~np.eye(n, dtype=bool)]
    expected = math.log(np.exp(-2 * distances).mean())
    assert uniformity(torch.from_numpy(z1)).item() == pytest.approx(expected, abs=1e-4)


def test_uniformity_and_area_at_their_ends() -> None:
    assert uniformity(torch.ones(50, 8)).item() == pytest.approx(0, abs=1e-5)
    d = 512
    gaussian = torch.randn(2000, d, generator=torch.Generator().manual_seed(0))
    assert uniformity(gaussian).item() == pytest.approx(-4 + 8 / d, abs=0.01)
    assert explained_variance_area(torch.ones(d)) == pytest.approx((d + 1) / (2 * d))
    assert explained_variance_area(torch.eye(1, d)[0]) == 1
    assert explained_variance_area(spectrum(torch.ones(20, 4))) <= 1


@settings(deadline=None, max_examples=25)
@given(**SIZES)
def test_predictor_alignment_against_numpy(n: int, d: int, seed: int) -> None:
    z, weight = draw(n, d, seed), draw(d, d, seed + 1)
    correlation = z.T @ z / n
    expected = np.linalg.norm(weight @ correlation - correlation @ weight)
    expected /= np.linalg.norm(weight) * np.linalg.norm(correlation)
    found = predictor_alignment(torch.from_numpy(weight), torch.from_numpy(z)).item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found <= math.sqrt(2) + 1e-5
    polynomial = correlation @ correlation + correlation
    assert predictor_alignment(torch.from_numpy(polynomial), torch.from_numpy(z)).item() == pytest.approx(0, abs=1e-4)


def test_spectral_measures_are_numpy_s() -> None:
    draws = np.random.default_rng(0)
    features = draws.normal(size=(400, 120)) * np.arange(1, 121) ** -0.6 + 3.0
    values = np.sort(np.linalg.eigvalsh(np.cov(features.T, bias=True)))[::-1]
    assert nesum(torch.from_numpy(features)) == pytest.approx(values.sum() / values[0])
    norms = np.linalg.norm(features, "fro") ** 2 / np.linalg.norm(features, 2) ** 2
    assert stable_rank(torch.from_numpy(features)) == pytest.approx(norms)
    slope = np.polyfit(np.log(np.arange(5, 101)), np.log(values[4:100]), 1)[0]
    assert alpha_req(torch.from_numpy(features)) == pytest.approx(-slope)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_is_the_power_of_the_eigenvalues(alpha: float) -> None:
    columns = scipy.linalg.hadamard(128)[:, 1:101]  # orthogonal, mean 0, of variance 1
    features = torch.from_numpy(columns * np.arange(1, 101) ** (-alpha / 2))
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-9)
    assert math.isnan(alpha_req(torch.ones(10, 20)))


def test_spectral_measures_at_their_ends() -> None:
    flat = torch.from_numpy(scipy.linalg.hadamard(64)[:, 1:33].astype(float))
    assert nesum(flat) == pytest.approx(32)
    assert stable_rank(flat) == pytest.approx(32)
    for collapsed in (torch.full((50, 8), 2.0), torch.zeros(50, 8)):
        assert nesum(collapsed) == pytest.approx(1)
        assert stable_rank(collapsed) == pytest.approx(1)


def test_lidar_is_the_rank_of_numpy_s_discriminants() -> None:
    draws = np.random.default_rng(1)
    z = draws.normal(size=(200, 1, 12)) * np.arange(1, 13) ** -1.0 + 0.2 * draws.normal(size=(200, 4, 12))
    means = z.mean(1)
    between = np.cov(means.T, bias=True)
    within = np.mean([np.outer(v, v) for v in (z - means[:, None]).reshape(-1, 12)], axis=0) + 1e-4 * np.eye(12)
    root = scipy.linalg.fractional_matrix_power(within, -0.5)
    values = np.linalg.eigvalsh(root @ between @ root)
    share = values / values.sum()
    assert lidar(torch.from_numpy(z)) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_lidar_counts_what_tells_images_apart_and_not_what_views_change() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.zeros(500, 1, 20, dtype=torch.float64)
    images[..., :5] = torch.randn(500, 1, 5, generator=draws, dtype=torch.float64)
    views = images + 0.01 * torch.randn(500, 6, 20, generator=draws, dtype=torch.float64)
    assert lidar(views) == pytest.approx(5, rel=0.05)
    noise = torch.zeros(500, 6, 20, dtype=torch.float64)
    noise[..., 5:] = 10 * torch.randn(500, 6, 15, generator=draws, dtype=torch.float64)
    assert lidar(views + noise) == pytest.approx(5, rel=0.1)  # where effective_rank would see 15 directions more
    assert lidar(torch.ones(30, 4, 6)) == pytest.approx(1)
