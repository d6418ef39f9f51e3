"""Wall time to 50 % kNN accuracy on CIFAR-10 on two threads: ``python -m benchmarks.time_to_accuracy --data DIR``.

Needs ``--data``: ``cifar10/{train,test}/CLASS/IMAGE`` in it. Both train the same recipe (small ResNet, batch 128) and
are asked after each epoch by our kNN, on 10,000 training images and 2,000 test images, which is not counted. lightly
is stopped after four times our time: then the row says how far it had come, and the ratio is a lower bound. With
``--quick`` nothing is trained, since a run takes minutes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Bench, Reach
from benchmarks.peers import LightlySimSiam, lightly_loader
from benchmarks.training import CPU, SMALL, make_training
from simsiam.data.batches import Source, make_source
from simsiam.data.dataset import Dataset
from simsiam.data.sets import prepare
from simsiam.evaluation.knn import knn_top1
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings

TARGET = 50.0  # percent
RECIPE: dict[str, Any] = {
    **SMALL,
    "epochs": 20,
    "optimizer.lr": 0.2,
    "optimizer.weight_decay": 5e-4,
    "evaluation.bank_size": 10_000,
    "evaluation.query_size": 2_000,
}
PEER_LIMIT = 4.5  # times our time


@torch.inference_mode()
def accuracy(backbone: nn.Module, source: Source) -> float:
    """kNN top-1 of a backbone's features, in percent."""
    backbone.eval()
    features = {
        split: [torch.cat(part) for part in zip(*((backbone(x), y) for x, y in source.plain(split)), strict=True)]
        for split in ("bank", "query")
    }
    backbone.train()
    return knn_top1(*features["bank"], *features["query"], k=200, temperature=0.1)


def race(
    backbone: nn.Module, source: Source, epochs: Iterator[Callable[[], object]], limit: float = float("inf")
) -> tuple[float, float, int]:
    """Train epoch by epoch to the target: seconds of training, the accuracy at its end, and epochs."""
    seconds, top1, num = 0.0, 0.0, 0
    for epoch in epochs:
        started = time.perf_counter()
        epoch()
        seconds, num = seconds + time.perf_counter() - started, num + 1
        top1 = accuracy(backbone, source)
        print(f"  epoch {num}: {seconds:.0f} s of training, kNN {top1:.1f} %", flush=True)
        if top1 >= TARGET or seconds > limit:
            break
    return seconds, top1, num


def our_epochs(settings: Settings, dataset: Dataset) -> tuple[nn.Module, Iterator[Callable[[], object]]]:
    training = make_training(settings, dataset)

    def train_epoch(number: int) -> Callable[[], object]:
        return lambda: [training.update(batch) and None for batch in training.source.epoch(number, 0)]

    return training.model.backbone, (train_epoch(number) for number in range(settings.epochs))


def lightly_epochs(settings: Settings, dataset: Dataset) -> tuple[nn.Module, Iterator[Callable[[], object]]]:
    model = LightlySimSiam(settings)
    loader = lightly_loader(dataset, settings.batch_size, workers=2)
    steps, step = len(loader) * settings.epochs, itertools.count()

    def train_epoch() -> None:
        for views, _ in loader:
            model.decay(next(step) / steps)
            model.step(*views)

    return model.backbone, (train_epoch for _ in range(settings.epochs))


def main() -> None:
    bench = Bench("time_to_accuracy", f"Wall time to {TARGET:g} % kNN accuracy on CIFAR-10.", threads=2)
    folder = bench.folder("cifar10")
    if folder is None:
        return
    if bench.quick:
        print("time_to_accuracy: skipped with --quick: a run takes minutes")
        return
    settings = validate({"data.name": "folder", "data.path": str(folder), "data.storage": "memory", **RECIPE})
    dataset = replace(prepare(settings.data, Path("data")), name="cifar10")
    source = make_source(settings, dataset, CPU)

    backbone, epochs = our_epochs(settings, dataset)
    seconds, top1, num = race(backbone, source, epochs)
    reached = top1 >= TARGET
    backbone, epochs = lightly_epochs(settings, dataset)
    theirs, their_top1, their_num = race(backbone, source, epochs, limit=PEER_LIMIT * seconds)
    what = f"{TARGET:g} % kNN on CIFAR-10" if reached else f"CIFAR-10 ({TARGET:g} % kNN was not reached)"
    note = f"ours {top1:.1f} % after {num} epochs, lightly {their_top1:.1f} % after {their_num}"
    if their_top1 < TARGET:
        note += "; lightly was stopped before it got there, so the ratio is a lower bound"
    bench.add(
        f"time to {what}, over lightly's",
        "min",
        ours=[seconds / 60],
        peer_name="lightly, 2 loader processes",
        peer=[theirs / 60],
        ratios=[seconds / theirs],
        reach=Reach(0.25, at_least=False),
        clock="wall",
        note=note,
    )
    bench.add(
        f"time to {what}, over 6 minutes",
        "min",
        ours=[seconds / 60],
        peer_name="6 minutes",
        peer=[6.0],
        ratios=[seconds / 360],
        reach=Reach(1.0, at_least=False),
        clock="wall",
        note=f"batch {settings.batch_size}, rate {settings.optimizer.lr} x batch / 256, {settings.epochs} epochs",
    )


if __name__ == "__main__":
    main()
