"""The command that frees disk: gc."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.console import count, say
from commands.options import DEFAULT_RUNS, Runs


def gc(
    runs: Runs = DEFAULT_RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Free what only further training of ended runs would need, and the code of ended launches; asks first.

    Results, curves and weights stay: `report`, `evaluate` and `export` work as before.
    """
    from experiments.garbage import find

    found = find(runs)
    if not found:
        return say(f"{runs}/: nothing can be freed.")
    kinds = dict.fromkeys(item.what for item in found)
    for kind in kinds:
        alike = [item for item in found if item.what == kind]
        say(f"{kind}: {count(len(alike), 'folder')}, {sum(item.bytes for item in alike) / 1e6:,.1f} MB")
    if not yes and not typer.confirm("Free them?"):
        return say("Nothing was freed.")
    for item in found:
        item.free()
    say(f"{sum(item.bytes for item in found) / 1e6:,.1f} MB freed in {runs}/.")
