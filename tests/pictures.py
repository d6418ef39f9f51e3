"""A data set of small pictures in files, of two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = {"data.name": "folder", "data.path": "mine", "data.num_train": None, "evaluation.bank_size": None}


def write(place: Path, num_train: int, num_test: int) -> None:
    """Noise, into ``place``/mine: so many pictures of each class."""
    draws = np.random.default_rng(0)
    for split, number in (("train", num_train), ("test", num_test)):
        for label in ("a", "b"):
            folder = place / "mine" / split / label
            folder.mkdir(parents=True)
            for n in range(number):
                height, width = draws.integers(18, 30, 2)
                pixels = draws.integers(0, 255, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
