"""YAML files whose values remember the line they came from, so that a message about a wrong one can name it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simsiam.errors import SettingsError, nearest
from simsiam.settings.fields import Settings

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and numbers: ``on`` and ``no`` are texts, ``1e-4`` is a number.

    Keys are names: texts, as they were written (``0.10`` is not ``0.1``).
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
        return super().construct_mapping(node, deep=deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"^[-+]?[0-9]{1,300}$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(node.value))  # 010 is ten


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts which either version of YAML reads as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeLoader.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in yaml.SafeLoader.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
}

# What YAML's constructors raise for a value that is not of its explicit tag, or that is nested beyond reason.
_UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError)
_MAX_NODES = 100_000  # in a document, aliases counted each time


@dataclass(frozen=True)
class Document:
    """A YAML mapping and, for each path of keys in it, the line that sets it."""

    path: Path
    content: dict[str, Any]
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    written: dict[tuple[str, ...], str] = field(default_factory=dict)  # what stands there for what is not a text

    def at(self, *keys: str) -> str:
        """``file:line`` of a value, or of the nearest thing around it that has a line."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines[keys]}" if keys in self.lines else str(self.path)


# pydantic's words for these are Python's, not YAML's.
WANTED = dict.fromkeys(("model_type", "dict_type"), "a mapping is wanted") | {"tuple_type": "a list is wanted"}


def parse_model(
    kind: type[Model],
    document: Document,
    known_keys: Callable[[tuple[str, ...]], list[str]],
    keys: tuple[str, ...] = (),
) -> Model:
    """A document, or the part of it at ``keys``, as a model.

    Where the model wants a text, a number is the text that was written: ``partition: 010``, ``baseline: 0.10``.
    Raises SettingsError: pydantic's findings as lines with the key, the value, what is allowed, file:line.
    ``known_keys`` says which keys there are at a place, for the nearest one to a misspelt one.
    """
    content = _part(document, keys)
    try:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            texts: dict[tuple[str, ...], str] = {}
            for item in error.errors():
                found = tuple(str(part) for part in item["loc"]) if item["type"] == "string_type" else ()
                while found and keys + found not in document.written:  # a branch of a union, the only one of a list
                    found = found[:-1]
                if found and item["input"] is not None:
                    texts[found] = document.written[keys + found]
            return kind.model_validate(_replaced(content, texts))
    except ValidationError as error:
        problems: dict[tuple[str, ...], str] = {}
        errors = error.errors()
        # A list all of whose items are wrong is not too short beside.
        errors = [one for one in errors if one["type"] != "too_short" or not _is_about(one, errors)]
        for item in errors:
            found = (*keys, *(str(part) for part in item["loc"]))
            missing = found[-1:] if item["type"] == "missing" else ()  # it has no line
            found = found[: len(found) - len(missing)]
            while found and found not in document.lines and len(found) > len(keys) + 1:  # a branch of a union
                found = found[:-1]
            found += missing
            if item["type"] == "extra_forbidden":
                known = known_keys(found[:-1])
                hint = nearest(found[-1], known)
                if "settings" in known and found[-1].partition(".")[0] in Settings.model_fields:
                    hint = "; settings stand under 'settings:'"
                problem = f"no such key{hint} (known here: {', '.join(known)})"
            elif missing:
                problem = "is missing"
            else:
                text = WANTED.get(item["type"], item["msg"].removeprefix("Value error, "))
                problem = f"{item['input']!r} is not allowed: {text[0].lower()}{text[1:]}"
            problems.setdefault(found, f"{'.'.join(found)}: {problem}  [{document.at(*found)}]")
        raise SettingsError("\n".join(problems.values())) from None


def _is_about(error: ErrorDetails, others: Sequence[ErrorDetails]) -> bool:
    """Whether another of pydantic's findings is on a part of what this one is on."""
    place = error["loc"]
    return any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in others)


def parse_kind(kinds: Mapping[str, type[Model]], document: Document, keys: tuple[str, ...], *, what: str) -> Model:
    """The part of a document at ``keys`` as the model that its key ``kind`` names. Raises SettingsError.

    ``what`` a kind is of, for the message about one that there is not.
    """
    kind, known = _part(document, keys).get("kind"), list(kinds)
    if kind not in known:
        problem = "is missing" if kind is None else f"{kind!r} is not a kind of {what}{nearest(str(kind), known)}"
        raise SettingsError(f"{'.'.join(keys)}.kind: {problem} (known: {', '.join(known)})  [{document.at(*keys)}]")
    model = kinds[kind]
    return parse_model(model, document, lambda _: list(model.model_fields), keys)


def _part(document: Document, keys: tuple[str, ...]) -> Any:
    content: Any = document.content
    for key in keys:
        content = content[int(key)] if isinstance(content, tuple) else content[key]
    return content


def _replaced(content: Any, texts: Mapping[tuple[str, ...], str], keys: tuple[str, ...] = ()) -> Any:
    if keys in texts:
        return texts[keys]
    if isinstance(content, dict):
        return {key: _replaced(value, texts, (*keys, key)) for key, value in content.items()}
    if isinstance(content, tuple):
        return tuple(_replaced(value, texts, (*keys, str(index))) for index, value in enumerate(content))
    return content


def parse_value(text: str, origin: str, *, as_text: bool = False) -> Any:
    """A value as written on the command line: ``0.05``, ``true``, ``[0.2, 1]``, ``null``, a text.

    ``as_text``: whatever stands there is a text, ``010`` too, also in a list.
    """
    try:
        return _tuples(yaml.load(text, yaml.BaseLoader if as_text else _Loader))
    except _UNREADABLE:
        raise SettingsError(
            f"{text[:60]!r} is not a value in YAML's notation (0.05, true, [0.2, 1.0], text)  [{origin}]"
        ) from None


def read(path: Path) -> Document:
    """Read a YAML mapping. Raises SettingsError, with the line, for anything that is not one."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SettingsError(f"{path}: is not a regular file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; a YAML file is wanted") from None
    except SettingsError:
        raise
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not a text file in UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise SettingsError(f"{str(path)!r}: is not the name of a file") from None
    return _parse(path, text)


def dump(content: Mapping[str, Any]) -> str:
    """A mapping as YAML that :func:`read` gives back, with quotes about every text that would look like a number."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


@lru_cache(maxsize=256)
def _parse(path: Path, text: str) -> Document:
    """What a text holds; nobody changes it. Cached, since studies share methods, and parsing takes milliseconds."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise SettingsError(f"{path}: is empty; a YAML mapping (key: value) is wanted")
        if not isinstance(node, yaml.MappingNode):
            raise SettingsError(f"{path}:{node.start_mark.line + 1}: a YAML mapping (key: value) is wanted at the top")
        lines: dict[tuple[str, ...], int] = {}
        for count, (keys, line) in enumerate(_walk(node, (), path)):
            if count > _MAX_NODES:
                raise SettingsError(f"{path}: has more than {_MAX_NODES:,} values (aliases within aliases?)")
            lines.setdefault(keys, line)
        content = loader.construct_document(node)
        written = dict(_written(node, ()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise SettingsError(f"{path}{where}: {problem}") from None
    except SettingsError:
        raise
    except _UNREADABLE as error:  # what YAML's own types cannot hold, or nested beyond reason
        raise SettingsError(f"{path}: is not YAML that can be read ({type(error).__name__})") from None
    finally:
        loader.dispose()
    return Document(path, _tuples(content), lines, written)


def _walk(node: yaml.Node, keys: tuple[str, ...], path: Path, depth: int = 0) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line of each key; refuses a key that is set twice, which YAML would silently let the last one win."""
    if depth > 20:
        raise SettingsError(f"{path}:{node.start_mark.line + 1}: nested too deeply (an alias that contains itself?)")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*keys, str(index)), item.start_mark.line + 1
            yield from _walk(item, (*keys, str(index)), path, depth + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise SettingsError(
                f"{path}:{line}: {'.'.join((*keys, name))} is set a second time (first on line {seen[name]})"
            )
        seen[name] = line
        yield (*keys, name), line
        yield from _walk(value, (*keys, name), path, depth + 1)


def _written(node: yaml.Node, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What stands in the file for each number, boolean and null. The document is constructed: no ``<<`` is left."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _written(item, (*keys, str(index)))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _written(value, (*keys, str(key.value)))
    elif node.tag != f"{_TAG}str":
        yield keys, node.value


def _tuples(value: Any) -> Any:
    """Lists become tuples, so that settings can be frozen and compared."""
    if isinstance(value, dict):
        return {str(key): _tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(inner) for inner in value)
    return value
