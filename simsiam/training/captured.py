"""The networks' part of a step, written so that a GPU can replay it as one CUDA graph.

What differs between two steps enters as tensors of fixed shapes (:class:`Inputs`); nothing is drawn, read back or
decided within. So it can be captured once and then replayed, which takes one call where there were a thousand. Rates,
the optimiser's step and what follows it stay outside: they are few calls, and their numbers come from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from simsiam.model.siamese import Output, Pair

WARM_UP = 3  # times that a step is made before it is captured, as torch asks for: libraries set themselves up


class Inputs(NamedTuple):
    """All that the networks see of a step, on the training device."""

    pairs: tuple[Pair, ...]  # views (x1, x2), each (B, C, S, S)
    more: tuple[Tensor, ...]  # further views of one's own
    places: Tensor  # (B,) int64: the images' places in the training set
    shuffle: tuple[Tensor, ...] = ()  # MoCo's order of the images and its inverse, each (B,) int64
    cached: tuple[Pair, ...] = ()  # targets of an earlier step (Sec. 5.2), for each pair

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        pairs = (x for pair in (*self.pairs, *self.cached) for x in pair)
        return [*pairs, *self.more, self.places, *self.shuffle]

    def clone(self) -> Inputs:
        """Tensors of the same shapes, numbers and memory formats that nobody else holds."""

        def pairs(given: tuple[Pair, ...]) -> tuple[Pair, ...]:
            return tuple((one.clone(), other.clone()) for one, other in given)

        more, shuffle = (tuple(x.clone() for x in part) for part in (self.more, self.shuffle))
        return Inputs(pairs(self.pairs), more, self.places.clone(), shuffle, pairs(self.cached))


class CapturedStep:
    """``run``, forward and backward of a step, on inputs that stay at one place in memory.

    On a GPU the first call captures it, and each call replays it; on a CPU, which has no graphs, each call runs it.
    What it returns, and the gradients, are overwritten by the next call: nobody may set gradients to None in between.

    state: what ``run`` changes beside gradients, such as the running statistics of BN; the warm-up leaves it as it was.
    """

    def __init__(self, run: Callable[[Inputs], Output], state: Iterable[Tensor]) -> None:
        self._run, self._state = run, list(state)
        self._inputs: Inputs | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Output | None = None

    @torch.no_grad()
    def _take(self, inputs: Inputs) -> Inputs:
        if self._inputs is None:
            self._inputs = inputs.clone()
        else:
            for mine, given in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
                mine.copy_(given)
        return self._inputs

    def __call__(self, inputs: Inputs) -> Output:
        """Make the step. All calls give tensors of the same shapes."""
        own = self._take(inputs)
        if own.places.device.type != "cuda":
            return self._run(own)
        if self._graph is None:
            self._capture(own)
        assert self._graph is not None
        assert self._output is not None
        self._graph.replay()
        return self._output

    def _capture(self, own: Inputs) -> None:
        before = [tensor.clone() for tensor in self._state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run(own)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            torch._foreach_copy_(self._state, before)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._run(own)
