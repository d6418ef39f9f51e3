"""Commands on chosen runs: diagnose, compare."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

import typer

from commands.console import Table, count, make_console, print_json, print_prose
from commands.foreign import Words, diagnose_files, is_foreign, lines_of_causes
from commands.integrations import completion
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    AsJson,
    Data,
    Runs,
    ScaleName,
    Seeds,
    Set,
    plan_for,
    require_runs,
    scale_named,
    studies_named,
)
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.diagnosis.rules import Diagnosis

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|STUDY|FOLDER|FILE...",
        help="A run (its name or folder), a study, a folder of runs; or files of other programs: logs (CSV, JSON lines,"
        " TensorBoard, exports of Weights & Biases), or embeddings (.npy, .npz, .pt, .safetensors, .parquet).",
    ),
]


def diagnose(
    targets: Targets,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--kind",
            help="Of a log: csv, lightning, wandb, jsonl, tensorboard. Default: found by itself.",
            autocompletion=completion.one_of("csv", "lightning", "wandb", "jsonl", "tensorboard"),
        ),
    ] = None,
    column: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--column",
            metavar="MEASURE=NAME",
            help="Of a log: loss=train/neg_cos; of embeddings: z=NAME. Repeatable.",
        ),
    ] = None,
    loss: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--loss",
            help="Of a log: cosine, nt-xent, ... as loss.name, or byol for 2 - 2 cosine.",
            autocompletion=completion.losses,
        ),
    ] = None,
    chance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--chance", help="Of a log with another loss: what unrelated views give, with --optimum."),
    ] = None,
    optimum: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--optimum", help="Of a log with another loss: the best that it can reach."),
    ] = None,
    dim: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--dim", min=2, help="Of a log: d, the width of z."),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch", min=1, help="Of a log: images in a batch."),
    ] = None,
    output_bn: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--output-bn",
            help="Of a log: BN on z: affine, plain (without scale and shift) or none.",
            autocompletion=completion.one_of("affine", "plain", "none"),
        ),
    ] = None,
    classes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--classes", min=2, help="Of a file: how many classes the images have."),
    ] = None,
    epochs: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--epochs",
            min=0,
            max=1e9,
            help="Of a log: epochs (steps, where it has none) planned. Default: it is whole.",
        ),
    ] = None,
    series: Annotated[
        bool, typer.Option("--series", help="Of embeddings: the files are of one training, in order of their numbers.")
    ] = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Of files: where a figure goes (PDF, SVG, PNG), without its ending."),
    ] = None,
) -> None:
    """What happened to a run and why we think so: the verdict, the evidence, when it set in, the usual causes.

    Of other programs' files too: what was read is printed, and what is not given is asked for where it would matter.
    """
    words = Words(kind, column or [], loss, chance, optimum, dim, batch, output_bn, classes, epochs, series, set_ or [])
    if kind is not None or all(map(is_foreign, targets)):
        return diagnose_files(targets, words, out, as_json)
    if len(targets) > 1:
        wrong = next(target for target in targets if not is_foreign(target))
        _refuse_file_that_is_not_there(wrong)
        raise SettingsError(
            f"{wrong}: is no file; of runs and studies `diagnose` takes one, of files as many as you like"
        )
    if of_files := [option for option in words.options() if option != "--set"] + ["--out"] * (out is not None):
        raise SettingsError(f"{', '.join(of_files)}: is of logs and embeddings; {targets[0]} is none")
    return _diagnose_runs(targets[0], runs, data, scale, set_, seeds, as_json)


def _diagnose_runs(
    target: str,
    runs: Path,
    data: Path,
    scale: str | None,
    set_: list[str] | None,
    seeds: str | None,
    as_json: bool,
) -> None:
    from analysis import load_runs
    from analysis.diagnosis.rules import diagnose_runs

    names: dict[str, str] = {}
    found = _run_folder(target, runs)
    if found is not None:
        points, rows = load_runs(found.parent, [found.name])
    elif target and Path(target).is_dir():
        folders = sorted(path.name for path in Path(target).iterdir() if _is_run(path))
        if not folders:
            _refuse_folder_of_files(Path(target))
        points, rows = load_runs(target, folders)
    else:
        _refuse_file_that_is_not_there(target)
        try:
            studies = studies_named(target)
        except SettingsError as error:
            raise SettingsError(f"{target}: is neither a run in {runs} nor a folder of runs\n{error}") from None
        made = plan_for(studies, scale_named(scale), seeds, set_, runs, data)
        names = {planned.run_id: f"{planned.cell.variant}, seed {planned.cell.seed}" for planned in made.cells}
        require_runs([made], "diagnose")
        points, rows = load_runs(made.runs, list(names))
        gone = rows["state"] == "missing"
        if gone.any() and not as_json:
            lacking = ", ".join(names[run] for run in rows["run"][gone])
            make_console().print(f"{gone.sum()} of {count(len(rows), 'run')} not there: {lacking}.\n")
        rows = rows[~gone]
    diagnoses = diagnose_runs(points, rows)
    if as_json:
        print_json([{"name": names.get(each.run, each.run), **each.as_json()} for each in diagnoses])
        return
    if len(diagnoses) > 1:
        _print_table(diagnoses, names)
    for each, note in zip(diagnoses, rows["note"], strict=True):
        name = names.get(each.run, each.run)
        if len(diagnoses) == 1 or each.verdict not in ("healthy", "too early to say"):
            _print_one(each, name, note)
        elif note:
            make_console().print(f"\n{name}, about its folder: {note}", soft_wrap=True)


def _refuse_file_that_is_not_there(target: str) -> None:
    """Raises SettingsError for what is written like a file, and is neither one nor a folder."""
    if (os.sep in target or re.search(r"\.[A-Za-z]\w*$", target)) and not Path(target).exists():
        raise SettingsError(f"{target}: there is no such file or folder")


def _refuse_folder_of_files(folder: Path) -> NoReturn:
    """Raises SettingsError for a folder that holds no runs, but files, maybe, that are to be named themselves."""
    files = sorted(path for path in folder.iterdir() if is_foreign(str(path)))
    if files:
        names, first = ", ".join(path.name for path in files[:3]), " ".join(map(str, files[:2]))
        raise SettingsError(
            f"{folder}: holds no runs, but {count(len(files), 'file')} ({names}{' ...' * (len(files) > 3)}); name the"
            f" files: diagnose {first}"
        )
    raise SettingsError(f"{folder}: holds no runs")


def _run_folder(target: str, runs: Path) -> Path | None:
    """The folder of a run that is named by its place, or by its name among the runs; None if it is no run."""
    found = next((path for path in (Path(target), runs / target) if target and _is_run(path)), None)
    return None if found is None else found.absolute()


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (any(folder.glob("metrics*.jsonl")) or (folder / "config.yaml").exists())


def _print_table(diagnoses: list[Diagnosis], names: dict[str, str]) -> None:
    table = Table("run", "verdict", "set in at epoch>", "also", optional=("also", "set in at epoch"))
    for each in diagnoses:
        epoch = "" if each.epoch != each.epoch else f"{each.epoch:.2f}"
        table.add_row(
            names.get(each.run, each.run), each.verdict, epoch, ", ".join(finding.verdict for finding in each.also)
        )
    make_console().print(table)


def _print_one(diagnosis: Diagnosis, name: str, note: str) -> None:
    console = make_console()
    at = diagnosis.step == diagnosis.step  # not NaN
    since = f", from step {diagnosis.step:,.0f} (epoch {diagnosis.epoch:.2f}) on" if at else ""
    lines = ["", f"{name}: {diagnosis.verdict}{since}", *(f"  {sentence}" for sentence in diagnosis.evidence)]
    lines += [f"  Also {one.verdict}: {' '.join(one.evidence)}" for one in diagnosis.also]
    lines += lines_of_causes(diagnosis)
    if note:
        lines += [f"  About its folder: {note}"]
    for line in lines:
        print_prose(console, line)


def predictors(
    target: Annotated[
        str, typer.Argument(metavar="STUDY|all|FOLDER", help="A study, all studies, or a folder of runs.")
    ] = "all",
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    accuracy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--accuracy",
            help="linear_top1 or knn_top1. Default: the first of these that is logged.",
            autocompletion=completion.one_of("linear_top1", "knn_top1"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which diagnostic predicts accuracy: rank correlation over variants, in each study and over all, with intervals.

    "From" is the part of a run from which on a diagnostic tells: the 95 % interval is on one side of 0 from there on.
    """
    from analysis import load_runs
    from analysis.diagnosis.prediction import ACCURACIES, FEWEST, predictions, tells_from

    if accuracy is not None and accuracy not in ACCURACIES:
        raise SettingsError(f"accuracy: {accuracy!r} is not one of {', '.join(ACCURACIES)}  [--accuracy]")
    if Path(target).is_dir():
        points, rows = load_runs(target)
        groups = {"all": rows["run"].tolist()}
    else:
        groups, chosen_scale = {}, scale_named(scale)
        for study in studies_named(target):
            made = plan_for([study], chosen_scale, seeds, set_, runs, data)
            groups[study.name] = [planned.run_id for planned in made.cells]
        names = list(dict.fromkeys(run for of_study in groups.values() for run in of_study))
        points, rows = load_runs(runs, names)
        if len(groups) > 1:
            groups["all"] = names
    try:
        found = tells_from(predictions(groups, points, rows, accuracy))
    except ValueError as error:
        raise SettingsError(f"{target}: {error}") from None
    if as_json:
        return print_json([{k: v if v == v else None for k, v in row.items()} for row in found.to_dict("records")])
    table = Table("study", "diagnostic", "variants>", "correlation>", "95 % interval>", "from>")
    for row in found[found["correlation"].notna()].to_dict("records"):
        start = "-" if row["from"] != row["from"] else f"{100 * row['from']:.0f} %"
        interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
        table.add_row(row["group"], row["diagnostic"], str(row["num"]), f"{row['correlation']:+.2f}", interval, start)
    if table.rows:
        make_console().print(table)
    few = found.groupby("group")["correlation"].apply(lambda values: values.isna().all())
    if few.any():
        lacking = ", ".join(few.index[few])
        print_prose(make_console(), f"Fewer than {FEWEST} variants with results, or none that differ: {lacking}.")


def compare(
    chosen: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Two runs or more: names or folders.")],
    runs: Runs = DEFAULT_RUNS,
    out: Annotated[Path, typer.Option("--out", help="Where the figure goes, without its ending.")] = Path(
        "reports/compare"
    ),
) -> None:
    """Curves of chosen runs side by side (PDF, SVG, PNG), and the settings in which they differ (CSV); of any studies.

    Runs are named by the settings in which they differ.
    """
    from analysis import plot_training
    from analysis.diagnosis.rules import diagnose_runs
    from analysis.figures import style
    from analysis.frames.comparison import differences, load_chosen
    from experiments.runs.folder import StoreError

    if len(chosen) < 2:
        raise SettingsError(f"{chosen[0]} is one run; compare takes two or more")
    out = style.place(out, "csv")
    folders = []
    for name in chosen:
        folder = _run_folder(name, runs)
        if folder is None:
            raise StoreError(f"{name}: is neither the folder of a run nor a run in {runs}  [--runs]")
        if folder in folders:
            raise SettingsError(f"{name}: is named twice")
        folders.append(folder)
    points, rows = load_chosen(folders)
    rows["diagnosis"] = [each.verdict for each in diagnose_runs(points, rows)]
    table = _comparison(differences(rows), rows)
    rows["variant"] = rows["variant"].cat.rename_categories(table["name"].tolist())
    _print_comparison(table, rows)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files = style.save(plot_training(points, rows, "variant"), out)
        files.append(out.with_name(f"{out.name}.csv"))
        table.to_csv(files[-1], index=False)
    except OSError as error:
        raise StoreError(f"{error.filename or out}: the figure cannot be written ({error.strerror})  [--out]") from None
    make_console().print(f"Figure and table: {', '.join(map(str, files))}", soft_wrap=True)


def _comparison(differing: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: its name, its folder, what it came to, and its value of each setting that differs."""
    from analysis.frames.comparison import names_of
    from analysis.frames.load import came_to, counts

    table: pd.DataFrame = rows[["state"]].assign(came_to=came_to(rows))
    for metric in ("linear_top1", "knn_top1"):
        table[metric] = rows[f"final_{metric}"].where(counts(rows))
    table.insert(0, "name", names_of(rows))
    table.insert(1, "run", rows["variant"].astype(str))
    joined: pd.DataFrame = table.join(differing)
    return joined


def _print_comparison(table: pd.DataFrame, rows: pd.DataFrame) -> None:
    """A line for each run; for each quantity, with a column for each run, where those are more than the runs."""
    from analysis.frames.comparison import all_known, partly_known

    headings = {"came_to": "came to", "linear_top1": "linear %", "knn_top1": "kNN %"}
    texts = table.rename(columns=headings).astype(object).map(lambda value: "-" if value != value else _cell(value))
    console, settings = make_console(), table.shape[1] - 6
    if table.shape[1] > len(table) + 3:
        shown = Table("name", *texts["name"])
        for name in texts.columns[1:]:
            shown.add_row(name, *texts[name])
    else:
        shown = Table(*texts.columns)
        for values in texts.itertuples(index=False):
            shown.add_row(*values)
    console.print(shown)
    if not settings:
        recorded = "" if all_known(rows) else ", as far as they are recorded"
        console.print(f"The {count(len(rows), 'run')} have the same settings{recorded}.")
    if left_out := [path for path in partly_known(rows) if path not in table]:
        print_prose(console, f"Left out: {count(len(left_out), 'setting')}, recorded of some of the runs only.")
    for name, note in zip(table["run"], rows["note"], strict=True):
        if note:
            console.print(f"{name}: {note}", soft_wrap=True)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
