"""Commands on the curves of runs: report."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from experiments.console import count, make_console, make_table, say
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
    require_runs,
    scale_named,
    studies_named,
)

if TYPE_CHECKING:
    from analysis.report import ReportFiles
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
    markdown: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--markdown", metavar="FILE", help="Write tables and verdicts as one Markdown document, too."),
    ] = None,
) -> None:
    """Verdicts, figure (PDF, SVG, PNG), table (Markdown, LaTeX, CSV) and page of a study; also while it is running.

    With `all`: a page for each study that ships, and an index page.
    """
    from analysis.overview import markdown as document
    from analysis.overview import write_index
    from experiments.store import StoreError
    from experiments.study import default_scale
    from simsiam.files import write_atomically

    chosen, whole = scale_named(scale), study == "all"
    plans = [plan_for([loaded], chosen, seeds, set_, runs, data) for loaded in studies_named(study)]
    require_runs(plans, "report on")
    command = f"python {shlex.join(['run_ablation.py', *sys.argv[1:]])}"
    # The report of another scale than this machine's own does not take the place of its own.
    end = "" if chosen.name == default_scale() else f"-{chosen.name}"
    folder = out or Path("reports")
    files = []
    try:
        for made in plans:
            where = out if out is not None and not whole else folder / f"{made.studies[0].name}{end}"
            files.append(_report(made, where, seeds, command))
            _print_report(files[-1], brief=whole)
        if whole:
            write_index(files, chosen, command, folder / f"index{end}.html")
            say(f"\nIndex: {(folder / f'index{end}.html').absolute()}")
        if markdown is not None:
            text = document(files, chosen, command)
            write_atomically(markdown, lambda file: file.write(text), aside=str(os.getpid()), mode="w")
            say(f"Document: {markdown.absolute()}")
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: the report cannot be made ({error.strerror})") from None


def _report(made: Plan, out: Path, seeds: str | None, command: str) -> ReportFiles:
    from analysis.report import report as write_report
    from analysis.report import report_variants
    from experiments.study import seeds_from_text

    (study,) = made.studies
    variants = report_variants(study, made, None if seeds is None else seeds_from_text(seeds))
    return write_report(study, variants, made.runs, out, scale=made.scale.name, note=made.scale.note, command=command)


def _print_report(files: ReportFiles, *, brief: bool) -> None:
    from analysis.overview import in_words

    console = make_console()
    if brief:
        ended = int((files.runs["state"] == "done").sum())
        console.print(
            f"{files.study.title}: {count(ended, 'run')} of {len(files.runs)} ended. {in_words(files.verdicts)}"
        )
        return
    console.print(f"\n{files.answer}\n")
    for verdict in files.verdicts:
        console.print(f"{verdict.label}: {verdict.claim.says} {verdict.conclusion}".rstrip(), soft_wrap=True)
    table = make_table(*files.table.headings())
    for row in files.table.lines():
        table.add_row(*row)
    console.print(table)
    for note in (*files.table.notes, *files.warnings):
        console.print(note)
    console.print(f"\nPage: {files.page}", soft_wrap=True)
