"""Commands that judge the runs of a study: report, verify."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from commands.console import Table, count, make_console, print_json, print_prose, say
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    AsJson,
    Data,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    archives,
    plan_for,
    require_runs,
    said_of_code,
    scale_named,
    studies_named,
)
from experiments.runs.states import ENDED
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    from analysis.report.one_study import ReportFiles
    from analysis.report.page import Live
    from analysis.report.shelf import Subject
    from analysis.verdicts.verdicts import Verdict
    from experiments.plan import Plan
    from experiments.studies.study import Scale, Study

WATCH_SECONDS = 30
Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help=f"Make it anew every {WATCH_SECONDS} s until all runs have ended; meanwhile the page reloads itself.",
    ),
]


def report(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where the report goes. Default: a folder of its own in reports/."),
    ] = None,
    markdown: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--markdown", metavar="FILE", help="Write tables and verdicts as one Markdown document, too."),
    ] = None,
    watch: Watch = False,
) -> None:
    """Verdicts, figures (PDF, SVG, PNG), table (Markdown, LaTeX, CSV) and page of a study; also while it is running.

    No report takes the place of another: scale, --set, --runs and the study's file are told apart by the folder's name.
    With `all`: a page for each study that ships, and an index page. With `paper`: the paper's tables in their own form,
    ours beside each number, on one page. With `--watch`: made anew until all runs have ended; Ctrl-C ends it before.
    """
    from analysis.report import shelf
    from analysis.report.all_studies import markdown as document
    from analysis.report.all_studies import write_index
    from experiments.runs.folder import StoreError
    from experiments.studies.study import default_scale, make_cells
    from simsiam.record.atomic_files import write_atomically

    chosen, whole, tables = scale_named(scale), study == "all", study == "paper"
    if markdown is not None:
        shelf.check_document(markdown)
    if tables and watch:
        raise SettingsError("watch: is not there for the paper's tables; `report all --watch` is  [--watch]")
    command = f"python {shlex.join(['run_ablation.py', *sys.argv[1:]])}"
    own_place = out is not None and not whole
    folder = out or Path("reports")
    usual = Path(os.environ.get("ABLATION_RUNS", DEFAULT_RUNS))
    other_scale = "" if chosen.name == default_scale() else chosen.name
    origin = archives.get(runs, runs)
    end = shelf.ending(other_scale, None if origin == usual else origin, set_ or ())
    index = folder / f"index{end}.html"

    def place(subject: shelf.Subject, name: str) -> Path:
        if own_place:
            shelf.check_free(subject, folder)
            return folder
        return shelf.folder_for(subject, folder / f"{name}{end}")

    if tables:
        subject = shelf.Subject(None, chosen.name, origin, tuple(set_ or ()))
        where = place(subject, "paper")
        _report_tables(subject, chosen, seeds, set_, runs, data, where, command, markdown)
        return None if own_place else _list_reports(folder)
    loaded = studies_named(study)
    wanted = dict[Path, shelf.Subject]()
    for each in loaded:
        sources = shelf.sources_of(make_cells(each, chosen, [0], set_ or ()))
        subject = shelf.Subject(each, chosen.name, origin, tuple(set_ or ()), sources)
        wanted[place(subject, each.name)] = subject

    def make(show: Callable[[ReportFiles], None], live: Live | None = None) -> list[ReportFiles]:
        plans = [plan_for([each], chosen, seeds, set_, runs, data) for each in loaded]
        require_runs(plans, "report on")
        files = []
        for (where, subject), made in zip(wanted.items(), plans, strict=True):
            files.append(_report(made, where, seeds, command, live))
            shelf.put(subject, where, files[-1].study.title, files[-1].runs, files[-1].verdicts)
            show(files[-1])
        if whole:
            write_index(files, chosen, command, index, live)
        if not own_place:
            shelf.write_list(folder)
        return files

    try:
        if watch:
            pages = [where / "index.html" for where in wanted]
            _watch(lambda live: make(lambda _: None, live), [index, *pages] if whole else pages)
        files = make(lambda made: _print_report(made, chosen.name, brief=whole))
        if whole:
            say(f"\nIndex: {index.absolute()}")
        if not own_place:
            _list_reports(folder)
        if markdown is not None:
            text = document(files, chosen, command)
            write_atomically(markdown, lambda file: file.write(text), aside=str(os.getpid()), mode="w")
            say(f"Document: {markdown.absolute()}")
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: the report cannot be made ({error.strerror})") from None


def _list_reports(folder: Path) -> None:
    from analysis.report import shelf

    if (page := shelf.write_list(folder)) is not None:
        say(f"All reports: {page.absolute()}")


def _report_tables(
    subject: Subject,
    scale: Scale,
    seeds: str | None,
    overrides: list[str] | None,
    runs: Path,
    data: Path,
    folder: Path,
    command: str,
    markdown: Path | None,
) -> None:
    from analysis.report import paper_tables, shelf
    from analysis.report.in_words import no_results
    from analysis.report.one_study import gather, report_variants
    from experiments.runs.folder import StoreError
    from experiments.studies.study import load_study, seeds_from_text

    plans = [plan_for([load_study(name)], scale, seeds, overrides, runs, data) for name in paper_tables.studies()]
    require_runs(plans, "report on")
    asked = None if seeds is None else seeds_from_text(seeds)
    results = {}
    for made in plans:
        (study,) = made.studies
        results[study.name] = paper_tables.StudyResults(study, gather(report_variants(study, made, asked), runs)[1])
    images = (str(name) for each in results.values() for name in each.runs["data.name"])
    try:
        page = paper_tables.write(
            results, scale, folder, command=command, no_results=no_results(scale.name, images), markdown=markdown
        )
        shelf.put(subject, folder, paper_tables.TITLE, paper_tables.runs_of(results))
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: the report cannot be made ({error.strerror})") from None
    for path in (page, *([markdown] if markdown else [])):
        say(f"{'Page' if path == page else 'Document'}: {path.absolute()}")


def _watch(make: Callable[[Live], list[ReportFiles]], pages: list[Path]) -> None:
    """Make the report again and again until all runs have ended. However that ends, no page goes on reloading."""
    from analysis.report.page import Live, make_still
    from experiments.local.grid import STOPPING

    stopped = threading.Event()  # an exception in the middle of a drawing could be lost in what draws
    for number in STOPPING:  # a closed terminal and a kill end it like Ctrl-C
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: stopped.set())
    told = False
    try:
        while True:
            files = make(Live(WATCH_SECONDS, time.strftime("%Y-%m-%d %H:%M:%S")))
            if not told:
                told = True
                say(f"Watching. The page reloads itself: {pages[0].absolute()}")
            states = {
                run: state for each in files for run, state in zip(each.runs["run"], each.runs["state"], strict=True)
            }
            counts = ", ".join(f"{num} {state}" for state, num in sorted(Counter(states.values()).items()))
            say(f"{time.strftime('%H:%M:%S')}  {count(len(states), 'run')}: {counts}")
            if set(states.values()) <= set(ENDED):
                return
            if stopped.wait(WATCH_SECONDS):
                raise KeyboardInterrupt
    finally:
        for page in pages:
            make_still(page)


def _report(made: Plan, out: Path, seeds: str | None, command: str, live: Live | None) -> ReportFiles:
    from analysis.report.one_study import report as write_report
    from analysis.report.one_study import report_variants
    from experiments.studies.study import seeds_from_text

    (study,) = made.studies
    variants = report_variants(study, made, None if seeds is None else seeds_from_text(seeds))
    return write_report(
        study,
        variants,
        made.runs,
        out,
        scale=made.scale.name,
        note=made.scale.note,
        of_code=said_of_code(made),
        command=command,
        live=live,
        linked=made.runs not in archives,
    )


def _print_report(files: ReportFiles, scale: str, *, brief: bool) -> None:
    from analysis.report.all_studies import in_words
    from analysis.report.in_words import no_results

    console = make_console()
    if brief:
        ended = int((files.runs["state"] == "done").sum())
        console.print(
            f"{files.study.title}: {count(ended, 'run')} of {len(files.runs)} ended. {in_words(files.verdicts)}"
        )
        return
    for text in dict.fromkeys((files.answer, files.numbers)):
        console.print()
        print_prose(console, text)
    console.print()
    if reason := no_results(scale, (str(name) for name in files.runs["data.name"])):
        print_prose(console, f"These are no results. {reason}")
        console.print()
    for verdict in files.verdicts:
        print_prose(console, f"{verdict.label}: {verdict.claim.says} {verdict.conclusion}".rstrip())
    headings = files.table.headings()
    optional = [name for name in reversed(headings[1:]) if not name.startswith(("Ours", "outcome", "difference"))]
    table = Table(*headings, optional=optional)
    for row in files.table.lines():
        table.add_row(*row)
    console.print(table)
    for note in (*files.table.notes, *files.warnings):
        console.print(note)
    console.print(f"\nPage: {files.page}", soft_wrap=True)


def verify(
    study: StudyName = "all",
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on what is undecided, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the claims of a study, or of all: supported, contradicted or undecided, with the numbers.

    Exit code 0 if no claim is contradicted, 1 if one is, or if there is no run to check; with --strict also 1 if a
    claim is undecided.
    """
    from analysis.report.all_studies import in_words
    from analysis.report.one_study import gather, report_variants
    from analysis.verdicts.family import family
    from analysis.verdicts.verdicts import as_json as plain
    from analysis.verdicts.verdicts import verdicts
    from experiments.studies.study import seeds_from_text, study_names

    chosen = scale_named(scale)
    asked = None if seeds is None else seeds_from_text(seeds)
    found: list[tuple[Study, list[Verdict]]] = []
    plans = [plan_for([loaded], chosen, seeds, set_, runs, data) for loaded in studies_named(study)]
    require_runs(plans, "check claims on")
    for made in plans:
        (loaded,) = made.studies
        points, frame = gather(report_variants(loaded, made, asked), runs)
        found.append((loaded, verdicts(loaded.claims, points, frame, chosen.name, loaded.design, loaded.name)))
    everything = [verdict for _, of_study in found for verdict in of_study]
    # One study of the paper is no family: its claims were made together with all others.
    whole = None if study in study_names() else family(everything)
    if as_json:
        content: dict[str, Any] = {
            loaded.name: [{**plain(verdict), "adjusted": whole and whole.of(verdict)} for verdict in of_study]
            for loaded, of_study in found
        }
        print_json({"scale": chosen.name, "family": whole and whole.as_json(), "studies": content})
    else:
        for loaded, of_study in found:
            _print_verdicts(loaded, of_study)
        say(" ".join([in_words(everything), *(whole.sentences if whole else [])]))
    outcomes = {verdict.outcome for verdict in everything}
    if "contradicted" in outcomes or (strict and "undecided" in outcomes):
        sys.exit(FAILURE)


def _print_verdicts(study: Study, verdicts: list[Verdict]) -> None:
    from analysis.report.page import kinds

    console = make_console()
    console.print(f"{study.name}: {study.title}{f' ({study.where})' if study.where else ''}", style="bold")
    for verdict in verdicts:
        where = f" ({verdict.claim.where})" if verdict.claim.where else ""
        print_prose(console, f"  {verdict.label.upper()}  {verdict.claim.says}{where}")
        for text in (verdict.reading, *verdict.notes, verdict.conclusion):
            if text:
                print_prose(console, f"      {text}")
    for sentence in kinds(verdicts):
        print_prose(console, f"  {sentence}")
    console.print("" if verdicts else "  No claims are made.\n")
