"""Images and views of the user's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsiam.errors import DataError
from simsiam.randomness import derive
from simsiam.settings.own_code import blamed, kept_in, load_own, look_in, make_part, wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from simsiam.settings.fields import DataSettings, Settings


def own_set(settings: DataSettings, root: Path) -> tuple[tuple[str, ...], dict[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """The classes, and the images (N, C, S, S) uint8 and labels (N,) of both splits, from the user's function.

    Raises DataError for what is not that.
    """
    function = load_own(settings.name)
    splits, classes = dict[str, tuple[Any, Any]](), tuple[str, ...]()
    for split in ("train", "test"):
        try:
            made = function(**wanted(function, {"split": split, "folder": root}), **settings.arguments)
        except Exception as error:
            raise DataError(f"data.name: {settings.name}, {split}: {type(error).__name__}: {error}") from error
        if not isinstance(made, tuple) or len(made) not in (2, 3):
            raise DataError(
                f"data.name: {settings.name} must give (images, labels) or (images, labels, classes) of a split; it"
                f" gives a {type(made).__name__}"
            )
        images, labels = np.asarray(made[0]), np.asarray(made[1])
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1] not in (1, 3)
            or len(set(images.shape[2:])) != 1
        ):
            raise DataError(
                f"data.name: {settings.name}, {split}: images must be uint8 (N, C, S, S) with C of 1 or 3; they are"
                f" {images.dtype} {images.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1] or labels.min(initial=0) < 0:
            raise DataError(
                f"data.name: {settings.name}, {split}: labels must be whole numbers from 0 on, one an image"
                f" ({len(images)}); they are {labels.dtype} {labels.shape}"
            )
        splits[split] = images, labels.astype(np.int64)
        classes = tuple(map(str, made[2])) if len(made) == 3 else classes
    num = 1 + max(int(labels.max()) for _, labels in splits.values())
    classes = classes or tuple(map(str, range(num)))
    if len(classes) < num:
        raise DataError(f"data.name: {settings.name}: names {len(classes)} classes, but its labels go to {num - 1}")
    return classes, splits


class OwnViews:
    """Views by the user's transforms, of one image at a time.

    Before each, the random numbers of torch, numpy and Python are seeded by (seed, view, epoch, image): what a
    transform draws is the same in whichever batch, process or attempt the image comes.
    """

    def __init__(self, settings: Settings, num_views: int) -> None:
        self.settings, self.num_views = settings, num_views
        self._places = kept_in()
        self._transforms: list[Any] = []

    def __call__(self, images: Sequence[torch.Tensor], places: Sequence[int], epoch: int) -> list[torch.Tensor]:
        """images: each (C, H, W) uint8; places: which images of the training set. Each view: (N, C, S, S) in [0, 1]."""
        import torch

        if not self._transforms:
            self._transforms = self._make()
        seed, made = self.settings.seed, []
        with torch.random.fork_rng(devices=[]), blamed(self.settings, "augment.views"):
            for view, transform in enumerate(self._transforms, start=1):
                own = []
                for image, place in zip(images, places, strict=True):
                    key = derive(seed, "own view", view, epoch, place)
                    torch.manual_seed(key)
                    random.seed(key)
                    np.random.seed(key % 2**32)
                    own.append(_checked(self.settings, view, transform(image), image.shape[0]))
                made.append(torch.stack(own))
        return made

    def _make(self) -> list[Any]:
        for place in self._places:  # in a loader process, which has looked in none
            look_in(place)
        size = self.settings.data.image_size
        return [
            make_part(self.settings, "augment.views", size=size, view=view) for view in range(1, self.num_views + 1)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transforms": []}


def _checked(settings: Settings, view: int, made: Any, num_channels: int) -> torch.Tensor:
    import torch

    size = settings.data.image_size
    x = made.float() / 255 if isinstance(made, torch.Tensor) and made.dtype == torch.uint8 else made
    if (
        not isinstance(x, torch.Tensor)
        or not x.is_floating_point()
        or x.dim() != 3
        or x.shape[0] != num_channels
        or (view <= 2 and x.shape[1:] != (size, size))
    ):
        found = f"a {made.dtype} {tuple(made.shape)}" if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
        raise ValueError(
            f"view {view} must be a tensor ({num_channels}, {size}, {size}), uint8 or float in [0, 1]; it is {found}"
        )
    return x.float()
