"""Every switch of a run: typed, frozen, cross-checked and hashed.

One :class:`Settings` object holds everything that can change what a run computes, and nothing else (no output
folder, device or worker count). So its hash, together with the fingerprint of the data, names the run. Defaults
are the paper's ImageNet baseline (Sec. 3 and App. A of "Exploring Simple Siamese Representation Learning",
arXiv 2011.10566). This module imports no torch, so that planning thousands of runs is quick.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Range = tuple[Positive, Positive]
# A function or class of the user's own, see simsiam.settings.own: module:name, with the hash of its source once pinned.
OWN_NAME = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(@[0-9a-f]{12})?$"
Own = Annotated[str, Field(pattern=OWN_NAME)]


class FrozenDict(dict[str, Any]):
    """A dictionary that nobody changes, so that settings with one can be keys."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


Argument = bool | int | float | str | None
Arguments = Annotated[dict[str, Argument], AfterValidator(FrozenDict)]
# Settings whose default is what a run folder without them has; there is nothing odd about it.
NEW_SETTINGS = {"augment.views", "augment.more_views", "projector.kind", "evaluation.linear", "code"}
ARGUMENTS = Field(FrozenDict(), description="what a part of one's own is given beside, by name: the study's to say")


class Section(BaseModel):
    """A group of settings: frozen, strict about types, closed to unknown names, free of NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSettings(Section):
    """Which images, and how many of them."""

    name: Literal["fashion-mnist", "cifar10", "cifar100", "stl10", "svhn", "folder", "synthetic"] | Own = Field(
        "folder", description="data set; `folder` reads PATH/train/CLASS/IMAGE and PATH/test (or val)/CLASS/IMAGE"
    )
    path: str = Field(
        "imagenet",
        description="the image folder, inside the data directory or absolute; only with name=folder; not in the id",
        json_schema_extra={"in_id": False},
    )
    storage: Literal["memory", "files"] = Field(
        "files", description="memory: uint8 arrays shared by all processes; files: decoded at each use (folder only)"
    )
    bad_images: Literal["error", "replace"] = Field(
        "error",
        description="of an image that cannot be decoded; replace: the next one of its class stands in (files only)",
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(224, description="side of the network's input, pixels")
    num_train: Count | None = Field(None, description="train on this many images, drawn once; null: all")
    evaluate_on: Literal["test", "holdout"] = Field(
        "test", description="holdout: a tenth of the training set, set aside; for tuning a recipe without the test set"
    )
    normalisation: Literal["own", "imagenet"] = Field(
        "own",
        description="each channel's mean and standard deviation: the training images' own (of a folder read from files,"
        " ImageNet's), or ImageNet's, as in the authors' release",
    )
    arguments: Arguments = ARGUMENTS


class AugmentSettings(Section):
    """The distribution of a view (Sec. 3 and App. A, in torchvision's terms)."""

    crop_scale: Range = Field((0.2, 1.0), description="RandomResizedCrop: area of the crop, as a share of the image")
    crop_ratio: Range = Field((3 / 4, 4 / 3), description="RandomResizedCrop: width over height of the crop")
    flip_probability: Probability = Field(0.5, description="RandomHorizontalFlip")
    jitter_probability: Probability = Field(0.8, description="that ColorJitter is applied to a view")
    brightness: NonNegative = Field(0.4, description="ColorJitter: the factor is uniform in 1 -+ this")
    contrast: NonNegative = Field(0.4, description="ColorJitter: the factor is uniform in 1 -+ this")
    saturation: NonNegative = Field(0.4, description="ColorJitter: the factor is uniform in 1 -+ this")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="ColorJitter: shift uniform in -+ this, turns")
    grey_probability: Probability = Field(0.2, description="RandomGrayscale")
    blur_probability: Probability = Field(0.5, description="that Gaussian blur is applied to a view")
    blur_sigma: Range = Field((0.1, 2.0), description="standard deviation of the blur, uniform in this range, pixels")
    solarise_probability: Probability = Field(
        0.0, description="that pixels of at least 128 are inverted (BYOL's second view)"
    )
    views: Literal["paper"] | Own = Field(
        "paper", description="paper: what the other settings here say; or one's own views in place of all of it"
    )
    more_views: Annotated[int, Field(ge=0, le=62)] = Field(
        0,
        description="views beside x1 and x2, whose predictions are compared with the targets of both (multi-crop); only"
        " with one's own",
    )
    arguments: Arguments = ARGUMENTS


class SecondViewSettings(Section):
    """Where the second view's distribution differs from the first's; null: it does not. Which is which is fixed."""

    blur_probability: Probability | None = Field(None, description="as augment.blur_probability, of the second view")
    solarise_probability: Probability | None = Field(
        None, description="as augment.solarise_probability, of the second view"
    )


class BackboneSettings(Section):
    """The network whose pooled features are evaluated."""

    name: Literal["resnet18", "resnet34", "resnet50", "small"] | Own = Field(
        "resnet50", description="torchvision's ResNets, or a small one for a CPU with its own width, depth and stem"
    )
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1 (App. D); not with small"
    )
    width: Count = Field(16, description="channels of the first of four stages; only with name=small")
    depth: Count = Field(1, description="residual blocks in each stage; only with name=small")
    stem_stride: Annotated[int, Field(ge=1, le=4)] = Field(
        2, description="stride of the 3x3 stem; only with name=small"
    )
    arguments: Arguments = ARGUMENTS


class ProjectorSettings(Section):
    """The projection MLP, part of the encoder f (Sec. 3, Table 3)."""

    num_layers: Annotated[int, Field(ge=1, le=8)] = Field(3, description="fully connected layers")
    hidden_dim: Count = Field(2048, description="width of the hidden layers")
    output_dim: Count = Field(2048, description="d, the width of z")
    bn_hidden: bool = Field(True, description="BN on the hidden layers (Table 3)")
    bn_output: bool = Field(True, description="BN on the output z (Table 3)")
    bn_output_affine: bool = Field(True, description="the output BN has a scale and a shift (Sec. 4.4)")
    bias: Literal["auto", "always"] = Field(
        "auto",
        description="auto: a layer that a BN follows has no bias, since the BN subtracts it; always: all have one",
    )
    kind: Literal["mlp"] | Own = Field("mlp", description="the MLP of Sec. 3, or one's own")
    arguments: Arguments = ARGUMENTS


class PredictorSettings(Section):
    """The prediction MLP h (Sec. 3, Sec. 4.2, Table 1)."""

    kind: Literal["mlp", "none", "fixed", "linear", "bias"] | Own = Field(
        "mlp",
        description="none: identity (Table 1a); fixed: an mlp that stays at its random init (Table 1b); linear: one"
        " layer without bias; bias: p = z + b (later literature)",
    )
    hidden_dim: Count = Field(512, description="width of the hidden layer; the paper's bottleneck is d/4")
    bn_hidden: bool = Field(True, description="BN on the hidden layer (Table 3)")
    bn_output: bool = Field(False, description="BN on the output p (Table 3d: unstable)")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "constant", description="constant: the predictor's rate skips the decay, not the warm-up (Table 1c)"
    )
    lr_multiplier: NonNegative = Field(
        1.0, description="the predictor's rate over the encoder's peak rate (footnote 2: 10)"
    )
    arguments: Arguments = ARGUMENTS


class TargetSettings(Section):
    """What p is compared with (Fig. 3, Sec. 5)."""

    stop_gradient: bool = Field(
        True,
        description="the target is a constant in the gradient (Sec. 4.1); with sinkhorn: the codes; nt-xent: the keys",
    )
    encoder: Literal["shared", "momentum"] = Field(
        "shared", description="shared: f itself; momentum: a moving average of f, without predictor (BYOL, MoCo)"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.996, description="of the momentum encoder, per step")
    momentum_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: from momentum to 1 over the run (BYOL)"
    )
    momentum_update: Literal["after-step", "before-forward"] = Field(
        "after-step",
        description="when the moving average moves: after the optimiser's step (BYOL), before the key's forward (MoCo)",
    )
    transform: Literal["none", "sinkhorn"] | Own = Field(
        "none", description="sinkhorn: codes of prototype scores (SwAV)"
    )
    num_prototypes: Annotated[int, Field(ge=0)] = Field(
        0, description="prototypes, part of the encoder; only with sinkhorn"
    )
    sinkhorn_iterations: Count = Field(3, description="alternating normalisations; only with sinkhorn")
    sinkhorn_epsilon: Positive = Field(0.05, description="of the entropy term; only with sinkhorn")
    queue_size: Annotated[int, Field(ge=0)] = Field(
        0, description="keys of earlier batches that serve as negatives (MoCo)"
    )
    cache_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="k: targets are made for k steps at once, with the weights before them (Sec. 5.2); 0: in each step",
    )
    cache_epoch: bool = Field(
        False, description="targets are computed for a whole epoch at once (Sec. 5.2); not together with k"
    )
    image_average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="the target is a moving average of each image's z/|z| with this momentum, moved before the step"
        " (Sec. 5.2: 0.8); 0: off, which is the same as no memory",
    )
    arguments: Arguments = ARGUMENTS


class LossSettings(Section):
    """How p and its target are compared."""

    name: Literal["cosine", "cross-entropy", "squared-distance", "nt-xent", "info-nce", "swapped-prediction"] | Own = (
        Field(
            "cosine",
            description="cosine: D = -cos(p, z), eq. 1; cross-entropy: -softmax(z) log softmax(p), Sec. 4.5;"
            " squared-distance: |p - z|^2 without normalisation; nt-xent: SimCLR; info-nce: MoCo, with a queue;"
            " swapped-prediction: SwAV",
        )
    )
    temperature: Positive = Field(0.1, description="of nt-xent, info-nce and swapped-prediction")
    symmetry: Literal["symmetric", "asymmetric", "asymmetric-2x"] = Field(
        "symmetric",
        description="asymmetric: D(p1, z2) alone, weight 1; asymmetric-2x: two such pairs of each image (Sec. 4.6)",
    )
    weight: Positive = Field(
        1.0,
        description="factor on the loss whose gradient is taken, not on the logged one: an original that sums its"
        " directions where this averages them was tuned at a multiple of it",
    )
    arguments: Arguments = ARGUMENTS


class BatchNormSettings(Section):
    """Whose statistics a BN uses."""

    one_forward: bool = Field(
        False, description="both views in one forward, with common statistics (official SimCLR, SwAV)"
    )
    groups: Count = Field(
        1,
        description="groups of the batch with statistics of their own, the target's images permuted first (MoCo: 8)",
    )


class InitialisationSettings(Section):
    """Weights at the start."""

    fc_std: Positive | None = Field(
        None,
        description="standard deviation of all fully connected layers, normal (App. A: 0.01); null: PyTorch's default",
    )
    zero_last_bn: bool = Field(
        True, description="the last BN scale of each residual block starts at 0 (App. A), not at 1 (MoCo, SwAV)"
    )


class OptimizerSettings(Section):
    """SGD or LARS with the linear scaling rule and a half-period cosine."""

    name: Literal["sgd", "lars"] = Field("sgd", description="SGD with momentum, or LARS (timm's)")
    lr: NonNegative = Field(0.05, description="base rate; the rate in use is lr x batch_size / 256")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD momentum")
    weight_decay: NonNegative = Field(1e-4, description="on all parameters, BN scales and biases included (App. A)")
    exclude_bn_and_bias: bool = Field(
        False, description="no weight decay, and no LARS adaptation, on BN scales and biases (SimCLR, BYOL)"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="what follows the warm-up")
    schedule_by: Literal["step", "epoch"] = Field(
        "step", description="epoch: the cosine stays, within an epoch, at its value at the start (the authors' release)"
    )
    warmup_epochs: NonNegative = Field(0.0, description="linear warm-up from 0, in epochs (App. A: 10 for large batch)")


class EvaluationSettings(Section):
    """What is measured while training, and how often."""

    log_every_steps: Count = Field(50, description="steps between two logged points of loss and std")
    every_epochs: Count = Field(1, description="epochs between two evaluations (kNN, effective rank)")
    knn_k: Count = Field(200, description="neighbours that vote (at most the size of the bank)")
    knn_temperature: Positive = Field(0.1, description="T: a vote weighs exp(cosine / T)")
    bank_size: Count | None = Field(None, description="training images in the kNN bank, drawn once; null: all")
    query_size: Count | None = Field(None, description="test images that are classified, drawn once; null: all")
    diagnostics: bool = Field(
        True,
        description="log also spectrum, uniformity, centre, cosine of positives, LiDAR and each part's gradient",
        json_schema_extra={"in_id": False},
    )
    linear: bool = Field(
        True,
        description="linear top-1 before the first step and at the end: logistic regression on the bank's features",
        json_schema_extra={"in_id": False},
    )
    stop_after_collapsed: Annotated[int, Field(ge=0)] = Field(
        0, description="end a run after so many collapsed evaluations in a row; 0: never (the curve is the point)"
    )


class ExecutionSettings(Section):
    """How a step is carried out; nothing here changes a result."""

    cuda_graph: bool = Field(
        False,
        description="on a GPU, forward and backward of a step are captured once and replayed; only of one rank, and"
        " without one's own parts; elsewhere they are run as ever",
        json_schema_extra={"in_id": False},
    )


class Settings(Section):
    """All that decides what a run computes."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seeds weights, image order and augmentation")
    epochs: Count = Field(100, description="passes over the training set")
    batch_size: Annotated[int, Field(ge=2)] = Field(512, description="images in a step, over all ranks")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast of the networks; losses, BN statistics and updates stay float32"
    )
    code: Annotated[str, Field(pattern="^([0-9a-f]{16})?$")] = Field(
        "", description="made anew with this training code (`run --retrain`); empty: with whichever made it"
    )
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    second_view: SecondViewSettings = SecondViewSettings()
    backbone: BackboneSettings = BackboneSettings()
    projector: ProjectorSettings = ProjectorSettings()
    predictor: PredictorSettings = PredictorSettings()
    target: TargetSettings = TargetSettings()
    loss: LossSettings = LossSettings()
    batch_norm: BatchNormSettings = BatchNormSettings()
    initialisation: InitialisationSettings = InitialisationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    execution: ExecutionSettings = ExecutionSettings()


# --- flat form: dotted paths -------------------------------------------------------------------------------------


def flatten(settings: Settings) -> dict[str, Any]:
    """All settings by dotted path, e.g. ``{"seed": 0, "data.name": "folder", ...}``, in the order of declaration.

    Arguments of one's own parts have paths of their own, such as ``loss.arguments.weight``.
    """
    flat: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            flat |= {f"{name}.{leaf}": getattr(value, leaf) for leaf in type(value).model_fields if leaf != "arguments"}
            if hasattr(value, "arguments"):
                flat |= {f"{name}.arguments.{argument}": given for argument, given in value.arguments.items()}
        else:
            flat[name] = value
    return flat


@cache
def sections() -> dict[str, type[Section]]:
    """The groups of settings, by their names."""
    annotations = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, Section)}


@cache
def default_values() -> dict[str, Any]:
    """All defaults by dotted path."""
    return flatten(Settings())


def dotted_paths() -> list[str]:
    """The dotted path of every setting, but for the arguments of one's own parts."""
    return list(default_values())


def is_argument(path: str) -> bool:
    """Whether a dotted path is that of an argument of one's own part, such as ``loss.arguments.weight``."""
    section, _, name = path.partition(".arguments.")
    return name.isidentifier() and section in sections() and "arguments" in sections()[section].model_fields


def is_setting(path: str) -> bool:
    """Whether a dotted path is that of a setting, an argument of one's own part included."""
    return path in default_values() or is_argument(path)


def description(path: str) -> str:
    """The one-line description of the setting at a dotted path."""
    section, _, leaf = (path.rpartition(".")[0] if is_argument(path) else path).rpartition(".")
    fields = sections()[section].model_fields if section else Settings.model_fields
    return fields[leaf].description or ""


# --- identity ----------------------------------------------------------------------------------------------------


def without_effect(settings: Settings) -> frozenset[str]:
    """The dotted paths of settings that may be set, yet change nothing beside the others; they name no run.

    A scale or a study sets them for all its cells, so they are not refused where they do nothing, unlike what
    :func:`validate` says has no effect.
    """
    s, paths = settings, set[str]()
    if ":" in s.augment.views:
        paths |= {f"augment.{name}" for name in AugmentSettings.model_fields} - {"augment.views", "augment.more_views"}
        paths |= {f"second_view.{name}" for name in SecondViewSettings.model_fields}
    if ":" in s.backbone.name:
        paths |= {f"backbone.{name}" for name in ("stem", "width", "depth", "stem_stride")}
    if ":" in s.projector.kind:
        paths |= {f"projector.{name}" for name in ProjectorSettings.model_fields} - {
            "projector.kind",
            "projector.output_dim",
        }
    if s.data.storage == "files":  # too large to be measured
        paths.add("data.normalisation")
    if s.predictor.kind not in ("mlp", "fixed"):
        paths.add("predictor.hidden_dim")
    if s.predictor.kind in ("none", "fixed") or s.predictor.lr_multiplier == 0:
        paths.add("predictor.lr_schedule")
    if s.projector.num_layers == 1:
        paths |= {"projector.hidden_dim", "projector.bn_hidden"}
    if not s.projector.bn_output and not (s.projector.bn_hidden and s.projector.num_layers > 1):
        paths.add("projector.bias")
    if s.optimizer.name == "sgd" and s.optimizer.weight_decay == 0:
        paths.add("optimizer.exclude_bn_and_bias")
    if s.optimizer.schedule == "constant" and (
        "predictor.lr_schedule" in paths or s.predictor.lr_schedule == "constant"
    ):
        paths.add("optimizer.schedule_by")
    if s.augment.jitter_probability == 0:
        paths |= {"augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"}
    for name, value in s.second_view:
        if value is None or value == getattr(s.augment, name):
            paths.add(f"second_view.{name}")
    if s.augment.blur_probability == 0 and not s.second_view.blur_probability:
        paths.add("augment.blur_sigma")
    return frozenset(paths)


# --- validation --------------------------------------------------------------------------------------------------
