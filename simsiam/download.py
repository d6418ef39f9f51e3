"""Where the original images come from: named sets from files at hand or the internet, and image folders.

Every source is read into the same form, :class:`Source`: named arrays that are made chunk by chunk, so that a set
larger than memory can be written to the cache. torchvision fetches and reads all named sets but Fashion-MNIST, whose
four files are read here: Debian packages them, which is how they are had where only package registries are reached.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import importlib.util
import math
import os
import shlex
import shutil
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simsiam.data import DataError
from simsiam.machine import num_cores

if TYPE_CHECKING:
    from PIL import Image

NETWORK_TIMEOUT = 15  # seconds without an answer
# Of the files that torchvision's ImageFolder reads.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Chunked:
    """An array as consecutive parts along its first axis, made when they are asked for, once."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Iterable[NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it goes into the cache.

    Arrays: for each split ``train`` and ``test``, SPLIT_labels (N,) int64 and either SPLIT_images (N, C, H, W) uint8
    or, for images that stay in their files, SPLIT_paths (N,) bytes and SPLIT_sizes (N, 2) int64, height and width.
    """

    classes: tuple[str, ...]
    arrays: dict[str, Chunked]


def _in_chunks(array: NDArray[Any]) -> Chunked:
    return Chunked(array.dtype, array.shape, (array[start : start + 1024] for start in range(0, len(array), 1024)))


# --- named sets --------------------------------------------------------------------------------------------------

TORCHVISION_SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10", "svhn": "SVHN"}


def named_set(name: str, root: Path, scratch: Path, progress: Progress) -> Source:
    """A named set: from the files in ``root``, else from a download into ``scratch``, an empty folder.

    Nothing is written outside ``scratch``. Raises :class:`DataError` when the set cannot be had or is damaged.
    """
    read = _fashion_mnist if name == "fashion-mnist" else _torchvision_set
    classes, splits = read(name, root, scratch, progress)
    arrays: dict[str, Chunked] = {}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_images": _in_chunks(images), f"{split}_labels": _in_chunks(labels.astype(np.int64))}
    return Source(classes, arrays)


Splits = dict[str, tuple[NDArray[np.uint8], NDArray[Any]]]  # split -> images (N, C, H, W), labels (N,)


def _torchvision_set(name: str, root: Path, scratch: Path, progress: Progress) -> tuple[tuple[str, ...], Splits]:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION_SETS[name])
    if name == "svhn" and importlib.util.find_spec("scipy") is None:
        raise DataError("svhn comes as MATLAB files, which SciPy reads. Run: pip install scipy")
    try:
        found = _read_torchvision(kind, root, download=False)
        progress(f"{name}: read from {root}")
        return found
    except RuntimeError:  # torchvision's word for missing or damaged
        pass
    except OSError as error:
        raise DataError(f"{name} cannot be read from {root}: {error}") from error
    for file, _, md5 in _archives(kind):
        if (root / file).exists():
            progress(f"{name}: read from {root / file}")
            if not datasets.utils.check_integrity(root / file, md5):
                raise DataError(
                    f"{root / file} is damaged (its MD5 is not {md5}). Delete it, get it again or let it be "
                    f"downloaded, and run: {_prepare_command(name, root)}"
                )
            (scratch / file).symlink_to((root / file).absolute())
        else:
            progress(f"{name}: downloading {file}")
    with _network_timeout():
        try:
            return _read_torchvision(kind, scratch, download=True)
        except Exception as error:  # urllib, http, ssl and tarfile each fail in their own ways, torchvision in more
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            raise DataError(_how_to_get(name, kind, root, error)) from error


def _read_torchvision(kind: Any, root: Path, *, download: bool) -> tuple[tuple[str, ...], Splits]:
    from torchvision import datasets

    splits: Splits = {}
    for split in ("train", "test"):
        if issubclass(kind, datasets.CIFAR10):
            original = kind(root, train=split == "train", download=download)
            splits[split] = original.data.transpose(0, 3, 1, 2), np.array(original.targets)
        else:
            original = kind(root, split=split, download=download)
            splits[split] = original.data, original.labels
    return tuple(getattr(original, "classes", map(str, range(10)))), splits  # SVHN's classes are the ten digits


def _archives(kind: Any) -> list[tuple[str, str, str]]:
    """File name, address and MD5 of what torchvision downloads for a set."""
    if hasattr(kind, "split_list"):
        return [(file, url, md5) for url, file, md5 in (kind.split_list["train"], kind.split_list["test"])]
    return [(kind.filename, kind.url, kind.tgz_md5)]


def _how_to_get(name: str, kind: Any, root: Path, error: Exception) -> str:
    base = root / getattr(kind, "base_folder", "")
    damaged = f" {base} is there, but incomplete or damaged." if base != root and base.exists() else ""
    files = ", ".join(f"{file} (from {url})" for file, url, _ in _archives(kind))
    return (
        f"{name} is not in {root} and could not be downloaded: {_one_line(error)}.{damaged} To be put into {root}, as "
        f"downloaded elsewhere and not unpacked: {files}. Then run: {_prepare_command(name, root)}"
    )


def _prepare_command(name: str, root: Path) -> str:
    return shlex.join(["python", "run_ablation.py", "data", "prepare", name, "--data", str(root)])


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """torchvision sets no time-out: a firewall that drops packets would hang it for minutes, or for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
FASHION_PACKAGE = "dataset-fashion-mnist"  # Debian's and Ubuntu's
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")  # where that package has the files
SYSTEM = Path("/")


def _fashion_mnist(name: str, root: Path, scratch: Path, progress: Progress) -> tuple[tuple[str, ...], Splits]:
    folder = _find_fashion(root) or _fetch_fashion(root, scratch, progress)
    progress(f"{name}: read from {folder}")
    splits: Splits = {}
    for split, (image_file, label_file) in FASHION_FILES.items():
        images, labels = read_idx(folder / image_file), read_idx(folder / label_file)
        if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
            raise DataError(f"{folder / image_file} holds an array of shape {images.shape}, not (N, 28, 28) images")
        if labels.shape != images.shape[:1] or labels.max() >= len(FASHION_CLASSES):
            raise DataError(f"{folder / label_file} does not hold a label from 0 to 9 for each of {len(images)} images")
        splits[split] = images[:, None], labels
    return FASHION_CLASSES, splits


def _find_fashion(root: Path) -> Path | None:
    """The first folder with all four files. An unpacked package is looked for at most two folders down, so that a
    data directory that also holds millions of images is not searched."""
    unpacked = [place for up in ("", "*/", "*/*/") for place in sorted(root.glob(f"{up}{PACKAGE_FOLDER}"))]
    places = [root / "FashionMNIST" / "raw", root / "fashion-mnist", *unpacked, SYSTEM / PACKAGE_FOLDER]
    files = [file for pair in FASHION_FILES.values() for file in pair]
    return next((place for place in places if all((place / file).is_file() for file in files)), None)


def _fetch_fashion(root: Path, scratch: Path, progress: Progress) -> Path:
    from torchvision import datasets

    progress("fashion-mnist: downloading")
    try:
        with _network_timeout():
            datasets.FashionMNIST(scratch, download=True)
        return scratch / "FashionMNIST" / "raw"
    except Exception as error:  # urllib, http and gzip each fail in their own ways, torchvision in more
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        problem = _one_line(error)
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        progress(f"fashion-mnist: no download ({problem}); trying the package {FASHION_PACKAGE}")
        try:
            return _fetch_fashion_package(scratch)
        except (subprocess.SubprocessError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            output = getattr(error, "stderr", None) or str(error)
            problem += f"; and apt-get could not get the package {FASHION_PACKAGE}: {output.strip().splitlines()[-1]}"
    files = ", ".join(file for pair in FASHION_FILES.values() for file in pair)
    package = f"dpkg-deb -x {FASHION_PACKAGE}_*.deb {shlex.quote(str(root))}"
    raise DataError(
        f"fashion-mnist is not in {root} and could not be downloaded: {problem}. Put these four files into "
        f"{root / 'fashion-mnist'}: {files} (from {datasets.FashionMNIST.mirrors[0]}); or, on Debian or Ubuntu, run: "
        f"apt-get download {FASHION_PACKAGE} && {package}. Then run: {_prepare_command('fashion-mnist', root)}"
    )


def _fetch_fashion_package(scratch: Path) -> Path:
    """Download and unpack Debian's package, which takes no administrator."""
    limits = [f"-oAcquire::{kind}::Timeout={NETWORK_TIMEOUT}" for kind in ("http", "https")]
    _run(["apt-get", "download", "-oAcquire::Retries=0", *limits, FASHION_PACKAGE], scratch)
    _run(["dpkg-deb", "-x", *(file.name for file in scratch.glob("*.deb")), "."], scratch)
    return scratch / PACKAGE_FOLDER


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes. Raises :class:`DataError` when the file is damaged or another."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged or cannot be read: {_one_line(error)}. Delete it and get it again"
        ) from error
    num_axes = content[3] if len(content) >= 4 else 0
    offset = 4 + 4 * num_axes
    if content[:3] != b"\0\0\x08" or num_axes == 0 or len(content) < offset:
        raise DataError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex() or 'nothing'}")
    shape = struct.unpack(f">{num_axes}I", content[4:offset])
    if math.prod(shape) != len(content) - offset:
        raise DataError(f"{path} is damaged: it says {shape} bytes, but holds {len(content) - offset}")
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)


# --- image folders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """The files of an image folder, in torchvision's order: by class, then by name."""

    folder: Path
    classes: tuple[str, ...]
    paths: dict[str, list[str]]  # split -> relative to folder
    labels: dict[str, list[int]]

    def digests(self, *, sizes: bool) -> dict[str, str]:
        """What tells this tree from a changed one: ``names``, and if asked for ``sizes`` (which takes a stat a file).

        Both are independent of where the folder is. Times are not compared: copying a folder changes them.
        """
        paths = [path for split in ("train", "test") for path in self.paths[split]]
        digests = {"names": hashlib.sha256(os.fsencode("\0".join(paths))).hexdigest()}
        if sizes:
            try:
                lines = [f"{os.stat(self.folder / path).st_size} {path}" for path in paths]
            except OSError as error:
                raise DataError(f"an image cannot be read: {error}") from error
            digests["sizes"] = hashlib.sha256(os.fsencode("\0".join(lines))).hexdigest()
        return digests


def scan_folder(folder: Path) -> Tree:
    """List train/CLASS/IMAGE and test/CLASS/IMAGE (or val/...) below ``folder``, without hidden and other files.

    Raises :class:`DataError` when a part is missing or unreadable, or the classes of the two splits differ.
    """
    layout = "an image folder has train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE)"
    parts = [entry.name for entry in _entries(folder, layout)]
    if "train" not in parts:
        raise DataError(f"{folder} has no folder train: {layout}")
    tests = [name for name in ("test", "val") if name in parts]
    classes = {name: _classes(folder / name, layout) for name in ("train", *tests)}
    # ImageNet's test images have no classes; its val images are then what is meant.
    test = next((name for name in tests if classes[name]), None)
    if test is None:
        raise DataError(f"{folder} has no classes in {' or '.join(tests) or 'test or val'}: {layout}")
    if not classes["train"]:
        raise DataError(f"{folder / 'train'} has no classes: {layout}")
    if classes["train"] != classes[test]:
        differences = [
            f"only in {one}: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
            for one, other in (("train", test), (test, "train"))
            if (missing := sorted(set(classes[one]) - set(classes[other])))
        ]
        raise DataError(f"the classes in {folder / 'train'} and {folder / test} differ; {'; '.join(differences)}")
    paths: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for split, name in (("train", "train"), ("test", test)):
        paths[split], labels[split] = [], []
        for label, one in enumerate(classes[name]):
            entries = _entries(folder / name / one, layout)
            images = [entry.name for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
            if not images:
                raise DataError(f"{folder / name / one} has no images ({', '.join(IMAGE_SUFFIXES)})")
            paths[split] += [f"{name}/{one}/{image}" for image in images]
            labels[split] += [label] * len(images)
    return Tree(folder, tuple(classes["train"]), paths, labels)


def _entries(folder: Path, layout: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}: {layout}; set data.path to yours") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file: {layout}; set data.path to such a folder") from None
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror}") from error


def _classes(folder: Path, layout: str) -> list[str]:
    return [entry.name for entry in _entries(folder, layout) if entry.is_dir()]


def read_folder(tree: Tree, storage: Literal["memory", "files"], image_size: int, progress: Progress) -> Source:
    """All images decoded (memory), or an index of them (files). Damaged images raise :class:`DataError` when read."""
    arrays = {}
    for split, paths in tree.paths.items():
        num = len(paths)
        arrays[f"{split}_labels"] = _in_chunks(np.array(tree.labels[split], np.int64))
        if storage == "memory":
            images = _mapped(lambda path: decode(path, image_size), tree, split, progress)
            arrays[f"{split}_images"] = Chunked(np.dtype(np.uint8), (num, 3, image_size, image_size), images)
        else:
            arrays[f"{split}_paths"] = _in_chunks(np.array([os.fsencode(path) for path in paths]))
            arrays[f"{split}_sizes"] = Chunked(np.dtype(np.int64), (num, 2), _mapped(read_size, tree, split, progress))
    return Source(tree.classes, arrays)


def _mapped(read: Callable[[Path], NDArray[Any]], tree: Tree, split: str, progress: Progress) -> Iterator[NDArray[Any]]:
    """``read`` of each file, in order, in chunks. Threads do: Pillow decodes without the interpreter's lock."""
    paths, shown = tree.paths[split], time.monotonic()
    with ThreadPoolExecutor(min(32, num_cores())) as pool:
        for start in range(0, len(paths), 128):
            if time.monotonic() - shown > 5:
                progress(f"{split}: {start:,} of {len(paths):,} images read")
                shown = time.monotonic()
            yield np.stack(list(pool.map(lambda path: read(tree.folder / path), paths[start : start + 128])))


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """An image in 8-bit RGB. Raises :class:`DataError` for one of 16 bits or floating point, which would turn white."""
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(f"{path}: has {image.mode} pixels (16 or 32 bits); convert it to 8 bits a channel")
    return image.convert("RGB")


def decode(path: Path, image_size: int) -> NDArray[np.uint8]:
    """An image as (3, image_size, image_size), RGB. One of another size is scaled, its short side to image_size (by
    torchvision's rules: bilinear with antialiasing), and cut to the centre. Raises :class:`DataError`."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = to_rgb(file, path)
        width, height = image.size
        if (width, height) != (image_size, image_size):
            short = min(width, height)
            width, height = image_size * width // short, image_size * height // short
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - image_size) / 2), round((height - image_size) / 2)
            image = image.crop((left, top, left + image_size, top + image_size))
        pixels: NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
        return pixels
    except Exception as error:  # for a damaged file Pillow raises nearly anything, according to the format
        raise DataError(f"the image {path} is damaged or cannot be read: {_one_line(error)}") from error


def read_size(path: Path) -> NDArray[np.int64]:
    """Height and width from the header of an image, in pixels. Raises :class:`DataError`."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return np.array([file.height, file.width])
    except Exception as error:  # as in decode
        raise DataError(f"the image {path} is damaged or cannot be read: {_one_line(error)}") from error
