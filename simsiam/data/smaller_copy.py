"""A copy of an image folder with small images, which decode faster: of short side 256, say, for views of 224.

A crop's box is the same share of the image as before, but for rounding to smaller pixels. What differs is the detail
in crops that are smaller than the view: they are enlarged from fewer pixels. So this is another data set, with a
fingerprint of its own, and no cache behind the user's back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from simsiam.data.originals import Tree, opened, read_file, scan_folder
from simsiam.errors import DataError
from simsiam.machine import num_cores
from simsiam.record.atomic_files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 95  # of the JPEG files that are written
UNFINISHED, FINISHED = ".resizing.json", "resized.json"


def resize_folder(source: Path, target: Path, short_side: int, progress: Callable[[str], object]) -> int:
    """Write ``source``'s images to ``target``, the short side of the larger ones ``short_side`` pixels; how many it is.

    Larger images become JPEG files, with ``.jpg`` after the name where they were others; those that are small already
    are copied as they are. Goes on where it was stopped. Raises :class:`DataError` for a folder that holds other
    things, for a damaged image, and for two images that would get one name.
    """
    tree = scan_folder(source)
    paths = [path for split in ("train", "test") for path in tree.paths[split]]
    done = _begin(tree, target, short_side)
    if not done:
        for folder in {os.path.dirname(path) for path in paths}:
            (target / folder).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(32, num_cores())) as pool:  # Pillow works without the interpreter's lock
            for start in range(0, len(paths), 1000):
                some = paths[start : start + 1000]
                list(pool.map(lambda path: _write(source / path, target / path, short_side), some))
                progress(f"{start + len(some):,} of {len(paths):,} images")
        os.replace(target / UNFINISHED, target / FINISHED)
    return len(paths)


def _begin(tree: Tree, target: Path, short_side: int) -> bool:
    """Whether all is there already. Otherwise notes in ``target`` what is being made of what."""
    digests = tree.digests()
    names = {what: digests[what] for what in ("names", "sizes")} | {
        "short_side": str(short_side),
        "quality": str(QUALITY),
    }
    twice = _clashes(tree)
    if twice:
        raise DataError(f"{tree.folder / twice} and an image beside it would both be called {twice}.jpg")
    for name in (FINISHED, UNFINISHED):
        if (target / name).exists():
            if json.loads((target / name).read_text()) != names:
                raise DataError(
                    f"{target}: holds copies of other images, or of another short side than {short_side}; name a new"
                    " folder"
                )
            return name == FINISHED
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: is there already, and is not a folder of resized images; name a new one")
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / UNFINISHED, lambda file: json.dump(names, file), aside=str(os.getpid()), mode="w")
    return False


def _clashes(tree: Tree) -> str | None:
    paths = {path for split in tree.paths.values() for path in split}
    return next((path for path in sorted(paths) if not _is_jpeg(path) and f"{path}.jpg" in paths), None)


def _is_jpeg(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg"))


def _write(source: Path, target: Path, short_side: int) -> None:
    as_jpeg = target if _is_jpeg(target.name) else target.with_name(f"{target.name}.jpg")
    if target.exists() or as_jpeg.exists():  # from before it was stopped
        return
    smaller = _smaller(source, short_side)
    aside = target.with_name(f".{target.name}.part")
    try:
        if smaller is None:
            shutil.copyfile(source, aside)
        else:
            smaller.save(aside, "JPEG", quality=QUALITY)
        os.replace(aside, target if smaller is None else as_jpeg)
    finally:
        aside.unlink(missing_ok=True)


def _smaller(path: Path, short_side: int) -> Image.Image | None:
    """The image in RGB with such a short side (by torchvision's rules), or None if it is no larger."""
    from PIL import Image

    with opened(read_file(path), path) as file:
        short = min(file.size)
        if short <= short_side:
            return None
        width, height = (short_side * length // short for length in file.size)
        return file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
