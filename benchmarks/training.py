"""The training step with its images, end to end, on two threads: ``python -m benchmarks.training``.

Ours is the program's own step with its source of images. lightly is its transform in a DataLoader, its heads and its
loss around the same backbone, once for each number of loader processes. The bare network is our module's forward and
backward on views that are ready, with no update.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.images import MEAN, STD, smooth
from benchmarks.peers import LightlySimSiam, lightly_loader
from simsiam.data.batches import Batch
from simsiam.data.dataset import Dataset, Split
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from simsiam.training.loop import Hooks, Training

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "batch_size": 128,
    "data.image_size": 32,
    "augment.blur_probability": 0.0,
    "backbone.name": "small",
    "backbone.width": 16,
    "backbone.stem_stride": 2,
    "projector.num_layers": 2,
    "projector.hidden_dim": 512,
    "projector.output_dim": 512,
    "predictor.hidden_dim": 128,
}
RESNET18: dict[str, Any] = {
    **{name: SMALL[name] for name in ("data.image_size", "augment.blur_probability", "projector.num_layers")},
    "batch_size": 64,
    "backbone.name": "resnet18",
    "backbone.stem": "cifar",
}


def generated(num: int) -> Dataset:
    """A data set in memory."""
    images = np.tile(smooth(min(num, 2000)).numpy(), (-(-num // 2000), 1, 1, 1))[:num]
    train, test = (Split(part, np.arange(len(part)) % 10) for part in (images, images[:100]))
    return Dataset("generated", train, test, tuple("0123456789"), MEAN, STD, "generated", 3, 32)


def make_training(settings: Settings, dataset: Dataset, device: torch.device = CPU) -> Training:
    """A training in a folder that is soon gone; its steps write nothing."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(settings, dataset, Path(folder), 1, device, Hooks())
        assert training.metrics is not None
        training.metrics.close()
    return training


def our_steps(training: Training, num: int) -> Callable[[], object]:
    """``num`` steps of the program, each with the making of its views."""

    def endless() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from training.source.epoch(epoch, 0)

    batches = endless()

    def run() -> None:
        training.step = 0
        for batch in itertools.islice(batches, num):
            training.update(batch)

    return run


def bare_steps(training: Training, num: int, batch: Batch | None = None) -> Callable[[], object]:
    """``num`` times forward and backward on the same two views."""
    (x1, x2), model = (batch or next(training.source.epoch(0, 0))).pairs[0], training.model
    x1, x2 = (x.contiguous(memory_format=torch.channels_last) for x in (x1, x2))

    def run() -> None:
        for _ in range(num):
            model.zero_grad()
            with training.precision():
                loss = model(x1, x2).loss
            loss.backward()

    return run


def lightly_steps(settings: Settings, dataset: Dataset, workers: int, num: int) -> Callable[[], object]:
    """``num`` steps of lightly, an epoch of just so many images, with loader processes that stay.

    So they have made nothing ahead when a repeat begins, and make nothing while the others are measured.
    """
    model = LightlySimSiam(settings)
    some = replace(dataset, train=dataset.train.take(np.arange(num * settings.batch_size)))
    loader = lightly_loader(some, settings.batch_size, workers)

    def run() -> None:
        for views, _ in loader:
            model.step(*views)

    return run


def main() -> None:
    bench = Bench("training", "Images a second of the training step, end to end.", threads=2)
    dataset = generated(20_000)
    cases: list[tuple[str, dict[str, Any], int, float, tuple[int, ...]]] = [
        ("small ResNet, batch 128", SMALL, 20, 5.0, (0, 1, 2)),
        ("small ResNet, batch 256", SMALL | {"batch_size": 256}, 10, 5.0, (0, 1, 2)),
        ("CIFAR ResNet-18, batch 64", RESNET18, 3, 1.15, (0, 2)),
    ]
    for name, changes, num, reach, workers in cases:
        if bench.quick and "256" in name:
            continue
        if bench.quick:
            num, workers = max(1, num // 2), workers[-1:]
        settings = validate({"data.name": "synthetic", "data.storage": "memory", **changes})
        training = make_training(settings, dataset)
        peers = [
            (
                Contender(
                    f"lightly, {count} loader processes",
                    lightly_steps(settings, dataset, count, num),
                    num * settings.batch_size,
                ),
                Reach(reach),
            )
            for count in workers
        ]
        bare = Contender("bare network", bare_steps(training, num), num * settings.batch_size)
        bench.compare(
            f"training step, {name}",
            "images/s",
            Contender("ours", our_steps(training, num), num * settings.batch_size),
            [*peers, (bare, Reach(0.9) if settings.backbone.name == "resnet18" else None)],
            repeats=bench.repeats(9) if settings.backbone.name == "small" else (3 if bench.quick else 7),
            clock="wall",
            note="CPU time does not hold loader processes that stay",
        )


if __name__ == "__main__":
    main()
