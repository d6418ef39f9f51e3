"""The figures of a study's report, as its file lists them under ``figures:`` (docs/figures.md).

Each is a kind, with what that kind needs. This module says what there is and what is allowed; ``analysis`` draws it. It
imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from experiments.studies.layers import Value, check_paths
from experiments.studies.yaml_files import Document, parse_kind
from simsiam.errors import SettingsError, nearest, nearest_or_some
from simsiam.record.catalogue import CURVES, FIG_2
from simsiam.settings.fields import Settings, flatten, is_argument


def _check_metric(value: Any) -> Any:
    if value not in CURVES:
        raise ValueError(f"no such metric with a curve{nearest(str(value), list(CURVES))} (known: {', '.join(CURVES)})")
    return value


MetricName: TypeAlias = Annotated[str, BeforeValidator(_check_metric), WithJsonSchema({"enum": [*CURVES]})]


class _Figure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def name(self) -> str:
        """The stem of its files."""
        raise NotImplementedError


class Curves(_Figure):
    """Metrics against epochs, a panel each: by default the three of Fig. 2."""

    kind: Literal["curves"] = "curves"
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] = FIG_2

    @property
    def name(self) -> str:
        return "figure" if self.metrics == FIG_2 else "-".join(["figure", *self.metrics]).replace("_", "-")


class Sweep(_Figure):
    """Final kNN accuracy against a setting that the variants sweep, with the paper's curve beside it."""

    kind: Literal["sweep"]
    setting: str
    base: str | None = None  # the variant whose value is 1x on the axis; None: the axis has the values themselves

    @property
    def name(self) -> str:
        return f"figure-sweep-{self.setting}".replace("_", "-").replace(".", "-")


class Linear(_Figure):
    """The kNN accuracy against epochs, and the linear evaluations beside it, ours and the paper's: Fig. D.1."""

    kind: Literal["linear"]

    @property
    def name(self) -> str:
        return "figure-linear"


class Spectrum(_Figure):
    """The singular values of z over training, a panel for each variant."""

    kind: Literal["spectrum"]

    @property
    def name(self) -> str:
        return "figure-spectrum"


class Map(_Figure):
    """z of held-out images in two dimensions (PCA), a colour for each class, a panel for each variant."""

    kind: Literal["map"]

    @property
    def name(self) -> str:
        return "figure-map"


StudyFigure: TypeAlias = Curves | Sweep | Linear | Spectrum | Map
KINDS: dict[str, type[_Figure]] = {
    "curves": Curves,
    "sweep": Sweep,
    "linear": Linear,
    "spectrum": Spectrum,
    "map": Map,
}


def parse_figures(
    document: Document, variants: Collection[str], set_by: Callable[[str], Collection[str]]
) -> tuple[StudyFigure, ...]:
    """The figures of a study, in order. Where its file lists none: the three panels of Fig. 2, and of a grid the sweep
    along its longest axis of numbers, with a line for each point of the others.

    ``set_by``: the paths of the settings that a variant sets. Raises SettingsError, with file and line, for a kind,
    key, metric, setting or variant that does not exist, a setting that is no number, and a figure that is listed twice.
    """
    if "figures" not in document.content:
        axes = {
            axis: values
            for axis, values in document.content.get("grid", {}).items()
            if len(values) > 1
            and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        }
        longest = max(axes, key=lambda axis: len(axes[axis]), default=None)
        return (Curves(),) if longest is None else (Curves(), Sweep(kind="sweep", setting=longest))
    figures: list[Any] = []
    for i in range(len(document.content["figures"])):
        keys = ("figures", str(i))
        figure = parse_kind(KINDS, document, keys, what="figure")
        if isinstance(figure, Sweep):
            _check_sweep(figure, document, keys, variants, set_by)
        if figure.name in [other.name for other in figures]:
            raise SettingsError(f"{'.'.join(keys)}: the same figure is listed twice  [{document.at(*keys)}]")
        figures.append(figure)
    return tuple(figures)


def _check_sweep(
    sweep: Sweep,
    document: Document,
    keys: tuple[str, ...],
    variants: Collection[str],
    set_by: Callable[[str], Collection[str]],
) -> None:
    place = document.at(*keys, "setting")
    check_paths({sweep.setting: Value(None, f"{'.'.join(keys)}.setting, {place}")})
    default = flatten(Settings()).get(sweep.setting, 0)  # of an argument of one's own part: its values tell
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise SettingsError(
            f"{'.'.join(keys)}.setting: {sweep.setting} is {default!r} by default, and only numbers can be an axis"
            f"  [{place}]"
        )
    if sweep.base is not None and sweep.base not in variants:
        raise SettingsError(
            f"{'.'.join(keys)}.base: the study has no variant {sweep.base!r}"
            f"{nearest_or_some(sweep.base, list(variants))}  [{document.at(*keys, 'base')}]"
        )
    if not is_argument(sweep.setting):
        return
    # What a part of one's own takes where its argument is not set is not known here.
    known = sorted({path for name in variants for path in set_by(name) if is_argument(path)})
    if sweep.setting not in known:
        raise SettingsError(
            f"{'.'.join(keys)}.setting: no variant sets {sweep.setting}{nearest(sweep.setting, known)}  [{place}]"
        )
    if sweep.base is not None and sweep.setting not in set_by(sweep.base):
        place = document.at(*keys, "base")
        raise SettingsError(f"{'.'.join(keys)}.base: variant {sweep.base!r} does not set {sweep.setting}  [{place}]")
