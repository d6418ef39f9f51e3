"""How the commands print: tables, JSON, numbers as a person says them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    """A console that takes no name for markup, and whose tables keep their lines whole in a pipe."""
    from rich.console import Console

    width = None if Console().is_terminal else 200
    return Console(width=width, markup=False, highlight=False, emoji=False)  # names are the user's: [red] is no colour


def make_table(*headings: str) -> Any:
    """A plain table; a heading that ends in > is of a column of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.rstrip(">"), justify="right" if heading.endswith(">") else "left", overflow="fold")
    return table


def say(message: str) -> None:
    """Print now, even into a pipe."""
    print(message, flush=True)


def print_json(value: Any) -> None:
    """For scripts."""
    print(json.dumps(value, indent=1))


def count(number: int, noun: str) -> str:
    """``1 run``, ``3,200 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def about(seconds: float) -> str:
    """A time in the unit in which a person would say it."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
