"""The command line: each command parses, hands over, prints. Nothing heavy is imported until it is needed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from simsiam.config import Settings, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.plan import Plan
    from experiments.study import Scale, Study

USAGE, FAILURE, STOPPED = 2, 1, 130  # exit codes

app = typer.Typer(
    name="run-ablation",
    help="Ablation studies of SimSiam: run them, see how they stand, report on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(help="Get and check the images.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A study that ships (see `list`), a .yaml file, or all: every study that ships."
    ),
]
Runs = Annotated[Path, typer.Option("--runs", envvar="ABLATION_RUNS", help="Where run folders are.")]
Data = Annotated[Path, typer.Option("--data", envvar="ABLATION_DATA", help="Where the images are.")]
ScaleName = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time
    typer.Option("--scale", help="smoke, cpu, cifar or imagenet. Default: cifar with a GPU, else cpu."),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="PATH=VALUE", help="A setting for all cells, e.g. epochs=2. Repeatable."),
]
Seeds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--seeds", metavar="N", help="3: seeds 0, 1, 2; 4-6: seeds 4, 5, 6. Default: the study's own."),
]
Jobs = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("-j", "--jobs", min=1, help="Cells trained at the same time. Default: one a core, or one a GPU."),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Take up cells that failed before, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]

DEFAULT_RUNS, DEFAULT_DATA = Path("runs"), Path("data")


def main() -> None:
    """The entry point: errors that are the user's become one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without the paper's symbols shows a question mark for them
            stream.reconfigure(errors="replace")
    with _clear_errors():
        app()


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        _fail("interrupted", STOPPED)
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", FAILURE)
    except RuntimeError as error:
        if type(error).__name__ not in (
            "DataError",
            "StoreError",
            "NonFiniteError",
            "CheckpointError",
        ):  # a mistake of ours: show it whole
            raise
        _fail(str(error), FAILURE)


def _fail(message: str, code: int) -> None:
    lines = message.splitlines() or [""]
    print(f"error: {lines[0]}", *(f"       {line}" for line in lines[1:]), sep="\n", file=sys.stderr)
    sys.exit(code)


# --- commands ----------------------------------------------------------------------------------------------------


@app.command("list")
def list_studies(
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """The studies that ship: what each reproduces, its cells, and the expected time at this scale."""
    from experiments.plan import estimate
    from experiments.study import load_study, study_names

    chosen = _scale(scale)
    rows: list[dict[str, Any]] = []
    for name in study_names():
        study = load_study(name)
        plan = _plan([study], chosen, None, set_, runs, data)
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
        return _print_json({"scale": chosen.name, "studies": rows})
    console = _console()
    console.print(f"Scale {chosen.name}: {chosen.description}.\n", highlight=False)
    table = _table("study", "reproduces", "in the paper", "cells>", "time>")
    for row in rows:
        table.add_row(row["study"], row["title"], row["where"], str(row["cells"]), _about(row["seconds"]))
    console.print(table)
    console.print(
        f"\nTime: one cell after another on {chosen.speed.device}. Run one: python run_ablation.py run STUDY",
        highlight=False,
    )


@app.command()
def plan(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Dry run: the cells, their ids, what is done already, an estimate of time and disk. Trains nothing."""
    from experiments.plan import estimate, plan_json

    made = _plan(_studies(study), _scale(scale), seeds, set_, runs, data)
    statuses = made.statuses()
    todo = [planned for planned in made.unique() if statuses[planned.run_id].state != "done"]
    estimates = [estimate(planned.cell.settings, made.scale) for planned in todo]
    seconds, size = sum(item.seconds for item in estimates), sum(item.bytes for item in estimates)
    if as_json:
        return _print_json({**plan_json(made), "seconds": seconds, "bytes": size})
    console = _console()
    table = _table("study", "variant", "seed>", "run", "state")
    for planned in made.cells:
        run = "(after `data prepare`)" if made.unprepared else planned.run_id
        state = statuses[planned.run_id].state
        table.add_row(planned.study, planned.cell.variant, str(planned.cell.seed), run, state)
    console.print(table)
    todo_text = f"{_count(len(made.cells), 'cell')}, {_count(len(statuses), 'run')}, {len(todo)} to do"
    cost = f"about {_about(seconds)}, one after another, on {made.scale.speed.device}; about {size / 1e6:,.0f} MB"
    console.print(f"\n{todo_text}: {cost} in {runs}/", highlight=False)
    for settings in made.unprepared:
        if settings.name == "folder":
            console.print(f"There are no prepared images of {data / settings.path}/ yet.", highlight=False)
        else:
            console.print(f"The images of {settings.name} are not there yet; `run` gets them.", highlight=False)


@app.command()
def run(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    retry_failed: Retry = False,
    device: Device = "auto",
) -> None:
    """Train a study's cells on this machine; what is done already is not done again.

    Ctrl-C once: every running cell writes a checkpoint and stops; the same command goes on from there. Twice: at once.
    """
    _run(_studies(study), study, _scale(scale), seeds, set_, runs, data, jobs, retry_failed, device)


@app.command()
def grid(
    axes: Annotated[list[str], typer.Argument(metavar="PATH=VALUE,VALUE ...", help="The axes of the grid.")],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    retry_failed: Retry = False,
    device: Device = "auto",
) -> None:
    """Train every combination of some settings, without a study file, e.g. `grid optimizer.lr=0.02,0.05 epochs=2,4`.

    Writes the grid as a study file into the runs folder, so that `status` and `report` find it again.
    """
    from experiments.study import grid_study, save_grid

    study = grid_study(axes)
    chosen = _scale(scale)
    _plan([study], chosen, seeds, set_, runs, data)  # finds every mistake before a file is written
    path = save_grid(study, runs)
    _run([study], str(path), chosen, seeds, set_, runs, data, jobs, retry_failed, device)


@app.command()
def status(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Every cell of a study: its state, epoch, loss, std, kNN accuracy."""
    from experiments.plan import plan_json
    from experiments.view import duration, number

    made = _plan(_studies(study), _scale(scale), seeds, set_, runs, data)
    if as_json:
        return _print_json(plan_json(made))
    statuses = made.statuses()
    table = _table(
        "study", "variant", "seed>", "state", "epoch>", "loss>", "std x sqrt(d)>", "kNN %>", "time>", "attempt>", "run"
    )
    for planned in made.cells:
        state = statuses[planned.run_id]
        seen = {**state.detail, **(state.result or {}).get("final", {})}
        outcome = f" ({state.result['outcome']})" if state.result else ""
        table.add_row(
            planned.study,
            planned.cell.variant,
            str(planned.cell.seed),
            state.state + outcome,
            f"{number(seen.get('epoch'), '.1f')}/{planned.cell.settings.epochs}",
            number(seen.get("loss"), ".3f"),
            number(seen.get("z_std_relative"), ".3f"),
            number(seen.get("knn_top1"), ".1f"),
            duration(seen.get("seconds")),
            number(seen.get("attempt"), "d"),
            "-" if made.unprepared else planned.run_id,
        )
    console = _console()
    console.print(table)
    states = [item.state for item in statuses.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    console.print(f"\n{_count(len(states), 'run')} in {runs}/: {counts}", highlight=False)


@app.command()
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

    for loaded in _studies(study):
        chosen = _scale(scale)
        # The report of another scale than this machine's own does not take the place of its own.
        name = loaded.name if chosen.name == default_scale() else f"{loaded.name}-{chosen.name}"
        where = out if out is not None and study != "all" else (out or Path("reports")) / name
        _report(_plan([loaded], chosen, seeds, set_, runs, data), where)


@app.command("show-config")
def show_config(
    study: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[STUDY]", help="A study; without one, the scale's settings alone."),
    ] = None,
    variant: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--variant", help="One variant of the study. Default: the first."),
    ] = None,
    scale: ScaleName = None,
    set_: Set = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a default.")] = False,
    as_json: AsJson = False,
) -> None:
    """The resolved settings of a cell, with each value's origin and meaning."""
    from experiments.layers import layer_from_command_line, resolve
    from experiments.study import load_study, make_cells
    from simsiam.config import description, flatten, nearest

    chosen = _scale(scale)
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
        return _print_json(
            {path: {"value": value, "origin": origins.get(path, "default")} for path, value in values.items()}
        )
    table = _table("setting", "value", "origin", "meaning")
    for path, value in values.items():
        text = "null" if value is None else json.dumps(value)
        table.add_row(path, text, origins.get(path, "default"), description(path))
    _console().print(table)


@app.command()
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

    chosen_scale = _scale(scale)
    name = protocol if protocol is not None else ("paper" if chosen_scale.name == "imagenet" else "features")
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SettingsError(f"protocol: {name!r} is not one of {known}{nearest(name, list(PROTOCOLS))}  [--protocol]")
    made = _plan(_studies(study), chosen_scale, seeds, set_, runs, data)
    where = torch.device(_device(device))
    statuses, results = made.statuses(), dict[str, dict[str, Any]]()
    ended = [planned for planned in made.unique() if statuses[planned.run_id].state == "done"]
    for planned in ended:
        settings = planned.cell.settings

        def tell(epoch: int, loss: float, label: str = planned.label) -> None:
            if not as_json and epoch % 10 == 0:
                _say(f"{label}: epoch {epoch}, loss {loss:.3f}")

        dataset = load(settings.data, data)
        results[planned.run_id] = evaluate_run(
            RunFolder(runs, planned.run_id), settings, dataset, PROTOCOLS[name], where, tell
        )
    if as_json:
        return _print_json({"protocol": name, "runs": results})
    table = _table("study", "variant", "seed>", "top-1 %>", "top-5 %>", "run")
    for planned in made.cells:
        found = results.get(planned.run_id)
        numbers = [f"{found['top1']:.1f}", f"{found['top5']:.1f}"] if found else ["-", "-"]
        state = planned.run_id if found else f"({statuses[planned.run_id].state})"
        table.add_row(planned.study, planned.cell.variant, str(planned.cell.seed), *numbers, state)
    _console().print(table)
    _say(f"Protocol {name}; {_count(len(ended), 'run')} evaluated. Results are in each run's linear-{name}.json.")


@app.command()
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
    _say(f"{out}: the backbone of {run_folder} for {form}")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="fashion-mnist, cifar10, cifar100, stl10, svhn or folder.")
    ],
    data: Data = DEFAULT_DATA,
    set_: Set = None,
) -> None:
    """Get a data set and convert it, once. An image folder: `data prepare folder --set data.path=... ` and so on."""
    from simsiam.data import prepare

    dataset = prepare(_data_settings(name, set_), data, progress=_say)
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    _say(f"{name}: {counts}, fingerprint {dataset.fingerprint}")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in `data prepare`.")],
    data: Data = DEFAULT_DATA,
    set_: Set = None,
) -> None:
    """Count the images and recompute their checksum."""
    from simsiam.data import check

    found = check(_data_settings(name, set_), data)
    channels, height, width = found.image_shape
    _say(f"{name}: as it was prepared, fingerprint {found.fingerprint}")
    _say(f"  {found.num_train:,} training images: {_per_class(found.train_per_class)}")
    _say(f"  {found.num_test:,} test images: {_per_class(found.test_per_class)}")
    _say(f"  {height}x{width} pixels, {_count(channels, 'channel')}, {found.num_classes} classes")
    _say(f"  mean {_list(found.mean)}, std {_list(found.std)} (training images, scaled to 0 to 1)")


# --- shared by the commands --------------------------------------------------------------------------------------


def _scale(name: str | None) -> Scale:
    from experiments.study import default_scale, load_scale

    return load_scale(name if name is not None else default_scale())


def _studies(name: str) -> list[Study]:
    from experiments.study import load_study, study_names

    return [load_study(each) for each in (study_names() if name == "all" else [name])]


def _plan(
    studies: list[Study], scale: Scale, seeds: str | None, overrides: list[str] | None, runs: Path, data: Path
) -> Plan:
    from experiments.plan import make_plan, merge
    from experiments.study import seeds_from_text

    chosen = None if seeds is None else seeds_from_text(seeds)
    return merge([make_plan(study, scale, chosen, overrides or [], runs, data) for study in studies])


def _run(
    studies: list[Study],
    name: str,
    scale: Scale,
    seeds: str | None,
    overrides: list[str] | None,
    runs: Path,
    data: Path,
    jobs: int | None,
    retry_failed: bool,
    device: str,
) -> None:
    from experiments.local import Machine, num_cores, run_grid
    from experiments.plan import estimate
    from experiments.view import GridView
    from simsiam.data import load, prepare

    made = _plan(studies, scale, seeds, overrides, runs, data)
    device = _device(device)
    if made.unprepared:
        for unprepared in made.unprepared:
            prepare(unprepared, data, progress=_say)
        made = _plan(studies, scale, seeds, overrides, runs, data)  # now that the data's fingerprints are known
    for settings in {planned.cell.settings.data: planned.cell.settings for planned in made.cells}.values():
        _check_sizes(settings, len(load(settings.data, data).train))
    _check_writable(runs)
    todo = made.unique()
    statuses = made.statuses()
    done = sum(statuses[planned.run_id].state == "done" for planned in todo)
    left = [planned for planned in todo if statuses[planned.run_id].state != "done"]
    num_workers = min(jobs or (num_cores() if device == "cpu" else _num_gpus()), max(len(left), 1))
    threads = max(1, num_cores() // num_workers)
    seconds = sum(estimate(planned.cell.settings, scale).seconds for planned in left) / num_workers
    _say(f"{made.title}: {_count(len(todo), 'run')} at scale {scale.name}, {done} done.")
    if left:
        time = f"about {_about(seconds)} if each has {scale.speed.device} to itself"
        _say(f"{len(left)} to train, {num_workers} at a time, in {time}. Ctrl-C stops; the same command goes on.")
    machine = Machine(runs, data, num_workers, threads, device)
    with GridView(_console(), total=len(todo), done=done) as view:
        summary = run_grid(todo, machine, view, retry_failed=retry_failed, command=shlex.join(sys.argv))
    options = shlex.join(_options(scale, seeds, overrides, runs, data))
    if summary.failures:
        labels = {planned.run_id: planned.label for planned in todo}
        for run_id, reason in summary.failures.items():
            print(f"failed: {labels[run_id]} ({run_id}): {reason}", file=sys.stderr)
        print("`run --retry-failed` takes failed cells up again.", file=sys.stderr)
        sys.exit(FAILURE)
    if summary.skipped_failures:
        skipped = _count(len(summary.skipped_failures), "cell")
        print(f"{skipped} that failed before: left alone. `run --retry-failed` takes them up.", file=sys.stderr)
        sys.exit(FAILURE)
    if summary.stopped or len(summary.done) < len(todo):
        _say(f"Stopped with {len(summary.done)} of {len(todo)} runs done. The same command goes on from there.")
        sys.exit(STOPPED)
    _say(f"All {len(todo)} runs are done. Report: python run_ablation.py report {shlex.quote(name)} {options}".rstrip())


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
    console = _console()
    console.print(f"\n{files.answer}\n", highlight=False, markup=False)
    table = _table(*files.table.headings())
    for row in files.table.lines():
        table.add_row(*row)
    console.print(table)
    for note in (*files.table.notes, *files.warnings):
        console.print(note, highlight=False, markup=False)
    console.print(f"\nPage: {files.page}", highlight=False, markup=False, soft_wrap=True)


def _options(scale: Scale, seeds: str | None, overrides: list[str] | None, runs: Path, data: Path) -> list[str]:
    """The options that lead another command to the same cells."""
    from experiments.study import default_scale

    options = [] if scale.name == default_scale() else ["--scale", scale.name]
    for override in overrides or []:
        options += ["--set", override]
    options += [] if seeds is None else ["--seeds", seeds]
    options += [] if runs == DEFAULT_RUNS else ["--runs", str(runs)]
    return options if data == DEFAULT_DATA else [*options, "--data", str(data)]


def _check_sizes(settings: Settings, num_train: int) -> None:
    if settings.batch_size > num_train:
        raise SettingsError(
            f"batch_size: {settings.batch_size} must be at most the {num_train} training images of {settings.data.name}"
        )


def _check_writable(runs: Path) -> None:
    """Find out now, not in each worker, whether run folders can be made."""
    from experiments.store import StoreError

    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StoreError(f"{runs}: run folders cannot be written here ({error.strerror})  [--runs]") from None


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"device: {name!r} is not one of auto, cpu, cuda  [--device]")
    if name == "cpu" or (name == "auto" and not _has_gpu()):
        return "cpu"
    if _num_gpus() == 0:
        raise SettingsError("device: cuda was asked for, but torch sees no GPU  [--device]")
    return "cuda"


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) and _num_gpus() > 0


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _data_settings(name: str, overrides: list[str] | None) -> Any:
    from experiments.layers import Value, layer_from_command_line, resolve

    layer = {
        "data.name": Value(name, "NAME"),
        "data.storage": Value("files" if name == "folder" else "memory", "data prepare"),
    }
    return resolve((layer, layer_from_command_line(overrides or []))).settings.data


def _console() -> Console:
    from rich.console import Console

    width = None if Console().is_terminal else 200
    return Console(width=width, markup=False, highlight=False, emoji=False)  # names are the user's: [red] is no colour


def _table(*headings: str) -> Any:
    """A plain table; a heading that ends in > is of a column of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.rstrip(">"), justify="right" if heading.endswith(">") else "left", overflow="fold")
    return table


def _say(message: str) -> None:
    print(message, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _per_class(counts: tuple[int, ...]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,} in each class" if low == high else f"{low:,} to {high:,} in a class"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _about(seconds: float) -> str:
    """A time in the unit in which a person would say it."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
