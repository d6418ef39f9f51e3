"""The code of the user's own parts: kept with the runs, imported, called.

A launcher keeps the sources with the runs (:func:`keep`), and training imports these copies: what is trained is what
was planned, also in another process, on another machine, and after the file was edited. torch is imported only where
it is used.
"""

from __future__ import annotations

import importlib
import inspect
import os
import secrets
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from simsiam.errors import UserError
from simsiam.randomness import derive
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.own import arguments_of, digest_of, folders, own_parts, parts_of, sources

FOLDER = ".modules"  # beside the runs: the sources that they were made with, each under its hash

_places: list[Path] = []  # folders of runs, whose copies are looked into


class OwnPartError(UserError, RuntimeError):
    """A part of the user's own does not do what its place asks for; the message is for its author."""


def keep(settings: Iterable[Settings], runs: Path) -> None:
    """Copy the sources of all parts into a folder of runs, each under its hash; what is there already stays.

    Raises OwnPartError if they were edited since they were pinned.
    """
    for value in {name for each in settings for name in own_parts(each).values()}:
        module, _, digest = parts_of(value)
        to = runs / FOLDER / digest
        if not to.is_dir():
            folder = _found(value, [folders[digest]] if digest in folders else [])
            aside = runs / FOLDER / f".{digest}.{secrets.token_hex(4)}"
            for file, content in sources(module, folder).items():
                copy = aside / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
            try:
                os.rename(aside, to)
            except OSError:  # another process was quicker
                shutil.rmtree(aside)
                if not to.is_dir():
                    raise
    look_in(runs)


def look_in(runs: Path) -> None:
    """Look for sources also among those that were kept in a folder of runs."""
    if runs not in _places:
        _places.append(runs)


def kept_in() -> tuple[Path, ...]:
    """The folders of runs that are looked into."""
    return tuple(_places)


def _found(value: str, candidates: Iterable[Path]) -> Path:
    module, _, digest = parts_of(value)
    if not digest:
        raise OwnPartError(f"{value}: is not pinned to its source; settings from a study's file are")
    for folder in candidates:
        files = sources(module, folder)
        if files and digest_of(files, folder) == digest:
            return folder
    raise OwnPartError(f"{value}: no source with this hash is there any more; it was kept in {FOLDER}/ beside the runs")


@cache
def load_own(value: str) -> Any:
    """The function or class that a pinned name means. Raises OwnPartError if it cannot be imported.

    Two versions of a module can be in one process: each is imported from a folder of its own, with the modules beside
    it, and none of them stays under its plain name.
    """
    module, name, digest = parts_of(value)
    kept = [place / FOLDER / digest for place in _places]
    folder = _found(value, [*kept, *([folders[digest]] if digest in folders else [])])
    roots = {file.relative_to(folder).parts[0].removesuffix(".py") for file in sources(module, folder)}

    def take_away() -> dict[str, Any]:
        return {each: sys.modules.pop(each) for each in list(sys.modules) if each.partition(".")[0] in roots}

    before = take_away()
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise OwnPartError(f"{value}: cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(folder))
        # Kept under the hash: what looks a class's module up (pickle, dataclasses) finds none that is another's.
        sys.modules.update({f"{each}@{digest}": loaded for each, loaded in take_away().items()})
        sys.modules.update(before)


def value_of(settings: Settings, path: str) -> str:
    """The pinned name at a setting's path."""
    return str(flatten(settings)[path])


def make_part(settings: Settings, path: str, **offered: Any) -> Any:
    """What the user's function or class returns for its arguments and for what it asks for of ``offered``.

    Its random numbers are drawn from (seed, path), so that other parts start as they do without it. Raises OwnPartError
    with the place in the user's file.
    """
    import torch

    part = load_own(value_of(settings, path))
    with blamed(settings, path), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(settings.seed, "weights", path))
        return part(**wanted(part, offered), **arguments_of(settings, path))


def wanted(part: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """What it asks for by name, of what it is offered."""
    parameters = inspect.signature(part).parameters
    return {name: value for name, value in offered.items() if name in parameters}


@contextmanager
def blamed(settings: Settings, path: str) -> Iterator[None]:
    """An error in the user's code, outside of a step that runs out of memory, says which setting it came from."""
    import torch

    try:
        yield
    except (UserError, torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        name = value_of(settings, path)
        module = name.partition(":")[0].rpartition(".")[2]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem == module]
        at = f"{module}.py, line {frames[-1].lineno}: " if frames else ""
        raise OwnPartError(f"{path}: {name}: {at}{type(error).__name__}: {error}") from error
