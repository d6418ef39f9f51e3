"""JSON Schemas of the YAML files, for editors: what may stand where, its meaning, its default, its choices.

They are made from the models that read the files, and accept whatever those accept; what only a loaded study can tell
(a variant that there is not, ``near`` without ``within``) is left to them. The ones in ``schemas/`` are published with
the program, and a test holds them current. The dialect is draft 7, which every editor knows. This module imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from experiments.slurm.profile import Profile
from experiments.studies import claims, figures
from experiments.studies.layers import IncludedFile
from experiments.studies.study import ScaleFile, StudyFile
from simsiam.settings.fields import Settings, default_values, dotted_paths, sections

FOLDER = Path(__file__).parent / "schemas"
FILES: dict[str, type[BaseModel]] = {
    "study": StudyFile,
    "scale": ScaleFile,
    "method": IncludedFile,
    "cluster": Profile,
}
TITLES = {
    "study": "A study: variants to compare, and what the runs should show",
    "scale": "A scale: the size at which studies are run",
    "method": "A block of settings that studies and variants include, such as a method",
    "cluster": "A profile of a SLURM cluster",
}
Schema = dict[str, Any]
ARGUMENT: Schema = {"type": ["boolean", "number", "string", "null"]}
NAME = r"[A-Za-z_]\w*"


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"non-serializable-default"}  # noqa: RUF012 - pydantic's own name; of FrozenDict


def schema_text(kind: str) -> str:
    """The schema of one of the :data:`FILES` as its file holds it."""
    return json.dumps(schema(kind), indent=1, ensure_ascii=False) + "\n"


def schema(kind: str) -> Schema:
    """The schema of one of the :data:`FILES`."""
    made = _of(FILES[kind])
    definitions = made.pop("definitions", {})
    if kind != "cluster":
        definitions["settings"] = _settings()
    if kind == "study":
        definitions["claim"] = _of(claims.ClaimFile)
        definitions["claim"]["properties"]["checks"]["items"] = {"anyOf": [*_kinds(claims.KINDS.values())]}
        made["properties"]["claims"]["additionalProperties"] = {"$ref": "#/definitions/claim"}
        made["properties"]["figures"]["items"] = {"anyOf": [*_kinds(figures.KINDS.values())]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": TITLES[kind],
        **made,
        **({"definitions": definitions} if definitions else {}),
    }


def _of(model: type[BaseModel]) -> Schema:
    tidied: Schema = _tidy(model.model_json_schema(ref_template="#/definitions/{model}", schema_generator=_Generator))
    for part in (tidied, *tidied.get("definitions", {}).values()):
        if "properties" in part:
            part["properties"] |= _known_only_in_code(part["properties"])
    return tidied


def _kinds(models: Iterable[type[BaseModel]]) -> Iterable[Schema]:
    for model in models:
        made = _of(model)
        yield {**made, "required": sorted({*made.get("required", ()), "kind"})}  # also where a kind is the default


def _tidy(node: Any) -> Any:
    """Pydantic's schema in draft 7, without what differs between its versions, and with our rule of texts."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidied: Schema = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            tidied["definitions" if key == "$defs" else key] = {name: _tidy(inner) for name, inner in value.items()}
        elif key == "prefixItems":  # of a pair; both are alike
            tidied["items"] = _tidy(value[0])
        elif key in ("default", "enum", "const", "required"):
            tidied[key] = value
        elif key != "title":
            tidied[key] = _tidy(value)
    if "const" in tidied:
        tidied.pop("enum", None)
    if tidied.get("type") == "string" and not tidied.keys() & {"enum", "const", "pattern"}:
        tidied["type"] = ["string", "number", "boolean"]  # a text is what was written: 010, 0.10, true
    return tidied


def _settings() -> Schema:
    """Settings nested, dotted or both: ``optimizer: {lr: 0.05}`` and ``optimizer.lr: 0.05``."""
    whole = _of(Settings)["properties"]
    properties: Schema = {name: whole[name] for name in whole if name not in sections() and name != "seed"}
    arguments: Schema = {}
    for section, kind in sections().items():
        made = _of(kind)
        place = f"#/definitions/settings/properties/{section}/properties"
        if "arguments" in kind.model_fields:
            made["patternProperties"] = {rf"^arguments\.{NAME}$": ARGUMENT}
            arguments[rf"^{section}\.arguments\.{NAME}$"] = ARGUMENT
        properties[section] = made
        properties |= {f"{section}.{leaf}": {"$ref": f"{place}/{leaf}"} for leaf in kind.model_fields}
    return {
        "description": "settings, nested or dotted",
        "type": "object",
        "properties": properties,
        "patternProperties": arguments,
        "additionalProperties": False,
    }


def _known_only_in_code(properties: Mapping[str, Any]) -> Schema:
    """What the models leave to code that runs after them: names of scales and of settings, notations of SLURM."""
    paths = [path for path in dotted_paths() if path != "seed"]
    numeric = [p for p, value in default_values().items() if type(value) in (int, float)]
    scales = list(claims.SCALES)
    found: Schema = {}
    for key, given in properties.items():
        if key == "settings":
            found[key] = {"$ref": "#/definitions/settings"}
        elif key == "scales" and "additionalProperties" in given:
            block = given["additionalProperties"]
            found[key] = {**given, "properties": dict.fromkeys(scales, block), "additionalProperties": False}
        elif key == "only":
            found[key] = {**given, "items": {"enum": scales}}
        elif key == "seeds":
            single, by_scale = given["anyOf"]
            number = by_scale["additionalProperties"]
            named = {"type": "object", "properties": dict.fromkeys(scales, number), "additionalProperties": False}
            found[key] = {**given, "anyOf": [single, named]}
        elif key in ("derived", "grid"):
            value = {"type": "string"} if key == "derived" else {"type": "array", "minItems": 1}
            found[key] = {
                **given,
                "properties": dict.fromkeys(paths, value),
                "patternProperties": {rf"^{NAME}\.arguments\.{NAME}$": value},
                "additionalProperties": False,
            }
        elif key == "setting":
            found[key] = {"enum": numeric}
        elif key == "time_limit":  # minutes, or SLURM's notation
            found[key] = {"type": ["integer", "string"], "default": given["default"]}
        elif key == "memory":
            found[key] = {"type": ["string", "null"], "pattern": r"^\d+[KMGT]$", "default": None}
    return found
