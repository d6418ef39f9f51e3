"""From a data set to what the network eats: batches of two views for training, plain batches for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional as transforms

from simsiam.augment import draw_pair, views, views_of_crops
from simsiam.config import AugmentSettings, Settings
from simsiam.data import Dataset, FileSplit, Split
from simsiam.distributed import ONE_RANK, Ranks
from simsiam.download import to_rgb
from simsiam.randomness import derive, generator

PLAIN_BATCH = 512  # images in a batch of an evaluation; it changes no result


class Batch(NamedTuple):
    """The images of a step; with several ranks this rank's part of them, B / ranks."""

    places: Tensor  # (B,) int64 on the CPU: which images of the training set
    pairs: tuple[tuple[Tensor, Tensor], ...]  # views (x1, x2), each (B, C, S, S): one pair, or two (Sec. 4.6, "2x")


class Source(Protocol):
    """Where a training gets its images."""

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


def second_view(settings: Settings) -> AugmentSettings:
    """The distribution of x2: that of x1, with what is set for the second view alone."""
    own = {name: value for name, value in settings.second_view.model_dump().items() if value is not None}
    return settings.augment.model_copy(update=own)


def num_pairs(settings: Settings) -> int:
    """How many pairs of views a step takes of each image."""
    return 2 if settings.loss.symmetry == "asymmetric-2x" else 1


def evaluated(settings: Settings, dataset: Dataset, split: Literal["bank", "query"]) -> np.ndarray:
    """Which images the kNN's bank or its queries are, over all ranks."""
    evaluation = settings.evaluation
    if split == "bank":
        return subset(len(dataset.train), evaluation.bank_size, split)
    return subset(len(dataset.test), evaluation.query_size, split)


def _normalised(images: Tensor, dataset: Dataset) -> Tensor:
    """uint8 (n, C, S, S) -> float32, each channel with the training images' mean 0 and std 1."""
    mean = torch.tensor(dataset.mean, device=images.device)[:, None, None]
    std = torch.tensor(dataset.std, device=images.device)[:, None, None]
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class MemorySource:
    """Images that are held as uint8 arrays: views are made on the training device."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, ranks: Ranks = ONE_RANK) -> None:
        assert isinstance(dataset.train, Split)
        assert isinstance(dataset.test, Split)
        self.settings, self.dataset, self.device, self.ranks = settings, dataset, device, ranks
        self.train, self.test = dataset.train, dataset.test
        # On a GPU the images move there once; on a CPU they stay in the page cache, shared by all processes.
        self._on_device = None if device.type == "cpu" else torch.tensor(np.asarray(self.train.images), device=device)

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        for index in map(self.ranks.own, batches_of(self.settings, epoch, len(self.train), first_batch)):
            if self._on_device is None:
                images = torch.from_numpy(self.train.images[index.numpy()])
            else:
                images = self._on_device[index.to(self.device, non_blocking=True)]
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
            batch = torch.from_numpy(images.images[index]).to(self.device)
            if batch.shape[-1] != size:
                batch = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)
            yield _normalised(batch, self.dataset), torch.from_numpy(images.labels[index]).to(self.device)


class FileSource:
    """Images that are decoded and cropped by loader processes; the rest of a view is made on the training device."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, ranks: Ranks = ONE_RANK) -> None:
        assert isinstance(dataset.train, FileSplit)
        assert isinstance(dataset.test, FileSplit)
        self.settings, self.dataset, self.device, self.ranks = settings, dataset, device, ranks
        self.train, self.test = dataset.train, dataset.test
        self._batches = _Batches(settings, len(dataset.train), ranks)
        self._crops = self._loader(Crops(dataset.train, settings), self._batches)

    def _loader(
        self, images: TorchDataset[tuple[Tensor, Tensor]], batches: Iterable[Tensor]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            images,
            batch_sampler=cast(Any, batches),  # a batch is a tensor of indices, where torch's types want a list
            collate_fn=cast(Any, _as_it_is),
            num_workers=torch.get_num_threads(),  # the cores that this process may use
            pin_memory=self.device.type == "cuda",
            persistent_workers=isinstance(batches, _Batches),
        )

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        self._batches.epoch, self._batches.first_batch = epoch, first_batch
        for index, crops in self._crops:
            pairs = tuple(
                views_of_crops(
                    crops_of_pair.to(self.device, non_blocking=True),
                    index,
                    self.settings.augment,
                    seed=self.settings.seed,
                    epoch=epoch,
                    mean=self.dataset.mean,
                    std=self.dataset.std,
                    second=second_view(self.settings),
                    pair=pair,
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
        for index, batch in self._loader(_Centres(images, size), torch.split(chosen, PLAIN_BATCH)):
            yield _normalised(batch.to(self.device), self.dataset), labels[index].to(self.device)


class _Batches(Sampler[Tensor]):
    """The batches of the epoch that is set, each with the epoch in front, which a loader process must know."""

    def __init__(self, settings: Settings, num_images: int, ranks: Ranks) -> None:
        self.settings, self.num_images, self.ranks = settings, num_images, ranks
        self.epoch, self.first_batch = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for index in batches_of(self.settings, self.epoch, self.num_images, self.first_batch):
            yield torch.cat((torch.tensor([self.epoch]), self.ranks.own(index)))


class Crops(TorchDataset[tuple[Tensor, Tensor]]):
    """In a loader process: the crops of all views of a batch, (views x B, 3, S, S) uint8, each image decoded once."""

    def __init__(self, images: FileSplit, settings: Settings) -> None:
        self.images, self.settings = images, settings

    def __getitems__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        epoch, index = int(batch[0]), batch[1:]
        size = self.settings.data.image_size
        heights, widths = torch.from_numpy(self.images.sizes[index.numpy()]).unbind(1)
        both = (self.settings.augment, second_view(self.settings))
        drawn = [
            view
            for pair in range(num_pairs(self.settings))
            for view in draw_pair(both, heights, widths, index, seed=self.settings.seed, epoch=epoch, pair=pair)
        ]
        boxes = [torch.stack((view.top, view.left, view.height, view.width), dim=1).tolist() for view in drawn]
        flips = [view.flip.tolist() for view in drawn]
        crops = torch.empty(len(boxes), len(index), 3, size, size, dtype=torch.uint8)
        for place, image in enumerate(index.tolist()):
            pixels = _decode(self.images, image)
            for view, (of_view, flip) in enumerate(zip(boxes, flips, strict=True)):
                crop = transforms.resized_crop(pixels, *of_view[place], size=[size, size], antialias=True)
                crops[view, place] = crop.flip(2) if flip[place] else crop
        return index, crops.flatten(0, 1)


class _Centres(TorchDataset[tuple[Tensor, Tensor]]):
    """In a loader process: the centre, 7/8 of the short side (224 of 256), (n, 3, S, S) uint8."""

    def __init__(self, images: FileSplit, size: int) -> None:
        self.images, self.size = images, size

    def __getitems__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        resized = (
            transforms.resize(_decode(self.images, image), [round(self.size * 8 / 7)], antialias=True)
            for image in index.tolist()
        )
        return index, torch.stack([transforms.center_crop(image, [self.size, self.size]) for image in resized])


def _decode(images: FileSplit, index: int) -> Tensor:
    """uint8 (3, H, W)."""
    with Image.open(images.path(index)) as file:
        pixels = np.array(to_rgb(file, images.path(index)))
    return torch.from_numpy(pixels).permute(2, 0, 1)  # no copy into another order: resizing takes this one as well


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
