"""Commands on finished runs: report, evaluate, export."""

from __future__ import annotations

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
    scale_named,
    studies_named,
)
from simsiam.config import SettingsError

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
