"""Multi-step alternation (Sec. 5.2): targets of the next k steps, made with the weights before the first of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch

from simsiam.data.batches import Batch
from simsiam.model.siamese import Pair, Siamese
from simsiam.settings.fields import Settings


class CachedTargets:
    """eta of eq. 8 for a block of k steps: for each image and view, on the very views that its step will use.

    They are made in train mode, with the batch statistics of their own batch, without moving running statistics. A
    resume within a block makes them anew from the weights and buffers at the block's start, which :meth:`state` holds.
    """

    def __init__(self, settings: Settings, steps_per_epoch: int) -> None:
        self.num_steps = steps_per_epoch if settings.target.cache_epoch else settings.target.cache_steps
        self._start: dict[str, Any] = {}  # the model at the block's start
        self._targets: list[tuple[Pair, ...]] = []  # of each step to come, for each pair of views

    def starts_at(self, step: int) -> bool:
        """Whether a block of k steps begins here."""
        return self.num_steps > 0 and step % self.num_steps == 0

    def fill(self, model: Siamese, batches: Iterable[Batch]) -> None:
        """Compute the targets of a block's batches."""
        self._start = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            self._targets = [tuple(model.encode(*pair) for pair in batch.pairs) for batch in batches]
        model.load_state_dict(self._start)

    def of(self, step: int) -> tuple[Pair, ...]:
        """The targets of a step, for each pair of views; none where they are to be computed in the step itself."""
        return self._targets[step % self.num_steps] if self.num_steps else ()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, to make this block's targets anew."""
        return self._start

    def resume(self, model: Siamese, batches: Iterable[Batch], start: dict[str, Any]) -> None:
        """Make a block's targets anew from the weights at its ``start``; ``batches`` are those of the whole block."""
        now = copy.deepcopy(model.state_dict())
        model.load_state_dict(start)
        self.fill(model, batches)
        model.load_state_dict(now)
