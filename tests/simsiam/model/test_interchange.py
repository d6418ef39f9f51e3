"""Checkpoints from and for elsewhere, against networks that are put together here from torchvision's parts."""

from __future__ import annotations

import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from commands.app import main
from experiments.studies.methods import load_method
from simsiam.model.exchange import export_detectron2, export_torchvision, import_release
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.training.optim import make_optimizer, set_rates

Small = Callable[..., Settings]


class Release(nn.Module):
    """What the authors' checkpoints hold: a torchvision ResNet with the projector as its fc, and a predictor."""

    def __init__(self, name: str, dim: int, hidden_dim: int, affine: bool = False) -> None:
        super().__init__()
        self.encoder = getattr(torchvision.models, name)(num_classes=dim)
        width = self.encoder.fc.in_features
        last = self.encoder.fc
        last.bias.requires_grad_(False)
        self.encoder.fc = nn.Sequential(
            *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
            *(last, nn.BatchNorm1d(dim, affine=affine)),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim)
        )
        randomise(self)

    def checkpoint(self) -> dict[str, Any]:
        """As training under DDP saves it."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        state = {f"module.{name}": value for name, value in self.state_dict().items()}
        return {"epoch": 100, "arch": "resnet", "state_dict": state, "optimizer": optimizer.state_dict()}

    def features(self, x: Tensor) -> Tensor:
        """What goes into fc."""
        features: list[Tensor] = []
        handle = self.encoder.fc.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        self.encoder(x)
        handle.remove()
        return features[0]


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """No scale, shift or statistic of a BN is what it is at the start of a training."""
    draws = torch.Generator().manual_seed(0)
    for bn in module.modules():
        if isinstance(bn, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert bn.running_mean is not None
            assert bn.running_var is not None
            bn.running_mean.normal_(0, 0.2, generator=draws)
            bn.running_var.uniform_(0.5, 1.5, generator=draws)
            if bn.affine:
                bn.weight.uniform_(0.5, 1.5, generator=draws)
                bn.bias.normal_(0, 0.2, generator=draws)
    for name, bias in module.named_parameters():
        if name.endswith("fc.6.bias"):
            bias.normal_(0, 1, generator=draws)


def imported(source: Any) -> tuple[Settings, Siamese]:
    flat, weights = import_release(source)
    settings = validate({**flat, "data.name": "synthetic", "data.storage": "memory"})
    model = Siamese(settings, 3)
    model.load_state_dict(weights)
    return settings, model


def images(n: int = 4, size: int = 64) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- from the authors' release -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "affine"), [("resnet18", False), ("resnet50", False), ("resnet18", True)])
def test_release_gives_the_same_features(tmp_path: Path, name: str, affine: bool) -> None:
    release = Release(name, dim=96, hidden_dim=24, affine=affine).eval()
    path = tmp_path / "checkpoint_0099.pth.tar"
    torch.save(release.checkpoint(), path)
    settings, model = imported(path)
    model.eval()
    assert settings.backbone.name == name
    assert settings.projector.num_layers == 3
    assert settings.projector.hidden_dim == release.encoder.fc[0].in_features
    assert settings.projector.output_dim == 96
    assert settings.projector.bn_output_affine == affine
    assert settings.predictor.hidden_dim == 24
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x), release.features(x), rtol=0, atol=0)
        z = release.encoder(x)
        torch.testing.assert_close(model.f(x), z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.h(model.f(x)), release.predictor(z), rtol=1e-5, atol=1e-5)


def test_the_frozen_bias_is_folded_exactly() -> None:
    """In float64: z is the same in evaluation and in training, and the running mean keeps its distance, the bias."""
    release = Release("resnet18", dim=32, hidden_dim=8).double()
    _, model = imported(release.checkpoint())
    model.double().load_state_dict(import_release(release.checkpoint())[1])
    x = images(8).double()
    for _ in range(3):
        torch.testing.assert_close(model.f(x), release.encoder(x), rtol=1e-9, atol=1e-9)
    theirs, ours = release.encoder.fc[7].running_mean, model.projector.get_buffer("7.running_mean")
    torch.testing.assert_close(ours, theirs - release.encoder.fc[6].bias, rtol=1e-9, atol=1e-9)
    release.eval()
    model.eval()
    torch.testing.assert_close(model.f(x), release.encoder(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.h(model.f(x)), release.predictor(release.encoder(x)), rtol=1e-9, atol=1e-9)


def test_steps_with_the_release_s_settings_are_the_release_s() -> None:
    """main_simsiam.py with --fix-pred-lr beside our model, loss and optimiser, in float64: two epochs of two steps.

    Its networks are smaller; the settings that decide the arithmetic are those of the method's file.
    """
    flat = flatten(load_method("simsiam-release", "imagenet"))
    assert (flat["precision"], flat["data.normalisation"]) == ("float32", "imagenet")
    release = Release("resnet18", dim=32, hidden_dim=8).double().train()
    of_network, weights = import_release({"state_dict": {f"module.{k}": v for k, v in release.state_dict().items()}})
    settings = validate({**flat, **of_network, "batch_size": 8, "epochs": 2, "evaluation.every_epochs": 1})
    ours = Siamese(settings, 3).double()
    ours.load_state_dict(weights)
    optimizer = make_optimizer(settings, ours)
    lr = 0.05 * 8 / 256
    groups = [{"params": release.encoder.parameters()}, {"params": release.predictor.parameters()}]
    theirs = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CosineSimilarity(dim=1)
    for step in range(4):
        draws = torch.Generator().manual_seed(step)
        x1, x2 = (torch.randn(8, 3, 64, 64, generator=draws, dtype=torch.float64) for _ in range(2))
        theirs.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (step // 2) / 2))
        z1, z2 = release.encoder(x1), release.encoder(x2)
        p1, p2 = release.predictor(z1), release.predictor(z2)
        expected = -(criterion(p1, z2.detach()).mean() + criterion(p2, z1.detach()).mean()) * 0.5
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        set_rates(optimizer, settings, step, steps_per_epoch=2, num_steps=4)
        loss = ours(x1, x2).loss
        optimizer.zero_grad()
        (settings.loss.weight * loss).backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    _, after = import_release({"state_dict": {f"module.{k}": v for k, v in release.state_dict().items()}})
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-8, msg=name)


def test_import_leaves_what_it_was_given() -> None:
    checkpoint = Release("resnet18", dim=16, hidden_dim=4).checkpoint()
    before = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
    _, weights = import_release(checkpoint)
    for value in weights.values():
        value.zero_()
    assert all(torch.equal(checkpoint["state_dict"][name], value) for name, value in before.items())


def test_parameter_count_of_the_paper_s_network_is_the_release_s() -> None:
    """ResNet-50, 2048-d, 512: ours but for the frozen bias of the last projector layer."""
    with torch.device("meta"):
        release = Release("resnet50", dim=2048, hidden_dim=512)
    flat, _ = import_release(
        {"state_dict": {f"module.{k}": torch.zeros(v.shape, dtype=v.dtype) for k, v in release.state_dict().items()}}
    )
    ours = Siamese(validate(flat), 3)
    count = sum(weight.numel() for weight in release.parameters())
    assert sum(weight.numel() for weight in ours.parameters()) == count - 2048
    assert validate(flat) == validate({"projector.bn_output_affine": False})  # all else is the paper's default


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.clear(), "blocks"),
        (without("module.predictor.0.weight"), "no predictor"),
        (without("module.encoder.fc.7.running_var"), r"projector\.7\.running_var: missing, where \(16,\) was expected"),
        (without("module.encoder.layer2.0.bn1.weight"), r"backbone\.layer2\.0\.bn1\.weight: missing"),
        (lambda state: state.update({"module.encoder.conv1.weight": torch.zeros(64, 3, 3, 3)}), r"\(64, 3, 3, 3\)"),
        (lambda state: state.update({"module.encoder.fc.0.bias": torch.zeros(512)}), r"projector\.0\.bias"),
        (lambda state: state.update({"module.encoder_q.conv1.weight": torch.zeros(1)}), "encoder_q"),
        (lambda state: state.update({"module.encoder.layer4.2.conv1.weight": torch.zeros(1)}), r"\(2, 2, 2, 3\) basic"),
        (lambda state: state.update({"module.encoder.conv1.weight": 3}), "no 'state_dict' of tensors"),
    ],
)
def test_other_formats_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    checkpoint = Release("resnet18", dim=16, hidden_dim=4).checkpoint()
    change(checkpoint["state_dict"])
    with pytest.raises(ValueError, match=message):
        import_release(checkpoint)


def test_files_that_do_not_load_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="does not load"):
        import_release(path)
    path.write_bytes(pickle.dumps({"state_dict": Path("not a tensor")}, protocol=2))  # nothing but tensors is unpickled
    with pytest.raises(ValueError, match="does not load"):
        import_release(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="no 'state_dict'"):
        import_release(path)
    with pytest.raises(FileNotFoundError):
        import_release(tmp_path / "missing")


@pytest.fixture(scope="module")
def release_state() -> dict[str, Tensor]:
    return dict(Release("resnet18", dim=16, hidden_dim=8).checkpoint()["state_dict"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_off_is_said_to_be_no_checkpoint(
    zipped: bool, release_state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Wherever the cut is; torch's errors for it are IndexError, struct.error, EOFError, OSError and others."""
    # A few numbers of each weight: what matters is where the pickles and the records end.
    path = tmp_path / "whole.pth.tar"
    small = {name: value.flatten()[:4].clone() for name, value in release_state.items()}
    torch.save({"epoch": 100, "state_dict": small}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    cut = tmp_path / "cut.pth.tar"
    for end in {*range(40), *range(40, len(content), 1777), *range(len(content) - 40, len(content), 3)}:
        cut.write_bytes(content[:end])
        with pytest.raises(ValueError, match="does not load") as error:
            import_release(cut)
        assert "\n" not in str(error.value)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


def _with(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {"state_dict": {**state, f"module.{name}": change(state[f"module.{name}"])}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda state: {"state_dict": {**state, "code": _Code()}}, "more than tensors and plain values"),
        (lambda state: [1, 2], "no 'state_dict' of tensors"),
        (lambda state: {"state_dict": {"module.encoder.conv1.weight": 3.0}}, "no 'state_dict' of tensors"),
        (lambda state: {"state_dict": {}}, r"\(0, 0, 0, 0\) basic blocks"),
        (_with("encoder.conv1.weight", lambda w: (w * 100).to(torch.int8)), "encoder.conv1.weight is of torch.int8"),
        (_with("encoder.conv1.weight", lambda w: w.to(torch.complex64)), "encoder.conv1.weight is of torch.complex64"),
        (_with("encoder.conv1.weight", lambda w: w.to_sparse()), "no plain tensor"),
        (_with("encoder.layer4.1.bn2.running_mean", lambda w: w * torch.nan), "running_mean has .* not finite"),
        (_with("encoder.conv1.weight", lambda w: w.double() * 1e300), "not finite"),  # in single precision
        (_with("encoder.conv1.weight", lambda w: w[:, :1]), r"conv1.weight: \(64, 1, 7, 7\)"),
        (_with("predictor.0.weight", lambda w: w.sum()), "no predictor"),
        (_with("predictor.0.weight", lambda w: w[:0]), "predictor.hidden_dim"),
        (_with("encoder.fc.6.bias", lambda w: w[:3]), r"encoder.fc.6.bias has the shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_whole_checkpoint_of_weights_is_refused(
    make: Callable[[dict[str, Tensor]], Any],
    message: str,
    zipped: bool,
    release_state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "strange.pth.tar"
    torch.save(make(release_state), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=message) as error:
        import_release(path)
    assert "\n" not in str(error.value)
    assert "never" not in capsys.readouterr().out


def test_import_refuses_a_broken_file_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("read.me", "no weights")
    (tmp_path / "cut").write_bytes(b"\x80\x02\x8a")  # how torch's older format begins
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name, code in (("other.zip", 2), ("cut", 2), ("empty", 2), ("folder", 1), ("nothing", 1)):
        monkeypatch.setattr(sys, "argv", ["run_ablation.py", "import", name, "imported", "--scale", "smoke"])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().err
        assert (ended.value.code, len(told.splitlines())) == (code, 1), told
        assert told.startswith("error: ")
        assert name in told
        assert not (tmp_path / "imported").exists()


def test_half_precision_is_welcome(release_state: dict[str, Tensor]) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in release_state.items()}
    assert import_release({"state_dict": half})[1]["backbone.conv1.weight"].dtype == torch.float16


# --- for torchvision and detectron2 ------------------------------------------------------------------------------


@pytest.fixture(params=["resnet18", "resnet50"])
def model(request: pytest.FixtureRequest) -> Iterator[Siamese]:
    settings = {"backbone.name": request.param, "projector.hidden_dim": 8, "projector.output_dim": 8}
    network = Siamese(validate({**settings, "predictor.hidden_dim": 4}), 3).to(memory_format=torch.channels_last)
    randomise(network)
    return network.eval()


def test_torchvision_loads_the_backbone(model: Siamese) -> None:
    state = export_torchvision(model)
    theirs = getattr(torchvision.models, model.settings.backbone.name)()
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected
    assert all(value.is_contiguous() for value in state.values())
    theirs.fc = nn.Identity()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.to(memory_format=torch.channels_last).eval()(x), model.backbone(x), rtol=0, atol=0
        )
    for value in state.values():
        value.zero_()
    assert all(value.any() for value in model.backbone.parameters())  # the export is a copy


def test_detectron2_names_are_those_of_its_resnets(model: Siamese) -> None:
    bottleneck = model.settings.backbone.name == "resnet50"
    blocks, convolutions = ((3, 4, 6, 3), 3) if bottleneck else ((2, 2, 2, 2), 2)
    layers = ["stem.conv1"]
    for stage, num in enumerate(blocks, start=2):
        layers += [f"res{stage}.{i}.conv{c}" for i in range(num) for c in range(1, convolutions + 1)]
        layers += [f"res{stage}.0.shortcut"] if bottleneck or stage > 2 else []
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{layer}.weight" for layer in layers} | {f"{layer}.norm.{part}" for layer in layers for part in norm}
    exported = export_detectron2({**export_torchvision(model), "fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)})
    assert set(exported["model"]) == expected
    assert all(isinstance(value, np.ndarray) for value in exported["model"].values())
    assert exported["matching_heuristics"] is True
    assert exported["__author__"]
    assert pickle.loads(pickle.dumps(exported)).keys() == {"model", "__author__", "matching_heuristics"}


def test_detectron2_weights_give_the_same_features(model: Siamese) -> None:
    """Detectron2's ResNet, written out over its names, with the stride on the 3x3 convolution as torchvision's."""
    model.double()
    weights = {k: torch.from_numpy(v) for k, v in export_detectron2(export_torchvision(model))["model"].items()}

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = (weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.max_pool2d(layer("stem.conv1", images().double(), 2).relu(), 3, stride=2, padding=1)
    for stage in (2, 3, 4, 5):
        block = 0
        while f"res{stage}.{block}.conv1.weight" in weights:
            name, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            shortcut = layer(f"{name}.shortcut", x, stride) if f"{name}.shortcut.weight" in weights else x
            if f"{name}.conv3.weight" in weights:
                inner = layer(f"{name}.conv2", layer(f"{name}.conv1", x).relu(), stride).relu()
                x = (layer(f"{name}.conv3", inner) + shortcut).relu()
            else:
                x = (layer(f"{name}.conv2", layer(f"{name}.conv1", x, stride).relu()) + shortcut).relu()
            block += 1
    with torch.no_grad():
        torch.testing.assert_close(x.mean((2, 3)), model.backbone(images().double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "num_channels", "message"),
    [
        ({}, 3, "backbone.name: small"),
        ({"backbone__name": "resnet18", "backbone__width": 16, "backbone__stem": "cifar"}, 3, "backbone.stem: cifar"),
        ({"backbone__name": "resnet18", "backbone__width": 16}, 1, "data.name: the images have 1 channel"),
    ],
)
def test_what_torchvision_does_not_have_is_refused(
    small: Small, changes: dict[str, Any], num_channels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_torchvision(Siamese(small(**changes), num_channels))


def test_detectron2_wants_a_torchvision_resnet(small: Small) -> None:
    with pytest.raises(ValueError, match="not the weights of a torchvision ResNet"):
        export_detectron2(Siamese(small(), 3).state_dict())
