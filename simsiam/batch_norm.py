"""BN over groups of the batch: MoCo's shuffled BN, whatever the number of devices.

The key of an image must not be recognisable by the statistics that it shares with its query. MoCo normalises on each of
8 GPUs separately and spreads the keys over them in another order (He et al. 2020, Sec. 3.3). Here the groups are a
setting: :func:`convert` the encoders, and put the images of the target's forward in the order of :func:`permutation`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from simsiam.randomness import generator


class GroupedBatchNorm(_BatchNorm):
    """BN that, in training, normalises ``groups`` equal runs of consecutive samples, each by its own statistics.

    The running statistics move once in each forward, towards the mean over groups of the groups' means and of their
    unbiased variances. With one group, and in evaluation, this is nn.BatchNorm, whose parameters, buffers and names it
    has.

    ``groups`` divides the samples that this process gives it. ``SyncBatchNorm.convert_sync_batchnorm`` would undo it
    without a word.
    """

    groups: int = 1

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, ...) -> the same shape. In training, ValueError if N is not a multiple of the groups."""
        if not self.training or self.groups == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if len(input) % self.groups:
            raise ValueError(f"the {len(input)} images of a BN's batch must be a multiple of its {self.groups} groups")
        groups = input.chunk(self.groups)  # views, in any memory format
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return torch.cat([self._normalise(group, None, None) for group in groups])
        means = self.running_mean.new_zeros(self.groups, self.num_features)
        variances = torch.zeros_like(means)
        output = torch.cat([self._normalise(*parts) for parts in zip(groups, means, variances, strict=True)])
        self._move_running_statistics(means.mean(0), variances.mean(0))
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"  # type: ignore[no-untyped-call]

    def _normalise(self, group: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
        """nn.BatchNorm on one group; with momentum 1, what it leaves in mean and variance (C,) is the group's own."""
        return F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """One step of the running statistics, as nn.BatchNorm's; momentum None is the average of all steps."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance, step)


class GroupedBatchNorm1d(GroupedBatchNorm, nn.BatchNorm1d):
    """:class:`GroupedBatchNorm` of (N, C) or (N, C, L)."""


class GroupedBatchNorm2d(GroupedBatchNorm, nn.BatchNorm2d):
    """:class:`GroupedBatchNorm` of (N, C, H, W)."""


def convert(module: nn.Module, groups: int) -> nn.Module:
    """Give every nn.BatchNorm1d and 2d in ``module`` so many groups, in place; returns ``module``.

    One group leaves it as it is. The layers are replaced, so hooks on them are lost, but their parameters and buffers
    are the same tensors under the same names: optimisers and state dicts made before still fit. A ``module`` that is
    itself a BN cannot be replaced in place: use what is returned. SyncBatchNorm is left alone.
    """
    if groups == 1:
        return module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _with_groups(module, groups)
    for name, child in module.named_children():
        setattr(module, name, convert(child, groups))
    return module


def _with_groups(bn: nn.BatchNorm1d | nn.BatchNorm2d, groups: int) -> GroupedBatchNorm:
    kind = GroupedBatchNorm1d if isinstance(bn, nn.BatchNorm1d) else GroupedBatchNorm2d
    grouped = kind(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
    grouped.groups = groups
    grouped.weight, grouped.bias = bn.weight, bn.bias
    grouped.running_mean, grouped.running_var = bn.running_mean, bn.running_var
    grouped.num_batches_tracked = bn.num_batches_tracked
    return grouped.train(bn.training)


def permutation(seed: int, step: int, num_images: int) -> tuple[Tensor, Tensor]:
    """The order in which a step's images go through the target's groups, and its inverse; both (N,) int64 on the CPU.

    ``keys = f(x[order])[inverse]`` are in the images' own order again. It depends on (seed, step, N) alone: nothing has
    to be stored to resume, and every rank draws the same.
    """
    order = torch.randperm(num_images, generator=generator(seed, "key groups", step))
    return order, order.argsort()
