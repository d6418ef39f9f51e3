"""Data sets: what is prepared equals what torchvision reads, and no accident leaves a half-made or wrong one."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simsiam.data import originals
from simsiam.data import sets as data
from simsiam.data.dataset import Dataset, FileSplit, Split
from simsiam.errors import DataError
from simsiam.settings.fields import DataSettings
from tests.conftest import ROOT
from tests.ordinary_user import let_in

NOBODY = 65534
FASHION = DataSettings(name="fashion-mnist", storage="memory", image_size=28)


def named(name: str) -> DataSettings:
    return DataSettings(name=name, storage="memory", image_size=32)


def folder_settings(path: Path | str, storage: str = "memory", image_size: int = 16) -> DataSettings:
    return DataSettings(name="folder", path=str(path), storage=storage, image_size=image_size)


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def no_network_and_no_system_package(monkeypatch, tmp_path_factory):
    """Every address of torchvision's leads to a closed port of this machine, and Debian's package is not installed."""
    closed = "http://127.0.0.1:9"
    sets = torchvision.datasets
    for kind in (sets.CIFAR10, sets.CIFAR100, sets.STL10):
        monkeypatch.setattr(kind, "url", f"{closed}/{kind.filename}")
    splits = {split: [f"{closed}/{file}", file, md5] for split, (_, file, md5) in sets.SVHN.split_list.items()}
    monkeypatch.setattr(sets.SVHN, "split_list", splits)
    monkeypatch.setattr(sets.FashionMNIST, "mirrors", [f"{closed}/"])
    empty = tmp_path_factory.mktemp("system")
    monkeypatch.setattr(originals, "SYSTEM", empty)
    monkeypatch.setenv("PATH", str(empty))  # neither apt-get nor dpkg-deb


# --- making originals --------------------------------------------------------------------------------------------


def write_images(folder: Path, num: int = 3, size: tuple[int, int] = (16, 16), classes=("cat", "dog"), test="test"):
    """A folder of small noise images; ``size`` is (width, height)."""
    noise = np.random.default_rng(0)
    for split in ("train", test):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for k in range(num):
                pixels = noise.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, num_train: int = 50, num_test: int = 20) -> None:
    """The four files, packed and (as torchvision wants them) unpacked."""
    noise = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for split, num in (("train", num_train), ("t10k", num_test)):
        arrays = {"images-idx3": noise.integers(0, 256, (num, 28, 28), np.uint8)}
        arrays["labels-idx1"] = noise.integers(0, 10, num, np.uint8)
        for kind, array in arrays.items():
            (folder / f"{split}-{kind}-ubyte").write_bytes(idx_bytes(array))
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pack(folder: str, files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def fake_cifar(monkeypatch, kind) -> dict[str, bytes]:
    """An archive like CIFAR's, five images a batch; torchvision is told its sums. Returns file name -> content."""
    noise, label_field = np.random.default_rng(2), "labels" if kind is torchvision.datasets.CIFAR10 else "fine_labels"
    files = {kind.meta["filename"]: pickle.dumps({kind.meta["key"]: [f"class {k}" for k in range(10)]})}
    for name, _ in kind.train_list + kind.test_list:
        batch = {"data": noise.integers(0, 256, (5, 3072), np.uint8), label_field: noise.integers(0, 10, 5).tolist()}
        files[name] = pickle.dumps(batch)
    archive = pack(kind.base_folder, files)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(kind, field, [[name, md5(files[name])] for name, _ in getattr(kind, field)])
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    return {kind.filename: archive}


def fake_stl10(monkeypatch, kind) -> dict[str, bytes]:
    noise = np.random.default_rng(3)
    files = {"class_names.txt": "".join(f"class {k}\n" for k in range(10)).encode(), "unlabeled_X.bin": b"\0" * 27648}
    for split in ("train", "test"):
        files[f"{split}_X.bin"] = noise.integers(0, 256, (4, 3, 96, 96), np.uint8).tobytes()
        files[f"{split}_y.bin"] = noise.integers(1, 11, 4, np.uint8).tobytes()
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(kind, field, [[name, md5(files[name])] for name, _ in getattr(kind, field)])
    archive = pack(kind.base_folder, files)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    return {kind.filename: archive}


def fake_svhn(monkeypatch, kind) -> dict[str, bytes]:
    scipy_io = pytest.importorskip("scipy.io")
    noise, files = np.random.default_rng(4), {}
    for split in ("train", "test"):
        file = io.BytesIO()
        labels = noise.integers(1, 11, (6, 1), np.uint8)
        scipy_io.savemat(file, {"X": noise.integers(0, 256, (32, 32, 3, 6), np.uint8), "y": labels})
        files[f"{split}_32x32.mat"] = file.getvalue()
    splits = {split: [url, file, md5(files.get(file, b""))] for split, (url, file, _) in kind.split_list.items()}
    monkeypatch.setattr(kind, "split_list", splits)
    return files


TORCHVISION_SETS = {
    "cifar10": (torchvision.datasets.CIFAR10, fake_cifar),
    "cifar100": (torchvision.datasets.CIFAR100, fake_cifar),
    "stl10": (torchvision.datasets.STL10, fake_stl10),
    "svhn": (torchvision.datasets.SVHN, fake_svhn),
}


def assert_same(split: Split, reference) -> None:
    """A split equals what a torchvision data set gives, image by image."""
    assert len(split) == len(reference)
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    for image, label, (expected, expected_label) in zip(split.images, split.labels, reference, strict=True):
        pixels = np.asarray(expected)
        np.testing.assert_array_equal(image, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        assert label == expected_label


def in_child(act: Callable[[], object], *, user: int | None = None) -> str:
    """What ``act`` returns, or the DataError it raises, as text; in a forked process, as another user if asked for."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if user is not None and os.getuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            answer = str(act())
        except DataError as error:
            answer = f"DataError: {error}"
        except BaseException as error:
            answer = f"unexpected {error!r}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# --- image folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (9, 31), (16, 17)])
def test_folder_in_memory_is_what_torchvision_reads(tmp_path, size):
    folder = write_images(tmp_path / "photos", size=size)
    Image.new("L", (20, 30), 77).save(folder / "train" / "dog" / "grey.JPEG")
    Image.new("CMYK", (30, 20), (9, 99, 199, 3)).save(folder / "train" / "dog" / "print.jpg")
    Image.new("RGBA", (16, 16), (9, 99, 199, 50)).save(folder / "test" / "cat" / "alpha.PNG")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / "cat" / ".0.png").write_bytes(b"a resource fork")
    dataset = data.prepare(folder_settings("photos"), tmp_path)
    (folder / "train" / "cat" / ".0.png").unlink()  # torchvision would take it for an image
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(16), torchvision.transforms.CenterCrop(16)]
    )
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        assert_same(split, torchvision.datasets.ImageFolder(folder / name, transform))
    assert dataset.classes == ("cat", "dog")
    assert (dataset.num_channels, dataset.image_size) == (3, 16)


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    write_images(tmp_path / "photos", num=7)
    dataset = data.prepare(folder_settings("photos"), tmp_path)
    scaled = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_folder_as_files_is_an_index_of_what_torchvision_lists(tmp_path):
    folder = write_images(tmp_path / "photos", size=(40, 23), test="val")
    Image.new("RGB", (5, 9)).save(folder / "train" / "dog" / "\N{SNOWMAN} \udcff.png")  # not even valid UTF-8
    dataset = data.prepare(folder_settings("photos", "files", 224), tmp_path)
    for split, name in ((dataset.train, "train"), (dataset.test, "val")):
        assert isinstance(split, FileSplit)
        listed = torchvision.datasets.ImageFolder(folder / name).imgs
        assert [(str(split.path(k)), split.labels[k]) for k in range(len(split))] == listed
        expected = [Image.open(path).size[::-1] for path, _ in listed]
        np.testing.assert_array_equal(split.sizes, expected)
    assert len(dataset.train) == 7
    assert (dataset.num_channels, dataset.image_size) == (3, 224)
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert not hasattr(dataset.train, "images")
    assert data.check(folder_settings("photos", "files", 224), tmp_path).train_per_class == (3, 4)


def test_the_test_folder_without_classes_gives_way_to_val(tmp_path):
    folder = write_images(tmp_path / "photos", test="val")
    (folder / "test").mkdir()
    Image.new("RGB", (5, 5)).save(folder / "test" / "unlabelled.png")
    assert len(data.prepare(folder_settings("photos"), tmp_path).test) == 6


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("storage", ["memory", "files"])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (remove, r"there is no folder .*photos: .*train/CLASS/IMAGE.*data\.path"),
        (lambda folder: (remove(folder), folder.touch()), "photos is a file"),
        (lambda folder: remove(folder / "train"), "photos has no folder train"),
        (lambda folder: remove(folder / "test"), "no classes in test or val"),
        (lambda folder: [remove(path) for path in folder.glob("train/*")], "photos/train has no classes"),
        (lambda folder: [path.unlink() for path in folder.glob("train/cat/*")], "train/cat has no images"),
        (lambda folder: remove(folder / "test" / "cat"), "differ; only in train: cat"),
        (lambda folder: (folder / "test" / "cow").mkdir(), "differ; only in test: cow"),
    ],
)
def test_a_folder_of_another_shape_is_explained(tmp_path, storage, break_it, message):
    break_it(write_images(tmp_path / "photos"))
    with pytest.raises(DataError, match=message):
        data.prepare(folder_settings("photos", storage), tmp_path)
    assert not list(tmp_path.glob("cache/*"))


def test_an_unreadable_folder_is_named(tmp_path):
    folder = write_images(tmp_path / "photos")
    let_in(tmp_path)
    tmp_path.chmod(0o777)
    (folder / "train" / "dog").chmod(0)
    answer = in_child(lambda: data.prepare(folder_settings("photos"), tmp_path), user=NOBODY)
    (folder / "train" / "dog").chmod(0o755)
    assert answer == f"DataError: the folder {folder / 'train' / 'dog'} cannot be read: Permission denied"


@pytest.mark.parametrize("damage", ["half", "empty", "text"])
def test_a_damaged_image_is_named(tmp_path, damage):
    folder = write_images(tmp_path / "photos", size=(60, 60))
    bad = folder / "test" / "dog" / "1.jpg"
    Image.open(folder / "test" / "dog" / "1.png").save(bad)
    content = bad.read_bytes()
    bad.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises(DataError, match=r"test/dog/1\.jpg is damaged"):
        data.prepare(folder_settings("photos"), tmp_path)
    assert everything_below(tmp_path / "cache") == []
    if damage != "half":  # the header of half a file is whole
        with pytest.raises(DataError, match=r"test/dog/1\.jpg is damaged"):
            data.prepare(folder_settings("photos", "files"), tmp_path)


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_a_changed_folder_is_noticed(tmp_path, storage):
    folder, settings = write_images(tmp_path / "photos"), folder_settings("photos", storage)
    first = data.prepare(settings, tmp_path)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "train" / "cat" / "new.png")
    with pytest.raises(DataError, match=r"names of the files in .*photos have changed.*data prepare folder"):
        data.load(settings, tmp_path)
    second = data.prepare(settings, tmp_path)
    assert len(second.train) == len(first.train) + 1
    assert second.fingerprint != first.fingerprint
    Image.effect_noise((16, 16), 50).convert("RGB").save(folder / "train" / "cat" / "new.png")  # the name stays
    with pytest.raises(DataError, match=r"sizes of the files in .*photos have changed"):
        data.check(settings, tmp_path)
    assert data.prepare(settings, tmp_path).fingerprint not in (first.fingerprint, second.fingerprint)
    data.check(settings, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def age(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*.*"):
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


@pytest.mark.parametrize("storage", ["memory", "files"])
@pytest.mark.parametrize("time", ["newer", "older", "fresh"])
def test_other_pixels_under_the_same_name_and_size_are_noticed(tmp_path, storage, time):
    """Also where a copying program has given them an older time, or right after the preparation."""
    folder, settings = write_images(tmp_path / "photos"), folder_settings("photos", storage)
    image = folder / "train" / "cat" / "a.bmp"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(image)
    if time != "fresh":
        age(folder, 1000)
    first, before = data.prepare(settings, tmp_path), image.read_bytes()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(image)
    assert image.stat().st_size == len(before)
    if time == "older":
        age(folder, 5000)
    with pytest.raises(DataError, match=r"contents of the files in .*photos have changed.*data prepare folder"):
        data.check(settings, tmp_path)
    assert data.prepare(settings, tmp_path).fingerprint != first.fingerprint
    data.check(settings, tmp_path)
    image.write_bytes(before)
    assert data.prepare(settings, tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_files_with_another_time_alone_are_read_once(tmp_path, storage, monkeypatch):
    folder, settings = write_images(tmp_path / "photos"), folder_settings("photos", storage)
    first = data.prepare(settings, tmp_path)
    age(folder, 1000)
    assert data.prepare(settings, tmp_path).fingerprint == first.fingerprint
    monkeypatch.setattr(originals, "read_file", lambda path: pytest.fail("read again"))
    assert data.prepare(settings, tmp_path).fingerprint == first.fingerprint


def test_what_an_earlier_version_prepared_keeps_its_fingerprint(tmp_path):
    """Its notes had names and sizes alone."""
    folder, settings = write_images(tmp_path / "photos"), folder_settings("photos", "files")
    age(folder, 1000)
    first = data.prepare(settings, tmp_path)
    (cache,) = (tmp_path / "cache").iterdir()
    meta = json.loads((cache / "meta.json").read_text())
    identity = [meta["arrays"], meta["classes"], meta["tree"]["sizes"]]
    assert first.fingerprint == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    meta["tree"] = {name: meta["tree"][name] for name in ("names", "sizes")}
    (cache / "meta.json").write_text(json.dumps(meta))
    (cache / "seen.json").unlink()
    assert data.prepare(settings, tmp_path).fingerprint == first.fingerprint
    data.check(settings, tmp_path)


def test_folders_below_a_class_are_torchvision_s_and_the_rest_is_counted(tmp_path):
    folder = write_images(tmp_path / "photos", size=(20, 16))
    for place in ("x/z", "x-y", "x"):
        (folder / "train" / "cat" / place).mkdir(parents=True, exist_ok=True)
        for name in ("b.png", "a.JPG"):
            Image.new("RGB", (16, 17)).save(folder / "train" / "cat" / place / name)
    (folder / "elsewhere").mkdir()
    Image.new("RGB", (16, 17)).save(folder / "elsewhere" / "linked.png")
    (folder / "train" / "dog" / "link").symlink_to(folder / "elsewhere")
    (folder / "train" / "dog" / "notes.TXT").touch()
    os.mkfifo(folder / "train" / "dog" / "pipe.txt")
    tree = originals.scan_folder(folder)
    for split in ("train", "test"):
        listed = torchvision.datasets.ImageFolder(folder / split).imgs
        mine = zip(tree.paths[split], tree.labels[split], strict=True)
        assert [(str(folder / path), label) for path, label in mine] == listed
    (folder / "train" / "cat" / "x" / ".a.png").touch()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    said: list[str] = []
    settings = folder_settings("photos", "files")
    assert len(data.prepare(settings, tmp_path, progress=said.append).train) == 3 + 6 + 3 + 1
    for words in (said[0], data.check(settings, tmp_path).left_out):
        assert "1 hidden" in words
        assert "1 with the ending .txt" in words
        assert "2 neither file nor folder" in words


def test_a_link_that_goes_round_in_a_circle_is_named(tmp_path):
    folder = write_images(tmp_path / "photos")
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "cat")
    with pytest.raises(DataError, match="cat/again is a link to a folder that it is in"):
        data.prepare(folder_settings("photos"), tmp_path)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "16 bits"])
def test_what_headers_and_ends_show_is_found_before_training(tmp_path, kind):
    folder, settings = write_images(tmp_path / "photos", size=(60, 60)), folder_settings("photos", "files")
    bad = folder / "train" / "dog" / f"bad.{'png' if kind == '16 bits' else kind}"
    if kind == "16 bits":
        Image.fromarray(np.zeros((20, 20), np.uint16)).save(bad)
    else:
        Image.effect_noise((60, 60), 50).convert("RGB").save(bad)
        bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(DataError, match=re.escape(str(bad))):
        data.prepare(settings, tmp_path)
    replacing = settings.model_copy(update={"bad_images": "replace"})
    sizes = data.prepare(replacing, tmp_path).train.sizes
    assert (sizes == 0).all(1).tolist() == [
        path.endswith(bad.name) for path in originals.scan_folder(folder).paths["train"]
    ]
    with pytest.raises(DataError, match=rf"{bad.name} \(1\).*bad_images=replace"):
        data.load(settings, tmp_path)
    Image.new("RGB", (20, 20)).save(bad)
    assert data.prepare(settings, tmp_path).train.sizes.all()


def test_the_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path):
    write_images(tmp_path / "a" / "photos")
    write_images(tmp_path / "b")
    for storage in ("memory", "files"):
        relative = data.prepare(folder_settings("photos", storage), tmp_path / "a")
        absolute = data.prepare(folder_settings(tmp_path / "b", storage), tmp_path / "elsewhere")
        assert relative.fingerprint == absolute.fingerprint
        assert len(relative.fingerprint) == 16


def test_memory_outlives_its_folder_and_files_do_not(tmp_path):
    folder = write_images(tmp_path / "photos")
    for storage in ("memory", "files"):
        data.prepare(folder_settings("photos", storage), tmp_path)
    remove(folder)
    assert len(data.prepare(folder_settings("photos"), tmp_path).train) == 6
    with pytest.raises(DataError, match="there is no folder"):
        data.load(folder_settings("photos", "files"), tmp_path)


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["FashionMNIST/raw", "fashion-mnist", "usr/share/datasets/fashion-mnist", "a/b/usr/share/datasets/fashion-mnist"],
)
def test_fashion_mnist_is_what_torchvision_reads(tmp_path, place):
    write_fashion(tmp_path / place)
    before = everything_below(tmp_path)
    dataset = data.prepare(FASHION, tmp_path)
    (tmp_path / "FashionMNIST").mkdir(exist_ok=True)
    if place != "FashionMNIST/raw":
        (tmp_path / "FashionMNIST" / "raw").symlink_to(tmp_path / place)
    for split, is_train in ((dataset.train, True), (dataset.test, False)):
        assert_same(split, torchvision.datasets.FashionMNIST(tmp_path, train=is_train))
    assert dataset.train.images.shape == (50, 1, 28, 28)
    assert dataset.classes == tuple(torchvision.datasets.FashionMNIST.classes)
    assert (dataset.num_channels, dataset.image_size) == (1, 28)
    assert set(before) <= set(everything_below(tmp_path))


def test_fashion_mnist_is_found_where_the_package_has_it(tmp_path):
    write_fashion(originals.SYSTEM / originals.PACKAGE_FOLDER)
    assert len(data.prepare(FASHION, tmp_path).train) == 50


def test_fashion_mnist_is_fetched_as_a_package_when_the_download_fails(tmp_path, monkeypatch):
    """apt-get and dpkg-deb are stand-ins; the real ones need a package registry."""
    write_fashion(tmp_path / "package" / originals.PACKAGE_FOLDER)
    tools = tmp_path / "tools"
    tools.mkdir()
    fetch = '[ "$1" = download ] && echo > dataset-fashion-mnist_1_all.deb'
    unpack = f'[ "$1" = -x ] && [ -f "$2" ] && /bin/cp -r {tmp_path}/package/usr "$3"'
    for name, script in (("apt-get", fetch), ("dpkg-deb", unpack)):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    root = tmp_path / "root"
    assert len(data.prepare(FASHION, root).train) == 50
    assert everything_below(root)[:2] == ["cache", "cache/fashion-mnist"]
    assert len(everything_below(root)) == 7


def test_fashion_mnist_is_explained_when_it_cannot_be_had(tmp_path):
    write_fashion(tmp_path / "fashion-mnist")
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()  # three of four files do not count
    before = everything_below(tmp_path)
    with pytest.raises(DataError) as caught:
        data.prepare(FASHION, tmp_path)
    files = ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    commands = ["apt-get download dataset-fashion-mnist", "dpkg-deb -x", "data prepare fashion-mnist --data"]
    for part in (str(tmp_path / "fashion-mnist"), *files, *commands):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path) == sorted([*before, "cache"])


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory, shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path = tmp_path_factory.mktemp("idx") / "file.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(originals.read_idx(path), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-9], "damaged"),
        (lambda packed: packed[:100] + bytes([packed[100] ^ 1]) + packed[101:], "damaged"),
        (lambda packed: b"<html>", "damaged"),
        (lambda packed: b"", "not an IDX file"),
        (lambda packed: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(packed)[4:]), "not an IDX file of bytes"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "says"),
        (lambda packed: gzip.compress(idx_bytes(np.zeros((50, 27, 28), np.uint8))), r"shape \(50, 27, 28\)"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    write_fashion(tmp_path / "fashion-mnist")
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz.*{message}"):
        data.prepare(FASHION, tmp_path)


@pytest.mark.parametrize("labels", [np.zeros(49, np.uint8), np.full(50, 10, np.uint8), np.zeros((50, 1), np.uint8)])
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, labels):
    write_fashion(tmp_path / "fashion-mnist")
    path = tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(labels)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz does not hold a label"):
        data.prepare(FASHION, tmp_path)


# --- torchvision's sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION_SETS)
@pytest.mark.parametrize("origin", ["archive", "unpacked", "download"])
def test_named_sets_are_what_torchvision_reads(tmp_path, monkeypatch, name, origin):
    kind, fake = TORCHVISION_SETS[name]
    files = fake(monkeypatch, kind)
    root, reference, web = tmp_path / "root", tmp_path / "reference", tmp_path / "web"
    for place in (root, reference, web):
        place.mkdir()
        for file, content in files.items():
            if place != root or origin == "archive":
                (place / file).write_bytes(content)
    if name in ("svhn", "stl10"):
        splits = [kind(reference, split=split, download=True) for split in ("train", "test")]
    else:
        splits = [kind(reference, train=is_train, download=True) for is_train in (True, False)]
    root = reference if origin == "unpacked" else root
    before = everything_below(root)
    with serving(web) as address:
        if origin == "download" and name == "svhn":
            served = {split: [f"{address}/{file}", file, sum_] for split, (_, file, sum_) in kind.split_list.items()}
            monkeypatch.setattr(kind, "split_list", served)
        elif origin == "download":
            monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
        dataset = data.prepare(named(name), root)
    assert_same(dataset.train, splits[0])
    assert_same(dataset.test, splits[1])
    assert dataset.classes == (tuple("0123456789") if name == "svhn" else tuple(f"class {k}" for k in range(10)))
    assert dataset.image_size == (96 if name == "stl10" else 32)
    after = [path for path in everything_below(root) if not path.startswith("cache")]
    assert after == before  # the originals stay as they were, and a download is not kept


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_a_failed_download_says_what_to_put_where(tmp_path, name):
    kind, _ = TORCHVISION_SETS[name]
    with pytest.raises(DataError) as caught:
        data.prepare(named(name), tmp_path)
    files = [kind.filename] if name != "svhn" else ["train_32x32.mat", "test_32x32.mat"]
    for part in (*files, f"put into {tmp_path}", f"data prepare {name} --data {tmp_path}", "Connection refused"):
        assert part in str(caught.value)
    assert everything_below(tmp_path) == ["cache"]


def test_an_interrupted_or_false_download_leaves_nothing(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR10
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / kind.filename).write_bytes(b"<html>log in to the hotel's network</html>")
    with serving(tmp_path / "web") as address:
        monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
        with pytest.raises(DataError, match="could not be downloaded"):
            data.prepare(named("cifar10"), tmp_path / "root")
    assert everything_below(tmp_path / "root") == ["cache"]


def test_a_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(originals, "NETWORK_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar.gz")
        with pytest.raises(DataError, match="timed out"):
            data.prepare(named("cifar10"), tmp_path)
    assert socket.getdefaulttimeout() is None


def test_a_damaged_archive_is_named_and_kept(tmp_path, monkeypatch):
    fake_cifar(monkeypatch, torchvision.datasets.CIFAR10)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged.*data prepare cifar10"):
        data.prepare(named("cifar10"), tmp_path)
    assert archive.read_bytes() == b"half of it"


# --- the cache ---------------------------------------------------------------------------------------------------


def test_arrays_are_mapped_read_only(tmp_path):
    write_images(tmp_path / "photos")
    data.prepare(folder_settings("photos"), tmp_path)
    dataset = data.load(folder_settings("photos"), tmp_path)
    for images in (dataset.train.images, dataset.test.images):
        assert isinstance(images, np.memmap)
        assert images.mode == "r"
        assert not images.flags.writeable


def test_preparing_twice_does_nothing_the_second_time(tmp_path):
    write_images(tmp_path / "photos")
    first = data.prepare(folder_settings("photos"), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said: list[str] = []
    assert data.prepare(folder_settings("photos"), tmp_path, progress=said.append).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    assert said == []


def test_what_is_not_prepared_says_how(tmp_path):
    assert data.fingerprint(FASHION, tmp_path) is None
    command = f"python run_ablation.py data prepare fashion-mnist --data {tmp_path}"
    for act in (data.load, data.check):
        with pytest.raises(DataError, match=f"fashion-mnist is not prepared in .* Run: {command}"):
            act(FASHION, tmp_path)
    assert everything_below(tmp_path) == []


def test_fingerprints_need_neither_numpy_nor_torch(tmp_path):
    write_images(tmp_path / "photos")
    expected = data.prepare(folder_settings("photos"), tmp_path).fingerprint
    script = f"""
import sys
from pathlib import Path
from simsiam.data import sets as data
from simsiam.settings.fields import DataSettings
settings = DataSettings(name="folder", path="photos", storage="memory", image_size=16)
print(data.fingerprint(settings, Path({str(tmp_path)!r})), *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    found, *modules = done.stdout.split()
    assert found == expected
    assert not {"numpy", "torch", "torchvision", "PIL"} & set(modules)


def test_the_report_counts(tmp_path):
    folder = write_images(tmp_path / "photos")
    (folder / "train" / "cat" / "0.png").unlink()
    dataset = data.prepare(folder_settings("photos"), tmp_path)
    report = data.check(folder_settings("photos"), tmp_path)
    assert (report.num_train, report.num_test, report.num_classes) == (5, 6, 2)
    assert (report.train_per_class, report.test_per_class) == ((2, 3), (3, 3))
    assert report.image_shape == (3, 16, 16)
    assert (report.fingerprint, report.mean, report.std) == (dataset.fingerprint, dataset.mean, dataset.std)


@pytest.mark.parametrize("damage", ["truncated", "missing", "header", "meta", "meta field"])
def test_a_damaged_cache_is_noticed_and_prepared_again(tmp_path, damage):
    write_images(tmp_path / "photos")
    settings = folder_settings("photos")
    good = data.prepare(settings, tmp_path)
    expected = np.array(good.train.images)
    (cache,) = (tmp_path / "cache").iterdir()
    images, meta = cache / "train_images.npy", cache / "meta.json"
    if damage == "truncated":
        images.write_bytes(images.read_bytes()[:-1])
    elif damage == "missing":
        images.unlink()
    elif damage == "header":
        np.save(images, expected[:-1])
    elif damage == "meta":
        meta.write_text(meta.read_text()[:50])
    else:
        meta.write_text(json.dumps({"format": data.CACHE_FORMAT}))
    with pytest.raises(DataError, match=r"is damaged: .*rm -r .* && python run_ablation.py data prepare folder"):
        data.load(settings, tmp_path)
    assert data.prepare(settings, tmp_path).fingerprint == good.fingerprint
    np.testing.assert_array_equal(data.load(settings, tmp_path).train.images, expected)
    assert list((tmp_path / "cache").iterdir()) == [cache]


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "meta.json"])
def test_check_finds_a_changed_bit(tmp_path, file):
    write_images(tmp_path / "photos")
    settings = folder_settings("photos")
    dataset = data.prepare(settings, tmp_path)
    (cache,) = (tmp_path / "cache").iterdir()
    content = bytearray((cache / file).read_bytes())
    if file == "meta.json":
        place = content.index(repr(dataset.std[0]).encode()) + 5
        content[place] = ord("1") if content[place] != ord("1") else ord("2")
    else:
        content[-1] ^= 1
    (cache / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"is damaged: .*{file.removesuffix('.npy')}.*rm -r"):
        data.check(settings, tmp_path)


def test_an_older_form_of_the_cache_counts_as_not_prepared(tmp_path, monkeypatch):
    write_images(tmp_path / "photos")
    data.prepare(folder_settings("photos"), tmp_path)
    monkeypatch.setattr(data, "CACHE_FORMAT", data.CACHE_FORMAT + 1)
    assert data.fingerprint(folder_settings("photos"), tmp_path) is None
    data.prepare(folder_settings("photos"), tmp_path)
    assert data.fingerprint(folder_settings("photos"), tmp_path) is not None


def test_a_killed_preparation_is_swept_up_by_the_next(tmp_path, monkeypatch):
    write_images(tmp_path / "photos")
    settings = folder_settings("photos")
    with monkeypatch.context() as patch:
        patch.setattr(data, "_publish", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        assert in_child(lambda: data.prepare(settings, tmp_path)) == ""
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith(".")
    assert "meta.json" in everything_below(left)
    assert data.fingerprint(settings, tmp_path) is None
    other = tmp_path / "cache" / f".{data._cache(settings, tmp_path).name}.another-machine.1.abc"
    other.mkdir()
    assert len(data.prepare(settings, tmp_path).train) == 6
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {data._cache(settings, tmp_path).name, other.name}


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    write_images(tmp_path / "photos")

    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.prepare(folder_settings("photos"), tmp_path, progress=interrupt)
    assert everything_below(tmp_path / "cache") == []


@pytest.mark.parametrize("stale", [False, True])
def test_processes_that_prepare_at_once_all_end_well(tmp_path, stale):
    folder, settings = write_images(tmp_path / "photos"), folder_settings("photos")
    if stale:
        data.prepare(settings, tmp_path)
        (folder / "train" / "cat" / "0.png").unlink()
    processes = multiprocessing.get_context("fork")
    barrier, answers = processes.Barrier(3), processes.SimpleQueue()

    def one() -> None:
        def wait(message: str) -> None:  # until all have found it missing or stale
            if "writing" in message:
                barrier.wait(10)

        answers.put(data.prepare(settings, tmp_path, progress=wait).fingerprint)

    workers = [processes.Process(target=one) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {answers.get() for _ in workers} == {data.fingerprint(settings, tmp_path)}
    assert len(list((tmp_path / "cache").iterdir())) == 1
    data.check(settings, tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    write_images(tmp_path / "photos", num=20)

    def fill() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        return data.prepare(folder_settings("photos"), tmp_path)

    answer = in_child(fill)
    assert answer.startswith(f"DataError: folder could not be prepared in {tmp_path / 'cache'}")
    assert "File too large" in answer
    assert everything_below(tmp_path / "cache") == []


def test_a_root_that_cannot_be_written_is_named_but_can_be_read(tmp_path):
    write_images(tmp_path / "photos")
    let_in(tmp_path)
    settings = folder_settings("photos")
    if os.getuid() != 0:
        tmp_path.chmod(0o555)
    answer = in_child(lambda: data.prepare(settings, tmp_path), user=NOBODY)
    tmp_path.chmod(0o755)
    assert answer.startswith(f"DataError: folder could not be prepared in {tmp_path / 'cache'}")
    assert "Permission denied" in answer
    expected = data.prepare(settings, tmp_path).fingerprint
    if os.getuid() != 0:
        (tmp_path / "cache").chmod(0o555)
    for act in (data.prepare, data.load, data.check):
        assert in_child(lambda act=act: act(settings, tmp_path).fingerprint, user=NOBODY) == expected
    (tmp_path / "cache").chmod(0o755)


# --- parts of a data set -----------------------------------------------------------------------------------------


def numbered(tmp_path: Path, num: int, **parts) -> tuple[list[int], list[int]]:
    """The drawn training and test images of a set whose image k is all k."""
    root = tmp_path / f"of {num}"
    if not root.exists():
        folder = root / "fashion-mnist"
        write_fashion(folder, num_train=num)
        images = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None], (num, 28, 28))
        (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    dataset = data.prepare(FASHION.model_copy(update=parts), root)
    whole = data.load(FASHION, root)
    for split in (dataset.train,) if "evaluate_on" not in parts else (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.labels, whole.train.labels[split.images[:, 0, 0, 0]])
    return dataset.train.images[:, 0, 0, 0].tolist(), dataset.test.images[:, 0, 0, 0].tolist()


def test_the_holdout_is_a_tenth_of_the_training_images(tmp_path):
    train, test = numbered(tmp_path, 205, evaluate_on="holdout")
    assert len(test) == 20
    assert sorted(train + test) == list(range(205))
    assert train == sorted(train)
    assert numbered(tmp_path, 205, evaluate_on="holdout") == (train, test)


def test_fewer_training_images_are_part_of_more(tmp_path):
    fewer, more = (numbered(tmp_path, 200, num_train=num)[0] for num in (30, 100))
    assert (len(fewer), len(more)) == (30, 100)
    assert set(fewer) < set(more)
    assert len(set(more)) == 100
    assert numbered(tmp_path, 200, num_train=200)[0] == list(range(200))
    train, test = numbered(tmp_path, 200, num_train=30, evaluate_on="holdout")
    assert len(train) == 30
    assert not set(train) & set(test)


def test_draws_stay_what_they_are():
    """Frozen values: a draw is part of what a run's name stands for."""
    assert data._order("holdout", 12).tolist() == [4, 2, 11, 8, 3, 5, 7, 6, 0, 9, 1, 10]
    assert data._order("num-train", 12).tolist() == [5, 11, 7, 8, 4, 6, 10, 2, 1, 9, 0, 3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"num_train": 51}, "num_train=51 is more than the 50 training images of fashion-mnist"),
        ({"num_train": 46, "evaluate_on": "holdout"}, "num_train=46 is more than the 45 .* outside the holdout"),
    ],
)
def test_draws_larger_than_the_set_are_refused(tmp_path, parts, message):
    with pytest.raises(DataError, match=message):
        numbered(tmp_path, 50, **parts)


def test_a_holdout_of_nothing_is_refused(tmp_path):
    write_images(tmp_path / "photos")
    settings = folder_settings("photos").model_copy(update={"evaluate_on": "holdout"})
    with pytest.raises(DataError, match="has only 6; it needs at least 10"):
        data.prepare(settings, tmp_path)


def test_draws_work_on_files_too(tmp_path):
    write_images(tmp_path / "photos", num=10)
    settings = folder_settings("photos", "files").model_copy(update={"evaluate_on": "holdout", "num_train": 5})
    dataset = data.prepare(settings, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (5, 2)
    for split in (dataset.train, dataset.test):
        for k in range(len(split)):
            assert split.path(k).parent.name == dataset.classes[split.labels[k]]


# --- generated images --------------------------------------------------------------------------------------------


def synthetic(image_size: int) -> Dataset:
    return data.load(DataSettings(name="synthetic", storage="memory", image_size=image_size), Path("no such folder"))


def test_generated_images_stay_what_they_are():
    """A frozen digest: their constant fingerprint stands for these very images."""
    dataset = synthetic(16)
    digest = hashlib.sha256(dataset.train.images.tobytes() + dataset.test.images.tobytes()).hexdigest()
    assert (dataset.fingerprint, digest[:16]) == ("synthetic-1", "9d36538178d27b42")


@pytest.mark.parametrize("image_size", [8, 9, 32])
def test_generated_images_have_their_shape_in_every_size(image_size):
    dataset = synthetic(image_size)
    assert dataset.train.images.shape == (2000, 3, image_size, image_size)
    assert dataset.test.images.shape == (500, 3, image_size, image_size)
    assert np.bincount(dataset.train.labels).tolist() == [200] * 10
    assert len(dataset.classes) == 10
    assert dataset.train.images.min() > 0  # nothing wrapped around or was cut off
    assert dataset.train.images.max() < 255
    settings = DataSettings(name="synthetic", storage="memory", image_size=image_size)
    assert data.check(settings, Path("none")).test_per_class == (50,) * 10
    assert data.fingerprint(settings, Path("none")) == dataset.fingerprint


def test_generated_classes_are_learnable_but_not_by_raw_pixels():
    dataset = synthetic(32)

    def nearest(feature: Callable[[np.ndarray], np.ndarray]) -> float:
        bank, query = (
            feature(split.images.astype(np.float32)).reshape(len(split), -1) for split in (dataset.train, dataset.test)
        )
        query, bank = query - bank.mean(0), bank - bank.mean(0)
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        return float((dataset.train.labels[(query @ bank.T).argmax(1)] == dataset.test.labels).mean())

    pixels = nearest(lambda images: images)
    spectrum = nearest(lambda images: np.abs(np.fft.rfft2(images.mean(1)))[:, 1:, :])
    assert pixels < 0.6 < 0.9 < spectrum
