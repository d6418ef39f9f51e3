"""Generated images: a set that needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simsiam.data.dataset import Dataset, Split, channel_statistics
from simsiam.randomness import derive

if TYPE_CHECKING:
    pass

SYNTHETIC_FINGERPRINT = "synthetic-1"  # the number is raised when the generated images change


def synthetic_images(image_size: int) -> Dataset:
    """Generated images, for tests: ten classes of oriented gratings, five directions in two widths.

    The grating is faint. Its phase in each quarter, its exact width, a slope of brightness in each colour and noise
    are each image's own, so that raw pixels tell less of the class than a network can learn. Directions go from 0 to
    90 degrees, since a horizontal flip would merge others. All is integer arithmetic on raw random bits: the same
    images on every machine.
    """
    import numpy as np

    wave = np.rint(20 * np.sin(np.arange(256) / 256 * 2 * np.pi)).astype(np.int16)  # one turn in 256 steps
    angle = np.arange(10) % 5 * (np.pi / 8)
    period = np.where(np.arange(10) < 5, image_size / 2, max(image_size / 8, 3))  # pixels
    steps = np.rint(65536 / period * [np.cos(angle), np.sin(angle)]).astype(np.int64)  # (2, 10), in 1/65536 turn
    colour = np.rint(4 * np.cos((np.arange(10)[:, None] / 10 + np.arange(3) / 3) * 2 * np.pi)).astype(np.int16)
    x, y = np.arange(image_size), np.arange(image_size)[:, None]
    splits = []
    for split, num in (("train", 2000), ("test", 500)):
        labels = np.arange(num) % 10
        images = np.empty((num, 3, image_size, image_size), np.uint8)
        for start in range(0, num, 100):
            part = slice(start, start + 100)
            bits = np.random.PCG64(derive("synthetic", split, image_size, start))
            own = bits.random_raw(100 * 2).view(np.uint8).reshape(100, 16, 1, 1).astype(np.int64)
            x_step, y_step = steps[:, labels[part], None, None] * (224 + (own[:, 0] >> 2)) >> 8  # 12 % wider or finer
            phase = own[:, 1:5].reshape(100, 2, 2)[:, y * 2 // image_size, x * 2 // image_size]  # (100, H, W)
            grating = wave[(x * x_step + y * y_step >> 8) + phase & 255]  # (100, H, W)
            x_slope, y_slope, tint = ((own[:, k : k + 3] - 128).astype(np.int16) for k in (5, 8, 11))  # (100, C, 1, 1)
            slopes = (x * 2 - image_size) * x_slope + (y * 2 - image_size) * y_slope
            level = (
                128 + grating[:, None] + slopes // (image_size * 5) + tint // 5 + colour[labels[part], :, None, None]
            )
            noise = bits.random_raw(level.size // 8 + 1).view(np.uint8)[: level.size].reshape(level.shape)
            images[part] = level + noise % 48 - 24
        splits.append(Split(images, labels))
    train, test = splits
    mean, std = channel_statistics({"train_images": train.images})
    classes = tuple(f"{'coarse' if k < 5 else 'fine'} {22.5 * (k % 5):g} degrees" for k in range(10))
    return Dataset("synthetic", train, test, classes, mean, std, SYNTHETIC_FINGERPRINT, 3, image_size)
