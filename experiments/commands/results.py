"""Commands on finished runs: report, evaluate, export."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from experiments.console import count, make_console, make_table, print_json, say
from experiments.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    AsJson,
    Data,
    Device,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    device_named,
    plan_for,
    require_runs,
    scale_named,
    studies_named,
)
from simsiam.config import SettingsError

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


def evaluate(
    study: StudyName,
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--protocol", help="paper, sgd or features. Default: paper at imagenet scale, else features."),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Linear evaluation of every run of a study that has ended; none is trained anew.

    paper: LARS, batch 4096, 90 epochs, augmented crops (App. A). sgd: its alternative. features: a linear classifier
    on features that are computed once; seconds at small scales.
    """
    import torch

    from experiments.evaluation import evaluate_run
    from experiments.store import RunFolder
    from simsiam.config import nearest
    from simsiam.data import load
    from simsiam.linear import PROTOCOLS

    chosen_scale = scale_named(scale)
    name = protocol if protocol is not None else ("paper" if chosen_scale.name == "imagenet" else "features")
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SettingsError(f"protocol: {name!r} is not one of {known}{nearest(name, list(PROTOCOLS))}  [--protocol]")
    made = plan_for(studies_named(study), chosen_scale, seeds, set_, runs, data)
    where = torch.device(device_named(device))
    statuses, results = made.statuses(), dict[str, dict[str, Any]]()
    ended = [planned for planned in made.unique() if statuses[planned.run_id].state == "done"]
    for planned in ended:
        settings = planned.cell.settings

        def tell(epoch: int, loss: float, label: str = planned.label) -> None:
            if not as_json and epoch % 10 == 0:
                say(f"{label}: epoch {epoch}, loss {loss:.3f}")

        dataset = load(settings.data, data)
        results[planned.run_id] = evaluate_run(
            RunFolder(runs, planned.run_id), settings, dataset, PROTOCOLS[name], where, tell
        )
    if as_json:
        return print_json({"protocol": name, "runs": results})
    table = make_table("study", "variant", "seed>", "top-1 %>", "top-5 %>", "run")
    for planned in made.cells:
        found = results.get(planned.run_id)
        numbers = [f"{found['top1']:.1f}", f"{found['top5']:.1f}"] if found else ["-", "-"]
        state = planned.run_id if found else f"({statuses[planned.run_id].state})"
        table.add_row(planned.study, planned.cell.variant, str(planned.cell.seed), *numbers, state)
    make_console().print(table)
    say(f"Protocol {name}; {count(len(ended), 'run')} evaluated. Results are in each run's linear-{name}.json.")


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="What to write; must not exist yet.")],
    form: Annotated[str, typer.Option("--format", help="torchvision or detectron2.")] = "torchvision",
) -> None:
    """Write a run's backbone as torchvision's ResNet state dict, or in detectron2's naming, for transfer (Table 5).

    Detection itself is not run here.
    """
    from experiments.evaluation import export_backbone

    if form not in ("torchvision", "detectron2"):
        raise SettingsError(f"format: {form!r} is not one of torchvision, detectron2  [--format]")
    export_backbone(run_folder, out, form)
    say(f"{out}: the backbone of {run_folder} for {form}")


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
