"""A study: variants of settings, what the paper reports for each, and the cells (variant x seed) to run.

Studies and scales are YAML files; the ones that ship lie in ``studies/`` and ``scales/``, a user's own lie anywhere.
This module imports no torch.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from experiments.studies.claims import SCALES, Claim, claim_hash, parse_claims
from experiments.studies.design import LEVEL, LOOKS, Design, Level, Looks
from experiments.studies.figures import Curves, MetricName, StudyFigure, parse_figures
from experiments.studies.layers import (
    Block,
    Layer,
    ScaledBlock,
    Value,
    check_paths,
    layer_from_command_line,
    layer_of,
    resolve,
    wants_text,
)
from experiments.studies.published import published_names
from experiments.studies.yaml_files import Document, dump, parse_model, parse_value, read
from simsiam.errors import SettingsError, nearest, nearest_or_some
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import TABLE
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.identity import config_id

HERE = Path(__file__).parent.parent
MAX_POINTS = 100_000  # of a grid


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PaperResult(_Part):
    """What the paper reports for a variant: ImageNet linear evaluation of a ResNet-50, unless ``note`` differs."""

    top1: float | None = Field(None, description="percent")
    spread: float | None = Field(None, description="of top1 over the trials, points")
    trials: int | None = Field(None, description="how many trials the paper's number is the mean of")
    note: str = Field("", description="what a reader of the number must know")


class _Variant(ScaledBlock):
    only: tuple[str, ...] = Field((), description="the scales at which it is run; none named: all")
    derived: dict[str, str] = Field(
        default_factory=dict, description="settings that are a multiple of another: FACTOR x SETTING, 1/8 x batch_size"
    )
    against: str | None = Field(None, description="the variant that its difference is taken to; else the baseline")
    paper: PaperResult = Field(PaperResult(), description="what the paper reports for it")
    published: str = Field("", description="whose numbers in published.yaml stand beside the paper's")


Seeds = Annotated[int, Field(ge=1, le=1000)]


class StudyFile(ScaledBlock):
    """Variants to compare, and what their runs should show."""

    title: str = Field(description="of its report")
    where: str = Field("", description="in the paper, such as Fig. 2; empty: a study of one's own")
    question: str = Field("", description="what the runs are to answer")
    expected: str = Field("", description="what the paper reports, or what you expect")
    seeds: Seeds | dict[str, Seeds] = Field(1, description="runs of each variant, or as many by scale")
    looks: Looks = Field(LOOKS, description="numbers of seeds at which its claims may be decided")
    level: Level = Field(LEVEL, description="error of a verdict, over all looks")
    variants: dict[str, _Variant] = Field(default_factory=dict, description="what is compared, by name")
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="values of settings; every combination, with each variant, is a variant"
    )
    baseline: str | None = Field(None, description="the variant that differences are taken to; else the first")
    figures: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = Field(
        (), description="the figures of its report, in order; none listed: the three panels of Fig. 2"
    )
    table: Annotated[tuple[MetricName, ...], Field(min_length=1)] = Field(
        TABLE, description="the metrics that its table has a column of, in order"
    )
    claims: dict[str, Any] = Field(default_factory=dict, description="what the runs should show, by name")


class Speed(_Part):
    """How fast a run of a scale was measured to be, for estimates."""

    images_per_s: float = Field(gt=0, description="images a second in training")
    device: str = Field(description="of one run, in words")


class ScaleFile(Block):
    """A size at which studies are run: settings that come before theirs."""

    description: str = Field(description="one line, for lists")
    note: str = Field("", description="what a reader of its results must know")
    speed: Speed = Field(description="how fast a run was measured to be, for estimates")
    num_train: int = Field(gt=0, description="images in an epoch, for estimates before the data are there")


@dataclass(frozen=True)
class Scale:
    """One of the sizes at which a study can be run."""

    name: str
    description: str
    note: str  # what a reader of its results must know
    speed: Speed
    num_train: int
    layer: Layer


@dataclass(frozen=True)
class Derived:
    """A setting that is a multiple of another, so that each scale has a version of its own: ``1/8 x batch_size``."""

    path: str
    factor: Fraction
    of: str
    origin: str


@dataclass(frozen=True)
class Variant:
    """A point in the switch space, with the paper's result for it."""

    name: str
    layers: Mapping[str, Layer]  # by scale
    point: Layer = field(default_factory=dict)  # in a grid
    paper: PaperResult = field(default_factory=PaperResult)
    derived: tuple[Derived, ...] = ()
    only: tuple[str, ...] = ()  # the scales at which it is run; none named: all
    against: str | None = None  # the variant that its difference is taken to; None: it is itself a baseline
    published: str = ""  # the name of others' numbers for it, see experiments.studies.published

    def layer(self, scale: str) -> Layer:
        """Its settings at a scale."""
        return {**self.layers.get(scale, {}), **self.point}


@dataclass(frozen=True)
class Study:
    """Variants to compare, and what the paper says of them."""

    name: str
    title: str
    where: str
    question: str
    expected: str
    path: Path | None
    seeds: int | dict[str, int]
    layers: Mapping[str, Layer]  # by scale
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...] = ()
    figures: tuple[StudyFigure, ...] = (Curves(),)
    table: tuple[str, ...] = TABLE  # metrics
    design: Design = field(default_factory=Design)

    def claim_hashes(self) -> dict[str, str]:
        """Of each claim, with the looks at it."""
        return {claim.name: claim_hash(claim, self.design) for claim in self.claims}

    def num_seeds(self, scale: str) -> int:
        """How many seeds the study asks for at a scale."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds.get(scale, 1)


@dataclass(frozen=True)
class Cell:
    """One training: a variant with a seed."""

    variant: str
    settings: Settings
    origins: dict[str, str]

    @property
    def seed(self) -> int:
        return self.settings.seed


# --- reading -----------------------------------------------------------------------------------------------------


def study_names() -> list[str]:
    """The studies that ship."""
    return sorted(path.stem for path in (HERE / "studies").glob("*.yaml"))


def load_scale(name: str) -> Scale:
    """A scale by name. Raises SettingsError for an unknown one."""
    if name not in SCALES:
        raise SettingsError(
            f"scale: {name!r} is not one of {', '.join(SCALES)}{nearest(name, list(SCALES))}  [--scale]"
        )
    document = read(HERE / "scales" / f"{name}.yaml")
    parsed = parse_model(ScaleFile, document, partial(_known_keys, ScaleFile))
    layer = layer_of(parsed, document, "scale", None)
    return Scale(name, parsed.description, parsed.note, parsed.speed, parsed.num_train, layer)


def default_scale() -> str:
    """``cifar`` where there is an NVIDIA GPU, ``cpu`` elsewhere."""
    return "cifar" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """While thousands of objects are made that stay: the garbage collector looks at all of them time and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@no_collection()
def load_study(name: str) -> Study:
    """A study that ships, by name, or a user's own, by the path of its file."""
    path = HERE / "studies" / f"{name}.yaml"
    if name not in study_names():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise SettingsError(
                f"study: {name!r} is neither a study that ships ({', '.join(study_names())}) nor a .yaml file"
                f"{nearest(name, study_names())}"
            )
    document = read(path)
    parsed = parse_model(StudyFile, document, partial(_known_keys, StudyFile))
    for key, variant in parsed.variants.items():
        if not key.isprintable():
            raise SettingsError(
                f"variants.{key!a}: a name must hold no control characters  [{document.at('variants', key)}]"
            )
        for scale in variant.only:
            if scale not in SCALES:
                place = document.at("variants", key, "only")
                raise SettingsError(f"variants.{key}.only: {scale!r} is not one of {', '.join(SCALES)}  [{place}]")
        if variant.published and variant.published not in published_names():
            raise SettingsError(
                f"variants.{key}.published: {variant.published!r} is not one of {'; '.join(published_names())}"
                f"  [{document.at('variants', key, 'published')}]"
            )
    blocks = {("scales",): parsed.scales} | {
        ("variants", key, "scales"): variant.scales for key, variant in parsed.variants.items()
    }
    for keys, block in blocks.items():
        for scale in block:
            if scale not in SCALES:
                place = document.at(*keys, scale)
                raise SettingsError(f"{'.'.join(keys)}: {scale!r} is not one of {', '.join(SCALES)}  [{place}]")
    if isinstance(parsed.seeds, dict):
        for scale in parsed.seeds:
            if scale not in SCALES:
                raise SettingsError(
                    f"seeds: {scale!r} is not one of {', '.join(SCALES)}  [{document.at('seeds', scale)}]"
                )
    if not parsed.variants and not parsed.grid:
        raise SettingsError(f"variants: a study needs at least one variant, or a grid  [{document.at('variants')}]")
    variants: list[Variant] = []
    for key, variant in parsed.variants.items():
        layers = {scale: layer_of(variant, document, "variant", scale, ("variants", key)) for scale in SCALES}
        derived = tuple(
            _derived(path, text, f"variant, {document.at('variants', key, 'derived', path)}")
            for path, text in variant.derived.items()
        )
        variants.append(
            Variant(key, layers, {}, variant.paper, derived, variant.only, variant.against, variant.published)
        )
    if parsed.grid:
        axes = {
            axis: (_values_of_axis(document, axis, values), f"grid, {document.at('grid', axis)}")
            for axis, values in parsed.grid.items()
        }
        variants = list(_cross(variants, axes))
    variants = _with_baselines(variants, parsed.baseline, document)
    of_study = {scale: layer_of(parsed, document, "study", scale) for scale in SCALES}
    of_name = {variant.name: variant for variant in variants}

    def set_by(name: str) -> set[str]:
        return {path for scale in SCALES for path in (*of_study[scale], *of_name[name].layer(scale))}

    return Study(
        name=path.stem,
        title=parsed.title,
        where=parsed.where,
        question=parsed.question,
        expected=parsed.expected,
        path=path,
        seeds=parsed.seeds,
        layers=of_study,
        variants=tuple(variants),
        claims=parse_claims(document, {variant.name: variant.only or SCALES for variant in variants}),
        figures=parse_figures(document, list(of_name), set_by),
        table=tuple(dict.fromkeys(parsed.table)),
        design=Design(parsed.looks, parsed.level),
    )


def _values_of_axis(document: Document, axis: str, values: Sequence[Any]) -> Sequence[Any]:
    if not wants_text(axis):
        return values
    return [document.written.get(("grid", axis, str(index)), value) for index, value in enumerate(values)]


def _with_baselines(variants: Sequence[Variant], baseline: str | None, document: Document) -> list[Variant]:
    """Each variant with the one that its difference is taken to: its own, the study's, or the first variant."""
    names = [variant.name for variant in variants]
    found = []
    for variant in variants:
        against = variant.against or baseline or names[0]
        if against not in names:
            keys = ("variants", variant.name, "against") if variant.against else ("baseline",)
            raise SettingsError(
                f"{'.'.join(keys)}: the study has no variant {against!r}{nearest_or_some(against, names)}"
                f"  [{document.at(*keys)}]"
            )
        found.append(replace(variant, against=None if against == variant.name else against))
    return found


def _derived(path: str, text: str, origin: str) -> Derived:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:/\d+)?)\s*x\s*([\w.]+)\s*", text)
    if not match:
        raise SettingsError(f"{path}: {text!r} is not of the form FACTOR x SETTING, e.g. 1/8 x batch_size  [{origin}]")
    check_paths({path: Value(None, origin), match[2]: Value(None, origin)})
    number, _, divisor = match[1].partition("/")
    if divisor and (int(divisor) == 0 or "." in number):
        raise SettingsError(f"{path}: {match[1]} is not a number or a fraction of whole numbers  [{origin}]")
    return Derived(path, Fraction(number) / Fraction(divisor or 1), match[2], origin)


def _derive(derived: Derived, layer: Layer) -> Value:
    """The value of a derived setting, given those that it may derive from."""
    defaults = flatten(Settings())
    base = layer[derived.of].value if derived.of in layer else defaults.get(derived.of)
    origin = f"{derived.origin} ({derived.factor} x {derived.of})"
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise SettingsError(f"{derived.path}: {derived.of} is {base!r}, which has no multiples  [{origin}]")
    if not isinstance(defaults.get(derived.path), int) or isinstance(defaults.get(derived.path), bool):
        return Value(float(derived.factor * Fraction(base)), origin)
    value = derived.factor * Fraction(base)
    if value.denominator != 1:
        raise SettingsError(f"{derived.path}: {derived.factor} x {base} is not a whole number  [{origin}]")
    return Value(int(value), origin)


def grid_study(axes: Sequence[str]) -> Study:
    """An ad-hoc study from ``dotted.path=value,value`` axes; a list as a value is written ``[0.2,1.0]``."""
    parsed: dict[str, tuple[Sequence[Any], str]] = {}
    for axis in axes:
        path, equals, text = axis.partition("=")
        origin = f"grid {axis}"
        if not equals or not path:
            raise SettingsError(f"{axis!r} is not of the form dotted.path=value,value  [grid]")
        if path in parsed:
            raise SettingsError(f"{path}: is an axis of the grid twice  [{origin}]")
        parsed[path] = (parse_value(f"[{text}]", origin, as_text=wants_text(path)), origin)
    if not parsed:
        raise SettingsError("grid: at least one axis (dotted.path=value,value) is wanted")
    name = "grid-" + re.sub(r"[^a-z0-9.]+", "-", "-".join(parsed).lower())[:80]
    return Study(name, f"Grid over {', '.join(parsed)}", "", "", "", None, 1, {}, tuple(_cross([], parsed)))


def _cross(variants: list[Variant], axes: Mapping[str, tuple[Sequence[Any], str]]) -> Iterator[Variant]:
    """Each variant (or none) with each point of the grid."""
    for path, (values, origin) in axes.items():
        check_paths({path: Value(None, origin)})
        if path == "seed":
            raise SettingsError(f"seed: is chosen with --seeds or `seeds:`  [{origin}]")
        if not values:
            raise SettingsError(f"{path}: the grid has no values here  [{origin}]")
        seen = set[Any]()
        for value in values:
            hashable = repr(value) if isinstance(value, tuple | dict) else value
            if hashable in seen:
                raise SettingsError(f"{path}: {_short(value)} is in the grid twice  [{origin}]")
            seen.add(hashable)
    if math.prod(len(values) for values, _ in axes.values()) > MAX_POINTS:
        raise SettingsError(f"grid: has more than {MAX_POINTS:,} points  [{next(iter(axes.values()))[1]}]")
    for variant in variants or [Variant("", {})]:
        for values in itertools.product(*(values for values, _ in axes.values())):
            point = {path: Value(value, axes[path][1]) for path, value in zip(axes, values, strict=True)}
            label = ", ".join(f"{path}={_short(value.value)}" for path, value in point.items())
            name = f"{variant.name}, {label}" if variant.name else label
            yield Variant(name, variant.layers, point, variant.paper, variant.derived, variant.only)


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{','.join(_short(inner) for inner in value)}]"
    if isinstance(value, float) and float(f"{value:g}") == value:  # else two values could have one name
        return f"{value:g}"
    return str(value)


# --- cells -------------------------------------------------------------------------------------------------------


def seeds_from_text(text: str) -> list[int]:
    """``3`` is seeds 0, 1, 2; ``4-6`` is 4, 5, 6. Raises SettingsError."""
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    if match:
        seeds = range(int(match[1])) if match[2] is None else range(int(match[1]), int(match[2]) + 1)
        if 1 <= len(seeds) <= 1000:
            return list(seeds)
    raise SettingsError(
        f"seeds: {text!r} must be a count from 1 to 1000 (3: seeds 0, 1, 2) or a range (4-6)  [--seeds]"
    )


def make_cells(study: Study, scale: Scale, seeds: Iterable[int], overrides: Iterable[str] = ()) -> list[Cell]:
    """All cells of a study at a scale, variant by variant. Raises SettingsError before any is run.

    Refuses two variants that would compute the same.
    """
    command_line = layer_from_command_line(overrides)
    base: Layer = {**scale.layer, **study.layers.get(scale.name, {})}
    cells, seen = [], dict[str, str]()
    seeds = list(seeds)
    for variant in study.variants:
        if variant.only and scale.name not in variant.only:
            continue
        own = variant.layer(scale.name)
        varied = {**own, **{item.path: Value(None, item.origin) for item in variant.derived}}
        for path in varied.keys() & command_line.keys():
            if len(study.variants) > 1:
                raise SettingsError(
                    f"{path}: cannot be set for all variants, since it is what variant '{variant.name}' varies"
                    f"  [{command_line[path].origin}; {varied[path].origin}]"
                )
        layer: dict[str, Value] = {**base, **own, **command_line}
        for item in variant.derived:
            layer[item.path] = _derive(item, layer)
        folder = study.path.parent if study.path else None
        resolved = resolve((layer,), blame=f"variant '{variant.name}': ", folder=folder)
        identity = config_id(resolved.settings, "")
        if identity in seen:
            raise SettingsError(
                f"variants '{seen[identity]}' and '{variant.name}' compute the same: they differ in no setting that has"
                f" an effect  [{study.path or 'grid'}]"
            )
        seen[identity] = variant.name
        for seed in seeds:
            origins = {**resolved.origins, "seed": "--seeds, or the seeds of the study"}
            cells.append(Cell(variant.name, resolved.settings.model_copy(update={"seed": seed}), origins))
    return cells


@cache
def _known_keys(kind: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    """The keys at a place in a file, for the message about a misspelt one."""
    if "scales" in keys:
        return list(Block.model_fields)
    if keys and keys[0] == "variants":
        return list(PaperResult.model_fields if keys[-1] == "paper" else _Variant.model_fields)
    if keys and keys[0] == "speed":
        return list(Speed.model_fields)
    return list(kind.model_fields)


GRIDS = "grids"  # the folder, among those of the runs, of the grids that `grid` wrote down


def save_grid(study: Study, runs: Path) -> Path:
    """Write an ad-hoc grid as a study file, so that it can be reported on later; the same grid gives the same file."""
    axes: dict[str, list[Any]] = {}
    for variant in study.variants:
        for setting, value in variant.point.items():
            plain = list(value.value) if isinstance(value.value, tuple) else value.value
            if plain not in axes.setdefault(setting, []):
                axes[setting].append(plain)
    text = dump({"title": study.title, "grid": axes})
    path = runs / GRIDS / f"{study.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text), aside=str(os.getpid()), mode="w")
    return path
