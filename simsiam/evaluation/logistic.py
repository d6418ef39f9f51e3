"""Multinomial logistic regression on features that do not change, solved to convergence.

A convex problem has one solution: no rate, no seed, no number of epochs to choose.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

PENALTY = 1e-3  # on whitened features; scikit-learn's C is 1 / (N x PENALTY)
MAX_ITERATIONS = 1000
PART = 8192  # rows that are held in float64 at a time


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, *, penalty: float = PENALTY) -> nn.Linear:
    """The classifier that minimises mean cross-entropy + penalty / 2 x |weights|^2, its biases being free.

    features: (N, d) of any precision, labels: (N,) int64. By L-BFGS in float64, to a gradient below 1e-6. The solution
    depends on the features' coordinates only through the penalty; see :func:`simsiam.evaluation.linear.whiten`.
    Returns the linear layer in float32, on the features' device.
    """
    num, dim = features.shape
    # Without PyTorch's own start, which would draw random numbers.
    classifier: nn.Linear = nn.utils.skip_init(nn.Linear, dim, num_classes, device=features.device)  # type: ignore[no-untyped-call]
    shape = (num_classes, dim + 1)

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(flat.reshape(shape)).to(features.device)
        weight, bias = weights[:, :dim], weights[:, dim]
        loss = penalty / 2 * weight.square().sum()
        gradient = torch.cat([penalty * weight, torch.zeros_like(bias)[:, None]], dim=1)
        for part, truth in zip(torch.split(features, PART), torch.split(labels, PART), strict=True):
            x = part.double()
            log_p = (x @ weight.T + bias).log_softmax(1)  # (n, num_classes)
            loss = loss - log_p.gather(1, truth[:, None]).sum() / num
            error = log_p.exp().scatter_add(1, truth[:, None], -torch.ones_like(log_p[:, :1])) / num  # p - one-hot
            gradient += torch.cat([error.T @ x, error.sum(0)[:, None]], dim=1)
        return loss.item(), gradient.cpu().numpy().ravel()

    with torch.no_grad():
        found = minimize(
            loss_and_gradient,
            np.zeros(num_classes * (dim + 1)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-6},
        ).x.reshape(shape)
        classifier.weight.copy_(torch.from_numpy(found[:, :dim]))
        classifier.bias.copy_(torch.from_numpy(found[:, dim]))
    return classifier
