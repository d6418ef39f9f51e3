"""Backbones in the formats that people have: the features are those of the network that was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from commands.app import app
from experiments.weights.checkpoints import read_backbone
from simsiam.errors import SettingsError, UserError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resnet18(seed: int = 0, *, small: bool = False) -> nn.Module:
    """torchvision's, with statistics of BN that are not the ones that it starts with."""
    torch.manual_seed(seed)
    network: nn.Module = torchvision.models.resnet18()
    if small:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return network.eval()


def under(prefix: str, network: nn.Module, *, fc: bool = True) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}": value for name, value in network.state_dict().items() if fc or not name.startswith("fc.")
    }


MINE, OTHER = resnet18(0), resnet18(1)
HEAD = {"projector.0.weight": torch.zeros(4, 512), "predictor.0.weight": torch.zeros(4, 4)}
IN_SEQUENCE = nn.Sequential(*list(MINE.children())[:-1])

FILES: dict[str, Callable[[], Any]] = {
    "torchvision": lambda: under("", MINE),
    "release": lambda: {
        "epoch": 1, "arch": "resnet18",
        "state_dict": under("module.encoder.", MINE, fc=False) | {"module.encoder.fc.0.weight": torch.zeros(4, 512)},
    },
    "moco": lambda: {
        "state_dict": under("module.encoder_k.", OTHER) | under("module.encoder_q.", MINE)
        | {"module.queue": torch.zeros(4, 8), "module.queue_ptr": torch.zeros(1)},
    },
    "lightly": lambda: under("backbone.", IN_SEQUENCE) | HEAD,
    "lightly in Lightning": lambda: {"epoch": 3, "state_dict": under("model.backbone.", IN_SEQUENCE) | HEAD},
    "solo-learn": lambda: {
        "state_dict": under("momentum_backbone.", OTHER, fc=False) | under("backbone.", MINE, fc=False) | HEAD
    },
    "byol": lambda: under("target_encoder.net.", OTHER) | under("online_encoder.net.", MINE),
    "compiled": lambda: {"state_dict": under("model._orig_mod.module.backbone.", MINE)},
    "dino": lambda: {"student": under("module.backbone.", MINE, fc=False), "teacher": under("backbone.", OTHER)},
    "half": lambda: {name: value.half() for name, value in under("", MINE).items()},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("arch", [None, "resnet18"])
def test_every_format_gives_the_features_of_the_network(name: str, arch: str | None, tmp_path: Path) -> None:
    torch.save(FILES[name](), tmp_path / "a.pt")
    found = read_backbone(tmp_path / "a.pt", arch)
    network = resnet18(0)
    network.fc = nn.Identity()
    assert found.architecture == "resnet18"
    torch.testing.assert_close(found.module(IMAGES), network(IMAGES), rtol=0, atol=5e-2 if name == "half" else 0)


@torch.no_grad()
def test_safetensors_a_small_stem_and_models_of_timm(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = resnet18(2, small=True)
    save_file(under("backbone.", network), tmp_path / "a.safetensors")
    network.fc = nn.Identity()
    found = read_backbone(tmp_path / "a.safetensors", None)
    assert found.small_stem
    torch.testing.assert_close(found.module(IMAGES[:, :, :32, :32]), network(IMAGES[:, :, :32, :32]), rtol=0, atol=0)
    timm = pytest.importorskip("timm")
    for name, size in (("resnet10t", 64), ("vit_tiny_patch16_224", 224)):
        theirs = timm.create_model(name, pretrained=False).eval()
        torch.save({"model": under("module.", theirs)}, tmp_path / "b.pth")
        theirs.reset_classifier(0)
        images = torch.randn(1, 3, size, size)
        found = read_backbone(tmp_path / "b.pth", name)
        torch.testing.assert_close(found.module(images), theirs(images), rtol=0, atol=0)


def test_what_is_not_understood_names_the_keys_and_the_formats(tmp_path: Path) -> None:
    torch.save({"state_dict": {"layers.0.weight": torch.zeros(3, 3)}}, tmp_path / "a.pt")
    with pytest.raises(SettingsError, match=r"layers\.0\.weight \(3, 3\).*solo-learn"):
        read_backbone(tmp_path / "a.pt", None)
    torch.save(under("", MINE), tmp_path / "b.pt")
    with pytest.raises(SettingsError, match="a whole resnet50"):
        read_backbone(tmp_path / "b.pt", "resnet50")
    with pytest.raises(SettingsError, match="did you mean 'resnet50'"):
        read_backbone(tmp_path / "b.pt", "resnet5O")
    torch.save({"epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(SettingsError, match="holds no weights: at its top are epoch"):
        read_backbone(tmp_path / "c.pt", None)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in under("", MINE).items()}
    state["layer3.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(SettingsError, match=r"layer3\.0\.conv1\.weight has values that are not finite"):
        read_backbone(tmp_path / "a.pt", None)


def test_weights_without_values_are_refused(tmp_path: Path) -> None:
    torch.save({name: value.to("meta") for name, value in under("", MINE).items()}, tmp_path / "a.pt")
    with pytest.raises(SettingsError, match="has a shape and no values"):
        read_backbone(tmp_path / "a.pt", None)


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="does not load"):
        read_backbone(tmp_path / "a.pt", None)
    assert not Path("unpickled").exists()


def test_a_checkpoint_and_a_folder_of_images_in_one_command(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
    for split, num in (("train", 20), ("test", 10)):
        for name, colour in colours.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = np.clip(np.array(colour) + random.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    torch.save({"state_dict": under("backbone.", resnet18(0, small=True), fc=False)}, tmp_path / "a.ckpt")
    arguments = ["evaluate", str(tmp_path / "a.ckpt"), "--data", str(tmp_path / "images"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--protocol", "features", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["linear"]["top1"] == 100  # colours alone tell the classes apart
    assert found["features"]["knn_top1"] == 100
    assert found["linear"]["num_test"] == 30
    assert {"effective_rank", "z_std", "alpha_req"} <= found["features"].keys()
    wrong = CliRunner().invoke(app, [*arguments[:2], "--data", str(tmp_path)])
    assert "is no folder with train/CLASS/IMAGE" in str(wrong.exception)
