"""Two augmented 224x224 views of JPEG files, pairs a second on one core: ``python -m benchmarks.photographs``.

Needs ``--data``: the JPEG files below its folder ``photographs/``. Ours is what a loader process does and what is done
with its crops on the training device, both counted on this one core.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.images import MEAN, STD
from benchmarks.peers import lightly_transform, torchvision_transform
from simsiam.augment import views_of_crops
from simsiam.config import validate
from simsiam.data import FileSplit
from simsiam.loading import Crops

SIZE, BATCH = 224, 32


def files_below(folder: Path, limit: int) -> FileSplit:
    """The photographs, as a data set that stays in its files."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:limit]
    sizes = []
    for path in paths:
        with Image.open(path) as file:
            sizes.append((file.height, file.width))
    names = np.array([bytes(path.relative_to(folder)) for path in paths])
    return FileSplit(folder, names, np.zeros(len(paths), np.int64), np.array(sizes))


def main() -> None:
    bench = Bench("photographs", "Two augmented views of photographs in JPEG files, pairs a second on one core.")
    folder = bench.folder("photographs")
    if folder is None:
        return
    split = files_below(folder, 64 if bench.quick else 192)
    blur = 0.5
    settings = validate({"data.image_size": SIZE, "augment.blur_probability": blur})
    crops_of, epochs = Crops(split, settings), itertools.count()

    def ours() -> None:
        epoch = next(epochs)
        for index in torch.split(torch.arange(len(split)), BATCH):
            _, crops = crops_of.__getitems__(torch.cat((torch.tensor([epoch]), index)))
            views_of_crops(crops, index, settings.augment, seed=0, epoch=epoch, mean=MEAN, std=STD)

    def theirs(transform: object) -> None:
        for places in torch.split(torch.arange(len(split)), BATCH):
            pairs: list[list[Tensor]] = []
            for place in places.tolist():
                with Image.open(split.path(place)) as file:
                    pairs.append(transform(file.convert("RGB")))  # type: ignore[operator]
            [torch.stack(view) for view in zip(*pairs, strict=True)]

    release, lightly = torchvision_transform(SIZE, blur), lightly_transform(SIZE, blur)
    bench.compare(
        "two 224x224 views of a photograph, from its JPEG file",
        "pairs/s per core",
        Contender("ours", ours, len(split)),
        [
            (Contender("torchvision, PIL (authors' release)", lambda: theirs(release), len(split)), Reach(2)),
            (Contender("lightly", lambda: theirs(lightly), len(split)), Reach(2)),
        ],
        repeats=bench.repeats(7) if not bench.quick else 3,
        note=f"{len(split)} photographs, in the page cache",
    )


if __name__ == "__main__":
    main()
