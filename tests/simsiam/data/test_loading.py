"""The two sources of images against each other and against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simsiam.data import batches as loading
from simsiam.data.batches import batches_of, make_source, subset
from simsiam.data.dataset import FileSplit
from simsiam.data.sets import prepare
from simsiam.data.views import draw
from simsiam.errors import DataError
from simsiam.evaluation.knn import knn_top1
from simsiam.randomness import derive
from simsiam.settings.fields import Settings
from simsiam.training.loop import Hooks, train
from tests.simsiam.test_train import assert_same_run

Small = Callable[..., Settings]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs would do; smooth random pictures of many sizes, one colour cast a class."""
    draws = np.random.default_rng(0)
    for split, num in (("train", 12), ("val", 5)):
        for place, name in enumerate(("red", "green", "blue")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(num):
                height, width = draws.integers(40, 90, 2)
                rough = draws.integers(0, 120, (5, 5, 3))
                rough[..., place] += 130
                image = Image.fromarray(rough.astype(np.uint8)).resize(
                    (int(width), int(height)), Image.Resampling.BICUBIC
                )
                image.save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path


def files(small: Small, **changes: object) -> Settings:
    folder = {"name": "folder", "path": "photos", "storage": "files", "image_size": 32, "num_train": None}
    return small(
        **{
            **{f"data__{name}": value for name, value in folder.items()},
            "batch_size": 8,
            "evaluation__query_size": None,
            "augment__blur_probability": 0.5,
            **changes,
        }
    )


def test_every_image_comes_once_an_epoch_in_whole_batches(small: Small) -> None:
    batches = list(batches_of(small(batch_size=32), 0, 100, 0))
    assert [len(batch) for batch in batches] == [32, 32, 32]
    assert len(set(torch.cat(batches).tolist())) == 96
    rest = list(batches_of(small(batch_size=32), 0, 100, 1))
    assert all(torch.equal(a, b) for a, b in zip(batches[1:], rest, strict=True))
    assert not torch.equal(batches[0], next(iter(batches_of(small(batch_size=32), 1, 100, 0))))


def test_a_subset_is_drawn_once() -> None:
    assert subset(50, None, "bank").tolist() == list(range(50)) == subset(50, 60, "bank").tolist()
    chosen = subset(50, 20, "bank")
    assert len(set(chosen.tolist())) == 20
    assert chosen.tolist() == subset(50, 20, "bank").tolist() != subset(50, 20, "query").tolist()


def test_views_from_files_are_torchvision_s(small: Small, folder: Path) -> None:
    """Each view against torchvision's operations on the decoded file, with the same parameters."""
    settings = files(
        small, augment__jitter_probability=0.0, augment__grey_probability=0.0, augment__blur_probability=0.0
    )
    dataset = prepare(settings.data, folder)
    split = dataset.train
    assert isinstance(split, FileSplit)
    index = next(iter(batches_of(settings, 1, len(split), 2)))
    batch = next(iter(make_source(settings, dataset, CPU).epoch(1, 2)))
    assert torch.equal(batch.places, index)
    (both,) = batch.pairs
    mean, std = torch.tensor(dataset.mean)[:, None, None], torch.tensor(dataset.std)[:, None, None]
    for view, x in enumerate(both, start=1):
        for place, i in enumerate(index.tolist()):
            height, width = split.sizes[i]
            box = draw(
                settings.augment, int(height), int(width), torch.tensor([i]), key=derive(settings.seed, "view", view, 1)
            )
            pixels = v2.functional.pil_to_tensor(Image.open(split.path(i)).convert("RGB"))
            expected = v2.functional.resized_crop(
                pixels, int(box.top), int(box.left), int(box.height), int(box.width), [32, 32], antialias=True
            )
            if box.flip:
                expected = expected.flip(2)
            torch.testing.assert_close(x[place], (expected / 255 - mean) / std, atol=1e-5, rtol=1e-5)


def test_plain_images_are_centre_crops(small: Small, folder: Path) -> None:
    settings = files(small)
    dataset = prepare(settings.data, folder)
    assert isinstance(dataset.test, FileSplit)
    batch, labels = next(iter(make_source(settings, dataset, CPU).plain("query")))
    assert batch.shape == (15, 3, 32, 32)
    assert labels.tolist() == dataset.test.labels.tolist()
    pixels = v2.functional.pil_to_tensor(Image.open(dataset.test.path(3)).convert("RGB"))
    expected = v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True),
                           v2.Normalize(dataset.mean, dataset.std)])(pixels)  # fmt: skip
    torch.testing.assert_close(batch[3], expected, atol=1e-5, rtol=1e-5)


def spoil(folder: Path) -> Path:
    """Damage in the middle of an image of the middle class, which is not seen before it is decoded."""
    bad = folder / "photos" / "train" / "green" / "11.png"
    content = bytearray(bad.read_bytes())
    half = len(content) // 2
    content[half : half + 20] = bytes(20)
    bad.write_bytes(content)
    return bad


def test_a_damaged_image_is_named_by_the_loader_processes(small: Small, folder: Path) -> None:
    bad = spoil(folder)
    settings = files(small)
    source = make_source(settings, prepare(settings.data, folder), CPU)
    with pytest.raises(DataError, match=rf"^the image {bad} is damaged"):
        list(source.epoch(0, 0))
    with pytest.raises(DataError, match=rf"^the image {bad} is damaged"):
        list(source.plain("bank"))


def test_the_next_image_of_the_class_stands_in_for_a_damaged_one(small: Small, folder: Path) -> None:
    """As if the other file had been copied over it; the last image of its class is followed by the first."""
    bad = spoil(folder)
    other = sorted(bad.parent.iterdir())[sorted(bad.parent.iterdir()).index(bad) + 1]
    settings = files(small, data__bad_images="replace")
    source = make_source(settings, prepare(settings.data, folder), CPU)
    got = [*source.epoch(0, 0)], [*source.plain("bank")]
    assert source.replaced == {bad: other}
    bad.write_bytes(other.read_bytes())
    whole = make_source(settings, prepare(settings.data, folder), CPU)
    for one, two in zip(got[0], whole.epoch(0, 0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.pairs[0], two.pairs[0], strict=True))
    for (images, _), (expected, _) in zip(got[1], whole.plain("bank"), strict=True):
        assert torch.equal(images, expected)
    assert whole.replaced == {}


def test_a_lack_of_shared_memory_changes_nothing(small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = files(small)
    dataset = prepare(settings.data, folder)
    expected = [*make_source(settings, dataset, CPU).epoch(0, 0)]

    def no_room(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    for batch, before in zip(make_source(settings, dataset, CPU).epoch(0, 0), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch.pairs[0], before.pairs[0], strict=True))


def test_a_lost_batch_ends_in_an_error(small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be pickled is lost by the thread that sends it, as a tensor without room in shared memory is."""
    settings = files(small)
    monkeypatch.setattr(loading, "LOST_AFTER", 3)
    monkeypatch.setattr(loading, "_shared", lambda pixels: lambda: pixels)
    with pytest.raises(RuntimeError, match="gave no batch for 3 s"):
        list(make_source(settings, prepare(settings.data, folder), CPU).epoch(0, 0))


def test_a_run_on_files_trains_resumes_and_sees_colours(small: Small, folder: Path) -> None:
    settings = files(small, epochs=3)
    dataset = prepare(settings.data, folder)
    source = make_source(settings, dataset, CPU)
    bank, queries = (next(iter(source.plain(split))) for split in ("bank", "query"))
    features = [images.mean((2, 3)) for images, _ in (bank, queries)]
    assert knn_top1(features[0], bank[1], features[1], queries[1], k=5) == 100
    run = folder / "run"
    run.mkdir()
    assert train(settings, dataset, run, attempt=1, device=CPU) is not None
    parts, steps = folder / "parts", 0
    parts.mkdir()

    def count(step: int) -> None:
        nonlocal steps
        steps = step

    stopping = Hooks(on_step=count, should_stop=lambda: steps >= 6)
    assert train(settings, dataset, parts, attempt=1, device=CPU, hooks=stopping) is None
    train(settings, dataset, parts, attempt=2, device=CPU)
    assert_same_run(run, parts)
