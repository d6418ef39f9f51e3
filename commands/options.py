"""What the options of the commands are called, and what they choose: scale, studies, plan, device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from commands.console import count, say
from commands.integrations import completion
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    from experiments.plan import Plan, PlannedCell
    from experiments.runs.code_changes import OtherCode
    from experiments.studies.study import Scale, Study
    from simsiam.settings.fields import Settings

USAGE, FAILURE, STOPPED = 2, 1, 130  # exit codes

StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="A study that ships (see `list`), a .yaml file, or all: every study that ships.",
        autocompletion=completion.studies,
    ),
]
READERS = ("report", "verify", "diagnose", "compare", "predictors")  # take an archive in place of a folder of runs
archives = dict[Path, Path]()  # by the folder with what it holds, which is there as long as the command runs


def _folder_of_runs(context: typer.Context, runs: Path) -> Path:
    """The folder itself, or one with what an archive holds, as long as the command runs."""
    if not os.path.isfile(runs):  # unlike Path's, no error where one may not look
        return runs
    if context.info_name not in READERS:
        raise SettingsError(
            f"runs: {runs} is a file; {', '.join(READERS)} read archives, others want a folder  [--runs]"
        )
    from experiments.runs.archive import unpack

    folder = Path(context.with_resource(tempfile.TemporaryDirectory(prefix="runs-")))
    unpack(runs, folder)
    archives[folder] = runs
    return folder


Runs = Annotated[
    Path,
    typer.Option(
        "--runs",
        envvar="ABLATION_RUNS",
        callback=_folder_of_runs,
        help="The folder of runs; report, verify, diagnose, compare and predictors take an archive, too.",
    ),
]
Data = Annotated[Path, typer.Option("--data", envvar="ABLATION_DATA", help="Where the images are.")]
ScaleName = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time
    typer.Option(
        "--scale",
        help="smoke, fashion, cpu, cifar or imagenet. Default: cifar with a GPU, else cpu.",
        autocompletion=completion.scales,
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="A setting for all cells, e.g. epochs=2. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Seeds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--seeds",
        metavar="N",
        help="3 is seeds 0, 1 and 2; 4-6 is seeds 4, 5 and 6. Default: the study's own; for a report, all there are.",
    ),
]
Jobs = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("-j", "--jobs", min=1, help="Cells trained at the same time. Default: one a core, or one a GPU."),
]
RanksEach = Annotated[
    int,
    typer.Option("--ranks", min=1, metavar="N", help="Processes that train each cell together, a core or a GPU each."),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Take up cells that failed before, too.")]
Retrain = Annotated[
    bool, typer.Option("--retrain", help="Train anew, beside the old runs, what other training code had made.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu or cuda.", autocompletion=completion.one_of("auto", "cpu", "cuda")),
]

DEFAULT_RUNS, DEFAULT_DATA = Path("runs"), Path("data")


def scale_named(name: str | None) -> Scale:
    """The scale of --scale, or that of this machine."""
    from experiments.studies.study import default_scale, load_scale

    return load_scale(name if name is not None else default_scale())


def studies_named(name: str) -> list[Study]:
    """The study of STUDY, or every one that ships."""
    from experiments.studies.study import load_study, study_names

    return [load_study(each) for each in (study_names() if name == "all" else [name])]


def plan_for(
    studies: list[Study],
    scale: Scale,
    seeds: str | None,
    overrides: list[str] | None,
    runs: Path,
    data: Path,
    *,
    to_train: bool = False,
) -> Plan:
    """The cells that the common options choose, to be trained or to be read."""
    from experiments.plan import make_plan, merge
    from experiments.studies.study import seeds_from_text

    chosen = None if seeds is None else seeds_from_text(seeds)
    made = merge([make_plan(study, scale, chosen, overrides or [], runs, data, to_train=to_train) for study in studies])
    if to_train:
        _check_code(made)
    return made


def with_images(made: Plan, make: Callable[[], Plan], progress: Callable[[str], None]) -> Plan:
    """A plan, after getting the images that it needs: ``make`` makes it again where they were not there.

    An image folder that has changed since it was prepared is prepared again, so that no run on the images before is
    taken for one on those that are there now.

    Raises SettingsError for a batch larger than a data set.
    """
    from simsiam.data.sets import fingerprint, load, prepare

    folders = {
        (data.path, data.storage, data.image_size): data
        for data in (planned.cell.settings.data for planned in made.cells)
        if data.name == "folder"
    }
    _try_own_parts(made, before_data=True)
    before = {data: known for data in folders.values() if (known := fingerprint(data, made.data)) is not None}
    for data in (*made.unprepared, *before):
        prepare(data, made.data, progress=progress)
    if made.unprepared or any(fingerprint(data, made.data) != known for data, known in before.items()):
        made = make()  # now that the data's fingerprints are known
    for planned in {planned.cell.settings.data: planned for planned in made.cells}.values():
        settings = planned.cell.settings
        num_train = len(load(settings.data, made.data).train)
        if settings.batch_size > num_train:
            raise SettingsError(
                f"batch_size: {settings.batch_size} must be at most the {num_train} training images of"
                f" {settings.data.name}  [{planned.cell.origins['batch_size']}]"
            )
    _try_own_parts(made, before_data=False)
    return made


def _try_own_parts(made: Plan, *, before_data: bool) -> None:
    """Try each combination of the user's own parts once: before the images are got, unless these are their own, too.

    Raises OwnPartError.
    """
    from simsiam.data.sets import load
    from simsiam.settings.own import is_own, own_parts

    own = [
        planned
        for planned in {planned.config_id: planned for planned in made.cells}.values()
        if own_parts(planned.cell.settings).keys() - {"data.name"}
        and is_own(planned.cell.settings.data.name) != before_data
    ]
    if own:
        from simsiam.settings.own_code import OwnPartError
        from simsiam.training.trial import try_own_parts

        for planned in own:
            each = planned.cell.settings
            grey = each.data.name == "fashion-mnist"
            try:
                try_own_parts(each, (1 if grey else 3) if before_data else load(each.data, made.data).num_channels)
            except SystemExit as end:
                parts = ", ".join(f"{path} = {part}" for path, part in own_parts(each).items())
                raise SettingsError(f"a part of one's own ends the program (exit code {end.code}): {parts}") from None
            except OwnPartError as error:
                raise OwnPartError(f"{error}\n{_of_variant(planned)}") from error


def _of_variant(planned: PlannedCell) -> str:
    """Whose parts failed, and with which arguments: the error of a part is its author's, and names neither."""
    from simsiam.settings.fields import flatten, is_argument

    values, origins = flatten(planned.cell.settings), planned.cell.origins
    given = [f"{path}={values[path]!r}  [{origins[path]}]" for path in values if is_argument(path) and path in origins]
    return "\n".join([f"tried for {planned.label}" + (", with" if given else ""), *(f"  {line}" for line in given)])


def other_code_of(made: Plan) -> OtherCode | None:
    """Of a plan's done runs, those that other training code made than that at hand."""
    from experiments.beside import runs_by_code
    from experiments.runs.code_changes import other_code, training_code
    from experiments.runs.states import State

    found = other_code(made.runs, [run for run, status in made.statuses().items() if status.state == State.DONE])
    return None if found is None else replace(found, num_newer=runs_by_code(made, training_code()))


def said_of_code(made: Plan) -> list[str]:
    """What a user must know of the code behind a plan's runs, and of runs beside them that other sources made."""
    other = other_code_of(made)
    return [*([] if other is None else [str(other)]), *_other_sources(made)]


def _check_code(made: Plan) -> None:
    """Raises SettingsError if a run is left to be trained by other code than that at hand (``--set code=HASH``)."""
    from experiments.runs.code_changes import training_code
    from experiments.runs.states import State

    ours = training_code()
    of_others = [planned for planned in made.cells if planned.cell.settings.code not in ("", ours)]
    statuses = made.statuses() if of_others else {}  # each is read from the disk
    for planned in of_others:
        if statuses[planned.run_id].state != State.DONE:
            theirs, origin = planned.cell.settings.code, planned.cell.origins["code"]
            raise SettingsError(
                f"code: {planned.label} is to be trained by the code {theirs}; that at hand is {ours}  [{origin}]"
            )


def _other_sources(made: Plan) -> list[str]:
    from experiments.beside import runs_by_other_sources
    from simsiam.settings.own_code import FOLDER

    return [
        f"{count(number, 'run')} of this study {'was' if number == 1 else 'were'} made by another version of {file}"
        f" ({', '.join(digests)}). A version is that of the file and of what it imports from beside it. What is there"
        " is left alone: `compare` and `diagnose` show such runs by name. To go on with that version, copy"
        f" {made.runs / FOLDER}/{digests[0]}/ back to where {file} is."
        for file, (number, digests) in runs_by_other_sources(made).items()
    ]


def retrained(make: Callable[[list[str] | None], Plan], overrides: list[str] | None) -> tuple[Plan, list[str] | None]:
    """The plan whose runs the code at hand makes anew, if other code made any of them, and the overrides that say so.

    ``make``: plans with overrides.
    """
    from experiments.runs.code_changes import training_code

    made = make(overrides)
    if other_code_of(made) is None:
        say("--retrain: no done run was made by other training code; nothing is made anew.")
        return made, overrides
    anew = [*(overrides or []), f"code={training_code()}"]
    return make(anew), anew


def require_runs(plans: list[Plan], purpose: str) -> None:
    """Refuse to judge what was never begun: a wrong folder must not look like a study without results.

    Raises StoreError if no run of any plan has been started.
    """
    from experiments.runs.folder import StoreError
    from experiments.runs.states import State

    if any(status.state != State.PENDING for made in plans for status in made.statuses().values()):
        return
    first = plans[0]
    which = first.studies[0].name if len(plans) == 1 else "any study"
    elsewhere = _other_scales(plans)
    hints = [f"it holds runs of it at scale {' and '.join(elsewhere)}: --scale"] if elsewhere else []
    hints += [text.rstrip(".") for made in plans for text in _other_sources(made)]
    if not hints and (made := next((made for made in plans if made.unprepared), None)):
        hints = [f"its images are not in {made.data}"]
    if not first.runs.exists():
        hints = ["there is no such folder"]
    why = f" ({'; '.join(hints)})" if hints else ""
    raise StoreError(f"{first.runs}: holds no run of {which} at scale {first.scale.name} to {purpose}{why}  [--runs]")


def _other_scales(plans: Sequence[Plan]) -> list[str]:
    """The other scales at which there are runs of the studies of some plans."""
    from experiments.plan import make_plan
    from experiments.runs.folder import run_names
    from experiments.studies.claims import SCALES
    from experiments.studies.study import load_scale

    there, found = run_names(plans[0].runs), list[str]()
    for name in (each for each in SCALES if each != plans[0].scale.name):
        for made in plans:
            try:
                other = make_plan(made.studies[0], load_scale(name), None, (), made.runs, made.data)
            except SettingsError:  # a study that this scale does not go with
                continue
            if any(planned.run_id in there for planned in other.cells):
                found.append(name)
                break
    return found


def same_options(scale: Scale, seeds: str | None, overrides: list[str] | None, runs: Path, data: Path) -> list[str]:
    """The options that lead another command to the same cells."""
    from experiments.studies.study import default_scale

    options = [] if scale.name == default_scale() else ["--scale", scale.name]
    for override in overrides or []:
        options += ["--set", override]
    options += [] if seeds is None else ["--seeds", seeds]
    options += [] if runs == DEFAULT_RUNS else ["--runs", str(runs)]
    return options if data == DEFAULT_DATA else [*options, "--data", str(data)]


def device_named(name: str) -> str:
    """``cpu`` or ``cuda``, from --device. Raises SettingsError for a GPU that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"device: {name!r} is not one of auto, cpu, cuda  [--device]")
    if name == "cpu" or (name == "auto" and not _has_gpu()):
        return "cpu"
    if num_gpus() == 0:
        raise SettingsError("device: cuda was asked for, but torch sees no GPU  [--device]")
    return "cuda"


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, as far as this torch can tell."""
    import torch

    known = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def said_of_precision(settings: Iterable[Settings], device: str) -> list[str]:
    """What to know of the runs' precision on this device before they are begun."""
    if device != "cpu" or all(each.precision == "float32" for each in settings) or computes_in_bfloat16():
        return []
    return ["precision=bfloat16: this processor has no instructions for it; float32 is several times faster here."]


def check_gpus(device: str, ranks: int) -> None:
    """Raises SettingsError for more ranks than there are GPUs to train on."""
    if device == "cuda" and ranks > num_gpus():
        raise SettingsError(f"ranks: {ranks} must be at most the {num_gpus()} GPUs that torch sees  [--ranks]")


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) and num_gpus() > 0


def num_gpus() -> int:
    """The GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def register(studies: list[Study], runs: Path) -> None:
    """Put down in the folder of runs what their studies claim, before they begin; each run keeps it."""
    from experiments.runs.provenance import register_claims

    register_claims(runs, {study.name: study.claim_hashes() for study in studies if study.claims})


def check_writable(runs: Path) -> None:
    """Find out now, not in each worker, whether run folders can be made."""
    from experiments.runs.folder import StoreError

    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StoreError(f"{runs}: run folders cannot be written here ({error.strerror})  [--runs]") from None
