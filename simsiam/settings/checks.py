"""Settings are checked before any work starts: every problem says what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from simsiam.errors import SettingsError, nearest
from simsiam.settings.fields import Settings, default_values, dotted_paths, flatten, is_argument, sections
from simsiam.settings.own import PLACES, is_own


def unknown(path: str) -> str:
    """What to say of a dotted path that no setting has."""
    if path.partition(".arguments")[0] in sections() and ".arguments" in path:
        if path.endswith(".arguments"):
            return f"{path}: is written as `arguments: {{NAME: VALUE}}`, or as {path}.NAME"
        return f"{path}: no such setting; the arguments of one's own part are called as in its signature, in one level"
    if path in sections():
        return f"{path}: is a section, not a setting; set one of its parts ({', '.join(sections()[path].model_fields)})"
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
        if is_argument(path):
            arguments = nested.setdefault(section.partition(".")[0], {}).setdefault("arguments", {})
            arguments[leaf] = value
        elif path not in default_values():
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
        depth = 3 if "arguments" in location[1:2] else 2
        path = location[0] if location[0] not in sections() else ".".join(location[:depth])
        if path in seen:
            continue
        seen.add(path)
        value = item["input"]
        allowed = _allowed(item)
        hint = nearest(value, _choices(item)) if isinstance(value, str) else ""
        allowed = "a number, a text, true, false or null" if depth == 3 else allowed
        own = ", or one's own (module:name)" if path in PLACES else ""
        place = f" (element {location[2]})" if len(location) > 2 and location[2].isdigit() else ""
        yield f"{path}{place}: {value!r} is not allowed; it must be {allowed}{own}{hint}" + _at(origin, path)


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
        case "string_pattern_mismatch":
            return f"a text of the form {limits['pattern'].strip('^$')}"
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
        if (
            s.backbone.name != "small"
            and not is_own(s.backbone.name)
            and getattr(s.backbone, name) != default_values()[path]
        ):
            yield (
                path,
                f"{getattr(s.backbone, name)} has no effect with backbone.name={s.backbone.name}; only with small",
                (path, "backbone.name"),
            )
    if s.backbone.name == "small" and s.backbone.stem != "imagenet":
        yield "backbone.stem", "has no effect with backbone.name=small; use backbone.stem_stride", ("backbone.stem",)
    if s.data.name != "folder" and s.data.path != default_values()["data.path"]:
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
    yield from _check_own(s)
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
            if flat[path] != default_values()[path]:
                shown = json.dumps(flat[cause])
                yield path, f"{json.dumps(flat[path])} has no effect with {cause}={shown}; {unless}", (path, cause)

    target, loss, batch = s.target, s.loss, s.batch_size
    if s.predictor.kind not in ("mlp", "fixed"):  # one's own too: its arguments say what it has
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


def _check_own(s: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Rules for parts of the user's own."""
    flat = flatten(s)
    for path in PLACES:
        section = path.partition(".")[0]
        given = [name for name in flat if name.startswith(f"{section}.arguments.")]
        if given and not is_own(flat[path]):
            yield (
                given[0],
                f"has no effect with {path}={flat[path]}; only with one's own (module:name)",
                (given[0], path),
            )
    more, own_views = s.augment.more_views, is_own(s.augment.views)
    if more and not own_views:
        problem = f"{more} has no effect with augment.views=paper; only with one's own (module:name)"
        yield "augment.more_views", problem, ("augment.more_views", "augment.views")
    if more and (s.loss.symmetry != "symmetric" or s.loss.name in ("nt-xent", "info-nce")):
        blamed = "loss.symmetry" if s.loss.symmetry != "symmetric" else "loss.name"
        problem = f"{more}: more than two views go with a symmetric loss of pairs, not with {blamed}={flat[blamed]}"
        yield "augment.more_views", problem, ("augment.more_views", blamed)
    if more and s.batch_norm.one_forward:
        problem = "views of several sizes have no common forward; with augment.more_views it must be false"
        yield "batch_norm.one_forward", problem, ("batch_norm.one_forward", "augment.more_views")
    cached = "target.cache_epoch" if s.target.cache_epoch else "target.cache_steps"
    if is_own(s.target.transform) and (s.target.cache_epoch or s.target.cache_steps):
        problem = "cached targets (Sec. 5.2) are those of SimSiam's own losses alone, not with target.transform"
        yield cached, problem, (cached, "target.transform")
