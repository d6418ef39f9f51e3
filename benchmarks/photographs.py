"""Two augmented 224x224 views of JPEG files, pairs a second on one core: ``python -m benchmarks.photographs``.

Needs ``--data``: the JPEG files below its folder ``photographs/``. Ours is what a loader process does and what is done
with its crops on the training device, both counted on this one core. Then the same from a copy with a short side of
256 (`data resize`), and what that copy does to the crops; and another decoder, which is not in the program.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.images import MEAN, STD
from benchmarks.peers import lightly_transform, torchvision_transform
from simsiam.data.batches import Crops, Wanted
from simsiam.data.dataset import FileSplit
from simsiam.data.smaller_copy import resize_folder
from simsiam.data.views import draw, views_of_crops, widest_blur
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings

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
    epochs = itertools.count()

    def ours(files: FileSplit = split) -> None:
        crops_of, epoch = Crops(files, settings), next(epochs)
        for index in torch.split(torch.arange(len(files)), BATCH):
            crops, (first, second) = crops_of.load(Wanted(index.numpy(), epoch))
            views_of_crops(crops, (first, second), mean=MEAN, std=STD, widest_blur=widest_blur(settings.augment))

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
    decoders(bench, split)
    with tempfile.TemporaryDirectory() as scratch:
        copy = resized(split, Path(scratch), 256)
        bench.compare(
            "two 224x224 views of a photograph, from a copy with short side 256",
            "pairs/s per core",
            Contender("from the copy", lambda: ours(copy), len(copy)),
            [(Contender("from the original", ours, len(split)), None)],
            repeats=bench.repeats(7) if not bench.quick else 3,
            note=f"originals: {of_crops(split, settings)}; copy: {of_crops(copy, settings)}",
        )


def decoders(bench: Bench, split: FileSplit) -> None:
    """A photograph's pixels, from its file."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def pillow() -> None:
        for place in range(len(split)):
            with Image.open(split.path(place)) as file:
                np.array(file.convert("RGB"))

    def torchvision() -> None:
        for place in range(len(split)):
            decode_jpeg(read_file(str(split.path(place))), mode=ImageReadMode.RGB)

    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torchvision's decoders are on their way out
    bench.compare(
        "decoding a photograph",
        "photographs/s per core",
        Contender("Pillow", pillow, len(split)),
        [(Contender("torchvision, decode_jpeg", torchvision, len(split)), None)],
        repeats=bench.repeats(7),
    )


def resized(split: FileSplit, scratch: Path, short_side: int) -> FileSplit:
    """A copy of the photographs with this short side, made by `data resize`."""
    for part in ("train", "val"):
        folder = scratch / "originals" / part / "all"
        folder.mkdir(parents=True)
        for place in range(len(split) if part == "train" else 1):
            (folder / f"{place:06}.jpg").symlink_to(split.path(place).resolve())
    resize_folder(scratch / "originals", scratch / "copy", short_side, lambda text: None)
    return files_below(scratch / "copy" / "train", len(split))


def of_crops(split: FileSplit, settings: Settings) -> str:
    """How large crops are, as a share of the image, and how many of them have fewer pixels than the view."""
    height, width = torch.from_numpy(split.sizes).unbind(1)
    draws = [draw(settings.augment, height, width, torch.arange(len(split)), key=key) for key in range(200)]
    heights, widths = (torch.stack([getattr(one, side) for one in draws]).double() for side in ("height", "width"))
    share = heights * widths / (height * width)
    few = ((heights < SIZE) | (widths < SIZE)).double().mean()
    return f"area of a crop {share.mean():.3f} +- {share.std():.3f}, {100 * few:.0f} % are enlarged in an axis or both"


if __name__ == "__main__":
    main()
