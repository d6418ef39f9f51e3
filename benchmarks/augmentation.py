"""Two augmented views of 32x32 images, pairs a second on one core: ``python -m benchmarks.augmentation``.

The CIFAR-10 recipe (App. D: crops, jitter, grey, flips; no blur), then the same with blur. The images are in memory
and decoded; every contender ends with normalised float32 tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.images import MEAN, STD, as_arrays, smooth
from benchmarks.peers import kornia_views, lightly_transform, torchvision_transform
from simsiam.data.views import views
from simsiam.settings.fields import AugmentSettings

BATCH = 256


def ours(images: Tensor, blur: float) -> Callable[[], object]:
    settings, index, epochs = AugmentSettings(blur_probability=blur), torch.arange(len(images)), itertools.count()
    return lambda: views(images, index, settings, seed=0, epoch=next(epochs), size=32, mean=MEAN, std=STD)


def one_by_one(transform: Callable[[object], list[Tensor]], images: list[np.ndarray]) -> Callable[[], object]:
    """A transform of single Pillow images, and what a loader does with its results: stack them."""
    from PIL import Image

    def run() -> list[Tensor]:
        pairs = [transform(Image.fromarray(image)) for image in images]
        return [torch.stack(view) for view in zip(*pairs, strict=True)]

    return run


def main() -> None:
    bench = Bench("augmentation", "Two augmented views of 32x32 images, pairs a second on one core.")
    images = smooth(BATCH)
    several = 8  # batches of ours in a repeat, so that each repeat is long enough to be timed

    for blur in (0.0, 0.5):
        make_ours, make_kornia = ours(images, blur), kornia_views(images, blur)
        arrays = as_arrays(images)

        def repeated(run: Callable[[], object], num: int = several) -> Callable[[], object]:
            return lambda: [run() for _ in range(num)]

        bench.compare(
            "two views of a 32x32 image" + (", with blur" if blur else ""),
            "pairs/s per core",
            Contender("ours", repeated(make_ours), several * BATCH),
            [
                (Contender("lightly", one_by_one(lightly_transform(32, blur), arrays), BATCH), Reach(15)),
                (Contender("torchvision, PIL", one_by_one(torchvision_transform(32, blur), arrays), BATCH), None),
                (Contender("kornia, batched", repeated(make_kornia, 2), 2 * BATCH), Reach(3)),
            ],
            repeats=bench.repeats(15),
        )


if __name__ == "__main__":
    main()
