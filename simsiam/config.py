"""Every switch of a run: typed, frozen, cross-checked and hashed.

One :class:`Settings` object holds everything that can change what a run computes, and nothing else (no output
folder, device or worker count). So its hash, together with the fingerprint of the data, names the run. Defaults
are the paper's ImageNet baseline (Sec. 3 and App. A of "Exploring Simple Siamese Representation Learning",
arXiv 2011.10566). This module imports no torch, so that planning thousands of runs is quick.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# Raised when a name or a meaning in Settings changes so that the same text would describe another run.
SCHEMA_VERSION = 1
# Raised when a change of code changes the numbers that the same settings give.
NUMERICS_REVISION = 2

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Range = tuple[Positive, Positive]


class Section(BaseModel):
    """A group of settings: frozen, strict about types, closed to unknown names, free of NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSettings(Section):
    """Which images, and how many of them."""

    name: Literal["fashion-mnist", "cifar10", "cifar100", "stl10", "svhn", "folder", "synthetic"] = Field(
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


class SecondViewSettings(Section):
    """Where the second view's distribution differs from the first's; null: it does not. Which is which is fixed."""

    blur_probability: Probability | None = Field(None, description="as augment.blur_probability, of the second view")
    solarise_probability: Probability | None = Field(
        None, description="as augment.solarise_probability, of the second view"
    )


class BackboneSettings(Section):
    """The network whose pooled features are evaluated."""

    name: Literal["resnet18", "resnet34", "resnet50", "small"] = Field(
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


class PredictorSettings(Section):
    """The prediction MLP h (Sec. 3, Sec. 4.2, Table 1)."""

    kind: Literal["mlp", "none", "fixed", "linear", "bias"] = Field(
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
    transform: Literal["none", "sinkhorn"] = Field("none", description="sinkhorn: codes of prototype scores (SwAV)")
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


class LossSettings(Section):
    """How p and its target are compared."""

    name: Literal["cosine", "cross-entropy", "squared-distance", "nt-xent", "info-nce", "swapped-prediction"] = Field(
        "cosine",
        description="cosine: D = -cos(p, z), eq. 1; cross-entropy: -softmax(z) log softmax(p), Sec. 4.5;"
        " squared-distance: |p - z|^2 without normalisation; nt-xent: SimCLR; info-nce: MoCo, with a queue;"
        " swapped-prediction: SwAV",
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
        description="log also spectrum, uniformity, centre, cosine of positives and each part's gradient",
        json_schema_extra={"in_id": False},
    )
    stop_after_collapsed: Annotated[int, Field(ge=0)] = Field(
        0, description="end a run after so many collapsed evaluations in a row; 0: never (the curve is the point)"
    )


class Settings(Section):
    """All that decides what a run computes."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seeds weights, image order and augmentation")
    epochs: Count = Field(100, description="passes over the training set")
    batch_size: Annotated[int, Field(ge=2)] = Field(512, description="images in a step, over all ranks")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast of the networks; losses, BN statistics and updates stay float32"
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


# --- flat form: dotted paths -------------------------------------------------------------------------------------


def flatten(settings: Settings) -> dict[str, Any]:
    """All settings by dotted path, e.g. ``{"seed": 0, "data.name": "folder", ...}``, in the order of declaration."""
    flat: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            flat |= {f"{name}.{leaf}": getattr(value, leaf) for leaf in type(value).model_fields}
        else:
            flat[name] = value
    return flat


@cache
def _sections() -> dict[str, type[Section]]:
    annotations = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, Section)}


@cache
def _defaults() -> dict[str, Any]:
    return flatten(Settings())


@cache
def outside_id() -> frozenset[str]:
    """The dotted paths of settings that change no result and so name no run."""
    return frozenset(
        f"{section}.{leaf}"
        for section, kind in _sections().items()
        for leaf, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("in_id") is False
    )


def dotted_paths() -> list[str]:
    """The dotted path of every setting."""
    return list(_defaults())


def description(path: str) -> str:
    """The one-line description of the setting at a dotted path."""
    section, _, leaf = path.rpartition(".")
    fields = _sections()[section].model_fields if section else Settings.model_fields
    return fields[leaf].description or ""


# --- identity ----------------------------------------------------------------------------------------------------


def without_effect(settings: Settings) -> frozenset[str]:
    """The dotted paths of settings that may be set, yet change nothing beside the others; they name no run.

    A scale or a study sets them for all its cells, so they are not refused where they do nothing, unlike what
    :func:`validate` says has no effect.
    """
    s, paths = settings, set[str]()
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


def config_id(settings: Settings, data_fingerprint: str) -> str:
    """Name of a configuration: 12 hexadecimal digits from all settings but the seed, and from the data.

    Only settings that differ from the defaults and have an effect enter, so a new switch whose default keeps the old
    behaviour leaves old names valid. Two runs of one configuration differ in the seed only, and their names show it
    (:func:`run_id`).
    """
    defaults, outside = _defaults(), outside_id() | without_effect(settings)
    changed = {
        path: value
        for path, value in flatten(settings).items()
        if value != defaults[path] and path != "seed" and path not in outside
    }
    identity = {"schema": SCHEMA_VERSION, "numerics": NUMERICS_REVISION, "data": data_fingerprint, "settings": changed}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_id(settings: Settings, data_fingerprint: str) -> str:
    """Name of a run: the configuration's name and the seed, e.g. ``3f9a0c41b2d7-s0``."""
    return f"{config_id(settings, data_fingerprint)}-s{settings.seed}"


# --- validation --------------------------------------------------------------------------------------------------


class SettingsError(ValueError):
    """One or more settings are wrong; the message has a line for each: path, value, what is allowed, origin."""


def nearest(name: str, names: list[str]) -> str:
    """The end of an error message for a misspelt name: ``; did you mean 'x'?``, or nothing if no name is near."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not matches:  # 'learning_rate' or 'hidden_dim' without its section: compare the last part alone
        leaf = name.rpartition(".")[2]
        matches = [path for path in names if path.rpartition(".")[2] == leaf][:1]
    return f"; did you mean '{matches[0]}'?" if matches else ""


def unknown(path: str) -> str:
    """What to say of a dotted path that no setting has."""
    if path in _sections():
        return (
            f"{path}: is a section, not a setting; set one of its parts ({', '.join(_sections()[path].model_fields)})"
        )
    return f"{path}: no such setting{nearest(path, dotted_paths())}"


def validate(flat: Mapping[str, Any], origin: Callable[[str], str] = lambda path: "") -> Settings:
    """Settings from values by dotted path; what is not given takes its default.

    ``origin(path)`` says where a value came from (file and line, or the command line), for the error messages.
    Raises :class:`SettingsError` that names every wrong setting at once.
    """
    nested: dict[str, Any] = {}
    problems = []
    for path, value in flat.items():
        section, _, leaf = path.rpartition(".")
        if path not in _defaults():
            problems.append(unknown(path) + _at(origin, path))
        elif section:
            nested.setdefault(section, {})[leaf] = value
        else:
            nested[leaf] = value
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, origin))) from None
    problems = [f"{path}: {problem}" + _at(origin, *blamed) for path, problem, blamed in _cross_checks(settings)]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def check_ranks(settings: Settings, num_ranks: int, source: str = "") -> None:
    """Raises SettingsError unless so many ranks can share each batch equally; ``source``: who asks for them."""
    if settings.batch_size % num_ranks:
        raise SettingsError(
            f"batch_size: {settings.batch_size} must be a multiple of the {num_ranks} ranks, which share it equally"
            + (f"  [{source}]" if source else "")
        )


def _at(origin: Callable[[str], str], *paths: str) -> str:
    places = [place for place in dict.fromkeys(origin(path) for path in paths) if place]
    return f"  [{'; '.join(places)}]" if places else ""


def _explain(error: ValidationError, origin: Callable[[str], str]) -> Iterator[str]:
    """Pydantic's findings in this project's words, one line for each setting."""
    seen = set()
    for item in error.errors():
        # The tail of a location can be an index into a tuple or the branch of a union: not a name of ours.
        location = [str(part) for part in item["loc"]]
        path = location[0] if location[0] not in _sections() else ".".join(location[:2])
        if path in seen:
            continue
        seen.add(path)
        value = item["input"]
        allowed = _allowed(item)
        hint = nearest(value, _choices(item)) if isinstance(value, str) else ""
        place = f" (element {location[2]})" if len(location) > 2 and location[2].isdigit() else ""
        yield f"{path}{place}: {value!r} is not allowed; it must be {allowed}{hint}" + _at(origin, path)


def _choices(item: Any) -> list[str]:
    expected = item.get("ctx", {}).get("expected", "") if item["type"] == "literal_error" else ""
    return [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",") if choice.strip()]


def _allowed(item: Any) -> str:
    limits = item.get("ctx", {})
    match item["type"]:
        case "literal_error":
            return f"one of {', '.join(_choices(item))}"
        case "greater_than":
            return f"greater than {limits['gt']:g}"
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than":
            return f"less than {limits['lt']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
        case "finite_number":
            return "a finite number"
        case "int_type" | "int_from_float":
            return "a whole number"
        case "float_type":
            return "a number"
        case "bool_type":
            return "true or false"
        case "string_type":
            return "a text"
        case "tuple_type" | "missing" | "too_long":
            return "a list of two numbers, e.g. [0.2, 1.0]"
    return str(item["msg"])


def _cross_checks(settings: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Rules that join several settings: (path, what is wrong and what is allowed, the paths whose origin to name)."""
    s = settings
    for name in ("crop_scale", "crop_ratio", "blur_sigma"):
        low, high = getattr(s.augment, name)
        if low > high:
            yield (
                f"augment.{name}",
                f"[{low:g}, {high:g}] is not a range; the first must not be larger",
                (f"augment.{name}",),
            )
    if s.augment.crop_scale[1] > 1:
        yield (
            "augment.crop_scale",
            f"the crop's share {s.augment.crop_scale[1]:g} must be at most 1",
            ("augment.crop_scale",),
        )
    for name in ("width", "depth", "stem_stride"):
        path = f"backbone.{name}"
        if s.backbone.name != "small" and getattr(s.backbone, name) != _defaults()[path]:
            yield (
                path,
                f"{getattr(s.backbone, name)} has no effect with backbone.name={s.backbone.name}; only with small",
                (path, "backbone.name"),
            )
    if s.backbone.name == "small" and s.backbone.stem != "imagenet":
        yield "backbone.stem", "has no effect with backbone.name=small; use backbone.stem_stride", ("backbone.stem",)
    if s.data.name != "folder" and s.data.path != _defaults()["data.path"]:
        yield "data.path", f"has no effect with data.name={s.data.name}; only with folder", ("data.path", "data.name")
    if s.data.name != "folder" and s.data.storage == "files":
        yield (
            "data.storage",
            f"files needs data.name=folder; with {s.data.name} it must be memory",
            ("data.storage", "data.name"),
        )
    if s.data.name == "fashion-mnist" and s.data.normalisation == "imagenet":
        yield (
            "data.normalisation",
            "imagenet is of images with three channels; those of fashion-mnist have one",
            ("data.normalisation", "data.name"),
        )
    if s.data.bad_images == "replace" and s.data.storage != "files":
        yield (
            "data.bad_images",
            f"replace has no effect with data.storage={s.data.storage}, where all images are read before training; only"
            " with files",
            ("data.bad_images", "data.storage"),
        )
    if not s.projector.bn_output_affine and not s.projector.bn_output:
        yield (
            "projector.bn_output_affine",
            "false has no effect without the output BN (projector.bn_output=false)",
            ("projector.bn_output_affine", "projector.bn_output"),
        )
    yield from _check_target(s)
    if s.optimizer.warmup_epochs > s.epochs:
        yield (
            "optimizer.warmup_epochs",
            f"{s.optimizer.warmup_epochs:g} must be at most the {s.epochs} epochs of the run",
            ("optimizer.warmup_epochs", "epochs"),
        )
    if s.data.num_train is not None and s.batch_size > s.data.num_train:
        yield (
            "batch_size",
            f"{s.batch_size} must be at most the {s.data.num_train} training images (data.num_train)",
            ("batch_size", "data.num_train"),
        )
    if s.evaluation.every_epochs > s.epochs:
        yield (
            "evaluation.every_epochs",
            f"{s.evaluation.every_epochs} must be at most the {s.epochs} epochs of the run",
            ("evaluation.every_epochs", "epochs"),
        )


def _check_target(s: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Rules for the predictor, the target, the loss and BN: what has no effect, and what cannot be meant."""

    flat = flatten(s)

    def unused(paths: Iterable[str], unless: str, cause: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        for path in paths:
            if flat[path] != _defaults()[path]:
                shown = json.dumps(flat[cause])
                yield path, f"{json.dumps(flat[path])} has no effect with {cause}={shown}; {unless}", (path, cause)

    target, loss, batch = s.target, s.loss, s.batch_size
    if s.predictor.kind not in ("mlp", "fixed"):
        # predictor.hidden_dim may stay: a scale sets it to fit its width.
        heads = ("predictor.bn_hidden", "predictor.bn_output")
        yield from unused(heads, "only with an mlp", "predictor.kind")
    if s.predictor.kind in ("none", "fixed"):
        yield from unused(("predictor.lr_multiplier",), "only with a predictor that is trained", "predictor.kind")
    if target.encoder != "momentum":
        momenta = ("target.momentum", "target.momentum_schedule", "target.momentum_update")
        yield from unused(momenta, "only with target.encoder=momentum", "target.encoder")
    if target.transform != "sinkhorn":
        codes = ("target.num_prototypes", "target.sinkhorn_iterations", "target.sinkhorn_epsilon")
        yield from unused(codes, "only with target.transform=sinkhorn", "target.transform")
    if loss.name not in ("nt-xent", "info-nce", "swapped-prediction"):
        yield from unused(("loss.temperature",), "only with a loss that has one", "loss.name")

    swav = (target.transform == "sinkhorn", loss.name == "swapped-prediction")
    if swav[0] != swav[1]:
        problem = "sinkhorn codes and loss.name=swapped-prediction go together; set both or neither"
        yield "target.transform", problem, ("target.transform", "loss.name")
    if all(swav) and not 0 < target.num_prototypes <= batch:
        # Each sample has a mass of 1 to share out: with more prototypes than samples none could be used up.
        problem = f"{target.num_prototypes} must be at least 1 and at most the batch ({batch}), better half of it"
        yield "target.num_prototypes", problem, ("target.num_prototypes", "batch_size")
    if (target.queue_size > 0) != (loss.name == "info-nce"):
        problem = "a queue and loss.name=info-nce go together; set both or neither (queue_size 0: none)"
        yield "target.queue_size", problem, ("target.queue_size", "loss.name")
    elif target.queue_size % (entering := batch * (2 if loss.symmetry == "symmetric" else 1)):
        problem = f"{target.queue_size} must be a multiple of the {entering} keys that enter it in a step"
        yield "target.queue_size", problem, ("target.queue_size", "batch_size")
    if target.queue_size and loss.symmetry == "asymmetric-2x":
        problem = "asymmetric-2x is not defined with a queue; symmetric or asymmetric is"
        yield "loss.symmetry", problem, ("loss.symmetry", "target.queue_size")

    constant = {
        "target.encoder": target.encoder == "momentum",
        "target.queue_size": target.queue_size > 0,
        "target.cache_steps": target.cache_steps > 0,
        "target.cache_epoch": target.cache_epoch,
        "target.image_average": target.image_average > 0,
    }
    remembered = [path for path, is_set in constant.items() if is_set]
    if not target.stop_gradient and remembered:
        problem = (
            f"false cannot be meant with {remembered[0]}: that target comes from other weights, and has no gradient"
        )
        yield "target.stop_gradient", problem, ("target.stop_gradient", remembered[0])
    cached = target.cache_steps > 0 or target.cache_epoch
    plain = loss.name in ("cosine", "cross-entropy", "squared-distance")
    if cached and (not plain or len(remembered) > 1):
        path = "target.cache_epoch" if target.cache_epoch else "target.cache_steps"
        others = [other for other in remembered if other != path]
        blamed = others[0] if others else "loss.name"
        yield (
            path,
            f"cached targets (Sec. 5.2) are those of SimSiam's own losses alone, not with {blamed}",
            (path, blamed),
        )
    if target.image_average and (loss.name not in ("cosine", "squared-distance") or target.encoder == "momentum"):
        blamed = "target.encoder" if target.encoder == "momentum" else "loss.name"
        problem = f"an average of each image (Sec. 5.2) goes with the cosine or the squared distance, not with {blamed}"
        yield "target.image_average", problem, ("target.image_average", blamed)
    if batch % s.batch_norm.groups or batch // s.batch_norm.groups < 2:
        problem = f"{s.batch_norm.groups} groups must divide the batch of {batch} into parts of at least 2"
        yield "batch_norm.groups", problem, ("batch_norm.groups", "batch_size")
    if s.batch_norm.groups > 1 and s.batch_norm.one_forward:
        problem = "groups are of one view; with one_forward for both it must be 1"
        yield "batch_norm.groups", problem, ("batch_norm.groups", "batch_norm.one_forward")
