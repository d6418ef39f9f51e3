"""Linear evaluation of runs that have ended, and export of their backbones; neither ever retrains a run.

The result of a protocol lies beside the run, as ``linear-<protocol>.json``: it belongs to the evaluation, not to what
names the run.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.store import RunFolder, StoreError, read_json, write_json
from simsiam import checkpoint
from simsiam.config import Settings, SettingsError
from simsiam.data import Dataset
from simsiam.files import write_atomically
from simsiam.interchange import export_detectron2, export_torchvision
from simsiam.linear import LinearProtocol, evaluate_linear
from simsiam.siamese import Siamese


def result_path(run: RunFolder, protocol: LinearProtocol) -> Path:
    """Where the result of a protocol lies."""
    return run.path / f"linear-{protocol.name}.json"


def evaluate_run(
    run: RunFolder,
    settings: Settings,
    dataset: Dataset,
    protocol: LinearProtocol,
    device: torch.device,
    on_epoch: Callable[[int, float], None],
) -> dict[str, Any]:
    """Evaluate the backbone of a run that has ended, unless that was done by the same protocol before."""
    path = result_path(run, protocol)
    known = read_json(path)
    if known is not None and known.get("protocol") == protocol.model_dump(mode="json"):
        return known
    model = load_model(run.path, settings, dataset.num_channels, len(dataset.train)).to(device)
    result = evaluate_linear(
        model.backbone, settings, dataset, protocol, device=device, seed=settings.seed, on_epoch=on_epoch
    )
    write_json(path, result, str(os.getpid()))
    return result


def load_model(folder: Path, settings: Settings, num_channels: int, num_images: int) -> Siamese:
    """The network of a run, from its newest checkpoint that loads. Raises StoreError if there is none."""
    state = checkpoint.load(folder)
    if state is None:
        raise StoreError(f"{folder}: there is no checkpoint that loads")
    model = Siamese(settings, num_channels, num_images)
    model.load_state_dict(state["model"])
    return model


def export_backbone(folder: Path, out: Path, form: str) -> None:
    """Write the backbone of a run as torchvision's state dict, or as detectron2's pickle. ``out`` must not exist.

    Raises StoreError for a folder that holds no run, SettingsError for a backbone that has no such form.
    """
    if out.exists():
        raise StoreError(f"{out}: exists already; nothing is overwritten")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        settings = Settings.model_validate_json(json.dumps(config))
    except (OSError, ValueError, yaml.YAMLError):
        raise StoreError(f"{folder}: is not the folder of a run (no config.yaml that can be read)") from None
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
