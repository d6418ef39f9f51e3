"""Import of weights into a run's folder, and export of a run's backbone; neither ever retrains a run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.runs.folder import StoreError, write_json
from experiments.studies.layers import Value, layer_from_command_line, resolve
from experiments.studies.study import Scale
from experiments.weights.load import settings_of
from simsiam.errors import SettingsError
from simsiam.model.exchange import export_detectron2, export_torchvision, import_release
from simsiam.model.siamese import Siamese
from simsiam.record import checkpoint
from simsiam.record.atomic_files import write_atomically
from simsiam.settings.fields import Settings


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
