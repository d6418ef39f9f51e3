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
import io
import math
import os
import shlex
import shutil
import socket
import struct
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simsiam.data.own import own_set
from simsiam.errors import DataError
from simsiam.machine import num_cores

if TYPE_CHECKING:
    from PIL import Image

    from simsiam.settings.fields import DataSettings

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


def read_own(settings: DataSettings, root: Path) -> Source:
    """A data set of the user's own, see :mod:`simsiam.data.own`."""
    classes, splits = own_set(settings, root)
    arrays = dict[str, Chunked]()
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_images": _in_chunks(images), f"{split}_labels": _in_chunks(labels)}
    return Source(classes, arrays)


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
    """The files of an image folder, in torchvision's order: by class, then by folder, then by name."""

    folder: Path
    classes: tuple[str, ...]
    paths: dict[str, list[str]]  # split -> relative to folder
    labels: dict[str, list[int]]
    left_out: Mapping[str, int]  # what was left out -> how many

    def digests(self) -> dict[str, str]:
        """What tells this tree from a changed one, at a stat a file; independent of where the folder is.

        ``names``; ``sizes``, of names and sizes; ``times``, of names, sizes and times of change. A file whose time is
        within 2 s of now could change once more without getting another time (clocks tick, and on some file systems
        by as much): then ``times`` is empty, and proves nothing.
        """
        paths, now = [path for split in ("train", "test") for path in self.paths[split]], time.time_ns()
        try:
            stats = [os.stat(self.folder / path) for path in paths]
        except OSError as error:
            raise DataError(f"an image cannot be read: {error}") from error
        times = [f"{stat.st_mtime_ns} {stat.st_size} {path}" for stat, path in zip(stats, paths, strict=True)]
        lines = {
            "names": paths,
            "sizes": [f"{stat.st_size} {path}" for stat, path in zip(stats, paths, strict=True)],
            "times": times,
        }
        digests = {name: hashlib.sha256(os.fsencode("\0".join(values))).hexdigest() for name, values in lines.items()}
        is_fresh = any(abs(stat.st_mtime_ns - now) < 2 * 10**9 for stat in stats)
        return {**digests, "times": ""} if is_fresh else digests

    def names(self) -> str:
        """The digest ``names`` alone, without a stat."""
        return hashlib.sha256(os.fsencode("\0".join(self.paths["train"] + self.paths["test"]))).hexdigest()

    def contents(self, progress: Progress) -> str:
        """A digest of what is in the files, all of which are read. Raises :class:`DataError`."""
        contents = Contents()
        for split in ("train", "test"):
            for _ in _mapped(lambda content, path: np.empty(0), self, split, progress, contents):
                pass
        return contents.hexdigest()

    def said_left_out(self) -> str:
        """What was left out, in words; empty if nothing was."""
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self.left_out.items()))


class Contents:
    """The digest of the files' contents, in the order of the tree."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, of_one: bytes) -> None:
        """The SHA-256 of the next file."""
        self._digest.update(of_one)

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._digest.hexdigest()


def scan_folder(folder: Path) -> Tree:
    """List train/CLASS/.../IMAGE and test/CLASS/.../IMAGE (or val/...) below ``folder``, as torchvision's ImageFolder.

    Hidden files and folders, files with other endings and what is no ordinary file (a pipe, a socket, a device) are
    left out, and counted. Raises :class:`DataError` when a part is missing or unreadable, a link leads back to a folder
    that it is in, or the classes of the two splits differ.
    """
    layout = "an image folder has train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE)"
    parts = [entry.name for entry in _entries(folder, layout)]
    if "train" not in parts:
        raise DataError(f"{folder} has no folder train: {layout}")
    tests = [name for name in ("test", "val") if name in parts]
    left: dict[str, Counter[str]] = {name: Counter() for name in ("train", *tests)}
    classes = {name: _classes(folder / name, layout, left[name]) for name in ("train", *tests)}
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
            below = _images(folder, f"{name}/{one}", layout, left[name], ())
            images = [f"{place}/{image}" for place in sorted(below) for image in below[place]]
            if not images:
                raise DataError(f"{folder / name / one} has no images ({', '.join(IMAGE_SUFFIXES)})")
            paths[split] += images
            labels[split] += [label] * len(images)
    return Tree(folder, tuple(classes["train"]), paths, labels, left["train"] + left[test])


def _images(
    folder: Path, place: str, layout: str, left_out: Counter[str], above: tuple[str, ...]
) -> dict[str, list[str]]:
    """The sorted names of the images in a folder (``place``, relative to ``folder``) and in each of those below it."""
    here = os.path.realpath(folder / place)
    if here in above:
        raise DataError(f"{folder / place} is a link to a folder that it is in: remove it")
    found: dict[str, list[str]] = {place: []}
    for entry in _entries(folder / place, layout, left_out):
        if entry.is_dir():
            found |= _images(folder, f"{place}/{entry.name}", layout, left_out, (*above, here))
        elif not entry.is_file() and os.path.exists(entry.path):
            left_out["neither file nor folder (pipes, sockets, devices)"] += 1
        elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
            left_out[f"with the ending {os.path.splitext(entry.name)[1].lower() or '(none)'}"] += 1
        else:  # a link to nothing, too: to read it names it
            found[place].append(entry.name)
    return found


def _entries(folder: Path, layout: str, left_out: Counter[str] | None = None) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        if left_out is not None and len(shown) < len(entries):
            left_out["hidden (their names begin with a dot)"] += len(entries) - len(shown)
        return sorted(shown, key=lambda entry: entry.name)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}: {layout}; set data.path to yours") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file: {layout}; set data.path to such a folder") from None
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror}") from error


def _classes(folder: Path, layout: str, left_out: Counter[str]) -> list[str]:
    entries = _entries(folder, layout, left_out)
    classes = [entry.name for entry in entries if entry.is_dir()]
    if len(classes) < len(entries):
        left_out["beside the folders of the classes"] += len(entries) - len(classes)
    return classes


def read_folder(tree: Tree, settings: DataSettings, progress: Progress, contents: Contents) -> Source:
    """All images decoded (memory), or an index of them (files).

    ``contents`` has the digest of the files once the arrays have been made. Damaged images raise :class:`DataError`
    when read; with ``bad_images: replace`` they get the size 0 and are named.
    """

    def size_or_zero(content: bytes, path: Path) -> NDArray[np.int64]:
        try:
            return read_size(content, path)
        except DataError as error:
            progress(f"{error} (another image of its class will stand in for it)")
            return np.zeros(2, np.int64)

    arrays = {}
    for split, paths in tree.paths.items():
        num, side = len(paths), settings.image_size
        arrays[f"{split}_labels"] = _in_chunks(np.array(tree.labels[split], np.int64))
        if settings.storage == "memory":
            images = _mapped(partial(decode, image_size=side), tree, split, progress, contents)
            arrays[f"{split}_images"] = Chunked(np.dtype(np.uint8), (num, 3, side, side), images)
        else:
            read = size_or_zero if settings.bad_images == "replace" else read_size
            sizes = _mapped(read, tree, split, progress, contents)
            arrays[f"{split}_paths"] = _in_chunks(np.array([os.fsencode(path) for path in paths]))
            arrays[f"{split}_sizes"] = Chunked(np.dtype(np.int64), (num, 2), sizes)
    return Source(tree.classes, arrays)


Read = Callable[[bytes, Path], NDArray[Any]]  # of a file's content, and its path for messages


def _mapped(read: Read, tree: Tree, split: str, progress: Progress, contents: Contents) -> Iterator[NDArray[Any]]:
    """``read`` of each file, in order, in chunks. Threads do: Pillow decodes without the interpreter's lock."""
    paths, shown = tree.paths[split], time.monotonic()

    def read_one(path: str) -> tuple[NDArray[Any], bytes]:
        content = read_file(tree.folder / path)
        return read(content, tree.folder / path), hashlib.sha256(content).digest()

    with ThreadPoolExecutor(min(32, num_cores())) as pool:
        for start in range(0, len(paths), 128):
            if time.monotonic() - shown > 5:
                progress(f"{split}: {start:,} of {len(paths):,} images read")
                shown = time.monotonic()
            parts, digests = zip(*pool.map(read_one, paths[start : start + 128]), strict=True)
            for digest in digests:
                contents.add(digest)
            yield np.stack(parts)


def read_file(path: Path) -> bytes:
    """What is in an image's file. Raises :class:`DataError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _bad_image(path, error) from error


@contextlib.contextmanager
def opened(content: bytes, path: Path) -> Iterator[Image.Image]:
    """The image in a file's content; only its header has been looked at.

    Whatever goes wrong inside becomes a :class:`DataError` that names ``path``. So does an image of 16 bits or floating
    point, which would turn white.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I") or image.mode == "F":
                raise DataError(f"{path}: has {image.mode} pixels (16 or 32 bits); convert it to 8 bits a channel")
            yield image
    except DataError:
        raise
    except Exception as error:  # for a damaged file Pillow raises nearly anything, according to the format
        raise _bad_image(path, error) from error


def _bad_image(path: Path, error: Exception) -> DataError:
    return DataError(f"the image {path} is damaged or cannot be read: {_one_line(error)}")


def decode(content: bytes, path: Path, image_size: int) -> NDArray[np.uint8]:
    """An image as (3, image_size, image_size), RGB. One of another size is scaled, its short side to image_size (by
    torchvision's rules: bilinear with antialiasing), and cut to the centre. Raises :class:`DataError`."""
    from PIL import Image

    with opened(content, path) as file:
        image = file.convert("RGB")
        width, height = image.size
        if (width, height) != (image_size, image_size):
            short = min(width, height)
            width, height = image_size * width // short, image_size * height // short
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - image_size) / 2), round((height - image_size) / 2)
            image = image.crop((left, top, left + image_size, top + image_size))
        pixels: NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
        return pixels


def read_size(content: bytes, path: Path) -> NDArray[np.int64]:
    """Height and width of an image, in pixels. Raises :class:`DataError`.

    Only what is not seen to end as its format wants is decoded: a file that was cut off is found here, most others
    that are damaged are not.
    """
    with opened(content, path) as image:
        size = np.array([image.height, image.width])
        if not _ends_well(content, image.format):
            image.load()
        return size


def _ends_well(content: bytes, format_: str | None) -> bool:
    if format_ == "JPEG":
        return content.endswith(b"\xff\xd9")
    if format_ == "PNG":
        return content[-8:-4] == b"IEND"
    return format_ == "WEBP" and len(content) >= 8 + int.from_bytes(content[4:8], "little")
