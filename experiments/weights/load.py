"""A run folder's settings and model, read back."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from experiments.runs.folder import StoreError
from simsiam.model.siamese import Siamese
from simsiam.record import checkpoint
from simsiam.settings.fields import Settings
from simsiam.settings.own_code import look_in


def settings_of(folder: Path) -> Settings:
    """The settings of a run. Raises StoreError for a folder that holds none."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        settings = Settings.model_validate_json(json.dumps(config))
    except (OSError, ValueError, yaml.YAMLError):
        raise StoreError(f"{folder}: is not the folder of a run (no config.yaml that can be read)") from None
    look_in(folder.absolute().parent)
    return settings


def load_model(folder: Path, settings: Settings, num_channels: int, num_images: int) -> Siamese:
    """The network of a run, from its newest checkpoint that loads. Raises StoreError if there is none."""
    state = checkpoint.load(folder)
    if state is None:
        raise StoreError(f"{folder}: there is no checkpoint that loads")
    first = state["model"].get("backbone.conv1.weight")  # one's own backbone may call it otherwise
    trained_on = num_channels if first is None else first.shape[1]
    if trained_on != num_channels:
        raise StoreError(
            f"{folder}: its network takes images of {trained_on} channels; those of {settings.data.name} have"
            f" {num_channels}  [data.name]"
        )
    model = Siamese(settings, num_channels, num_images)
    model.load_state_dict(state["model"])
    return model
