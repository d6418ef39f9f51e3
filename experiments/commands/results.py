"""Commands on the curves of runs: report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from experiments.console import make_console, make_table
from experiments.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    Data,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    plan_for,
    scale_named,
    studies_named,
)

if TYPE_CHECKING:
    from experiments.plan import Plan


def report(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where the report goes. Default: reports/STUDY/, or STUDY-SCALE for another scale."),
    ] = None,
) -> None:
    """Figure (PDF, SVG, PNG), table (Markdown, LaTeX, CSV) and page of a study; also while it is still running."""
    from experiments.study import default_scale

    for loaded in studies_named(study):
        chosen = scale_named(scale)
        # The report of another scale than this machine's own does not take the place of its own.
        name = loaded.name if chosen.name == default_scale() else f"{loaded.name}-{chosen.name}"
        where = out if out is not None and study != "all" else (out or Path("reports")) / name
        _report(plan_for([loaded], chosen, seeds, set_, runs, data), where)


def _report(made: Plan, out: Path) -> None:
    from analysis.report import ReportVariant
    from analysis.report import report as write_report
    from experiments.store import StoreError

    (study,) = made.studies
    if all(status.state == "pending" for status in made.statuses().values()):
        raise StoreError(f"{made.runs}: holds no run of {study.name} at scale {made.scale.name} to report on  [--runs]")
    first = {planned.cell.variant: planned for planned in reversed(made.cells)}
    seeds: dict[str, list[int]] = {}
    for planned in made.cells:
        seeds.setdefault(planned.cell.variant, []).append(planned.cell.seed)
    variants = [
        ReportVariant(
            name=variant.name,
            config_id=first[variant.name].config_id,
            paper=variant.paper,
            settings=first[variant.name].cell.settings,
            seeds=tuple(seeds[variant.name]),
        )
        for variant in study.variants
        if variant.name in first
    ]
    try:
        command = shlex.join(["run_ablation.py", *sys.argv[1:]])
        files = write_report(
            study, variants, made.runs, out, scale=made.scale.name, note=made.scale.note, command=command
        )
    except OSError as error:
        raise StoreError(f"{error.filename or out}: the report cannot be made ({error.strerror})") from None
    console = make_console()
    console.print(f"\n{files.answer}\n", highlight=False, markup=False)
    table = make_table(*files.table.headings())
    for row in files.table.lines():
        table.add_row(*row)
    console.print(table)
    for note in (*files.table.notes, *files.warnings):
        console.print(note, highlight=False, markup=False)
    console.print(f"\nPage: {files.page}", highlight=False, markup=False, soft_wrap=True)
