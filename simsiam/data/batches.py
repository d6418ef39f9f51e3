"""From a data set to what the network eats: batches of two views for training, plain batches for evaluation."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional as transforms

from simsiam.data.dataset import Dataset, FileSplit, Split
from simsiam.data.originals import opened, read_file
from simsiam.data.own import OwnViews
from simsiam.data.views import ViewParameters, draw_pair, views, views_of_crops, widest_blur
from simsiam.distributed.ranks import ONE_RANK, Ranks
from simsiam.errors import DataError, UserError
from simsiam.randomness import derive, generator
from simsiam.settings.fields import AugmentSettings, LossSettings, SecondViewSettings, Settings
from simsiam.settings.own import is_own

LOST_AFTER = 600  # seconds that a batch from the loader processes may take
PLAIN_BATCH = 512  # images in a batch of an evaluation; it changes no result
VIEWED_IMAGES, VIEWS = 1024, 4  # held-out images of which several views are looked at, and how many of each
VIEWED_BATCH = 256


class Batch(NamedTuple):
    """The images of a step; with several ranks this rank's part of them, B / ranks."""

    places: Tensor  # (B,) int64 on the CPU: which images of the training set
    pairs: tuple[tuple[Tensor, Tensor], ...]  # views (x1, x2), each (B, C, S, S): one pair, or two (Sec. 4.6, "2x")
    more: tuple[Tensor, ...] = ()  # further views of one's own, each (B, C, S', S') with a side of its own


class Source(Protocol):
    """Where a training gets its images."""

    replaced: dict[Path, Path]  # images that cannot be decoded -> what stood in for them, as far as it was met

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The whole batches of an epoch from ``first_batch`` on."""

    def plain(self, split: Literal["bank", "query"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Unaugmented images (n, C, S, S) and labels (n,) of the kNN's bank (training images) or its queries.

        With several ranks, this rank's share of them.
        """


def make_source(settings: Settings, dataset: Dataset, device: torch.device, ranks: Ranks = ONE_RANK) -> Source:
    """The source for images in memory, or for those that stay in files."""
    if isinstance(dataset.train, FileSplit):
        return FileSource(settings, dataset, device, ranks)
    return MemorySource(settings, dataset, device, ranks)


def batches_of(settings: Settings, epoch: int, num_images: int, first_batch: int) -> Iterator[Tensor]:
    """Indices (B,) of an epoch's batches: a permutation from (seed, epoch) alone, cut into whole batches."""
    order = torch.randperm(num_images, generator=generator(settings.seed, "order", epoch))
    batches = num_images // settings.batch_size
    whole = order[: batches * settings.batch_size]
    yield from torch.split(whole, settings.batch_size)[first_batch:]


def subset(num_images: int, limit: int | None, purpose: str) -> np.ndarray:
    """Which images an evaluation uses: all, or ``limit`` drawn once, the same for every run and seed."""
    if limit is None or limit >= num_images:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(derive("subset", purpose)).permutation(num_images)[:limit])


def shuffled(num_images: int, limit: int, purpose: str) -> np.ndarray:
    """The same draw in a fixed random order, so that each part from its start is a draw, too.

    A folder's images come class by class: the first ones would be of one class.
    """
    return np.random.default_rng(derive("subset", purpose)).permutation(num_images)[:limit]


def second_view(settings: Settings) -> AugmentSettings:
    """The distribution of x2: that of x1, with what is set for the second view alone."""
    own = {name: value for name, value in settings.second_view.model_dump().items() if value is not None}
    return settings.augment.model_copy(update=own)


def num_pairs(settings: Settings) -> int:
    """How many pairs of views a step takes of each image."""
    return 2 if settings.loss.symmetry == "asymmetric-2x" else 1


def own_views(settings: Settings) -> OwnViews | None:
    """The user's own views, if the settings name them."""
    return (
        OwnViews(settings, 2 * num_pairs(settings) + settings.augment.more_views)
        if is_own(settings.augment.views)
        else None
    )


def _own_batch(
    settings: Settings, dataset: Dataset, index: Tensor, made: Iterable[Tensor], device: torch.device
) -> Batch:
    """A batch of the user's views (N, C, S, S) in [0, 1]: the pairs come first."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (dataset.mean, dataset.std))
    views = [((x - mean) / std).to(device, non_blocking=True) for x in made]
    num = 2 * num_pairs(settings)
    return Batch(index, tuple((views[i], views[i + 1]) for i in range(0, num, 2)), tuple(views[num:]))


def evaluated(settings: Settings, dataset: Dataset, split: Literal["bank", "query"]) -> np.ndarray:
    """Which images the kNN's bank or its queries are, over all ranks."""
    evaluation = settings.evaluation
    if split == "bank":
        return subset(len(dataset.train), evaluation.bank_size, split)
    return subset(len(dataset.test), evaluation.query_size, split)


def held_out_views(
    settings: Settings, dataset: Dataset, encode: Callable[[Tensor], Tensor], device: torch.device, ranks: Ranks
) -> Tensor:
    """``encode``, views (B, C, S, S) -> (B, d), of augmented views of held-out images: (n, VIEWS, d).

    The distribution is that of the training's first view. Images and views are drawn once, the same for every run and
    seed. n: at most VIEWED_IMAGES, in whole batches. All ranks return the same.
    """
    num = min(VIEWED_IMAGES, len(dataset.test))
    batch_size = min(VIEWED_BATCH, num)
    num -= num % batch_size
    images = dataset.test.take(subset(len(dataset.test), num, "views"))
    seed = derive("held-out views") % 2**31
    plain = {"second_view": SecondViewSettings(), "loss": LossSettings()}  # one pair, both views of one distribution
    own = settings.model_copy(update={"seed": seed, "batch_size": batch_size, **plain})
    source = make_source(own, replace(dataset, train=images), device, ranks)
    pairs = []
    for epoch in range(VIEWS // 2):
        encoded = [torch.stack([encode(view) for view in batch.pairs[0]], dim=1) for batch in source.epoch(epoch, 0)]
        order = torch.cat(list(batches_of(own, epoch, num, 0))).argsort()
        pairs.append(torch.cat([ranks.gather(part, batch_size) for part in encoded])[order.to(device)])
    return torch.cat(pairs, dim=1)


def _normalised(images: Tensor, dataset: Dataset) -> Tensor:
    """uint8 (n, C, S, S) -> float32, each channel with the training images' mean 0 and std 1."""
    both = (torch.tensor(part)[:, None, None] for part in (dataset.mean, dataset.std))
    mean, std = (part.to(images.device, non_blocking=True) for part in both)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class MemorySource:
    """Images that are held as uint8 arrays: views are made on the training device."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, ranks: Ranks = ONE_RANK) -> None:
        assert isinstance(dataset.train, Split)
        assert isinstance(dataset.test, Split)
        self.settings, self.dataset, self.device, self.ranks = settings, dataset, device, ranks
        self.train, self.test = dataset.train, dataset.test
        self.replaced: dict[Path, Path] = {}
        # On a GPU the images move there once; on a CPU they stay in the page cache, shared by all processes.
        self._own = own_views(settings)
        stays = device.type == "cpu" or self._own is not None
        self._on_device = None if stays else torch.tensor(np.asarray(self.train.images), device=device)

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        for index in map(self.ranks.own, batches_of(self.settings, epoch, len(self.train), first_batch)):
            if self._on_device is None:
                images = torch.from_numpy(self.train.images[index.numpy()])
            else:
                images = self._on_device[index.to(self.device, non_blocking=True)]
            if self._own is not None:
                made = self._own(list(images), index.tolist(), epoch)
                yield _own_batch(self.settings, self.dataset, index, made, self.device)
                continue
            pairs = tuple(
                views(
                    images,
                    index,  # on the CPU, so that a GPU is never waited for
                    self.settings.augment,
                    seed=self.settings.seed,
                    epoch=epoch,
                    size=self.settings.data.image_size,
                    mean=self.dataset.mean,
                    std=self.dataset.std,
                    second=second_view(self.settings),
                    pair=pair,
                )
                for pair in range(num_pairs(self.settings))
            )
            yield Batch(index, pairs)

    def plain(self, split: Literal["bank", "query"]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Source`."""
        images, size = self.train if split == "bank" else self.test, self.settings.data.image_size
        chosen = evaluated(self.settings, self.dataset, split)
        chosen = chosen[self.ranks.share(len(chosen))]
        for start in range(0, len(chosen), PLAIN_BATCH):
            index = chosen[start : start + PLAIN_BATCH]
            batch = torch.from_numpy(images.images[index]).to(self.device, non_blocking=True)
            if batch.shape[-1] != size:
                batch = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)
            labels = torch.from_numpy(images.labels[index])
            yield _normalised(batch, self.dataset), labels.to(self.device, non_blocking=True)


class FileSource:
    """Images that are decoded and cropped by loader processes; the rest of a view is made on the training device."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, ranks: Ranks = ONE_RANK) -> None:
        assert isinstance(dataset.train, FileSplit)
        assert isinstance(dataset.test, FileSplit)
        self.settings, self.dataset, self.device, self.ranks = settings, dataset, device, ranks
        self.train, self.test = dataset.train, dataset.test
        self.replaced: dict[Path, Path] = {}
        self._batches = _Batches(settings, len(dataset.train), ranks)
        own = own_views(settings)
        crops = Crops(dataset.train, settings) if own is None else OwnCrops(dataset.train, settings, own)
        self._crops = self._loader(crops, self._batches)

    def _loader(self, images: _InLoaderProcess, batches: Iterable[Wanted]) -> DataLoader[Answer]:
        return DataLoader(
            images,
            batch_sampler=cast(Any, batches),  # a batch is an object, where torch's types want a list
            collate_fn=cast(Any, _as_it_is),
            num_workers=torch.get_num_threads(),  # the cores that this process may use
            pin_memory=self.device.type == "cuda",
            persistent_workers=isinstance(batches, _Batches),
            timeout=LOST_AFTER,
        )

    def _answers(self, loader: DataLoader[Answer]) -> Iterator[_Loaded]:
        """The batches of the loader processes. Raises what went wrong there."""
        answers = iter(loader)
        while True:
            try:
                answer = next(answers, None)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                raise RuntimeError(
                    f"the loader processes gave no batch for {LOST_AFTER} s: the images' disk does not answer, or what"
                    " they sent was lost; their own messages are in the log"
                ) from error
            if answer is None:
                return
            if isinstance(answer, _Failure):
                raise DataError(answer.reason) if answer.is_data_error else LoaderError(answer.reason)
            for bad, other in answer.replaced.items():
                if bad not in self.replaced:
                    print(f"{bad} cannot be decoded: {other} stands in for it", file=sys.stderr, flush=True)
                self.replaced[bad] = other
            yield answer

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        self._batches.epoch, self._batches.first_batch = epoch, first_batch
        settings = self.settings
        for loaded in self._answers(self._crops):
            index = torch.from_numpy(loaded.places)
            crops = torch.as_tensor(loaded.pixels)
            if loaded.shapes:
                parts = torch.split(crops, [int(np.prod(shape)) for shape in loaded.shapes])
                made = (part.view(shape) for part, shape in zip(parts, loaded.shapes, strict=True))
                yield _own_batch(settings, self.dataset, index, made, self.device)
                continue
            pairs = tuple(
                views_of_crops(
                    crops_of_pair.to(self.device, non_blocking=True),
                    (_parameters(loaded.drawn[2 * pair]), _parameters(loaded.drawn[2 * pair + 1])),
                    mean=self.dataset.mean,
                    std=self.dataset.std,
                    widest_blur=widest_blur(settings.augment, second_view(settings)),
                )
                for pair, crops_of_pair in enumerate(torch.split(crops, 2 * len(index)))
            )
            yield Batch(index, pairs)

    def plain(self, split: Literal["bank", "query"]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Source`."""
        images = self.train if split == "bank" else self.test
        chosen = self.ranks.own(torch.from_numpy(evaluated(self.settings, self.dataset, split)))
        labels = torch.tensor(images.labels)
        size = self.settings.data.image_size
        batches = [part.numpy() for part in torch.split(chosen, PLAIN_BATCH)]
        centres = _Centres(images, size, self.settings.data.bad_images)
        for loaded in self._answers(self._loader(centres, [Wanted(part) for part in batches])):
            batch = torch.as_tensor(loaded.pixels).to(self.device, non_blocking=True)
            yield _normalised(batch, self.dataset), labels[loaded.places].to(self.device, non_blocking=True)


# What goes between the processes is in arrays, not in tensors: torch sends tensors through shared memory from a thread
# of its own, which loses them without a word where there is no room.
Indices = NDArray[np.int64]


class LoaderError(RuntimeError):
    """What went wrong in a loader process; the message begins with it and ends with its traceback."""


class _Failure(NamedTuple):
    reason: str
    is_data_error: bool


class Wanted(NamedTuple):
    """The images of a batch, and the epoch that their crops are drawn for."""

    places: Indices  # (n,)
    epoch: int = 0


Drawn = tuple[NDArray[Any], ...]  # the fields of ViewParameters


class _Loaded(NamedTuple):
    places: Indices  # (n,)
    pixels: Tensor | NDArray[Any]  # uint8; a tensor in shared memory, or an array where that had no room
    drawn: tuple[Drawn, ...]  # of each view, if they are crops
    replaced: dict[Path, Path]
    shapes: tuple[tuple[int, ...], ...] = ()  # of each view of the user's own: float32, one after the other in pixels


Answer = _Loaded | _Failure


class _Batches(Sampler[Wanted]):
    """The batches of the epoch that is set."""

    def __init__(self, settings: Settings, num_images: int, ranks: Ranks) -> None:
        self.settings, self.num_images, self.ranks = settings, num_images, ranks
        self.epoch, self.first_batch = 0, 0

    def __iter__(self) -> Iterator[Wanted]:
        for index in batches_of(self.settings, self.epoch, self.num_images, self.first_batch):
            yield Wanted(self.ranks.own(index).numpy(), self.epoch)


class _InLoaderProcess(TorchDataset[Answer]):
    """What a loader process makes of a batch of images."""

    def __init__(self, images: FileSplit, bad_images: Literal["error", "replace"]) -> None:
        self.images, self.bad_images = images, bad_images
        self.replaced: dict[int, int] = {}
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def load(self, wanted: Wanted) -> tuple[Tensor, tuple[ViewParameters, ...]]:
        """The pixels in uint8, and what was drawn for each view."""
        raise NotImplementedError

    def __getitems__(self, wanted: Wanted) -> Answer:
        try:
            pixels, drawn = self.load(wanted)
            path = self.images.path
            replaced = {path(i): path(self.replaced[i]) for i in wanted.places.tolist() if i in self.replaced}
            arrays = tuple(tuple(field.numpy() for field in view) for view in drawn)
            return _Loaded(wanted.places, _shared(pixels), arrays, replaced, self.shapes)
        except UserError as error:
            return _Failure(str(error), is_data_error=True)
        except Exception as error:  # the process that waits is to learn of all
            text = f"in a loader process: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            return _Failure(text, is_data_error=False)

    def decode(self, index: int) -> Tensor:
        """An image, or what stands in for it: uint8 (3, H, W)."""
        while True:
            chosen = self.replaced.get(index, index)
            try:
                if self.images.sizes[chosen].all():
                    return _decode(self.images, chosen)
                raise DataError(f"the image {self.images.path(chosen)} was damaged when it was prepared")
            except DataError:
                if self.bad_images == "error":
                    raise
                self.replaced[index] = self._next_of_class(index, chosen)

    def _next_of_class(self, index: int, tried: int) -> int:
        """The image that comes after ``tried`` in its class, the first one after the last."""
        same = np.flatnonzero(self.images.labels == self.images.labels[index])
        following = int(same[(np.searchsorted(same, tried) + 1) % len(same)])
        if following == index:
            raise DataError(f"no image of the class of {self.images.path(index)} can be decoded")
        return following


class Crops(_InLoaderProcess):
    """In a loader process: the crops of all views of a batch, (views x B, 3, S, S) uint8, each image decoded once."""

    def __init__(self, images: FileSplit, settings: Settings) -> None:
        super().__init__(images, settings.data.bad_images)
        self.settings = settings

    def load(self, wanted: Wanted) -> tuple[Tensor, tuple[ViewParameters, ...]]:
        """Where an image was replaced, the boxes are drawn for the other one's size with this one's random numbers."""
        size = self.settings.data.image_size
        drawn = self._draw(wanted)
        boxes, flips = _boxes(drawn)
        crops = torch.empty(len(drawn), len(wanted.places), 3, size, size, dtype=torch.uint8)
        for place, image in enumerate(wanted.places.tolist()):
            before = self.replaced.get(image, image)
            pixels = self.decode(image)
            if self.replaced.get(image, image) != before:
                drawn = self._draw(wanted)
                boxes, flips = _boxes(drawn)
            for view, (of_view, flip) in enumerate(zip(boxes, flips, strict=True)):
                crop = transforms.resized_crop(pixels, *of_view[place], size=[size, size], antialias=True)
                crops[view, place] = crop.flip(2) if flip[place] else crop
        return crops.flatten(0, 1), drawn

    def _draw(self, wanted: Wanted) -> tuple[ViewParameters, ...]:
        """The parameters of each view: of x1 and x2 of each pair."""
        sources = [self.replaced.get(image, image) for image in wanted.places.tolist()]
        sizes = np.maximum(self.images.sizes[sources], 1)  # of a damaged image: decoding it draws again
        heights, widths = torch.from_numpy(sizes).unbind(1)
        both = (self.settings.augment, second_view(self.settings))
        places, seed = torch.from_numpy(wanted.places), self.settings.seed
        return tuple(
            view
            for pair in range(num_pairs(self.settings))
            for view in draw_pair(both, heights, widths, places, seed=seed, epoch=wanted.epoch, pair=pair)
        )


class OwnCrops(_InLoaderProcess):
    """In a loader process: the user's views of a batch, float32, all numbers in one row; each image is decoded once."""

    def __init__(self, images: FileSplit, settings: Settings, own: OwnViews) -> None:
        super().__init__(images, settings.data.bad_images)
        self.own = own

    def load(self, wanted: Wanted) -> tuple[Tensor, tuple[ViewParameters, ...]]:
        """See above."""
        places = wanted.places.tolist()
        made = self.own([self.decode(image) for image in places], places, wanted.epoch)
        self.shapes = tuple(tuple(view.shape) for view in made)
        return torch.cat([view.flatten() for view in made]), ()


def _boxes(drawn: Iterable[ViewParameters]) -> tuple[list[list[list[int]]], list[list[bool]]]:
    """For each view, the box of each image's crop, and whether it is flipped."""
    views = list(drawn)
    boxes = [torch.stack((view.top, view.left, view.height, view.width), dim=1).tolist() for view in views]
    return boxes, [view.flip.tolist() for view in views]


def _parameters(drawn: Drawn) -> ViewParameters:
    return ViewParameters(*map(torch.from_numpy, drawn))


class _Centres(_InLoaderProcess):
    """In a loader process: the centre, 7/8 of the short side (224 of 256), (n, 3, S, S) uint8."""

    def __init__(self, images: FileSplit, size: int, bad_images: Literal["error", "replace"]) -> None:
        super().__init__(images, bad_images)
        self.size = size

    def load(self, wanted: Wanted) -> tuple[Tensor, tuple[ViewParameters, ...]]:
        """See above; nothing is drawn."""
        resized = (
            transforms.resize(self.decode(image), [round(self.size * 8 / 7)], antialias=True)
            for image in wanted.places.tolist()
        )
        return torch.stack([transforms.center_crop(image, [self.size, self.size]) for image in resized]), ()


def _decode(images: FileSplit, index: int) -> Tensor:
    """uint8 (3, H, W)."""
    path = images.path(index)
    with opened(read_file(path), path) as file:
        pixels = np.array(file.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)  # no copy into another order: resizing takes this one as well


def _shared(pixels: Tensor) -> Tensor | NDArray[Any]:
    """In shared memory if that has room (a container's /dev/shm often has 64 MB); else an array, sent through a pipe.

    Here, where a failure can be answered: torch would do the same in its sending thread. Room is asked for beforehand,
    with some to spare for what others put there meanwhile.
    """
    if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free < 2 * pixels.nbytes:
        return pixels.numpy()
    try:
        pixels.share_memory_()  # type: ignore[no-untyped-call]
        return pixels
    except RuntimeError:  # others took the room just now
        return pixels.numpy()


def _as_it_is(answer: Answer) -> Answer:
    return answer
