"""Many ranks: what the processes that train one run together tell each other.

Rank r of W trains on the r-th of W equal slices of each batch of B images, so what is gathered rank by rank is in the
batch's own order. Weights, buffers, optimiser and queue are the same on every rank at every step.

How gradients are scaled: a rank's loss is the mean over its own images, and the run's loss the mean over ranks. In its
backward, whatever went from rank to rank (``gather``, the sums of BN) adds up the gradients of all ranks, as
nn.SyncBatchNorm does. So a rank's backward gives its share of the gradient of the sum of all losses, and
:class:`Gradients` makes of the shares the gradient of the mean.

How the ranks find each other is in ``simsiam.distributed.rendezvous``.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from simsiam.errors import UserError

T = TypeVar("T")

BUCKET_BYTES = 25 * 2**20  # of gradients that are averaged together
CHUNK_BYTES = 2**28  # of an object that is sent


class RankLostError(UserError, RuntimeError):
    """Another rank of this run is gone, or silent for longer than the group's time limit."""


# What a collective raises when a rank is gone: ours, or torch's own from inside nn.SyncBatchNorm.
LOST = (RankLostError, dist.DistError)


def brief(error: RuntimeError) -> str:
    """The first sentence of what torch says; advice and backtraces follow it."""
    return str(error).splitlines()[0].partition(". ")[0]


@contextlib.contextmanager
def _between_ranks() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLostError(f"another rank is gone ({brief(error)})") from error


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world_size`` that train a run. One rank alone needs no process group.

    Every method but ``own`` is called by all ranks or by none, and waits for all of them: a barrier, with the time
    limit of the group. Raises RankLostError when a rank is gone or the time is over.
    """

    rank: int = 0
    world_size: int = 1

    def share(self, num: int) -> slice:
        """This rank's part of ``num`` things; all parts are equal if ``world_size`` divides ``num``."""
        return slice(self.rank * num // self.world_size, (self.rank + 1) * num // self.world_size)

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows of x (B, ...), which all ranks hold."""
        return x if self.world_size == 1 else x[self.share(len(x))]

    def gather(self, x: Tensor, total: int | None = None) -> Tensor:
        """The rows of all ranks, in order: x (n, ...) -> (W n, ...). A gradient flows back to every rank's own rows.

        total: the rows of all ranks together, where a rank has its ``share`` of them and shares differ.
        """
        if self.world_size == 1:
            return x
        if total is None:
            return cast(Tensor, _Gather.apply(x, self))
        shares = [Ranks(rank, self.world_size).share(total) for rank in range(self.world_size)]
        sizes = [share.stop - share.start for share in shares]
        padded = torch.cat((x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])))
        parts = torch.split(self.gather(padded), max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, without gradient."""
        if self.world_size == 1:
            return x
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with _between_ranks():
            dist.all_reduce(total)
        return total

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks, without gradient."""
        return x if self.world_size == 1 else self.sum(x) / self.world_size

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether it is set on any rank."""
        if self.world_size == 1:
            return flags
        return tuple(count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.int64)).tolist())

    def broadcast(self, value: T) -> T:
        """Rank 0's value, a plain object or one of tensors on the CPU, on every rank."""
        if self.world_size == 1:
            return value
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor(len(content))
        with _between_ranks():
            dist.broadcast(length, 0)
            if self.rank > 0:
                content = torch.empty(int(length), dtype=torch.uint8)
            for chunk in torch.split(content, CHUNK_BYTES):
                dist.broadcast(chunk, 0)
        received: T = value if self.rank == 0 else pickle.loads(content.numpy().data)
        return received


ONE_RANK = Ranks()


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward: the sum over ranks of the gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks.world_size)]
        with _between_ranks():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.ranks.own(ctx.ranks.sum(gradients[0])), None


class Gradients:
    """Averages the gradients of weights over ranks, bucket by bucket, while the backward still runs.

    What DistributedDataParallel does, but for one thing: that arranges its buckets anew after its first step, by the
    order in which gradients came. How a sum over more than two ranks rounds depends on a number's place in its bucket,
    so the first step after a resume would round differently, and resuming would no longer be exact to the last bit.
    Here the buckets follow from the weights alone. Several forwards before one backward, and networks without a
    gradient, as targets are, need no care.
    """

    def __init__(self, ranks: Ranks, weights: Iterable[nn.Parameter]) -> None:
        self._ranks = ranks
        self._buckets: list[list[nn.Parameter]] = []
        self._waiting: list[int] = []  # gradients of each bucket that this backward has not yet given
        self._sent: list[tuple[Tensor, dist.Work]] = []  # in order of buckets
        if ranks.world_size == 1:
            return
        size = BUCKET_BYTES
        for weight in reversed([weight for weight in weights if weight.requires_grad]):  # about as gradients come
            if size >= BUCKET_BYTES:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(weight)
            size += weight.numel() * weight.element_size()
        for number, bucket in enumerate(self._buckets):
            for weight in bucket:
                weight.register_post_accumulate_grad_hook(partial(self._ready, number))  # type: ignore[no-untyped-call]
        self._waiting = [len(bucket) for bucket in self._buckets]

    def _ready(self, number: int, weight: Tensor) -> None:
        self._waiting[number] -= 1
        # In the order of buckets on every rank, so that they agree on which sum is which.
        while len(self._sent) < len(self._buckets) and self._waiting[len(self._sent)] == 0:
            bucket = self._buckets[len(self._sent)]
            flat = torch.cat([weight.grad.flatten() for weight in bucket if weight.grad is not None])
            with _between_ranks():
                work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._sent.append((flat, work))

    @torch.no_grad()
    def finish(self) -> None:
        """After each backward: wait until every weight's gradient is the mean over ranks."""
        assert len(self._sent) == len(self._buckets), "every weight has a gradient"
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            with _between_ranks():
                work.wait()
            flat /= self._ranks.world_size
            for weight, mean in zip(bucket, torch.split(flat, [weight.numel() for weight in bucket]), strict=True):
                assert weight.grad is not None
                weight.grad.copy_(mean.view(weight.grad.shape))
        self._sent.clear()
        self._waiting = [len(bucket) for bucket in self._buckets]
