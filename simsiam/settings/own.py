"""Parts of one's own: a setting that names a function or a class in a file of the user's, ``my_module:function``.

Where the settings are put together, a name is pinned: ``my_module:function@3f9a0c41b2d7`` carries a hash of the module
and of every module of the same folder that it imports. So the source is part of a run's id, and code that was edited
makes other runs. Nothing is imported here: that is ``own_code``'s.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsiam.errors import SettingsError, nearest
from simsiam.settings.fields import OWN_NAME, Settings, flatten


@dataclass(frozen=True)
class Place:
    """What a part gets where it is used: the arguments of each call, and by name what it may ask for."""

    given: tuple[str, ...]  # of each call in a step, by position; a class gets them in ``forward``
    offered: tuple[str, ...]  # by keyword, if its signature has them, beside the study's ``arguments``


PLACES = {
    "data.name": Place((), ("split", "folder")),
    "augment.views": Place((), ("size", "view")),
    "backbone.name": Place((), ("num_channels", "image_size")),
    "projector.kind": Place((), ("num_features", "output_dim")),
    "predictor.kind": Place((), ("dim",)),
    "target.transform": Place(("t1", "t2"), ("dim",)),
    "loss.name": Place(("p", "target"), ("dim",)),
}


folders: dict[str, Path] = {}  # by hash: where this process read the sources


def is_own(value: object) -> bool:
    """Whether the value of a setting names a part of the user's own."""
    return isinstance(value, str) and re.fullmatch(OWN_NAME, value) is not None


def own_parts(settings: Settings) -> dict[str, str]:
    """The settings that name a part of the user's own, by dotted path."""
    flat = flatten(settings)
    return {path: flat[path] for path in PLACES if is_own(flat[path])}


def arguments_of(settings: Settings, path: str) -> dict[str, Any]:
    """What the study gives to the part at a path: ``loss.arguments`` to that of ``loss.name``."""
    return dict(getattr(settings, path.partition(".")[0]).arguments)


# --- sources -----------------------------------------------------------------------------------------------------


def pin(path: str, value: str, places: Sequence[Path], arguments: Iterable[str] = ()) -> str:
    """The name with the hash of its source, which is in the first of ``places`` that holds the module.

    Raises SettingsError if the module or the name is not there, if the source is another than the name was pinned to,
    and if ``arguments`` are not those that its signature takes.
    """
    module, name, pinned = parts_of(value)
    shown = f"{path}: {module}:{name}"
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise SettingsError(f"{shown}: Python has a module {module} of its own; call the file otherwise")
    folder = next((place.absolute() for place in places if _file(module, place).is_file()), None)
    if folder is None:
        there = [file.stem for place in places for file in sorted(place.glob("*.py"))]
        where = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
        raise SettingsError(f"{shown}: there is no {module.replace('.', '/')}.py in {where}{nearest(module, there)}")
    files = sources(module, folder)
    text = files[_file(module, folder)]
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise SettingsError(f"{shown}: {_file(module, folder)}, line {line}: {getattr(error, 'msg', error)}") from None
    names = {defined: node for node in tree.body for defined in _defined(node)}
    if name not in names:
        raise SettingsError(
            f"{shown}: {_file(module, folder)} defines no {name} at its top level{nearest(name, list(names))}"
        )
    _check_signature(path, f"{module}:{name}", names[name], set(arguments))
    digest = digest_of(files, folder)
    if pinned and pinned != digest:
        raise SettingsError(f"{shown}: its source is not that of {value} any more: it is @{digest} now")
    folders[digest] = folder
    return f"{module}:{name}@{digest}"


def sources(module: str, folder: Path) -> dict[Path, bytes]:
    """The file of a module in a folder, and of each module there that it imports, in turn; by path, with contents."""
    found: dict[Path, bytes] = {}
    waiting = [module]
    while waiting:
        for file in _files(waiting.pop(), folder):
            if file in found:
                continue
            found[file] = file.read_bytes()
            try:
                tree = ast.parse(found[file])
            except (SyntaxError, ValueError):  # said where the module is named, or by the import
                continue
            waiting += _imported(tree, file, folder)
    return found


def parts_of(value: str) -> tuple[str, str, str]:
    """Module, name and hash of a name; no hash: it is not pinned."""
    name, _, digest = value.partition("@")
    module, _, function = name.partition(":")
    return module, function, digest


def _file(module: str, folder: Path) -> Path:
    place = folder.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")


def _files(module: str, folder: Path) -> Iterator[Path]:
    """The files that importing a module runs: its packages' and its own; none if it is not in the folder."""
    parts = module.split(".")
    if _file(module, folder).is_file() and parts[0] not in sys.stdlib_module_names:
        for end in range(1, len(parts) + 1):
            file = _file(".".join(parts[:end]), folder)
            if file.is_file():
                yield file


def _imported(tree: ast.Module, file: Path, folder: Path) -> Iterator[str]:
    package = list(file.relative_to(folder).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def digest_of(files: Mapping[Path, bytes], folder: Path) -> str:
    """The hash of sources, whatever their folder and their line ends."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = files[file].replace(b"\r\n", b"\n")
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:12]


LITERALS = (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Set, ast.Dict)  # what cannot be called


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.ImportFrom | ast.Import):
        return [alias.asname or alias.name for alias in node.names]
    return []


def _check_signature(path: str, shown: str, node: ast.stmt, arguments: set[str]) -> None:
    """Raises SettingsError for arguments that it does not take, and for those that it lacks, as far as they are read.

    What another module defines, and a class whose ``__init__`` is inherited, is not looked into.
    """
    place, given = PLACES[path], 0
    section = path.partition(".")[0]
    if isinstance(node, ast.ClassDef):
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not inits:
            return
        function, given = inits[0], 1  # self
    elif isinstance(node, ast.FunctionDef):
        function, given = node, len(place.given)
    elif isinstance(node, ast.Assign) and isinstance(node.value, LITERALS):
        raise SettingsError(f"{path}: {shown} is {ast.unparse(node.value)[:40]}, and no function or class")
    else:
        return
    takes = function.args
    positional = [argument.arg for argument in (*takes.posonlyargs, *takes.args)]
    if len(positional) < given and not takes.vararg:
        raise SettingsError(f"{path}: {shown} must take {', '.join(place.given)}, by position")
    named = [*positional[given:], *(argument.arg for argument in takes.kwonlyargs)]
    unknown = sorted(arguments - set(named))
    if unknown and not takes.kwarg:
        has = f"it takes {', '.join(named)}" if named else "it takes none"
        hint = nearest(unknown[0], named)
        raise SettingsError(f"{section}.arguments.{unknown[0]}: {shown} has no such argument; {has}{hint}")
    with_default = positional[len(positional) - len(takes.defaults) :] if takes.defaults else []
    with_default += [
        argument.arg for argument, default in zip(takes.kwonlyargs, takes.kw_defaults, strict=True) if default
    ]
    lacking = [name for name in named if name not in {*with_default, *arguments, *place.offered}]
    if lacking:
        raise SettingsError(f"{path}: {shown} needs {section}.arguments.{lacking[0]}")
