"""Images and labels of a set, in memory or in files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of the images of ImageNet; a folder that stays on disk is too large to measure, and is close enough to it.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory, in the order of their source."""

    images: NDArray[np.uint8]  # (N, C, H, W), mapped read-only from the cache unless a part was drawn
    labels: NDArray[np.int64]  # (N,), index into Dataset.classes

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Split:
        """The images at ``index`` (M,), copied into this process."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images that stay in their files (``storage: files``), to be decoded at each use."""

    folder: Path
    paths: NDArray[np.bytes_]  # (N,), relative to folder; bytes, so that millions of them are mapped and shared too
    labels: NDArray[np.int64]  # (N,), index into Dataset.classes
    sizes: NDArray[np.int64]  # (N, 2), height and width in pixels, from the files' headers; 0 of a damaged image

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.folder / os.fsdecode(self.paths[index])

    def take(self, index: NDArray[np.int64]) -> FileSplit:
        """The images at ``index`` (M,)."""
        return FileSplit(self.folder, self.paths[index], self.labels[index], self.sizes[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready for training; both splits are of the same kind."""

    name: str
    train: Split | FileSplit
    test: Split | FileSplit  # the held-out part of the training images with ``evaluate_on: holdout``
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of each channel: what images, scaled to [0, 1], are normalised by (data.normalisation)
    std: tuple[float, ...]  # population standard deviation, likewise
    fingerprint: str
    num_channels: int
    image_size: int  # side in pixels: of the stored images; of the network's input with ``storage: files``


def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Consecutive parts of about 16 MB, so that no copy or count of a whole data set is ever in memory."""
    step = max(1, (16 << 20) // max(1, array[0].nbytes))
    return (array[start : start + step] for start in range(0, len(array), step))


def channel_statistics(arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel over the training images, exact before the division."""
    import numpy as np

    if "train_images" not in arrays:
        return IMAGENET_MEAN, IMAGENET_STD
    images = arrays["train_images"]
    counts = np.zeros((images.shape[1], 256), np.int64)
    for chunk in chunks(images):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
    moments = []
    for count in counts.tolist():
        total = sum(count)
        first, second = (sum(n * value**power for value, n in enumerate(count)) for power in (1, 2))
        moments.append((first / total / 255, math.sqrt(second * total - first * first) / total / 255))
    mean, std = zip(*moments, strict=True)
    return mean, std
