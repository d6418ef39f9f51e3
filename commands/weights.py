"""Commands on the weights of runs that have ended, or that come from elsewhere: evaluate, import, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from commands.console import Table, count, make_console, print_json, say
from commands.integrations import completion
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    AsJson,
    Data,
    Device,
    Runs,
    ScaleName,
    Seeds,
    Set,
    check_gpus,
    device_named,
    plan_for,
    scale_named,
    studies_named,
)
from experiments.runs.states import State
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    from simsiam.settings.fields import Settings


def evaluate(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|RUN|CHECKPOINT",
            help="A study, all, the folder of one run (also an imported one), or a file with anybody's backbone.",
        ),
    ],
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--protocol",
            help="paper, sgd or features. Default: paper at imagenet scale, else features.",
            autocompletion=completion.one_of("paper", "sgd", "features"),
        ),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    ranks: Annotated[
        int, typer.Option("--ranks", min=1, metavar="N", help="Processes that evaluate a run together.")
    ] = 1,
    device: Device = "auto",
    as_json: AsJson = False,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--arch", help="Of a checkpoint: torchvision's or timm's name. Default: the ResNet that it is."),
    ] = None,
) -> None:
    """Linear evaluation of every run of a study that has ended, or of one run's folder; none is trained anew.

    paper: LARS, batch 4096, 90 epochs, augmented crops (App. A). sgd: its alternative. features: logistic
    regression on features that are computed once, which training records by itself; seconds at small scales.
    Of a checkpoint, with --data DIR (DIR/train/CLASS/IMAGE, DIR/test or val) or --set data.name: also kNN and the
    diagnosis of its features.
    """
    from experiments.local.pool import prepare_environment
    from simsiam.machine import num_cores

    prepare_environment(num_cores())  # before anything loads torch
    from experiments.runs.folder import RunFolder, StoreError
    from experiments.weights.linear import Evaluation, evaluate_run
    from experiments.weights.load import settings_of
    from simsiam.errors import nearest
    from simsiam.evaluation.linear import PROTOCOLS

    chosen_scale = scale_named(scale)
    name = protocol if protocol is not None else ("paper" if chosen_scale.name == "imagenet" else "features")
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SettingsError(f"protocol: {name!r} is not one of {known}{nearest(name, list(PROTOCOLS))}  [--protocol]")
    device = device_named(device)
    check_gpus(device, ranks)
    if Path(study).is_file() and Path(study).suffix not in (".yaml", ".yml"):
        if scale or seeds or ranks > 1:
            raise SettingsError(
                "--scale, --seeds and --ranks are of studies and runs; a checkpoint is evaluated as it is"
            )
        return _evaluate_checkpoint(Path(study), arch, data, set_ or [], name, device, as_json)
    if arch is not None:
        raise SettingsError(f"arch: is of a checkpoint; {study} is no file  [--arch]")
    rows: list[tuple[str, str, str, RunFolder, Settings | None]] = []  # no settings: not to be evaluated
    if (Path(study) / "config.yaml").exists():
        if set_ or seeds or scale:
            raise SettingsError(
                "--scale, --set and --seeds choose cells of a study; the settings of a run are in its folder"
            )
        folder = Path(study).absolute()
        rows.append(("-", "-", "-", RunFolder(folder.parent, folder.name), settings_of(folder)))
    else:
        made = plan_for(studies_named(study), chosen_scale, seeds, set_, runs, data)
        statuses = made.statuses()
        for planned in made.cells:
            ended = statuses[planned.run_id].state == State.DONE
            of_cell = (planned.study, planned.cell.variant, str(planned.cell.seed))
            settings = planned.cell.settings if ended else None
            rows.append((*of_cell, RunFolder(runs, planned.run_id), settings))
    results = dict[str, dict[str, Any]]()
    for label, variant, seed, run, settings in rows:
        if settings is None or run.run_id in results:
            continue
        name_of_run = run.run_id if label == "-" else f"{label}: {variant} s{seed}"

        def tell(epoch: int, loss: float, of: str = name_of_run) -> None:
            if not as_json and epoch % 10 == 0:
                say(f"{of}: epoch {epoch}, loss {loss:.3f}")

        results[run.run_id] = evaluate_run(Evaluation(run, settings, data, PROTOCOLS[name], device), ranks, tell)
    if not results:
        raise StoreError(
            f"{runs}: holds no run of {study} at scale {chosen_scale.name} that has ended, so nothing was evaluated"
            "  [--runs]"
        )
    if as_json:
        return print_json({"protocol": name, "runs": results})
    table = Table("study", "variant", "seed>", "top-1 %>", "top-5 %>", "run", optional=("run", "study", "top-5 %"))
    for label, variant, seed, run, _ in rows:
        found = results.get(run.run_id)
        numbers = [f"{found['top1']:.1f}", f"{found['top5']:.1f}"] if found else ["-", "-"]
        table.add_row(label, variant, seed, *numbers, run.run_id if found else f"({run.status().state})")
    make_console().print(table)
    say(f"Protocol {name}; {count(len(results), 'run')} evaluated. Results are in each run's linear-{name}.json.")


def _evaluate_checkpoint(
    path: Path, arch: str | None, data: Path, overrides: list[str], protocol: str, device: str, as_json: bool
) -> None:
    import pandas as pd
    import torch

    from analysis.diagnosis.foreign import diagnose_embeddings
    from commands.foreign import print_one
    from experiments.weights.checkpoints import evaluate_backbone, read_backbone, settings_for
    from experiments.weights.embeddings import as_row
    from simsiam.evaluation.linear import PROTOCOLS

    backbone = read_backbone(path, arch)
    settings = settings_for(backbone, data, overrides)
    tell = (lambda _: None) if as_json else say
    read = f"Read: a {backbone.architecture}, from {backbone.where}; {backbone.left_out} other tensors are left out."
    tell(read)
    linear, point, features = evaluate_backbone(
        backbone, settings, data, PROTOCOLS[protocol], torch.device(device), tell
    )
    point.pop("spectrum", None)
    frame = pd.DataFrame([{"run": str(path), "step": 1, "epoch": 1.0, "diverged": False, **point}])
    found = diagnose_embeddings(frame, as_row(features) | {"run": str(path)}, None)
    if as_json:
        return print_json({"read": read, "linear": linear, "features": point, **found.as_json()})
    print_one(str(path), read, found, causes=False)
    say(f"  Linear evaluation ({protocol}): top-1 {linear['top1']:.1f} %, top-5 {linear['top5']:.1f} %.")


def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint_*.pth.tar of the release.")],
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder to make; must not exist yet.")],
    scale: ScaleName = None,
    set_: Set = None,
) -> None:
    """Make a run's folder from a checkpoint in the format of the authors' release, to evaluate or export it.

    The file decides the network. The images to evaluate on are the scale's, or those of --set data.name=...
    """
    from experiments.weights.exchange import import_checkpoint

    settings = import_checkpoint(checkpoint, run_folder, scale_named(scale), set_ or [])
    say(f"{run_folder}: a {settings.backbone.name}, to be evaluated on {settings.data.name}.")
    say(f"Next: python run_ablation.py evaluate {shlex.quote(str(run_folder))}")


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="What to write; must not exist yet.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="torchvision or detectron2.",
            autocompletion=completion.one_of("torchvision", "detectron2"),
        ),
    ] = "torchvision",
) -> None:
    """Write a run's backbone as torchvision's ResNet state dict, or in detectron2's naming, for transfer (Table 5).

    Detection itself is not run here.
    """
    from experiments.weights.exchange import export_backbone

    if form not in ("torchvision", "detectron2"):
        raise SettingsError(f"format: {form!r} is not one of torchvision, detectron2  [--format]")
    export_backbone(run_folder, out, form)
    say(f"{out}: the backbone of {run_folder} for {form}")
