"""The projection and prediction MLPs, with a switch for each BN of Table 3."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from simsiam.settings.fields import PredictorSettings, ProjectorSettings


def mlp(
    dims: list[int], *, bn_hidden: bool, bn_output: bool, bn_output_affine: bool = True, bias: str = "auto"
) -> nn.Sequential:
    """Fully connected layers ``dims[0] -> ... -> dims[-1]``: BN (if asked for) and ReLU on the hidden ones.

    The output has no ReLU, and a BN if ``bn_output``. With ``bias="auto"`` a layer that a BN follows has no bias:
    the BN would subtract it again.
    """
    layers: list[nn.Module] = []
    for i, (in_dim, out_dim) in enumerate(itertools.pairwise(dims)):
        is_output = i == len(dims) - 2
        bn = bn_output if is_output else bn_hidden
        layers.append(nn.Linear(in_dim, out_dim, bias=bias == "always" or not bn))
        if bn:
            layers.append(nn.BatchNorm1d(out_dim, affine=bn_output_affine if is_output else True))
        if not is_output:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def make_projector(settings: ProjectorSettings, num_features: int) -> nn.Sequential:
    """The projection MLP: features (N, num_features) -> z (N, d)."""
    return mlp(
        [num_features, *[settings.hidden_dim] * (settings.num_layers - 1), settings.output_dim],
        bn_hidden=settings.bn_hidden,
        bn_output=settings.bn_output,
        bn_output_affine=settings.bn_output_affine,
        bias=settings.bias,
    )


def make_predictor(settings: PredictorSettings, output_dim: int) -> nn.Module:
    """The predictor h: (N, output_dim) -> (N, output_dim), by default an MLP; frozen when it is "fixed"."""
    if settings.kind == "none":
        return nn.Identity()
    if settings.kind == "linear":
        return nn.Linear(output_dim, output_dim, bias=False)
    if settings.kind == "bias":
        return SingleBias(output_dim)
    h = mlp([output_dim, settings.hidden_dim, output_dim], bn_hidden=settings.bn_hidden, bn_output=settings.bn_output)
    if settings.kind == "fixed":
        h.requires_grad_(False)
    return h


class SingleBias(nn.Module):
    """p = z + b, the smallest predictor that prevents collapse (Zhang et al. 2022); b starts at 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z: Tensor) -> Tensor:
        """z: (N, dim) -> (N, dim)."""
        return z + self.bias
