"""The JSON Schemas of the YAML files, for editors: schema."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.integrations import completion
from simsiam.errors import SettingsError, nearest

KINDS = ("study", "scale", "method", "cluster")


def schema(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="study, scale, method or cluster.", autocompletion=completion.one_of(*KINDS)
        ),
    ],
) -> None:
    """Print the JSON Schema of a kind of YAML file, by which an editor completes, explains and checks it.

    An editor with a YAML language server takes it from the file's first line:

    # yaml-language-server: $schema=study.json
    """
    from experiments.schema import schema_text

    if kind not in KINDS:
        raise SettingsError(f"kind: {kind!r} is not one of {', '.join(KINDS)}{nearest(kind, list(KINDS))}  [schema]")
    print(schema_text(kind), end="")
