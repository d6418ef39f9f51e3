"""The pages of the site that are made: the reference from models and docstrings, and the notebook.

mkdocs calls ``on_files`` before it reads the pages.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from simsiam.settings.fields import OWN_NAME  # noqa: E402 - from this checkout

NOTEBOOK = "tutorials/figure-for-a-paper"
API = (
    "analysis.frames.load.load_runs",
    "analysis.figures.training.plot_training",
    "analysis.figures.sweep.plot_sweep",
    "analysis.figures.linear.plot_linear",
    "analysis.figures.spectrum.plot_spectra",
    "analysis.figures.map.plot_map",
    "simsiam.model.siamese.Siamese",
    "experiments.studies.study.load_study",
    "experiments.plan.make_plan",
)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name other things by Sphinx's roles, which Markdown does not know."""
    return re.sub(r":(?:data|func|mod|class|meth|attr):(?=<code>)", "", html)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made to the pages that are written."""
    made = {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/study-files.md": study_files(),
        "reference/profile.md": profile(),
        "reference/metrics.md": metrics(),
        "reference/api.md": api(),
        f"{NOTEBOOK}.md": notebook(Path(config.docs_dir) / f"{NOTEBOOK}.ipynb"),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def cell(text: object) -> str:
    """A text as a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def code(value: object) -> str:
    return f"`{cell(value)}`"


def table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *body)) + "\n"


def allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name.strip('_').lower()}](#{name.strip('_').lower()})" if name in definitions else name
    if "enum" in schema:
        return ", ".join(code(choice) for choice in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(allowed(inner, definitions) for inner in schema["anyOf"]))
    kind = schema.get("type", "any")
    if kind == ["string", "number", "boolean"]:
        kind = "text"
    if kind == "array":
        return f"list of {allowed(schema.get('items', {}), definitions)}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " ".join(f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema)
    word = " or ".join(kind) if isinstance(kind, list) else {"object": "mapping", "string": "text"}.get(kind, kind)
    if "pattern" in schema:
        own = schema["pattern"] == OWN_NAME
        return "[one's own](../own-parts.md): `module:name`" if own else f"text like {code(schema['pattern'])}"
    return f"{word} {bounds}".strip()


def keys(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The keys of an object as a table."""
    required = schema.get("required", ())
    rows = [
        (
            code(name),
            "wanted" if name in required else code(json.dumps(inner["default"])) if "default" in inner else "",
            allowed(inner, definitions),
            cell(inner.get("description", "")),
        )
        for name, inner in schema["properties"].items()
    ]
    return table(("key", "default", "allowed", "meaning"), *rows)


def settings() -> str:
    """Every setting, by section, from the models."""
    from experiments.schema import schema
    from simsiam.settings.fields import sections

    properties = schema("method")["definitions"]["settings"]["properties"]
    single = {name: inner for name, inner in properties.items() if "." not in name and name not in sections()}
    parts = [
        "# Settings\n",
        "Made from the models in `simsiam/settings/fields.py`. `show-config STUDY` prints the value of each in a cell,"
        " and where it came from. Defaults are the paper's ImageNet baseline.\n",
        keys({"properties": single}, {}),
    ]
    for name in sections():
        parts += [f"## {name}\n", f"{properties[name]['description']}\n", keys(properties[name], {})]
    return "\n".join(parts)


def study_files() -> str:
    """The keys of a study's file, its claims and its figures."""
    from experiments.schema import schema

    whole = schema("study")
    definitions = whole["definitions"]
    parts = [
        "# Study files\n",
        "Made from the models that read them. What a claim is: [claims and verdicts](../claims.md); what the figures"
        " show: [figures](../figures.md); the settings: [settings](settings.md).\n",
        keys(whole, definitions),
    ]
    for name in ("settings", "_Variant", "PaperResult", "Block", "claim"):
        title = name.strip("_").lower()
        body = "See [settings](settings.md).\n" if name == "settings" else keys(definitions[name], definitions)
        parts += [f"## {title}\n", body]
    for title, items in (
        ("Checks of a claim", definitions["claim"]["properties"]["checks"]["items"]["anyOf"]),
        ("Figures", whole["properties"]["figures"]["items"]["anyOf"]),
    ):
        parts.append(f"## {title}\n")
        for inner in items:
            parts += [f"### {inner['properties']['kind']['const']}\n", f"{inner['description']}\n", keys(inner, {})]
    return "\n".join(parts)


def profile() -> str:
    """The keys of a cluster profile."""
    from experiments.schema import schema

    whole = schema("cluster")
    definitions = whole.get("definitions", {})
    parts = ["# Cluster profiles\n", "What each key does: [on a SLURM cluster](../cluster.md#a-profile).\n"]
    parts.append(keys(whole, definitions))
    for name, inner in definitions.items():
        parts += [f"## {name.strip('_').lower()}\n", keys(inner, definitions) if "properties" in inner else ""]
    return "\n".join(parts)


def metrics() -> str:
    """Every metric of the catalogue."""
    from simsiam.record.catalogue import CATALOGUE

    rows = [
        (
            code(metric.name),
            cell(metric.title),
            cell(metric.unit),
            f"{metric.low:g} to {metric.high:g}".replace("inf", "∞"),
            "yes" if metric.in_claims else "",
            cell(" ".join(filter(None, (metric.definition, metric.source and f"({metric.source})")))),
        )
        for metric in CATALOGUE
    ]
    head = ("name", "what", "unit", "range", "in claims", "what it says")
    text = "Made from `simsiam/record/catalogue.py`. When each is logged: [a run's points](../run-folder.md#points).\n"
    return f"# Metrics\n\n{text}\n{table(head, *rows)}"


def commands() -> str:
    """What ``--help`` says of each command."""
    from typer.testing import CliRunner

    from commands.app import app

    os.environ["COLUMNS"] = "100"
    runner = CliRunner()
    names = [
        command.name or command.callback.__name__.strip("_").replace("_", "-") for command in app.registered_commands
    ]
    groups = {
        group.name: [command.name for command in group.typer_instance.registered_commands]
        for group in app.registered_groups
    }
    calls: list[tuple[str, ...]] = [(name,) for name in names]
    calls += [(str(group), str(name)) for group, inner in groups.items() for name in inner]
    parts = ["# Commands\n", "As `run-ablation COMMAND --help` prints them.\n"]
    for call in calls:
        shown = runner.invoke(app, [*call, "--help"], prog_name="run-ablation").output.strip("\n")
        parts += [f"## {' '.join(call)}\n", f"```text\n{shown}\n```\n"]
    return "\n".join(parts)


def api() -> str:
    """The functions that a notebook or a script may call."""
    parts = [
        "# From Python\n",
        "From the docstrings. `from analysis import load_runs, plot_training` is where to begin.\n",
    ]
    return "\n".join([*parts, *(f"::: {name}\n" for name in API)])


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, and its code in fences."""
    return "\n\n".join(_cells(json.loads(path.read_text(encoding="utf-8"))))


def _cells(content: Mapping[str, Any]) -> Iterator[str]:
    for part in content["cells"]:
        source = "".join(part["source"])
        yield source if part["cell_type"] == "markdown" else f"```python\n{source}\n```"
