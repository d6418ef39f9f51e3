"""Commands on the images: data prepare, data check, data resize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import count, say
from commands.integrations import completion
from commands.options import DEFAULT_DATA, Data, Set


def data_prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="fashion-mnist, cifar10, cifar100, stl10, svhn or folder.",
            autocompletion=completion.data_sets,
        ),
    ],
    data: Data = DEFAULT_DATA,
    set_: Set = None,
) -> None:
    """Get a data set and convert it, once. An image folder: `data prepare folder --set data.path=... ` and so on."""
    from simsiam.data.sets import prepare

    dataset = prepare(_data_settings(name, set_), data, progress=say)
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    say(f"{name}: {counts}, fingerprint {dataset.fingerprint}")


def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in `data prepare`.")],
    data: Data = DEFAULT_DATA,
    set_: Set = None,
) -> None:
    """Count the images and recompute their checksum."""
    from simsiam.data.sets import check

    found = check(_data_settings(name, set_), data, progress=say)
    channels, height, width = found.image_shape
    say(f"{name}: as it was prepared, fingerprint {found.fingerprint}")
    say(f"  {found.num_train:,} training images: {_per_class(found.train_per_class)}")
    say(f"  {found.num_test:,} test images: {_per_class(found.test_per_class)}")
    say(f"  {height}x{width} pixels, {count(channels, 'channel')}, {found.num_classes} classes")
    if found.left_out:
        say(f"  left out: {found.left_out}")
    say(f"  mean {_list(found.mean)}, std {_list(found.std)} (training images, scaled to 0 to 1)")


def data_resize(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="The image folder: train/CLASS/IMAGE and so on.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="A new folder, for data.path.")],
    short_side: Annotated[int, typer.Option(min=8, max=4096, help="Of the images that are larger, in pixels.")] = 256,
) -> None:
    """Copy an image folder, with smaller images, which decode faster. Where it was stopped it goes on.

    A crop is the same share of the image as before; a small one has less detail. Views of 224 pixels are usually made
    from images with a short side of 256 or more.
    """
    from simsiam.data.smaller_copy import resize_folder

    num = resize_folder(source, target, short_side, progress=say)
    say(f"{target}: {num:,} images, short side at most {short_side} pixels")
    say(f"  to train on them: --set data.path={target.resolve()}")


def _data_settings(name: str, overrides: list[str] | None) -> Any:
    from experiments.studies.layers import Value, layer_from_command_line, resolve

    layer = {
        "data.name": Value(name, "NAME"),
        "data.storage": Value("files" if name == "folder" else "memory", "data prepare"),
    }
    return resolve((layer, layer_from_command_line(overrides or []))).settings.data


def _per_class(counts: tuple[int, ...]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,} in each class" if low == high else f"{low:,} to {high:,} in a class"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
