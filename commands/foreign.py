"""`diagnose` on files of other programs: logs and embeddings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from commands.console import Table, make_console, print_json, print_prose, say
from simsiam.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.diagnosis.foreign import ForeignDiagnosis, Given
    from analysis.diagnosis.rules import Diagnosis

T = TypeVar("T")
EMBEDDINGS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".parquet")


@dataclass(frozen=True)
class Words:
    """What the command line says of a training whose files are read."""

    kind: str | None = None
    columns: list[str] = field(default_factory=list)
    loss: str | None = None
    chance: float | None = None
    optimum: float | None = None
    dim: int | None = None
    batch: int | None = None
    output_bn: str | None = None
    classes: int | None = None
    epochs: float | None = None
    series: bool = False
    set_: list[str] = field(default_factory=list)

    def options(self) -> list[str]:
        """Those that were given, as they are written."""

        def given(value: object) -> bool:
            return value is not None and value is not False and value != []

        return [f"--{name.replace('_', '-').rstrip('-')}" for name, value in vars(self).items() if given(value)]


def is_foreign(target: str) -> bool:
    """Whether a target of `diagnose` is a file of another program, and neither a study's nor a run."""
    path = Path(target)
    if path.is_dir():
        return any(path.glob("*tfevents*")) and not (path / "config.yaml").exists()
    return path.is_file() and path.suffix not in (".yaml", ".yml")


def _names(annotation: Any) -> list[str]:
    """The texts that a setting's type lists, wherever in it."""
    if isinstance(annotation, str):
        return [annotation]
    return [name for part in get_args(annotation) for name in _names(part)]


def loss_names() -> list[str]:
    """What --loss may be."""
    from analysis.diagnosis.foreign import BYOL
    from simsiam.settings.fields import LossSettings

    return [*_names(LossSettings.model_fields["name"].annotation), BYOL]


def given_by(words: Words) -> Given:
    """The settings that the options stand for. Raises SettingsError."""
    from pydantic import ValidationError

    from analysis.diagnosis.foreign import BYOL, Given
    from experiments.studies.layers import layer_from_command_line
    from simsiam.record.catalogue import OUTPUT_BN
    from simsiam.settings.fields import Settings

    for value, allowed, option in ((words.loss, loss_names(), "loss"), (words.output_bn, list(OUTPUT_BN), "output-bn")):
        if value is not None and value not in allowed:
            from simsiam.errors import nearest

            raise SettingsError(
                f"{option}: {value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}  [--{option}]"
            )
    layer = layer_from_command_line(words.set_)
    settings: dict[str, Any] = {path: item.value for path, item in layer.items()}
    for path, value in settings.items():
        section, _, leaf = path.rpartition(".")
        try:
            Settings.model_validate({section: {leaf: value}} if section else {leaf: value})
        except ValidationError as error:
            raise SettingsError(f"{path}: {value!r}: {error.errors()[0]['msg']}  [{layer[path].origin}]") from None
    for path, number in (("projector.output_dim", words.dim), ("batch_size", words.batch)):
        settings |= {} if number is None else {path: number}
    if words.loss not in (None, BYOL):
        settings["loss.name"] = words.loss
    settings |= _ends_of_loss(words)
    if words.output_bn is not None:
        settings |= OUTPUT_BN[words.output_bn]
    return Given(settings, words.loss == BYOL, words.epochs, words.classes)


def _ends_of_loss(words: Words) -> dict[str, float]:
    """What a loss that this program does not have is measured against. Raises SettingsError."""
    if words.chance is None and words.optimum is None:
        return {}
    if words.chance is None or words.optimum is None:
        raise SettingsError("chance, optimum: one without the other gives no scale  [--chance --optimum]")
    if words.loss is not None:
        raise SettingsError(f"loss: {words.loss} has a chance and an optimum of its own  [--loss --chance --optimum]")
    for option, value in (("chance", words.chance), ("optimum", words.optimum)):
        if not math.isfinite(value):
            raise SettingsError(f"{option}: {value:g} is not finite  [--{option}]")
    if words.optimum >= words.chance:
        raise SettingsError(
            f"optimum: {words.optimum:g} is not below chance, {words.chance:g}; a loss is minimised  [--optimum]"
        )
    return {"reference_loss_chance": words.chance, "reference_loss_optimum": words.optimum}


def diagnose_files(targets: list[str], words: Words, out: Path | None, as_json: bool) -> None:
    """Diagnose logs or embeddings; with ``out`` also a figure."""
    embedded = [Path(target).suffix.lower() in EMBEDDINGS for target in targets]
    if any(embedded) and not all(embedded):
        raise SettingsError(
            f"{targets[embedded.index(False)]}: is no file of embeddings, as others here are; one kind a time"
        )
    given = given_by(words)
    if out is not None:
        from analysis.figures import style

        out = style.place(out)
    found = _embeddings(targets, words, out) if embedded[0] else _logs(targets, words, given, out)
    if as_json:
        print_json([{"name": name, "read": read, **each.as_json()} for name, read, each in found])
        return
    if len(found) > 1:
        _print_table(found)
    for name, read, each in found:
        if len(found) == 1 or each.diagnosis.verdict not in ("healthy", "too early to say"):
            print_one(name, read, each)


Found = list[tuple[str, str, "ForeignDiagnosis"]]  # a name, how it was read, the diagnosis


def _read(target: str, reader: Callable[[Path], T]) -> T:
    """What a reader makes of a file; whatever is wrong with the file is wrong input."""
    try:
        return reader(Path(target))
    except DataError as error:
        raise SettingsError(str(error)) from None
    except OSError as error:
        raise SettingsError(f"{target}: cannot be read ({error.strerror or error})") from None


def _array_named(columns: list[str]) -> str | None:
    """The array that ``--column z=NAME`` names, of files of embeddings."""
    if not columns:
        return None
    name = columns[0].removeprefix("z=")
    if len(columns) > 1 or name == columns[0] or not name:
        raise SettingsError(
            f"{', '.join(columns)}: of embeddings there is z=NAME, the array that holds them  [--column]"
        )
    return name


def _logs(targets: list[str], words: Words, given: Given, out: Path | None) -> Found:
    from analysis.diagnosis.foreign import diagnose_log
    from analysis.frames.foreign_columns import as_log, choose_columns, parse_columns
    from analysis.frames.foreign_files import KINDS, read_tables

    if words.kind is not None and words.kind not in KINDS:
        raise SettingsError(f"kind: {words.kind!r} is not one of {', '.join(KINDS)}  [--kind]")
    columns = parse_columns(words.columns)
    found: Found = []
    for target in targets:
        for table in _read(
            target, lambda path: read_tables(path, lambda names: choose_columns(names, columns), words.kind)
        ):
            table.source = target
            log = as_log(table, columns)
            matched = ", ".join(f"{measure} from {column!r}" for measure, column in log.matched.items())
            read = f"Read as {table.kind}, {log.num_rows:,} row{'s' * (log.num_rows != 1)}: {matched}."
            found.append((_name(target, table.name), read, diagnose_log(log, given)))
    if out is not None:
        _figure_of_logs(found, out)
    return found


def _name(target: str, run: str) -> str:
    return target if Path(target).stem == run or Path(target).name.startswith(run) else f"{target}: {run}"


def _embeddings(targets: list[str], words: Words, out: Path | None) -> Found:
    import pandas as pd

    from analysis.diagnosis.foreign import diagnose_embeddings
    from experiments.weights.embeddings import as_row, measure, read_embeddings

    chosen = _array_named(words.columns)
    files = [(target, _read(target, lambda path: read_embeddings(path, chosen))) for target in targets]
    if words.series:
        files.sort(key=lambda file: (file[1].number is None, file[1].number or 0))
    points, spectra = [], dict[str, tuple[int, list[float]]]()
    for place, (target, one) in enumerate(files, 1):
        point = measure(one)
        spectra[target] = (one.z.shape[1], point.pop("spectrum", []))
        time = one.number if words.series and one.number is not None else place
        points.append({"run": target, "step": place, "epoch": float(time), "diverged": False, **point})
    found: Found = []
    groups = [range(len(files))] if words.series else [range(i, i + 1) for i in range(len(files))]
    for group in groups:
        target, last = files[group[-1]]
        frame = pd.DataFrame([points[i] for i in group])
        row = as_row(last) | {"not_finite": max(files[i][1].not_finite for i in group)}
        labels = "" if last.labels is None else f", {int(last.labels.max()) + 1} classes"
        views = "" if last.views is None else f", {last.views.shape[1]} views each"
        read = f"Read: {len(group)} files, the last with" if words.series else "Read:"
        read = f"{read} {last.num_vectors:,} vectors of {last.z.shape[1]} channels{views}{labels}."
        name = f"{files[group[0]][0]} to {target}" if words.series and len(group) > 1 else target
        found.append((name, read, diagnose_embeddings(frame, row, words.classes)))
    if out is not None:
        from analysis.figures.embeddings import below_axis, plot_embeddings
        from analysis.figures.spectrum import LOWEST

        _save(plot_embeddings(spectra), out)
        for target in below_axis(spectra):
            text = f"{target}: all its singular values are below {LOWEST:.0e}; they are drawn dashed, at the lower edge"
            print(text, file=sys.stderr)
    return found


def _figure_of_logs(found: Found, out: Path) -> None:
    import pandas as pd

    from analysis import plot_training
    from simsiam.record.catalogue import CURVES, FIG_2

    points = pd.concat([each.points.assign(run=name, config=name, seed=0) for name, _, each in found])
    rows = [{**each.run, "run": name, "variant": name, "config": name, "seed": 0} for name, _, each in found]
    there = [metric for metric in (*FIG_2, *CURVES) if metric in points and points[metric].notna().any()]
    metrics = [metric for metric in FIG_2 if metric in there] or there[:3]
    if not metrics:
        return say("No figure: nothing in these logs has a curve.")
    _save(plot_training(points, pd.DataFrame(rows), "variant", metrics=metrics), out)


def _save(figure: Any, out: Path) -> None:
    from analysis.figures import style
    from experiments.runs.folder import StoreError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files = style.save(figure, out)
    except OSError as error:
        raise StoreError(f"{error.filename or out}: the figure cannot be written ({error.strerror})  [--out]") from None
    print(f"Figure: {', '.join(map(str, files))}", file=sys.stderr)  # what is printed may be JSON


def _measured(points: pd.DataFrame) -> dict[str, str]:
    """The last value of each measure, by its heading."""
    from simsiam.record.catalogue import CATALOGUE

    shown = {}
    for metric in CATALOGUE:
        if metric.name not in points or metric.name in ("z_std", "lr"):
            continue
        if len(values := points[metric.name].dropna()):
            shown[metric.heading] = f"{values.iloc[-1]:.{metric.decimals}f}"
    return shown


def _not_finite(each: ForeignDiagnosis) -> str:
    """``, 1 of 1,000 vectors not finite``, where files of embeddings hold such; else ""."""
    bad = each.run.get("not_finite", 0)
    return f", {bad:,} of {each.run['num_vectors']:,} vectors not finite" if bad else ""


def _print_table(found: Found) -> None:
    rows = [(name, each.diagnosis.verdict + _not_finite(each), _measured(each.points)) for name, _, each in found]
    headings = list(dict.fromkeys(heading for _, _, measured in rows for heading in measured))
    table = Table("file", "verdict", *(f"{heading}>" for heading in headings), optional=tuple(reversed(headings)))
    for name, verdict, measured in rows:
        table.add_row(name, verdict, *(measured.get(heading, "-") for heading in headings))
    make_console().print(table)


def lines_of_causes(diagnosis: Diagnosis) -> list[str]:
    """The usual causes that the settings show; else those of which they do not tell, and those that they exclude."""
    headings = {
        "Usual causes that its settings show:": diagnosis.causes,
        "Possible causes, of which its settings do not tell:": () if diagnosis.causes else diagnosis.unknown_causes,
        "Usual causes that its settings or its loss exclude:": () if diagnosis.causes else diagnosis.other_causes,
    }
    lines = []
    for heading, causes in headings.items():
        lines += [f"  {heading}", *(f"    {cause.sentence}" for cause in causes)] if causes else []
    return lines


def print_one(name: str, read: str, each: ForeignDiagnosis, *, causes: bool = True) -> None:
    """A verdict and what it rests on."""
    diagnosis, console = each.diagnosis, make_console()
    unit = str(each.run.get("unit_of_time"))
    at = _not_finite(each)
    if diagnosis.step == diagnosis.step and unit != "file":  # not NaN
        at = f", from {unit} {diagnosis.epoch:,.4g} on"
    lines = ["", f"{name}: {diagnosis.verdict}{at}", f"  {read}", *(f"  {text}" for text in diagnosis.evidence)]
    lines += [f"  Also {one.verdict}: {' '.join(one.evidence)}" for one in diagnosis.also]
    if unit == "file" and (measured := _measured(each.points)):
        lines.append(f"  Measured: {', '.join(f'{heading} {value}' for heading, value in measured.items())}.")
    if each.rests_on:
        lines.append(f"  This rests on: {'; '.join(each.rests_on)}.")
    lines += [f"  It would tell more: {ask}." for ask in each.asks]
    lines += lines_of_causes(diagnosis) if causes else []
    for line in lines:
        print_prose(console, line)
