"""Checkpoints from and for elsewhere: the authors' release, torchvision, detectron2.

Only tensors and plain values are unpickled (``weights_only``), so a stranger's checkpoint is safe to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simsiam.model.backbones import make_backbone
from simsiam.model.heads import make_predictor, make_projector
from simsiam.model.siamese import Siamese
from simsiam.record.checkpoint import load_tensors
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings

StateDict = dict[str, Tensor]

# Blocks in each of the four stages, and whether a block is a bottleneck of three convolutions (He et al. 2016).
ARCHITECTURES = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}


# --- from the authors' release -----------------------------------------------------------------------------------


def import_release(source: Path | Mapping[str, Any]) -> tuple[dict[str, Any], StateDict]:
    """Settings and weights of a checkpoint of the authors' released code.

    source: the file, or what torch.load gives for it: ``{"state_dict": {"module.encoder.conv1.weight": ...}}``, with
    torchvision's names for the ResNet, ``encoder.fc`` for the projector and ``predictor`` for h.

    Returns the network's settings by dotted path (of the training's recipe and data the weights say nothing) for
    ``validate``, and a state dict that ``Siamese`` with these settings loads, for images of 3 channels. Raises
    ValueError for what is not in this format.

    The release's last projector layer has a bias that stays frozen at its random start, in front of a BN without scale
    and shift. Our layer has none: the BN subtracts it again, so it is moved into the BN's running mean. Features are
    the same to the bit; z and p up to the rounding of one addition; and so is any further training, in which the
    running mean keeps that distance.
    """
    state = _release_state(source)
    flat = _release_settings(state)
    weights = {_from_release(name): value.detach().cpu().clone() for name, value in state.items()}
    output = 3 * (flat["projector.num_layers"] - 1)  # fc, BN, ReLU for each layer before
    bias = weights.pop(f"projector.{output}.bias", None)
    _compare(weights, validate(flat))
    if bias is not None:
        if bias.shape != weights[f"projector.{output + 1}.running_mean"].shape:
            raise _not_release(f"its encoder.fc.{output}.bias has the shape {tuple(bias.shape)}")
        weights[f"projector.{output + 1}.running_mean"] -= bias
    return flat, weights


def _release_state(source: Path | Mapping[str, Any]) -> StateDict:
    """The weights by their names in the release's module, without DDP's prefix."""
    checkpoint: Any = source
    if isinstance(source, Path):
        try:
            checkpoint = load_tensors(source)
        except ValueError as error:
            raise ValueError(f"does not load: {error}") from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _not_release("it has no 'state_dict' of tensors")
    state = {str(name).removeprefix("module."): value for name, value in weights.items()}
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            raise _not_release(f"its {name} is no plain tensor of numbers")
        if value.is_floating_point() == name.endswith(".num_batches_tracked"):  # BN's only whole number
            raise _not_release(f"its {name} is of {value.dtype}; weights of floating-point numbers are wanted")
        if not value.float().isfinite().all():
            raise _not_release(f"its {name} has values that are not finite")
    if strange := [name for name in state if not name.startswith(("encoder.", "predictor."))]:
        raise _not_release(f"its state_dict has {strange[0]!r}, which is neither of the encoder nor of the predictor")
    return state


def _release_settings(state: StateDict) -> dict[str, Any]:
    """What the names and shapes of the weights say of the network."""
    blocks = {match.groups() for name in state if (match := re.match(r"encoder\.layer(\d+)\.(\d+)\.", name))}
    num_blocks = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    architecture = num_blocks, "encoder.layer1.0.conv3.weight" in state
    if architecture not in ARCHITECTURES:
        kind = "bottleneck" if architecture[1] else "basic"
        raise _not_release(
            f"its encoder has {num_blocks} {kind} blocks, and is none of {', '.join(ARCHITECTURES.values())}"
        )
    fc = r"encoder\.fc\.(\d+)\.weight"
    layers = sorted(int(match[1]) for name in state if (match := re.fullmatch(fc, name)) and state[name].dim() == 2)
    if not layers or "predictor.0.weight" not in state or state["predictor.0.weight"].dim() != 2:
        raise _not_release("it has no projector (encoder.fc.0) or no predictor (predictor.0)")
    hidden, output = state[f"encoder.fc.{layers[0]}.weight"], state[f"encoder.fc.{layers[-1]}.weight"]
    return {
        "backbone.name": ARCHITECTURES[architecture],
        "backbone.stem": "imagenet",
        "projector.num_layers": len(layers),
        "projector.hidden_dim": len(hidden),
        "projector.output_dim": len(output),
        "projector.bn_output_affine": f"encoder.fc.{layers[-1] + 1}.weight" in state,
        "predictor.kind": "mlp",
        "predictor.hidden_dim": len(state["predictor.0.weight"]),
    }


def _from_release(name: str) -> str:
    if name.startswith("encoder.fc."):
        return name.replace("encoder.fc.", "projector.", 1)
    return name.replace("encoder.", "backbone.", 1) if name.startswith("encoder.") else name


def _compare(weights: StateDict, settings: Settings) -> None:
    """Raise ValueError unless the names and shapes are those of the network that ``settings`` describe."""
    with torch.device("meta"):  # shapes alone
        backbone, num_features = make_backbone(settings.backbone, num_channels=3)
        network = nn.ModuleDict(
            {
                "backbone": backbone,
                "projector": make_projector(settings.projector, num_features),
                "predictor": make_predictor(settings.predictor, settings.projector.output_dim),
            }
        )
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise _not_release(
            f"{len(wrong)} of its weights do not fit a {settings.backbone.name} with such heads; the first, in our "
            f"naming, is {name}: {found.get(name, 'missing')}, where {expected.get(name, 'none')} was expected"
        )


def _not_release(problem: str) -> ValueError:
    return ValueError(f"not a checkpoint in the format of the authors' release: {problem}")


# --- for torchvision and detectron2 ------------------------------------------------------------------------------


def export_torchvision(model: Siamese) -> StateDict:
    """The backbone's weights as torchvision's ResNet of the same name has them, on the CPU; all but ``fc``.

    ``torchvision.models.resnet50().load_state_dict(state, strict=False)`` misses ``fc.weight`` and ``fc.bias`` alone.
    Inputs are to be normalised as in training. Raises ValueError for a backbone that torchvision does not have.
    """
    settings = model.settings.backbone
    if settings.name == "small":
        raise ValueError(f"backbone.name: small is not one of torchvision's ({', '.join(ARCHITECTURES.values())})")
    if settings.stem == "cifar":
        raise ValueError("backbone.stem: cifar is not the stem of torchvision's ResNets; imagenet is")
    num_channels = model.backbone.get_parameter("conv1.weight").shape[1]
    if num_channels != 3:
        raise ValueError(f"data.name: the images have {num_channels} channel; torchvision's ResNets have 3")
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.backbone.state_dict().items()
    }


def export_detectron2(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A torchvision ResNet's weights in detectron2's naming, as numpy arrays; pickle it for ``MODEL.WEIGHTS``.

    state: from :func:`export_torchvision`, or any torchvision ResNet's; ``fc`` is left out. The detector has to be set
    up for torchvision's networks and for our images: ``MODEL.RESNETS.STRIDE_IN_1X1: False``, ``INPUT.FORMAT: RGB``, and
    ``PIXEL_MEAN`` and ``PIXEL_STD`` of the training images, times 255. Raises ValueError for other weights.
    """
    if "conv1.weight" not in state or "layer4.0.conv1.weight" not in state:
        raise ValueError("not the weights of a torchvision ResNet: conv1.weight or layer4.0.conv1.weight is missing")
    arrays = {
        _detectron2_name(name): value.detach().cpu().numpy()
        for name, value in state.items()
        if not name.startswith("fc.")
    }
    return {"model": arrays, "__author__": "simsiam-ablations", "matching_heuristics": True}


def _detectron2_name(name: str) -> str:
    """``layer1.0.bn2.weight`` -> ``res2.0.conv2.norm.weight``; detectron2 counts the stem as the first stage."""
    path = name.split(".")
    if path[0].startswith("layer"):
        path[0] = f"res{int(path[0].removeprefix('layer')) + 1}"
    else:
        path.insert(0, "stem")
    renamed = re.sub(r"\bbn(\d)", r"conv\1.norm", ".".join(path))
    return renamed.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
