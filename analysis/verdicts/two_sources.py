"""Two sources of noise in a difference of accuracies: the seeds of the training, and the images of the test set.

With each image's correctness in each run, the difference of two variants is a table of seeds by images with entries -1,
0 and 1. Its mean varies because other seeds, or other images, would have given another: two-way analysis of variance
with random effects splits that into a part of the seeds, a part of the images, and a part of both together (what a seed
does to single images). Verdicts are about the training on these test images: their intervals hold the parts in which
seeds are, not that of the images alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.formats import format_signed
from analysis.frames.run_files import is_number, read_with
from simsiam.record.curves import unpack

Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Sources:
    """The mean of a difference, in points, and the parts of its variance, in points squared."""

    mean: float
    variance: float  # of the mean
    seeds: float
    images: float
    both: float
    num_seeds: int
    num_images: int

    @property
    def shares(self) -> dict[str, float]:
        """Of the variance, by what would have to be more for it to shrink."""
        total = self.seeds + self.images + self.both
        parts = {"seeds": self.seeds, "test images": self.images, "both": self.both}
        return {name: part / total if total else 0.0 for name, part in parts.items()}

    @property
    def sentence(self) -> str:
        """What more of would help."""
        if self.variance == 0:
            return "No difference between seeds or images."
        shares = self.shares
        largest = max(shares, key=lambda name: shares[name])
        more = "more of either would help" if largest == "both" else f"more {largest} would help most"
        return (
            f"{format_signed(self.mean)} ± {math.sqrt(self.variance):.2g} points over {self.num_seeds} seeds and "
            f"{self.num_images:,} test images; of that variance {100 * shares['seeds']:.0f} % is the seeds', "
            f"{100 * shares['test images']:.0f} % the images', {100 * shares['both']:.0f} % of both: {more}."
        )


def sources(one: Correct, other: Correct) -> Sources:
    """Split the noise of the mean of ``one`` minus ``other``, each of shape (seeds, images), at least 2 of each.

    A part that comes out below zero is zero, so the parts may add up to more than the variance, which has no bias.
    Raises ValueError for shapes that differ or are too small.
    """
    if one.shape != other.shape or one.ndim != 2 or min(one.shape) < 2:
        raise ValueError(f"two tables of at least 2 seeds by 2 images are wanted, not {one.shape} and {other.shape}")
    difference = 100.0 * (one.astype(np.int8) - other.astype(np.int8))
    num_seeds, num_images = difference.shape
    mean, of_seeds, of_images = difference.mean(), difference.mean(1), difference.mean(0)
    square_seeds = num_images * ((of_seeds - mean) ** 2).sum() / (num_seeds - 1)
    square_images = num_seeds * ((of_images - mean) ** 2).sum() / (num_images - 1)
    rest = ((difference - of_seeds[:, None] - of_images + mean) ** 2).sum() / ((num_seeds - 1) * (num_images - 1))
    cells = num_seeds * num_images
    return Sources(
        mean=float(mean),
        variance=max(0.0, float(square_seeds + square_images - rest) / cells),
        seeds=max(0.0, float(square_seeds - rest) / cells),
        images=max(0.0, float(square_images - rest) / cells),
        both=float(rest) / cells,
        num_seeds=num_seeds,
        num_images=num_images,
    )


# --- from run folders ------------------------------------------------------------------------------------------------


def decode(text: str, num: int) -> Correct | None:
    """One truth value for each image, as of :func:`simsiam.record.curves.unpack`; None where that is refused."""
    try:
        return unpack(text, num)
    except ValueError:
        return None


def last_correct(folder: Path, name: str = "knn_correct") -> Correct | None:
    """Of each test image, whether a run had it right at its last evaluation; None if that is not recorded."""
    points = read_with(folder, name)
    if not points or not is_number(points[-1].get("num_queries")):
        return None
    return decode(str(points[-1][name]), int(points[-1]["num_queries"]))


def sources_of_runs(one: Mapping[int, Path], other: Mapping[int, Path], name: str = "knn_correct") -> Sources | None:
    """Of the runs of two variants, by seed; None with fewer than two seeds of which both have recorded it."""
    pairs = [
        (first, second)
        for seed in sorted(one.keys() & other.keys())
        if (first := last_correct(one[seed], name)) is not None
        and (second := last_correct(other[seed], name)) is not None
        and len(first) == len(second)
    ]
    lengths = {len(first) for first, _ in pairs}
    if len(pairs) < 2 or len(lengths) > 1:
        return None
    firsts, seconds = zip(*pairs, strict=True)
    return sources(np.stack(firsts), np.stack(seconds))
