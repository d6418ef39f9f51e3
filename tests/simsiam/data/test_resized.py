"""A copy of an image folder with smaller images, against Pillow and torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simsiam.data.originals import scan_folder
from simsiam.data.smaller_copy import resize_folder
from simsiam.errors import DataError
from tests.conftest import Command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth pictures: JPEG and PNG, large and small, upright and lying."""
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, size in (("a.jpg", (90, 61)), ("b.JPEG", (40, 133)), ("c.png", (70, 70)), ("d.png", (20, 99))):
            path = tmp_path / "photos" / split / "cat" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rough = Image.fromarray(draws.integers(0, 256, (4, 4, 3)).astype(np.uint8))
            rough.resize(size, Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ignore(text: str) -> None:
    pass


def test_large_images_are_torchvision_s_resized_and_small_ones_stay(photos: Path, tmp_path: Path) -> None:
    assert resize_folder(photos, tmp_path / "small", 32, ignore) == 8
    tree = scan_folder(tmp_path / "small")
    assert tree.paths["train"] == ["train/cat/a.jpg", "train/cat/b.JPEG", "train/cat/c.png.jpg", "train/cat/d.png"]
    for path in (path for paths in tree.paths.values() for path in paths):
        if path.endswith("d.png"):  # its short side is 20
            assert (tmp_path / "small" / path).read_bytes() == (photos / path).read_bytes()
            continue
        with Image.open(photos / path.removesuffix(".jpg" if "png" in path else "")) as original:
            expected = v2.functional.pil_to_tensor(v2.Resize(32)(original.convert("RGB")))
        with Image.open(tmp_path / "small" / path) as made:
            assert made.format == "JPEG"
            pixels = v2.functional.pil_to_tensor(made)
        assert pixels.shape == expected.shape
        assert (pixels.float() - expected.float()).abs().mean() < 4  # what JPEG loses of colour edges
    assert torch.equal(torch.tensor(tree.labels["train"]), torch.zeros(4, dtype=torch.int64))


def test_the_command_says_how_to_train_on_the_copy(photos: Path, tmp_path: Path, command: Command) -> None:
    done = command("data", "resize", "photos", "copies/small", "--short-side", "32")
    assert done.returncode == 0, done.stderr
    assert f"--set data.path={tmp_path / 'copies' / 'small'}" in done.stdout
    folder = ["--set", f"data.path={tmp_path / 'copies' / 'small'}", "--set", "data.image_size=16"]
    assert "4 training and 4 test images" in command("data", "prepare", "folder", *folder).stdout


def test_what_was_stopped_goes_on_and_ends_the_same(photos: Path, tmp_path: Path) -> None:
    resize_folder(photos, tmp_path / "whole", 32, ignore)
    bad = photos / "val" / "cat" / "b.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(bytes(len(good)))  # of the same size: it is taken for the same folder when it is mended
    with pytest.raises(DataError, match=r"val/cat/b\.JPEG is damaged"):
        resize_folder(photos, tmp_path / "parts", 32, ignore)
    assert not (tmp_path / "parts" / "resized.json").exists()
    assert not [path for path in content(tmp_path / "parts") if path.endswith(".part")]
    bad.write_bytes(good)
    before = {path: (tmp_path / "parts" / path).stat().st_mtime_ns for path in content(tmp_path / "parts")}
    resize_folder(photos, tmp_path / "parts", 32, ignore)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    kept = {path for path in before if not path.startswith(".")}
    assert kept  # and these were not made anew
    assert all((tmp_path / "parts" / path).stat().st_mtime_ns == before[path] for path in kept)
    resize_folder(photos, tmp_path / "whole", 32, ignore)  # nothing to do
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize("there", ["another short side", "another folder", "own things", "a file", "itself"])
def test_nothing_that_is_there_is_touched(photos: Path, tmp_path: Path, there: str) -> None:
    target = photos if there == "itself" else tmp_path / "target"
    if there == "another short side":
        resize_folder(photos, target, 40, ignore)
    elif there == "another folder":
        resize_folder(photos, target, 32, ignore)
        Image.new("RGB", (50, 50)).save(photos / "val" / "cat" / "e.png")
    elif there == "own things":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif there == "a file":
        target.write_text("mine")
    before = content(target) if target.is_dir() else target.read_bytes()
    with pytest.raises(DataError, match=f"{target.name}: .*name a new"):
        resize_folder(photos, target, 32, ignore)
    assert before == (content(target) if target.is_dir() else target.read_bytes())


def test_two_images_of_one_name_are_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(photos / "val" / "cat" / "c.png.jpg")
    with pytest.raises(DataError, match=r"c\.png and an image beside it would both be called .*c\.png\.jpg"):
        resize_folder(photos, tmp_path / "target", 32, ignore)
    assert not (tmp_path / "target").exists()
