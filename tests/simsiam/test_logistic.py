"""Logistic regression against scikit-learn's, and at the minimum of its own loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from simsiam.evaluation.linear import accuracy, raw_pixel_linear_top1, whiten
from simsiam.evaluation.logistic import PART, PENALTY, fit_logistic


def problem(num: int, dim: int, classes: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(num + dim)
    features = torch.randn(num, dim, generator=draws)
    scores = features @ torch.randn(dim, classes, generator=draws) + noise * torch.randn(num, classes, generator=draws)
    return features, scores.argmax(1)


@pytest.mark.parametrize(
    ("num", "dim", "classes", "noise"), [(3000, 20, 5, 2.0), (PART + 100, 8, 3, 1.0), (60, 90, 4, 0.1)]
)
@pytest.mark.parametrize("penalty", [PENALTY, 0.1])
def test_the_solution_is_scikit_learns(num: int, dim: int, classes: int, noise: float, penalty: float) -> None:
    features, labels = problem(num, dim, classes, noise)
    ours = fit_logistic(features, labels, classes, penalty=penalty)
    theirs = LogisticRegression(C=1 / (num * penalty), tol=1e-9, max_iter=10_000)
    theirs.fit(features.double().numpy(), labels.numpy())
    # The loss is strongly convex, so a gradient below 1e-6 leaves the weights within 1e-6 / penalty of the solution.
    close = max(1e-6 / penalty, 1e-4)
    np.testing.assert_allclose(ours.weight.detach().numpy(), theirs.coef_, atol=close)
    # Biases bear no penalty, and few images hardly tell them: what they give is compared.
    ours_p = ours(features).softmax(1).detach().numpy()
    np.testing.assert_allclose(ours_p, theirs.predict_proba(features.double().numpy()), atol=2e-3)


def test_the_gradient_vanishes_at_the_solution() -> None:
    features, labels = problem(500, 10, 3, 1.0)
    classifier = fit_logistic(features, labels, 3).double()
    loss = F.cross_entropy(classifier(features.double()), labels) + PENALTY / 2 * classifier.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(classifier.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5


def test_it_draws_no_random_number() -> None:
    features, labels = problem(100, 4, 2, 0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit_logistic(features, labels, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_raw_pixels_are_whitened_averages_of_eight_by_eight_places() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 3, 600)
    images = draws.integers(0, 120, (600, 1, 16, 16)).astype(np.uint8)
    images += (labels[:, None, None, None] * 12).astype(np.uint8)  # brightness tells the class, within noise
    found = raw_pixel_linear_top1(images[:500], labels[:500], images[500:], labels[500:])
    pooled = torch.from_numpy(images.reshape(600, 8, 2, 8, 2).mean((2, 4)).reshape(600, 64)).float()
    train, test = whiten(pooled[:500], pooled[500:])
    classifier = fit_logistic(train, torch.from_numpy(labels[:500]), 3)
    assert found == accuracy(classifier, test, torch.from_numpy(labels[500:]))[0]
    assert found > 80
