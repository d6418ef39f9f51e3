"""What a training step does beside its arithmetic: counted, so that it cannot grow unnoticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simsiam.data.sets import load
from simsiam.settings.fields import Settings
from simsiam.training.loop import Hooks, Training

Small = Callable[..., Settings]
# On a GPU each of these makes the host wait for the device.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")
COPIES = ("clone", "_to_copy", "copy_", "contiguous")


class Counting(TorchDispatchMode):
    """Counts the operations that wait for a device, and lists copies of at least ``large`` numbers."""

    def __init__(self, large: int = 2**62) -> None:
        super().__init__()
        self.large = large
        self.waits: Counter[str] = Counter()
        self.large_copies: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        result = func(*args, **(kwargs or {}))
        if name in WAITS:
            self.waits[name] += 1
        if name in COPIES and isinstance(result, Tensor) and result.numel() >= self.large:
            self.large_copies.append((name, tuple(result.shape)))
        return result


def make_training(settings: Settings, folder: Path) -> Training:
    return Training(settings, load(settings.data, folder), folder, 1, torch.device("cpu"), Hooks())


def test_the_counter_sees_what_it_is_to_see() -> None:
    x = torch.zeros(4, 3, 8, 8, requires_grad=True)
    with Counting(large=x.numel()) as counted:
        y = x.contiguous(memory_format=torch.channels_last)
        y.sum().item()
        y.clone().sum().backward()
        x.double()
        torch.where(x > 0)
    assert counted.waits == {"_local_scalar_dense": 1, "nonzero": 1}
    assert [name for name, _ in counted.large_copies].count("clone") >= 2
    assert ("_to_copy", tuple(x.shape)) in counted.large_copies


METHODS: dict[str, dict[str, Any]] = {
    "simsiam": {},
    "byol": {"target__encoder": "momentum"},
    "moco": {
        "target__encoder": "momentum",
        "target__queue_size": 64,
        "loss__name": "info-nce",
        "predictor__kind": "none",
        "target__momentum_update": "before-forward",
    },
    "simclr": {"loss__name": "nt-xent", "predictor__kind": "none", "target__stop_gradient": False},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_nothing(small: Small, tmp_path: Path, method: str) -> None:
    training = make_training(small(**METHODS[method]), tmp_path)
    batches = training.source.epoch(0, 0)
    training.update(next(batches))  # the first makes the optimiser's state
    batch = next(batches)
    with Counting() as counted:
        training.update(batch)
    assert not counted.waits


def test_a_step_copies_no_view_and_no_map(small: Small, tmp_path: Path) -> None:
    """A copy as large as a view would be a change of memory format or type, or a clone that nobody needs."""
    training = make_training(small(), tmp_path)
    batches = training.source.epoch(0, 0)
    training.update(next(batches))
    batch = next(batches)
    with Counting(large=batch.pairs[0][0].numel()) as counted:
        training.update(batch)
    assert counted.large_copies == []


@pytest.mark.parametrize(("diagnostics", "most"), [(False, 3), (True, 10)])
def test_a_logged_point_waits_for_few_numbers(small: Small, tmp_path: Path, diagnostics: bool, most: int) -> None:
    """The loss, the std, the norm of the gradient; with diagnostics seven more."""
    training = make_training(small(evaluation__diagnostics=diagnostics), tmp_path)
    output = training.update(next(training.source.epoch(0, 0)))
    with Counting() as counted:
        training.log(output)
    assert counted.waits.total() <= most


def test_the_number_of_operations_in_a_step_does_not_depend_on_the_step(small: Small, tmp_path: Path) -> None:
    """Nor on how many images there are: nothing in a step may grow with the length of a run."""

    def operations(num_train: int, steps: int) -> int:
        training = make_training(small(data__num_train=num_train), tmp_path)
        batches = training.source.epoch(0, 0)
        for _ in range(steps - 1):
            training.update(next(batches))
        batch = next(batches)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            training.update(batch)
        return sum(event.count for event in profile.key_averages() if event.key.startswith("aten::"))

    assert operations(160, 2) == operations(160, 5) == operations(320, 9)


def test_the_module_is_one_graph(small: Small, tmp_path: Path) -> None:
    """``torch.compile`` finds nothing in the forward that it has to break off at."""
    training = make_training(small(), tmp_path)
    x1, x2 = next(training.source.epoch(0, 0)).pairs[0]
    explained = torch._dynamo.explain(training.model)(x1, x2)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1
