"""Commands on the folder of runs: gc frees disk, archive and unpack carry runs elsewhere."""

from __future__ import annotations

from pathlib import Path
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


def archive(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.xz", help="What is written; it must not exist.")],
    runs: Runs = DEFAULT_RUNS,
    with_embeddings: Annotated[
        bool, typer.Option("--with-embeddings", help="Also z of 1,000 images a run, which maps are drawn from.")
    ] = False,
) -> None:
    """Pack all ended runs into one small file, without checkpoints: curves, results, settings, provenance.

    Commands that read runs take it in place of their folder: `report all --runs FILE.tar.xz`.
    """
    from experiments.runs.archive import pack

    made = pack(runs, file, with_embeddings=with_embeddings)
    left_out = f"; {count(made.left_out, 'run')} left out, not ended" if made.left_out else ""
    say(f"{file}: {count(made.num_runs, 'run')}, {made.bytes / 1e6:.1f} MB{left_out}.")


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.xz", help="An archive of runs.")],
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """Write the runs of an archive into the folder of runs, where they count as done; what is there is kept."""
    from experiments.runs.archive import unpack as write

    made = write(file, runs)
    there = f"; {len(made.kept)} were there already" if made.kept else ""
    say(f"{runs}/: {count(len(made.written), 'run')} written of {file}{there}.")
    for run in made.in_the_way:
        say(f"{runs / run} is there without a result, and was left alone: this run was not written.")
