"""BN over groups of the batch, whatever the number of ranks: over all of it, or MoCo's shuffled BN.

The key of an image must not be recognisable by the statistics that it shares with its query. MoCo normalises on each of
8 GPUs separately and spreads the keys over them in another order (He et al. 2020, Sec. 3.3). Here the groups are a
setting: :func:`convert` the encoders, and put the images of the target's forward in the order of :func:`permutation`.

Ranks are no groups: :func:`synchronise` makes every statistic one over all ranks, so that the number of devices is no
hidden variable.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from simsiam.distributed.ranks import ONE_RANK, Ranks
from simsiam.randomness import generator

Grouped = TypeVar("Grouped", bound="GroupedBatchNorm")


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


class RankedBatchNorm(GroupedBatchNorm):
    """:class:`GroupedBatchNorm` of a batch that ``ranks`` hold in equal parts: the groups are those of the whole batch.

    A group may span ranks, and a rank hold several groups. The running statistics are the same on all ranks.
    """

    ranks: Ranks = ONE_RANK

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, ...), this rank's part -> the same shape. In training all ranks call it together."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        whole = len(input) * self.ranks.world_size
        if whole % self.groups:
            raise ValueError(f"the {whole} images of a BN's batch must be a multiple of its {self.groups} groups")
        size, mine = whole // self.groups, self.ranks.share(whole)
        group = torch.arange(mine.start, mine.stop, device=input.device) // size
        results = _RankedNorm.apply(input, self.weight, self.bias, group, self.groups, self.eps, self.ranks)
        output, mean, variance = cast(tuple[Tensor, Tensor, Tensor], results)
        self._move_running_statistics(mean.mean(0), variance.mean(0))
        return output


class _RankedNorm(torch.autograd.Function):
    """Training BN of (N, C, ...) over groups; group (N,) says which one each of this rank's samples belongs to.

    Also gives the groups' means and unbiased variances, (groups, C). In float32 at least. One exchange forward, of each
    rank's counts, means and squares about its own mean, so that nothing is lost to cancellation; one backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        group: Tensor,
        num_groups: int,
        eps: float,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        member = (group == torch.arange(num_groups, device=x.device)[:, None]).to(wide.dtype)  # (groups, N)
        counts = member.sum(1, keepdim=True).expand(-1, x.shape[1]) * x[0, 0].numel()  # (groups, C)
        means = _sums(wide, member) / counts.clamp(min=1)
        squares = _sums((wide - _spread(means, group, x)).square(), member)
        of_ranks = ranks.gather(torch.stack((counts, means, squares))[None])  # (ranks, 3, groups, C)
        counts, means, squares = of_ranks.unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        square = (squares + counts * (means - mean).square()).sum(0)
        scale = (square / count + eps).rsqrt()
        output = (wide - _spread(mean, group, x)) * _spread(scale, group, x)
        if weight is not None and bias is not None:
            output = output * _channels(weight, x) + _channels(bias, x)
        variance = square / (count - 1)
        ctx.save_for_backward(x, weight, group, member, mean, scale, count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, variance)
        return output.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, group, member, mean, scale, count = ctx.saved_tensors
        scale_of = _spread(scale, group, x)
        normalised = (x.to(mean.dtype) - _spread(mean, group, x)) * scale_of
        of_output = gradients[0].to(mean.dtype)
        sums = torch.stack((_sums(of_output, member), _sums(of_output * normalised, member)))  # (2, groups, C)
        of_bias, of_weight = (None, None) if weight is None else sums.sum(1).unbind()
        if weight is not None:
            of_output, sums = of_output * _channels(weight, x), sums * weight
        constant, along = (ctx.ranks.sum(sums) / count).unbind()
        of_input = scale_of * (of_output - _spread(constant, group, x) - normalised * _spread(along, group, x))
        return of_input.to(x.dtype), of_weight, of_bias, None, None, None, None


def _sums(x: Tensor, member: Tensor) -> Tensor:
    """x (N, C, ...), member (groups, N) of 0 and 1 -> (groups, C): sums over the samples of each group, and space."""
    with torch.autocast(x.device.type, enabled=False):
        return member @ (x.flatten(2).sum(2) if x.dim() > 2 else x)


def _spread(of_groups: Tensor, group: Tensor, x: Tensor) -> Tensor:
    """(groups, C) -> (N, C, 1, ...), each sample's own group's; it broadcasts with x (N, C, ...)."""
    return of_groups[group].view(*x.shape[:2], *(1 for _ in x.shape[2:]))


def _channels(of_channels: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (C, 1, ...), which broadcasts with x (N, C, ...)."""
    return of_channels.view(-1, *(1 for _ in x.shape[2:]))


class RankedBatchNorm1d(RankedBatchNorm, nn.BatchNorm1d):
    """:class:`RankedBatchNorm` of (N, C) or (N, C, L)."""


class RankedBatchNorm2d(RankedBatchNorm, nn.BatchNorm2d):
    """:class:`RankedBatchNorm` of (N, C, H, W)."""


def synchronise(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Give every BN in ``module`` statistics over all ranks, in place; returns ``module``. One rank leaves it as it is.

    nn.SyncBatchNorm on GPUs, which has no groups; :class:`RankedBatchNorm` on a CPU, and where there are groups.
    Parameters and buffers stay the same tensors under the same names, as in :func:`convert`, which comes before.
    """
    if ranks.world_size == 1:
        return module
    grouped = any(isinstance(layer, GroupedBatchNorm) for layer in module.modules())
    if device.type == "cuda" and not grouped:
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return cast(nn.Module, synchronised)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        kind = RankedBatchNorm1d if isinstance(module, nn.BatchNorm1d) else RankedBatchNorm2d
        ranked = _with_tensors_of(module, kind(module.num_features, module.eps, module.momentum, module.affine))
        ranked.groups, ranked.ranks = getattr(module, "groups", 1), ranks
        return ranked
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, ranks, device))
    return module


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
    return _with_tensors_of(bn, grouped)


def _with_tensors_of(bn: nn.BatchNorm1d | nn.BatchNorm2d, new: Grouped) -> Grouped:
    new.weight, new.bias = bn.weight, bn.bias
    new.running_mean, new.running_var = bn.running_mean, bn.running_var
    new.num_batches_tracked = bn.num_batches_tracked
    return new.train(bn.training)


def permutation(seed: int, step: int, num_images: int) -> tuple[Tensor, Tensor]:
    """The order in which a step's images go through the target's groups, and its inverse; both (N,) int64 on the CPU.

    ``keys = f(x[order])[inverse]`` are in the images' own order again. It depends on (seed, step, N) alone: nothing has
    to be stored to resume, and every rank draws the same.
    """
    order = torch.randperm(num_images, generator=generator(seed, "key groups", step))
    return order, order.argsort()
