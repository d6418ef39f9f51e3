"""Settings from several places, the later ones winning, each value with its origin.

The order: the defaults of :mod:`simsiam.settings.fields`, the scale, the study, the study's own words for that scale,
the variant, the command line, the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from experiments.studies.yaml_files import Document, parse_model, parse_value, read
from simsiam.errors import SettingsError
from simsiam.settings.checks import unknown, validate
from simsiam.settings.fields import Settings, dotted_paths, flatten, is_argument
from simsiam.settings.own import PLACES, is_own, pin


@dataclass(frozen=True)
class Value:
    """A value and where it was written."""

    value: Any
    origin: str
    folder: Path | None = None  # of the file that it stands in, where modules of one's own are looked for first


Layer = Mapping[str, Value]  # by dotted path


class Block(BaseModel):
    """What a file says of settings, in one place of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    include: str | tuple[str, ...] = Field((), description="other files, whose blocks come first")
    settings: dict[str, Any] = Field(
        {}, description="settings, nested (optimizer: {lr: 0.05}) or dotted (optimizer.lr: 0.05)"
    )


class ScaledBlock(Block):
    """A block, and what it has at one scale beside that."""

    scales: dict[str, Block] = Field({}, description="what differs at one scale, by the scale's name")


class IncludedFile(ScaledBlock):
    """A file that studies and variants include: a method, or whatever they share."""

    title: str = Field("", description="of a method that is a column of the table of methods")


def read_included(path: Path) -> tuple[IncludedFile, Document]:
    """An included file. Raises SettingsError."""
    document = read(path)
    return parse_model(IncludedFile, document, lambda _: list(IncludedFile.model_fields)), document


@dataclass(frozen=True)
class Resolved:
    """Settings that passed every check, and the origin of each that is not a default."""

    settings: Settings
    origins: Mapping[str, str]


def resolve(layers: Iterable[Layer], blame: str = "", folder: Path | None = None) -> Resolved:
    """Merge layers, the last one winning, and check the result. ``blame`` opens the message of an error.

    Names of one's own parts are pinned to their sources, which are looked for beside the file that names them, in
    ``folder`` and in the current one.
    """
    merged: dict[str, Value] = {}
    for layer in layers:
        merged.update(layer)
    origins = {path: item.origin for path, item in merged.items()}
    try:
        merged |= {path: _pinned(path, merged, folder) for path in PLACES.keys() & merged.keys()}
        settings = validate(
            {path: item.value for path, item in merged.items()}, lambda path: origins.get(path, "default")
        )
    except SettingsError as error:
        raise SettingsError("\n".join(f"{blame}{line}" for line in str(error).splitlines())) from None
    return Resolved(settings, origins)


def _pinned(path: str, layer: Layer, folder: Path | None) -> Value:
    item = layer[path]
    if not is_own(item.value):
        return item
    arguments = f"{path.partition('.')[0]}.arguments."
    given = [name.removeprefix(arguments) for name in layer if name.startswith(arguments)]
    places = [place for place in (item.folder, folder, Path.cwd()) if place is not None]
    try:
        return replace(item, value=pin(path, item.value, places, given))
    except SettingsError as error:
        of = str(error).partition(":")[0]  # an argument that it does not take was perhaps written elsewhere
        raise SettingsError(f"{error}  [{layer.get(of, item).origin}]") from None


def layer_of(
    block: Block,
    document: Document,
    kind: str,
    scale: str | None,
    keys: tuple[str, ...] = (),
    including: tuple[Path, ...] = (),
) -> Layer:
    """The layer that a block, at ``keys`` of its document, describes at a scale.

    Its ``include`` files come first, its ``settings`` over them, and over these what its ``scales`` have for the scale.
    ``kind`` is the word for the place in an origin ("scale", "study", "variant"). Raises SettingsError for an include
    that leads back to itself, an unknown setting, and a setting that is written twice.
    """
    if document.path.resolve() not in including:
        including = (*including, document.path.resolve())
    layer: dict[str, Value] = {}
    for name in block.include if isinstance(block.include, tuple) else (block.include,):
        place = document.at(*keys, "include")
        file = document.path.parent / name
        if file.resolve() in including:
            chain = " -> ".join(step.name for step in (*including, file.resolve()))
            raise SettingsError(f"include: {chain} goes round in a circle  [{place}]")
        try:
            theirs, included = read_included(file)
        except SettingsError as error:
            raise SettingsError(f"include: {error}  [{place}]") from None
        layer.update(layer_of(theirs, included, kind, scale, (), including))
    own: dict[str, Value] = {}
    for path, names in _leaves(block.settings):
        origin = f"{kind}, {document.at(*keys, 'settings', *names)}"
        if path in own:
            raise SettingsError(f"{path}: is written twice (nested and dotted)  [{own[path].origin}; {origin}]")
        value: Any = block.settings
        for name in names:
            value = value[name]
        if wants_text(path):
            value = document.written.get((*keys, "settings", *names), value)
        own[path] = Value(value, origin, document.path.parent)
    check_paths(own)
    if "seed" in own:
        raise SettingsError(f"seed: is chosen with --seeds or `seeds:`, not in `settings:`  [{own['seed'].origin}]")
    layer.update(own)
    if isinstance(block, ScaledBlock) and scale in block.scales:
        at_scale = block.scales[scale]
        layer.update(layer_of(at_scale, document, f"{kind} at {scale}", None, (*keys, "scales", scale)))
    return layer


def _leaves(mapping: Mapping[str, Any], names: tuple[str, ...] = ()) -> Iterable[tuple[str, tuple[str, ...]]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*names, key))
        else:
            yield ".".join((*names, key)), (*names, key)


@cache
def wants_text(path: str) -> bool:
    """Whether a setting is a text: then ``010`` and ``null`` are texts too."""
    return isinstance(flatten(Settings()).get(path), str)


def check_paths(layer: Layer) -> None:
    """Refuse names that no setting has, even where another layer or another scale would hide them."""
    known = dotted_paths()
    wrong = [path for path in layer if path not in known and not is_argument(path)]
    if wrong:
        raise SettingsError("\n".join(f"{unknown(path)}  [{layer[path].origin}]" for path in wrong))


def layer_from_command_line(assignments: Iterable[str]) -> Layer:
    """The layer of ``--set dotted.path=value`` options."""
    layer: dict[str, Value] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        origin = f"--set {assignment}"
        if not equals or not path:
            raise SettingsError(f"{assignment!r} is not of the form dotted.path=value  [--set]")
        if path == "seed":
            raise SettingsError(f"seed: is chosen with --seeds (e.g. --seeds 5-5)  [{origin}]")
        layer[path] = Value(parse_value(text, origin, as_text=wants_text(path)), origin)
    check_paths(layer)
    return layer
