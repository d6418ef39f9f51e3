"""Backbones from the checkpoints that people have, and what their features are worth.

A state dict is looked for where the known programs put it, wrappers' prefixes are taken off, and the backbone is found
by the names and shapes of its weights. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.studies.layers import Value, layer_from_command_line, resolve
from experiments.weights.embeddings import Embeddings, measure
from simsiam.data.batches import PLAIN_BATCH, make_source
from simsiam.data.dataset import Dataset
from simsiam.data.sets import prepare
from simsiam.errors import SettingsError, nearest
from simsiam.evaluation.knn import knn_top1
from simsiam.evaluation.linear import Protocol, evaluate_linear
from simsiam.model.exchange import ARCHITECTURES
from simsiam.record.checkpoint import load_tensors
from simsiam.record.curves import Point
from simsiam.settings.fields import Settings

StateDict = dict[str, Tensor]

FORMATS = (
    "torchvision, timm, the authors' release and MoCo (module.encoder., module.encoder_q.), lightly (backbone.0.),"
    " solo-learn (backbone.), Lightning (state_dict with prefixes), DINO (teacher, student); with module., _orig_mod."
)
HOLDERS = ("state_dict", "model_state_dict", "model", "student", "teacher", "network", "net", "backbone", "encoder")
FOLLOWERS = re.compile(r"momentum|_k\b|_k\.|target|teacher|ema|key")  # of two networks, the one that follows the other
HEADS = ("fc.", "head.", "classifier.", "head_dist.")
IN_SEQUENCE = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}  # of its children
MOST_IMAGES = 10_000  # whose features are diagnosed, of either split


@dataclass(frozen=True)
class Backbone:
    """A network that maps images to pooled features, with a checkpoint's weights."""

    module: nn.Module
    architecture: str
    where: str  # in the file: the prefix of its weights
    num_channels: int  # of the images that it takes
    small_stem: bool  # a 3x3 first convolution, for small images
    left_out: int  # how many tensors of the file are not the backbone's


def read_backbone(path: Path, architecture: str | None) -> Backbone:
    """The backbone in a checkpoint. ``architecture``: torchvision's or timm's name; None: find out which ResNet it is.

    Raises OSError for a file that cannot be opened; SettingsError, with the keys of the file, for one that is not
    understood, and for weights that are not finite.
    """
    state = _state(path)
    names = [_sequential(state), state]
    for weights in names:
        for prefix in _prefixes(weights, "conv1.weight" if architecture is None else None, architecture):
            own = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
            arch = architecture or _resnet(own)
            made = None if arch is None else _filled(arch, own, path)
            if made is not None and arch is not None:
                module, num_channels, small = made
                used = len(module.state_dict())
                return Backbone(module, arch, prefix or "the top", num_channels, small, max(0, len(state) - used))
    raise _not_understood(path, state, architecture)


def _state(path: Path) -> StateDict:
    """The tensors of a file by their names, without the prefixes of DDP and of torch.compile."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with open(path, "rb"):  # an OSError that names the file
            pass
        try:
            value: Any = load_file(path)
        except Exception as error:  # a damaged file can raise anything
            raise SettingsError(f"{path}: does not load: {str(error).splitlines()[0][:100]}") from None
    else:
        try:
            value = load_tensors(path)
        except ValueError as error:
            raise SettingsError(f"{path}: does not load: {error}") from None
    for _ in range(2):  # {"teacher": {"state_dict": ...}}
        if isinstance(value, Mapping) and not any(isinstance(item, Tensor) for item in value.values()):
            value = next((value[name] for name in HOLDERS if isinstance(value.get(name), Mapping)), value)
    state: StateDict = {}
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, Tensor) and item.is_meta:
            raise SettingsError(f"{path}: its {name} has a shape and no values (it was saved from torch's meta device)")
        if isinstance(item, Tensor) and item.layout == torch.strided:
            state[re.sub(r"(^|(?<=\.))((module|_orig_mod)\.)+", "", str(name))] = item
    if not state:
        named = (
            ", ".join(map(str, list(value)[:10])) or "no keys" if isinstance(value, Mapping) else type(value).__name__
        )
        raise SettingsError(f"{path}: holds no weights: at its top are {named}; formats that are known: {FORMATS}")
    return state


def _sequential(state: StateDict) -> StateDict:
    """With the names of a ResNet where its children stand in a Sequential: ``0.weight`` is ``conv1.weight``."""
    places = {place: name for name, place in IN_SEQUENCE.items()}
    roots = {name[: -len("4.0.conv1.weight")] for name in state if name.endswith("4.0.conv1.weight")}
    roots = {root for root in roots if f"{root}0.weight" in state and (not root or root.endswith("."))}
    renamed: StateDict = {}
    for name, value in state.items():
        root = max((root for root in roots if name.startswith(root)), key=len, default=None)
        if root is not None:
            place, _, rest = name[len(root) :].partition(".")
            name = f"{root}{places.get(place, place)}.{rest}"
        renamed[name] = value
    return renamed


def _prefixes(state: StateDict, key: str | None, architecture: str | None) -> list[str]:
    """Where a backbone may begin: those that learn by gradient before those that follow them, then the shortest."""
    if key is None:
        assert architecture is not None
        expected = [name for name in _empty(architecture).state_dict() if not name.startswith(HEADS)]
        key = expected[0] if expected else "weight"
    found = {name[: -len(key)] for name in state if name == key or name.endswith(f".{key}")}
    return sorted(found, key=lambda prefix: (bool(FOLLOWERS.search(prefix)), len(prefix), prefix))


def _resnet(state: StateDict) -> str | None:
    """Which ResNet the blocks of a state dict make; None if none."""
    blocks = {match.groups() for name in state if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
    num_blocks = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    return ARCHITECTURES.get((num_blocks, "layer1.0.conv3.weight" in state))


def _empty(architecture: str) -> nn.Module:
    """A network without its head, with random weights. Raises SettingsError for a name that nobody knows."""
    import torchvision

    resnets = [name for name in torchvision.models.list_models() if "resn" in name]
    if architecture in resnets:
        resnet: nn.Module = getattr(torchvision.models, architecture)()
        resnet.fc = nn.Identity()
        return resnet
    import timm

    try:
        made: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0)
    except Exception:  # timm raises what it likes for a name that it has not
        close = nearest(architecture, [*resnets, *timm.list_models()])
        raise SettingsError(
            f"arch: {architecture!r} is neither a ResNet of torchvision nor a model of timm{close}  [--arch]"
        ) from None
    return made


def _filled(architecture: str, own: StateDict, path: Path) -> tuple[nn.Module, int, bool] | None:
    """The network with these weights, its images' channels, whether its stem is small; None if they do not fit."""
    network = _empty(architecture)
    small, num_channels = False, 3
    stem = own.get("conv1.weight")
    if stem is not None and isinstance(getattr(network, "conv1", None), nn.Conv2d) and stem.dim() == 4:
        num_channels, small = stem.shape[1], stem.shape[-1] == 3
        if small:  # as solo-learn's and our own for small images: 3x3, stride 1, no pooling
            network.conv1 = nn.Conv2d(num_channels, stem.shape[0], 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        elif num_channels != 3:
            network.conv1 = nn.Conv2d(num_channels, stem.shape[0], 7, stride=2, padding=3, bias=False)
    expected = network.state_dict()
    for name, value in expected.items():
        there = own.get(name)
        if name.endswith("num_batches_tracked") and there is None:
            continue
        if there is None or there.shape != value.shape:
            return None
        if not there.float().isfinite().all():
            raise SettingsError(f"{path}: its {name} has values that are not finite; a diverged network is of no use")
    network.load_state_dict({name: own.get(name, value) for name, value in expected.items()})
    return network.eval(), num_channels, small


def _not_understood(path: Path, state: StateDict, architecture: str | None) -> SettingsError:
    shown = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(state.items())[:8])
    known = ", ".join(ARCHITECTURES.values())
    what = f"a whole {architecture}" if architecture else f"a whole {known}"
    hint = "" if architecture else "; another network is named by --arch"
    return SettingsError(
        f"{path}: holds no weights of {what}{hint}. It has {len(state)} tensors: {shown}"
        f"{' ...' if len(state) > 8 else ''}. Formats that are known: {FORMATS}"
    )


# --- what its features are worth ---------------------------------------------------------------------------------


def settings_for(backbone: Backbone, data: Path, overrides: Iterable[str]) -> Settings:
    """The images: those of the folder ``data``, or of ``--set data.name``; the size follows from the stem."""
    size = 32 if backbone.small_stem else 224
    chosen = layer_from_command_line(overrides)
    values: dict[str, Any] = {"data.image_size": size, "precision": "float32", "backbone.name": "resnet18"}
    if "data.name" not in chosen:
        if not (data / "train").is_dir():
            raise SettingsError(
                f"{data}: is no folder with train/CLASS/IMAGE and test (or val)/CLASS/IMAGE; a set that is known is"
                " chosen by --set data.name=cifar10  [--data]"
            )
        values |= {"data.name": "folder", "data.path": str(data.absolute())}
    values["data.storage"] = "memory" if size <= 64 or "data.name" in chosen else "files"
    values["data.normalisation"] = "own" if backbone.small_stem else "imagenet"
    layer = {path: Value(value, f"for {backbone.architecture}") for path, value in values.items()}
    return resolve((layer, chosen)).settings


@torch.no_grad()
def evaluate_backbone(
    backbone: Backbone,
    settings: Settings,
    data: Path,
    protocol: Protocol,
    device: torch.device,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], Point, Embeddings]:
    """Linear evaluation; every measure of the features of test images, with kNN against training images; and these.

    The diagnosis and kNN are of at most 10,000 images of either split, drawn once. Raises SettingsError for images of
    another number of channels, NonFiniteError for features that are not finite.
    """
    dataset: Dataset = prepare(settings.data, data, progress=tell)
    if dataset.num_channels != backbone.num_channels:
        raise SettingsError(
            f"the network takes images of {backbone.num_channels} channels; those of {settings.data.name} have"
            f" {dataset.num_channels}  [data.name]"
        )
    module = backbone.module.to(device).eval()
    limited = settings.evaluation.model_copy(update={"bank_size": MOST_IMAGES, "query_size": MOST_IMAGES})
    batch = settings.model_copy(update={"evaluation": limited, "batch_size": min(PLAIN_BATCH, len(dataset.train))})
    source = make_source(batch, dataset, device)
    tell("features for kNN and the diagnosis")
    found = {}
    for split in ("bank", "query"):
        parts = [(module(images).float().flatten(1), labels) for images, labels in source.plain(split)]
        features, labels = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        found[split] = features, labels
    features, labels = found["query"]
    finite = features.isfinite().all(1)
    embeddings = Embeddings(
        "features", features[finite], labels[finite], None, None, len(features), int((~finite).sum())
    )
    point = measure(embeddings)
    if finite.all():
        evaluation = settings.evaluation
        point["knn_top1"] = knn_top1(
            *found["bank"], *found["query"], k=evaluation.knn_k, temperature=evaluation.knn_temperature
        )
    tell(f"linear evaluation, {protocol.name}")
    with torch.enable_grad():
        linear = evaluate_linear(module, settings, dataset, protocol, device=device)
    return linear, point, embeddings
