"""Commands on the cells of a study: list, plan, run, grid, status, show-config."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from commands.console import Table, about, count, make_console, print_json, print_prose, say
from commands.integrations import completion
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    STOPPED,
    AsJson,
    Data,
    Device,
    Jobs,
    RanksEach,
    Retrain,
    Retry,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    check_gpus,
    check_writable,
    device_named,
    num_gpus,
    plan_for,
    register,
    retrained,
    said_of_code,
    said_of_precision,
    same_options,
    scale_named,
    studies_named,
    with_images,
)
from commands.until_decided import Budget, Campaign, MaxSeeds, UntilDecided, limits_of
from experiments.runs.states import ENDED, State
from simsiam.errors import SettingsError
from simsiam.settings.checks import check_ranks

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.plan import Plan
    from experiments.status import GridStatus
    from experiments.studies.study import Scale, Study

CELLS_LISTED = 60  # by `status`; of more, those that are done or wait are left out
FAULTY, TRAINED = (State.FAILED, State.LOST, State.STALLED, State.UNREADABLE), (State.RUNNING, State.STALLED)
WATCH_SECONDS = 30  # a question to SLURM's controller each time
Watch = Annotated[bool, typer.Option("--watch", help=f"Look again every {WATCH_SECONDS} s, until all is done.")]


def list_studies(
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """The studies that ship: what each reproduces, its cells, and the expected time at this scale."""
    from experiments.plan import estimate
    from experiments.studies.study import load_study, study_names

    chosen = scale_named(scale)
    rows: list[dict[str, Any]] = []
    for name in study_names():
        study = load_study(name)
        plan = plan_for([study], chosen, None, set_, runs, data, to_train=True)
        seconds = sum(estimate(planned.cell.settings, chosen).seconds for planned in plan.unique())
        rows.append(
            {
                "study": name,
                "title": study.title,
                "where": study.where,
                "variants": len(study.variants),
                "cells": len(plan.cells),
                "seconds": seconds,
            }
        )
    if as_json:
        return print_json({"scale": chosen.name, "studies": rows})
    console = make_console()
    console.print(f"Scale {chosen.name}: {chosen.description}.\n", highlight=False)
    table = Table("study", "reproduces", "in the paper", "cells>", "time>", optional=("in the paper", "cells"))
    for row in rows:
        table.add_row(row["study"], row["title"], row["where"], str(row["cells"]), about(row["seconds"]))
    console.print(table)
    console.print(
        f"\nTime: one cell after another on {chosen.speed.device}. Run one: python run_ablation.py run STUDY",
        highlight=False,
    )


def plan(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    retrain: Retrain = False,
    until_decided: UntilDecided = False,
    budget: Budget = None,
    max_seeds: MaxSeeds = None,
    guess: Annotated[
        int, typer.Option("--guess", min=2, help="Seeds that a claim is taken to need before its first look.")
    ] = 8,
    as_json: AsJson = False,
) -> None:
    """Dry run: the cells, their ids, what is done already, an estimate of time and disk. Trains nothing.

    With --until-decided: what each open claim needs, and what deciding it would cost.
    """
    from experiments.plan import average_bytes, estimate, plan_json

    studies, chosen = studies_named(study), scale_named(scale)
    if until_decided:
        limits = limits_of(until_decided, budget, max_seeds, seeds)
        return Campaign(studies, chosen, set_ or [], runs, data, limits, guess).show_plan(as_json)
    made = plan_for(studies, chosen, seeds, set_, runs, data, to_train=True)
    if retrain:
        again = partial(plan_for, studies, chosen, seeds, runs=runs, data=data, to_train=True)
        made, set_ = retrained(lambda overrides: again(overrides=overrides), set_)
    statuses = made.statuses()
    todo = [planned for planned in made.unique() if statuses[planned.run_id].state != State.DONE]
    estimates = [estimate(planned.cell.settings, made.scale) for planned in todo]
    seconds, size = sum(item.seconds for item in estimates), sum(item.bytes for item in estimates)
    if as_json:
        return print_json({**plan_json(made), "seconds": seconds, "bytes": size})
    console = make_console()
    table = Table("study", "variant", "seed>", "run", "state", optional=("run", "study"))
    for planned in made.cells:
        run = "(after `data prepare`)" if made.unprepared else planned.run_id
        state = statuses[planned.run_id].state
        table.add_row(planned.study, planned.cell.variant, str(planned.cell.seed), run, state)
    console.print(table)
    todo_text = f"{count(len(made.cells), 'cell')}, {count(len(statuses), 'run')}, {len(todo)} to do"
    cost = f"about {about(seconds)}, one after another, on {made.scale.speed.device}; about {size / 1e6:,.0f} MB"
    console.print(f"\n{todo_text}: {cost} in {runs}/", highlight=False)
    for text in said_of_code(made):
        console.print(text, highlight=False)
    averages = max(
        (
            average_bytes(planned.cell.settings, planned.cell.settings.data.num_train or made.scale.num_train)
            for planned in todo
        ),
        default=0,
    )
    if averages:
        text = f"The moving averages of each image's z (Sec. 5.2) take {averages / 1e9:,.3g} GB of memory a run."
        console.print(text, highlight=False)
    for name, path in dict.fromkeys((settings.name, settings.path) for settings in made.unprepared):
        if name == "folder":
            folder = data / path
            if folder.is_dir():
                text = f"There are no prepared images of {folder}/ yet."
            else:
                text = f"There is no folder {folder}/ (data.path is relative to --data)."
            console.print(text, highlight=False)
        else:
            console.print(f"The images of {name} are not there yet; `run` gets them.", highlight=False)


def run(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    until_decided: UntilDecided = False,
    budget: Budget = None,
    max_seeds: MaxSeeds = None,
    jobs: Jobs = None,
    ranks: RanksEach = 1,
    retry_failed: Retry = False,
    retrain: Retrain = False,
    device: Device = "auto",
) -> None:
    """Train a study's cells on this machine; what is done already is not done again.

    With --until-decided: the seeds of the next look, only where a claim is open, until all are decided or given up.
    Ctrl-C once: every running cell writes a checkpoint and stops; the same command goes on from there. Twice: at once.
    """
    limits = limits_of(until_decided, budget, max_seeds, seeds)
    studies, chosen = studies_named(study), scale_named(scale)
    if not until_decided:
        return _run(studies, study, chosen, seeds, set_, runs, data, jobs, ranks, retry_failed, retrain, device)
    if retrain:
        _, set_ = retrained(lambda given: plan_for(studies, chosen, None, given, runs, data), set_)
    campaign = Campaign(studies, chosen, set_ or [], runs, data, limits)
    with_images(campaign.plan(), campaign.plan, say)
    check_writable(runs)
    register(studies, runs)
    while (made := campaign.next_cells()) is not None:
        _train(made, study, chosen, None, set_, jobs, ranks, retry_failed, device)
    options = shlex.join(same_options(chosen, None, set_, runs, data))
    say(f"Report: python run_ablation.py report {shlex.quote(study)} {options}".rstrip())


def grid(
    axes: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH=VALUE,VALUE ...", help="The axes of the grid.", autocompletion=completion.settings
        ),
    ],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    ranks: RanksEach = 1,
    retry_failed: Retry = False,
    retrain: Retrain = False,
    device: Device = "auto",
) -> None:
    """Train every combination of some settings, without a study file, e.g. `grid optimizer.lr=0.02,0.05 epochs=2,4`.

    Writes the grid as a study file into the runs folder, so that `status` and `report` find it again (with the same
    --set).
    """
    from experiments.studies.study import grid_study, save_grid

    study = grid_study(axes)
    chosen = scale_named(scale)
    plan_for([study], chosen, seeds, set_, runs, data, to_train=True)  # finds every mistake before a file is written
    path = save_grid(study, runs)
    _run([study], str(path), chosen, seeds, set_, runs, data, jobs, ranks, retry_failed, retrain, device)


def status(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    watch: Watch = False,
    failed: Annotated[bool, typer.Option("--failed", help="List the cells that failed or are lost.")] = False,
    running: Annotated[bool, typer.Option("--running", help="List the cells that are being trained.")] = False,
    cell: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--cell", min=1, help="List this cell, counted from 1."),
    ] = None,
    all_cells: Annotated[bool, typer.Option("--all", help=f"List all cells, also more than {CELLS_LISTED}.")] = False,
    as_json: AsJson = False,
) -> None:
    """How a study stands, and whether it goes on by itself; then each cell: state, loss, accuracy, time left, queue."""
    from experiments.plan import plan_json
    from experiments.registry import queues
    from experiments.status import Watcher

    made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    watcher = Watcher(made, queues())
    seen = watcher.look()
    if as_json:
        printed = plan_json(made)
        words = _came_to(made, [row.planned.run_id for row in seen.rows if row.status.result])
        for item, row in zip(printed["cells"], seen.rows, strict=True):
            item["diagnosis"] = words.get(row.planned.run_id)
            item |= {"state": row.state, "host": row.seen.get("host"), "seconds_left": row.left, "slurm": row.queue}
        return print_json({**printed, "summary": seen.summary(), "notes": seen.notes})
    if cell is not None and cell > len(made.cells):
        raise SettingsError(f"cell: {cell} must be at most {len(made.cells)}, the cells of {study}  [--cell]")
    listed: set[int] | None = None if cell is None else {cell}
    states: tuple[State, ...] = FAULTY * failed + TRAINED * running
    if not states and cell is None and not all_cells and len(made.cells) > CELLS_LISTED:
        states = (*FAULTY, *TRAINED, State.INTERRUPTED)
    console = make_console()
    _print_status(made, seen, console, states, listed)
    while watch and any(row.state not in ENDED for row in seen.rows):
        time.sleep(WATCH_SECONDS)
        seen = watcher.look()
        console.print(f"\n{time.strftime('%H:%M:%S')}")
        _print_status(made, seen, console, states, listed)


def _print_status(
    made: Plan, found: GridStatus, console: Console, states: Sequence[State], listed: set[int] | None
) -> None:
    """The summary, then the cells in some states, or of some numbers; all if neither is named."""
    from commands.console import duration, number

    for line in (*found.summary(), *found.notes):
        print_prose(console, line)
    if not made.runs.exists():
        print_prose(console, f"There is no folder {made.runs.absolute()}; --runs names another one.")

    headings = ["#>", "study", "variant", "seed>", "state", "epoch>", "loss>", "std x sqrt(d)>", "kNN %>", "time>"]
    in_queue = any(row.queue for row in found.rows)
    headings += ["left>", "attempt>", "host", *(["queue"] if in_queue else []), "run"]
    words = _came_to(made, [row.planned.run_id for row in found.rows if row.status.result])
    optional = ("attempt", "run", "host", "time", "study", "std x sqrt(d)", "loss", "left", "queue", "#", "epoch")
    table = Table(*headings, optional=optional)
    for index, row in enumerate(found.rows, start=1):
        if (states and row.state not in states) or (listed is not None and index not in listed):
            continue
        seen, outcome = row.seen, f" ({words[row.planned.run_id]})" if row.status.result else ""
        last = f", last seen {seen['beat_at']}" if row.state == State.LOST and "beat_at" in seen else ""
        table.add_row(
            str(index),
            row.planned.study,
            row.planned.cell.variant,
            str(row.planned.cell.seed),
            row.state + outcome + last,
            f"{number(seen.get('epoch'), '.1f')}/{row.planned.cell.settings.epochs}",
            number(seen.get("loss"), ".3f"),
            number(seen.get("z_std_relative"), ".3f"),
            number(seen.get("knn_top1"), ".1f"),
            duration(seen.get("seconds")),
            duration(row.left),
            number(seen.get("attempt"), "d"),
            str(seen.get("host", "-")) if row.state == State.RUNNING else "-",
            *([row.queue or "-"] if in_queue else []),
            "-" if made.unprepared else row.planned.run_id,
        )
    if table.rows:
        console.print()
        console.print(table)
    if hidden := len(found.rows) - len(table.rows):
        print_prose(console, f"Not listed: {count(hidden, 'cell')}; --all, --failed, --running, --cell N list them.")
    for text in said_of_code(made):
        print_prose(console, text)


def _came_to(made: Plan, ended: list[str]) -> dict[str, str]:
    """The word of each ended run's diagnosis."""
    if not ended:
        return {}
    from analysis.diagnosis.rules import diagnose_runs
    from analysis.frames.load import load_runs

    return {each.run: each.verdict for each in diagnose_runs(*load_runs(made.runs, dict.fromkeys(ended)))}


def show_config(
    study: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[STUDY]",
            help="A study; without one, the scale's settings alone.",
            autocompletion=completion.studies,
        ),
    ] = None,
    variant: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--variant",
            help="One variant of the study. Default: the first.",
            autocompletion=completion.variants,
        ),
    ] = None,
    scale: ScaleName = None,
    set_: Set = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a default.")] = False,
    as_json: AsJson = False,
) -> None:
    """The resolved settings of a cell, with each value's origin and meaning."""
    from experiments.studies.layers import layer_from_command_line, resolve
    from experiments.studies.study import load_study, make_cells
    from simsiam.errors import nearest
    from simsiam.settings.fields import description, flatten

    chosen = scale_named(scale)
    if study is None:
        resolved = resolve((chosen.layer, layer_from_command_line(set_ or [])))
        settings, origins = resolved.settings, dict(resolved.origins)
    else:
        cells = {cell.variant: cell for cell in make_cells(load_study(study), chosen, [0], set_ or [])}
        name = variant if variant is not None else next(iter(cells))
        if name not in cells:
            raise SettingsError(
                f"variant: {name!r} is not one of {', '.join(cells)}{nearest(name, list(cells))}  [--variant]"
            )
        settings, origins = cells[name].settings, cells[name].origins
    values = {path: value for path, value in flatten(settings).items() if not changed or path in origins}
    if as_json:
        return print_json(
            {path: {"value": value, "origin": origins.get(path, "default")} for path, value in values.items()}
        )
    table = Table("setting", "value", "origin", "meaning", optional=("meaning", "origin"))
    for path, value in values.items():
        text = "null" if value is None else json.dumps(value)
        table.add_row(path, text, origins.get(path, "default"), description(path))
    make_console().print(table)


def _run(
    studies: list[Study],
    name: str,
    scale: Scale,
    seeds: str | None,
    overrides: list[str] | None,
    runs: Path,
    data: Path,
    jobs: int | None,
    ranks: int,
    retry_failed: bool,
    retrain: bool,
    device: str,
) -> None:
    device = device_named(device)
    if retrain:
        _, overrides = retrained(
            lambda given: plan_for(studies, scale, seeds, given, runs, data, to_train=True), overrides
        )
    make = partial(plan_for, studies, scale, seeds, overrides, runs, data, to_train=True)
    made = make()
    for planned in made.cells:
        check_ranks(planned.cell.settings, ranks, "--ranks")
    made = with_images(made, make, say)
    check_writable(runs)
    register(studies, runs)
    todo = _train(made, name, scale, seeds, overrides, jobs, ranks, retry_failed, device)
    options = shlex.join(same_options(scale, seeds, overrides, runs, data))
    done = "The run is done" if todo == 1 else f"All {todo} runs are done"
    say(f"{done}. Report: python run_ablation.py report {shlex.quote(name)} {options}".rstrip())


def _train(
    made: Plan,
    name: str,
    scale: Scale,
    seeds: str | None,
    overrides: list[str] | None,
    jobs: int | None,
    ranks: int,
    retry_failed: bool,
    device: str,
) -> int:
    """Train the cells of a plan on this machine; how many runs they are. Ends the program if not all end well."""
    from commands.live_grid import GridView
    from experiments.local.grid import LocalLauncher
    from experiments.local.pool import LocalRanks, Machine
    from experiments.plan import estimate
    from simsiam.machine import num_cores
    from simsiam.settings.own_code import keep

    device = device_named(device)
    for planned in made.cells:
        check_ranks(planned.cell.settings, ranks, "--ranks")
    keep((planned.cell.settings for planned in made.cells), made.runs)
    todo = made.unique()
    statuses = made.statuses()
    done = sum(statuses[planned.run_id].state == State.DONE for planned in todo)
    left = [planned for planned in todo if statuses[planned.run_id].state != State.DONE]
    units = num_cores() if device == "cpu" else num_gpus()
    check_gpus(device, ranks)
    num_workers = min(jobs or max(1, units // ranks), max(len(left), 1))
    threads = max(1, num_cores() // (num_workers * ranks))
    seconds = sum(estimate(planned.cell.settings, scale).seconds for planned in left) / num_workers
    say(f"{made.title}: {count(len(todo), 'run')} at scale {scale.name}, {done} done.")
    for text in (*said_of_code(made), *said_of_precision((planned.cell.settings for planned in left), device)):
        say(text)
    if left:
        duration = f"about {about(seconds)} if each has {scale.speed.device} to itself"
        say(f"{len(left)} to train, {num_workers} at a time, in {duration}. Ctrl-C stops; the same command goes on.")
    machine = Machine(made.runs, made.data, num_workers, threads, device, LocalRanks(ranks))
    with GridView(make_console(), total=len(todo), done=done) as view:
        summary = LocalLauncher(machine, view, retry_failed).submit(made, say, command=shlex.join(sys.argv))
    if summary.failures:
        labels = {planned.run_id: planned.label for planned in todo}
        for run_id, reason in summary.failures.items():
            print(f"failed: {labels[run_id]} ({run_id}): {reason}", file=sys.stderr)
        print("`run --retry-failed` takes failed cells up again.", file=sys.stderr)
        sys.exit(FAILURE)
    if summary.skipped_failures:
        skipped = count(len(summary.skipped_failures), "cell")
        print(f"{skipped} that failed before: left alone. `run --retry-failed` takes them up.", file=sys.stderr)
        sys.exit(FAILURE)
    if summary.stopped or len(summary.done) < len(todo):
        say(f"Stopped with {len(summary.done)} of {len(todo)} runs done. The same command goes on from there.")
        sys.exit(STOPPED)
    return len(todo)
