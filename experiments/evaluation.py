"""Linear evaluation of runs that have ended, import and export of weights; none of it ever retrains a run.

The result of a protocol lies beside the run, as ``linear-<protocol>.json``: it belongs to the evaluation, not to what
names the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.layers import Value, layer_from_command_line, resolve
from experiments.store import RunFolder, StoreError, read_json, write_json
from experiments.study import Scale
from simsiam import checkpoint
from simsiam.config import Settings, SettingsError
from simsiam.data import DataError, load
from simsiam.distributed import LOST, RankLostError
from simsiam.files import write_atomically
from simsiam.interchange import export_detectron2, export_torchvision, import_release
from simsiam.linear import LinearProtocol, NonFiniteError, evaluate_linear
from simsiam.machine import idle_cores
from simsiam.rendezvous import Rendezvous, device_of, join
from simsiam.siamese import Siamese


def result_path(run: RunFolder, protocol: LinearProtocol) -> Path:
    """Where the result of a protocol lies."""
    return run.path / f"linear-{protocol.name}.json"


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, where the images are, and how."""

    run: RunFolder
    settings: Settings
    data: Path
    protocol: LinearProtocol
    device_type: str  # cpu or cuda


OnEpoch = Callable[[int, float], None]


def evaluate_run(task: Evaluation, num_ranks: int, on_epoch: OnEpoch) -> dict[str, Any]:
    """Evaluate the backbone of a run that has ended, unless that was done by the same protocol before.

    num_ranks: processes on this machine that do it together, a GPU or a share of the cores each. Raises StoreError
    when one of them dies.
    """
    path = result_path(task.run, task.protocol)
    known = read_json(path)
    if known is not None and known.get("protocol") == task.protocol.model_dump(mode="json"):
        return known
    with tempfile.TemporaryDirectory() as folder:
        ranks = [Rendezvous(rank, num_ranks, Path(folder) / "rendezvous.json") for rank in range(num_ranks)]
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=_follow, args=(task, rank), daemon=True) for rank in ranks[1:]]

        def look_for_the_others() -> None:
            if dead := [process for process in others if process.exitcode is not None]:
                raise RankLostError(f"one of the {num_ranks} ranks ended with exit code {dead[0].exitcode}")

        try:
            for process in others:
                process.start()
            result = _evaluate(task, ranks[0], on_epoch, look_for_the_others)
        except LOST as error:
            raise StoreError(f"{task.run.path}: {error}") from None
        finally:
            for process in others:
                process.kill()  # it has nothing left to do
                process.join()
    write_json(path, result, str(os.getpid()))
    return result


def _evaluate(
    task: Evaluation, rendezvous: Rendezvous, on_epoch: OnEpoch, while_waiting: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """One rank's part; the result is the same on all."""
    device = device_of(task.device_type, rendezvous.rank)
    # Torch heeds OMP_NUM_THREADS and what cores it is bound to, but neither other ranks nor who else uses the cores:
    # beside others one thread is quicker than two that wait for each other.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, round(idle_cores()) // rendezvous.world_size)))
    dataset = load(task.settings.data, task.data)
    model = load_model(task.run.path, task.settings, dataset.num_channels, len(dataset.train)).to(device)
    with join(rendezvous, device, while_waiting=while_waiting) as group:
        return evaluate_linear(
            model.backbone,
            task.settings,
            dataset,
            task.protocol,
            device=device,
            seed=task.settings.seed,
            on_epoch=on_epoch,
            ranks=group.ranks,
        )


def _follow(task: Evaluation, rendezvous: Rendezvous) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's
    with contextlib.suppress(*LOST, NonFiniteError, SettingsError, StoreError, DataError):  # rank 0 tells
        _evaluate(task, rendezvous, on_epoch=lambda epoch, loss: None)


def settings_of(folder: Path) -> Settings:
    """The settings of a run. Raises StoreError for a folder that holds none."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Settings.model_validate_json(json.dumps(config))
    except (OSError, ValueError, yaml.YAMLError):
        raise StoreError(f"{folder}: is not the folder of a run (no config.yaml that can be read)") from None


def load_model(folder: Path, settings: Settings, num_channels: int, num_images: int) -> Siamese:
    """The network of a run, from its newest checkpoint that loads. Raises StoreError if there is none."""
    state = checkpoint.load(folder)
    if state is None:
        raise StoreError(f"{folder}: there is no checkpoint that loads")
    trained_on = state["model"]["backbone.conv1.weight"].shape[1]
    if trained_on != num_channels:
        raise StoreError(
            f"{folder}: its network takes images of {trained_on} channels; those of {settings.data.name} have"
            f" {num_channels}  [data.name]"
        )
    model = Siamese(settings, num_channels, num_images)
    model.load_state_dict(state["model"])
    return model


def import_checkpoint(source: Path, folder: Path, scale: Scale, overrides: Iterable[str]) -> Settings:
    """Make the folder of a run from a checkpoint of the authors' release, for :func:`evaluate_run` and export.

    The file decides the network; the scale and the overrides decide the rest, such as the images to evaluate on. It was
    trained in float32 on images normalised by ImageNet's statistics, and is evaluated so unless an override says else.
    Raises StoreError if ``folder`` exists or ``source`` cannot be read, SettingsError for a file of another format or
    an override of what the file decides.
    """
    if folder.exists():
        raise StoreError(f"{folder}: exists already; nothing is overwritten")
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    try:
        network, weights = import_release(source)
    except ValueError as error:
        raise SettingsError(f"{error}  [{source}]") from None
    chosen = layer_from_command_line(overrides)
    for path in chosen.keys() & network.keys():
        raise SettingsError(f"{path}: is {network[path]!r} in the checkpoint  [{chosen[path].origin}; {source}]")
    as_trained = {"precision": "float32", "data.normalisation": "imagenet"}
    of_file = {path: Value(value, str(source)) for path, value in {**network, **as_trained}.items()}
    sections = {path.partition(".")[0] for path in network}
    of_scale = {path: value for path, value in scale.layer.items() if path.partition(".")[0] not in sections}
    settings = resolve((of_scale, of_file, chosen)).settings
    model = Siamese(settings, num_channels=3)
    model.load_state_dict(weights)
    folder.mkdir(parents=True)
    checkpoint.save(folder, {"model": model.state_dict(), "step": 0}, 1)
    imported = {"file": source.name, "sha256": digest.hexdigest()}
    write_json(folder / "provenance.json", {"references": {}, "attempts": [], "imported": imported}, "1")
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    write_atomically(folder / "config.yaml", lambda file: file.write(text), aside="1", mode="w")
    return settings


def export_backbone(folder: Path, out: Path, form: str) -> None:
    """Write the backbone of a run as torchvision's state dict, or as detectron2's pickle. ``out`` must not exist.

    Raises StoreError for a folder that holds no run, SettingsError for a backbone that has no such form.
    """
    if out.exists():
        raise StoreError(f"{out}: exists already; nothing is overwritten")
    settings = settings_of(folder)
    state = checkpoint.load(folder)
    if state is None:
        raise StoreError(f"{folder}: there is no checkpoint that loads")
    num_channels = state["model"]["backbone.conv1.weight"].shape[1]
    num_images = len(state["model"].get("averages.visited", ()))
    model = Siamese(settings, num_channels, num_images)
    model.load_state_dict(state["model"])
    try:
        weights = export_torchvision(model)
    except ValueError as error:
        raise SettingsError(f"{error}  [{folder / 'config.yaml'}]") from None
    content = export_detectron2(weights) if form == "detectron2" else weights
    write: Callable[[Any], object] = (
        (lambda file: pickle.dump(content, file)) if form == "detectron2" else (lambda file: torch.save(content, file))
    )
    write_atomically(out, write, aside=str(os.getpid()))
