"""Data sets: prepared once as plain uint8 arrays, then opened in no time and shared by all processes.

``prepare`` gets the originals (see :mod:`simsiam.data.originals`) and writes one ``.npy`` file for each array to
``ROOT/cache/KEY/``, with a ``meta.json`` beside them; ``load`` maps these files into memory, read-only, so that any
number of processes on a machine share one copy. Nothing else is kept: neither archives nor unpacked originals.
A preparation is built in a hidden folder beside its place and renamed at the end, so it is there as a whole or not at
all. This module imports neither torch nor torchvision, and numpy only where arrays are touched: naming the runs of a
plan needs :func:`fingerprint` alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from simsiam.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, FileSplit, Split, channel_statistics, chunks
from simsiam.data.synthetic import SYNTHETIC_FINGERPRINT, synthetic_images
from simsiam.errors import DataError
from simsiam.randomness import derive
from simsiam.record.atomic_files import sync_folder, write_atomically
from simsiam.settings.fields import DataSettings
from simsiam.settings.own import is_own

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsiam.data.originals import Chunked, Tree

# Raised when what is written to the cache changes its form or meaning: older caches then count as not prepared.
CACHE_FORMAT = 1


class _StaleError(DataError):
    """A prepared data set that is damaged, or whose folder has changed; preparing again repairs it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what


@dataclass(frozen=True)
class Report:
    """What :func:`check` found in a prepared data set, before any part of it is drawn."""

    name: str
    num_train: int
    num_test: int
    train_per_class: tuple[int, ...]
    test_per_class: tuple[int, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: str  # which of an image folder's files were left out, and how many; empty: none


# --- public functions --------------------------------------------------------------------------------------------


def prepare(settings: DataSettings, root: Path, *, progress: Callable[[str], None] = lambda message: None) -> Dataset:
    """The data set, got and converted first if it is not there yet.

    An image folder is compared with what was prepared, and prepared again if it differs: names and sizes are compared
    file by file, and where any file's time of change is another than it was, all contents are, by reading them.
    Named sets keep their native size ((1, 28, 28) for fashion-mnist) whatever ``settings.image_size`` says. STL-10 is
    its labelled training and test images; the 100,000 unlabelled ones are not used. Safe to interrupt and to run in
    several processes at once. Raises :class:`DataError` when the originals cannot be had or read, or when the cache
    cannot be written; then nothing half-made is left.
    """
    if settings.name == "synthetic":
        return load(settings, root)
    try:
        ready = _read_meta(settings, root) is not None
        if ready:
            _open(settings, root, compare="times", progress=progress)
    except _StaleError as error:
        progress(f"{settings.name}: {error.what}; preparing again")
        ready = False
    if not ready:
        cache = _cache(settings, root)
        try:
            with _build_folder(cache) as build:
                _build(settings, root, build, progress)
                _publish(settings, root, build)
        except OSError as error:
            raise DataError(
                f"{settings.name} could not be prepared in {cache}: {error}. Nothing half-made was left there. The "
                f"folder must be writable and have room for the images; another one can be chosen with --data."
            ) from error
    return load(settings, root)


def load(settings: DataSettings, root: Path) -> Dataset:
    """The prepared data set, mapped read-only, with ``evaluate_on`` and ``num_train`` applied.

    Both draws depend on nothing but the number of images, and smaller draws are part of larger ones. Drawn images are
    copied into this process; all others stay shared. Nothing is written, so the root may be read-only. An image folder
    whose file names have changed is noticed; other changes are by :func:`prepare`. Raises :class:`DataError` when the
    set is not prepared, is damaged, has changed, or is too small for what is drawn.
    """
    dataset = _select(settings, _open(settings, root))
    if settings.normalisation == "imagenet":
        return replace(dataset, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return dataset


def fingerprint(settings: DataSettings, root: Path) -> str | None:
    """16 hexadecimal digits that name the prepared images, labels and classes; None when they are not prepared.

    Reads one small file. With ``storage: files`` the files' names and sizes stand for their contents, until a file of
    the same name and size is found to hold something else: then the contents enter.
    """
    if settings.name == "synthetic":
        return SYNTHETIC_FINGERPRINT
    meta = _read_meta(settings, root)
    return None if meta is None else str(meta["fingerprint"])


def check(settings: DataSettings, root: Path, *, progress: Callable[[str], None] = lambda message: None) -> Report:
    """Read the whole prepared data set and compare it with what was written.

    With name=folder all files of the folder are read, too, and compared with what they were. Raises
    :class:`DataError`, naming the damaged file and the command that repairs it.
    """
    dataset = _open(settings, root, compare="contents", progress=progress)
    if settings.name != "synthetic":
        _verify(settings, root)
    return Report(
        name=dataset.name,
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        train_per_class=_per_class(dataset.train, dataset),
        test_per_class=_per_class(dataset.test, dataset),
        image_shape=(dataset.num_channels, dataset.image_size, dataset.image_size),
        num_classes=len(dataset.classes),
        fingerprint=dataset.fingerprint,
        mean=dataset.mean,
        std=dataset.std,
        left_out=_left_out(settings, root),
    )


def _left_out(settings: DataSettings, root: Path) -> str:
    from simsiam.data.originals import scan_folder

    folder = _folder(settings, root)
    return scan_folder(folder).said_left_out() if settings.name == "folder" and os.path.exists(folder) else ""


def _per_class(split: Split | FileSplit, dataset: Dataset) -> tuple[int, ...]:
    import numpy as np

    return tuple(np.bincount(split.labels, minlength=len(dataset.classes)).tolist())


def prepare_command(settings: DataSettings, root: Path) -> str:
    """The command that prepares this data set, for messages."""
    words = ["python", "run_ablation.py", "data", "prepare", settings.name]
    if settings.name == "folder":
        words += ["--set", f"data.path={settings.path}", "--set", f"data.storage={settings.storage}"]
        words += ["--set", f"data.image_size={settings.image_size}"]
        words += ["--set", "data.bad_images=replace"] if settings.bad_images == "replace" else []
    return shlex.join([*words, "--data", str(root)])


def prepared_paths(settings: DataSettings) -> list[Path]:
    """The folders that a prepared data set consists of, relative to the place for images; none for generated ones."""
    if settings.name == "synthetic":
        return []
    images = [Path(settings.path)] if settings.name == "folder" and not os.path.isabs(settings.path) else []
    return [*images, _cache(settings, Path())]


# --- the cache ---------------------------------------------------------------------------------------------------


def _folder(settings: DataSettings, root: Path) -> Path:
    return Path(root) / settings.path  # an absolute path stays what it is


def _cache(settings: DataSettings, root: Path) -> Path:
    """Where the arrays of a data set are. A folder has one place for each size at which it is held in memory."""
    if is_own(settings.name):
        words = re.sub(r"[^\w-]", "_", settings.name.partition("@")[0])
        key = json.dumps([settings.name, settings.arguments], sort_keys=True)
        return Path(root) / "cache" / f"own-{words}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if settings.name != "folder":
        return Path(root) / "cache" / settings.name
    path = os.path.normpath(settings.path)
    name = re.sub(r"[^\w.-]", "_", os.path.basename(path))
    size = f"{settings.image_size}px" if settings.storage == "memory" else "files"
    return Path(root) / "cache" / f"folder-{name}-{size}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def _damaged(settings: DataSettings, root: Path, what: str) -> _StaleError:
    cache = _cache(settings, root)
    return _StaleError(
        f"the prepared data set in {cache} is damaged: {what}",
        f"To make it anew: rm -r {shlex.quote(str(cache))} && {prepare_command(settings, root)}",
    )


def _read_meta(settings: DataSettings, root: Path) -> dict[str, Any] | None:
    path = _cache(settings, root) / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        if meta["format"] != CACHE_FORMAT:
            return None
        for field in ("fingerprint", "classes", "mean", "std", "arrays", "tree"):
            meta[field]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"the prepared data set cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError):
        raise _damaged(settings, root, "meta.json is not what was written") from None
    return dict(meta)


Comparison = Literal["names", "times", "contents"]


def _open(
    settings: DataSettings,
    root: Path,
    *,
    compare: Comparison = "names",
    progress: Callable[[str], None] = lambda message: None,
) -> Dataset:
    """The whole data set; ``compare``: what of an image folder's files, see :func:`_compare_folder`."""
    if settings.name == "synthetic":
        return synthetic_images(settings.image_size)
    meta = _read_meta(settings, root)
    if meta is None:
        what = f"the image folder {_folder(settings, root)}" if settings.name == "folder" else settings.name
        raise DataError(f"{what} is not prepared in {root}. Run: {prepare_command(settings, root)}")
    arrays = _open_arrays(settings, root, meta)
    if settings.name == "folder":
        _compare_folder(settings, root, meta["tree"], compare, progress)
    in_memory = "train_images" in arrays
    if not in_memory and settings.bad_images == "error":
        _refuse_bad_images(settings, root, arrays)
    return Dataset(
        name=settings.name,
        train=_split(settings, root, arrays, "train"),
        test=_split(settings, root, arrays, "test"),
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        fingerprint=meta["fingerprint"],
        num_channels=arrays["train_images"].shape[1] if in_memory else 3,
        image_size=arrays["train_images"].shape[2] if in_memory else settings.image_size,
    )


def _open_arrays(settings: DataSettings, root: Path, meta: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    arrays = {}
    for name, record in meta["arrays"].items():
        path = _cache(settings, root) / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise _damaged(settings, root, f"{name}.npy is missing") from None
        except OSError as error:
            raise DataError(f"the prepared data set cannot be read: {error}") from error
        except (ValueError, EOFError) as error:
            raise _damaged(settings, root, f"{name}.npy: {error}") from None
        if [arrays[name].dtype.str, list(arrays[name].shape)] != [record["dtype"], record["shape"]]:
            raise _damaged(settings, root, f"{name}.npy has another type or shape than was written")
    return arrays


def _compare_folder(
    settings: DataSettings, root: Path, known: Mapping[str, str], compare: Comparison, progress: Callable[[str], None]
) -> None:
    """Raises :class:`_StaleError` if the folder's files are not those that were prepared.

    ``names``: their names alone are compared. ``times``: names and sizes; and the contents, if the times of change are
    others than when the contents were last seen to be the same. ``contents``: all, whatever the times.
    """
    from simsiam.data.originals import scan_folder

    folder = _folder(settings, root)
    if settings.storage == "memory" and not os.path.exists(folder):
        return  # what is in memory outlives its folder

    def require_same(what: str, same: bool) -> None:
        if not same:
            raise _StaleError(
                f"the {what} of the files in {folder} have changed since it was prepared",
                f"Run: {prepare_command(settings, root)}",
            )

    tree = scan_folder(folder)
    require_same("names", tree.names() == known["names"])
    if compare == "names":
        return
    digests = tree.digests()
    require_same("sizes", digests["sizes"] == known["sizes"])
    if "contents" not in known:  # an earlier version prepared it
        require_same("times", not _is_newer(tree, _cache(settings, root)))
        return
    cache, seen = _cache(settings, root), {"contents": known["contents"], "times": digests["times"]}
    is_known = digests["times"] != "" and _read_seen(cache) == seen
    if compare == "times" and is_known:
        return
    require_same("contents", tree.contents(progress) == known["contents"])
    if digests["times"] and not is_known:
        with contextlib.suppress(OSError):  # not to be written: it is read again the next time
            _write_seen(cache, seen)


def _refuse_bad_images(settings: DataSettings, root: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    bad = [
        os.fsdecode(arrays[f"{split}_paths"][place])
        for split in ("train", "test")
        for place in (arrays[f"{split}_sizes"] == 0).any(1).nonzero()[0]
    ]
    if bad:
        raise DataError(
            f"{_folder(settings, root)}: damaged images: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''} "
            f"({len(bad):,}). Mend or remove them, or set data.bad_images=replace"
        )


def _is_newer(tree: Tree, cache: Path) -> bool:
    """Whether any file of the folder has changed since the cache was made, as far as times tell."""
    made = (cache / "meta.json").stat().st_mtime_ns
    return any((tree.folder / path).stat().st_mtime_ns > made for paths in tree.paths.values() for path in paths)


def _read_seen(cache: Path) -> object:
    """The digest ``times`` when the files were last seen to have the digest ``contents``; None if there is no note."""
    try:
        return json.loads((cache / "seen.json").read_bytes())
    except (OSError, ValueError):
        return None


def _write_seen(cache: Path, seen: Mapping[str, str]) -> None:
    aside = f"{os.getpid()}.{secrets.token_hex(4)}"
    write_atomically(cache / "seen.json", lambda file: json.dump(seen, file), aside=aside, mode="w")


def _split(settings: DataSettings, root: Path, arrays: Mapping[str, NDArray[Any]], split: str) -> Split | FileSplit:
    labels = arrays[f"{split}_labels"]
    if f"{split}_images" in arrays:
        return Split(arrays[f"{split}_images"], labels)
    return FileSplit(_folder(settings, root), arrays[f"{split}_paths"], labels, arrays[f"{split}_sizes"])


def _verify(settings: DataSettings, root: Path) -> None:
    """Compute again from the arrays all that ``meta.json`` says of them."""
    meta = _read_meta(settings, root)
    assert meta is not None  # it has just been opened
    arrays = _open_arrays(settings, root, meta)
    for name, array in arrays.items():
        if _digest(array) != meta["arrays"][name]["sha256"]:
            raise _damaged(settings, root, f"the contents of {name}.npy are not what was written")
    mean, std = channel_statistics(arrays)
    if [_fingerprint(meta), list(mean), list(std)] != [meta["fingerprint"], meta["mean"], meta["std"]]:
        raise _damaged(settings, root, "meta.json does not fit the arrays")


def _digest(array: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(array):
        digest.update(chunk.tobytes())
    return digest.hexdigest()


def _fingerprint(meta: Mapping[str, Any]) -> str:
    tree, identity = meta["tree"], [meta["arrays"], meta["classes"], None]
    if "train_paths" in meta["arrays"]:  # images that stay in files
        identity[2] = tree["sizes"]
        if tree.get("contents") != tree.get("first_contents"):
            identity.append(tree["contents"])
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _first_contents(settings: DataSettings, root: Path, tree: Tree, found: Mapping[str, str]) -> str | None:
    """The contents that names and sizes alone stand for in a fingerprint: the first ones that were had under them.

    None: what was prepared before, under the same names and sizes, held something else that is not on record.
    """
    try:
        meta = _read_meta(settings, root)
    except DataError:
        meta = None
    before = None if meta is None else meta["tree"]
    if before is None or any(before[what] != found[what] for what in ("names", "sizes")):
        return found["contents"]
    if "contents" in before:
        return cast("str | None", before["first_contents"])
    return None if _is_newer(tree, _cache(settings, root)) else found["contents"]


# --- building the cache ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _build_folder(cache: Path) -> Iterator[Path]:
    """A hidden folder beside the cache that is gone afterwards, whatever happens; sweeps up after killed processes."""
    prefix = f".{cache.name}.{socket.gethostname()}."
    cache.parent.mkdir(parents=True, exist_ok=True)
    for entry in os.listdir(cache.parent):
        pid = entry.removeprefix(prefix).partition(".")[0]
        if entry.startswith(prefix) and pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(cache.parent / entry, ignore_errors=True)
    build = cache.parent / f"{prefix}{os.getpid()}.{secrets.token_hex(4)}"
    build.mkdir()  # not tempfile.mkdtemp: others who share the data may read it, as the umask says
    try:
        yield build
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _build(settings: DataSettings, root: Path, build: Path, progress: Callable[[str], None]) -> None:
    import numpy as np

    from simsiam.data.originals import Contents, named_set, read_folder, read_own, scan_folder

    scratch = build / "download"
    scratch.mkdir()
    tree, contents = None, Contents()
    if settings.name == "folder":
        tree = scan_folder(_folder(settings, root))
        digests = tree.digests()  # before the files are read: what changes meanwhile has another time afterwards
        if left_out := tree.said_left_out():
            progress(f"{settings.name}: left out of {tree.folder}: {left_out}")
        source = read_folder(tree, settings, progress, contents)
    elif is_own(settings.name):
        source = read_own(settings, Path(root))
    else:
        source = named_set(settings.name, Path(root), scratch, progress)
    progress(f"{settings.name}: writing {_cache(settings, root)}")
    meta: dict[str, Any] = {
        "format": CACHE_FORMAT,
        "classes": list(source.classes),
        "tree": None,
        "arrays": {name: _write_array(build / f"{name}.npy", array) for name, array in source.arrays.items()},
    }
    if tree is not None:
        found = {"names": digests["names"], "sizes": digests["sizes"], "contents": contents.hexdigest()}
        meta["tree"] = {**found, "first_contents": _first_contents(settings, root, tree, found)}
        _write_seen(build, {"contents": found["contents"], "times": digests["times"]})
    arrays = {name: np.load(build / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
    meta["mean"], meta["std"] = map(list, channel_statistics(arrays))
    meta["fingerprint"] = _fingerprint(meta)
    shutil.rmtree(scratch)
    with open(build / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
        _sync(file)
    sync_folder(build)


def _write_array(path: Path, array: Chunked) -> dict[str, Any]:
    """Write one .npy file front to back: on a full disk a write fails, where a memory map would kill the process."""
    import numpy as np

    digest, num_written = hashlib.sha256(), 0
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in array.chunks:
            content = np.ascontiguousarray(chunk, array.dtype).tobytes()
            file.write(content)
            digest.update(content)
            num_written += len(chunk)
        _sync(file)
    assert num_written == array.shape[0], (path, num_written, array.shape)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": digest.hexdigest()}


def _publish(settings: DataSettings, root: Path, build: Path) -> None:
    """Rename a finished build to its place, where a stale cache, or that of a process that was quicker, may be."""
    cache, old = _cache(settings, root), build.with_name(f"{build.name}.old")
    meta = json.loads((build / "meta.json").read_bytes())
    while True:
        try:
            os.rename(build, cache)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with contextlib.suppress(_StaleError):
            if _read_meta(settings, root) == meta:
                _open_arrays(settings, root, meta)
                return
        with contextlib.suppress(FileNotFoundError):
            os.rename(cache, old)  # not deleted in place: who has opened it must find it whole
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(cache.parent)


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


# --- parts of a data set, and the generated one ------------------------------------------------------------------


def _order(purpose: str, num: int) -> NDArray[np.int64]:
    """A permutation of ``num`` indices; from raw bits, since NumPy's own permutation may change between versions."""
    import numpy as np

    return np.argsort(np.random.PCG64(derive(purpose)).random_raw(num), kind="stable")


def _select(settings: DataSettings, dataset: Dataset) -> Dataset:
    """Apply ``evaluate_on`` and ``num_train``."""
    import numpy as np

    train, test, num_all = dataset.train, dataset.test, len(dataset.train)
    index = np.arange(num_all)
    if settings.evaluate_on == "holdout":
        num_held = num_all // 10
        if num_held == 0:
            raise DataError(
                f"data.evaluate_on=holdout sets a tenth of the training images aside, but {dataset.name} has only "
                f"{num_all}; it needs at least 10, or data.evaluate_on=test"
            )
        order = _order("holdout", num_all)
        test, index = train.take(np.sort(order[:num_held])), np.sort(order[num_held:])
    if settings.num_train is not None:
        if settings.num_train > len(index):
            raise DataError(
                f"data.num_train={settings.num_train} is more than the {len(index)} training images of {dataset.name}"
                f"{' outside the holdout' if settings.evaluate_on == 'holdout' else ''}"
            )
        index = np.sort(index[_order("num-train", len(index))[: settings.num_train]])
    if len(index) < num_all:
        train = train.take(index)
    return replace(dataset, train=train, test=test)
