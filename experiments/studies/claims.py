"""Claims: what a study says its runs show, as checks that can be decided from run folders (docs/claims.md).

A claim is a sentence, the place in the paper, and one or more checks, all of which must hold. Each check states the
smallest effect that counts, or the margin within which values count as the same: a verdict is only as good as the
number that it was asked for beforehand. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

from experiments.studies.design import Design
from experiments.studies.yaml_files import Document, parse_kind, parse_model
from simsiam.errors import SettingsError, nearest, nearest_or_some
from simsiam.record.catalogue import ACCURACY, CATALOGUE, REFERENCES

SCALES = ("smoke", "fashion", "cpu", "cifar", "imagenet")

METRICS = tuple(metric.name for metric in CATALOGUE if metric.in_claims)
CURVES = tuple(metric.name for metric in CATALOGUE if metric.in_claims and metric.is_curve)
EVENTS = {
    "collapsed": "z collapsed to a constant or a line",
    "diverged": "the loss stopped being finite",
    "healthy": "neither collapsed nor diverged",
    "nothing learnt": "kNN accuracy ended no higher than that of the untrained network",
}


@dataclass(frozen=True)
class _OneOf:
    """That a text is one of those that are known: pydantic checks it, the JSON Schema lists them."""

    kind: str
    known: tuple[str, ...]

    def _check(self, value: Any) -> Any:
        if value not in self.known:
            near = nearest(str(value), list(self.known))
            raise ValueError(f"no such {self.kind}{near} (known: {', '.join(self.known)})")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": list(self.known)}


Metric = Annotated[str, _OneOf("metric", METRICS)]
Curve = Annotated[str, _OneOf("metric with a curve", CURVES)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]  # of all runs, of which the seeds are a sample
Events = Annotated[
    tuple[Annotated[str, _OneOf("event", tuple(EVENTS))], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"enum": [*EVENTS]}, {"type": "array", "items": {"enum": [*EVENTS]}, "minItems": 1}]}),
]
# A variant, or a pair [A, B]: what A has more than B.
Operand: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: value if isinstance(value, tuple | dict) else (value,)),
    Field(min_length=1, max_length=2),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            ]
        }
    ),
]


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def variants(self) -> list[str]:
        """The variants whose runs decide it."""
        raise NotImplementedError


class _Threshold(_Check):
    """``above`` and ``below`` a number, or ``near`` one to ``within`` a margin."""

    of: str
    metric: Metric = ACCURACY
    above: float | None = None
    below: float | None = None
    near: float | None = None
    within: Positive | None = None

    def variants(self) -> list[str]:
        return [self.of]

    @model_validator(mode="after")
    def _complete(self) -> _Threshold:
        if (self.near is None) != (self.within is None):
            raise ValueError("near and within go together")
        if (self.near is not None) + (self.above is not None or self.below is not None) != 1:
            raise ValueError("above, below, or near with within, is wanted")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError("above must be less than below")
        return self


class Final(_Threshold):
    """A metric of a variant at the end of training."""

    kind: Literal["final"]


class Ratio(_Threshold):
    """A metric of a variant at the end, divided by a reference that needs no learning."""

    kind: Literal["ratio"]
    to: Annotated[str, _OneOf("reference", tuple(REFERENCES))]

    @model_validator(mode="after")
    def _fits(self) -> Ratio:
        fitting = [metric.name for metric in CATALOGUE if self.to in metric.references]
        if self.metric not in fitting:
            raise ValueError(f"{self.metric} has no ratio to {self.to}; {', '.join(fitting)} has")
        return self


class Trend(_Check):
    """A metric rises or falls: over the epochs ``of`` a variant, or ``across`` variants in order of a swept factor."""

    kind: Literal["trend"]
    metric: Curve = ACCURACY
    direction: Literal["rises", "falls"]
    of: str | None = None
    across: Annotated[tuple[str, ...], Field(min_length=3)] | None = None
    by: Annotated[float, Field(ge=0)]  # the smallest change from one end to the other that counts

    def variants(self) -> list[str]:
        return [self.of] if self.of is not None else list(self.across or ())

    @model_validator(mode="after")
    def _complete(self) -> Trend:
        if (self.of is None) == (self.across is None):
            raise ValueError("either of (a trend over epochs) or across (a trend over variants) is wanted")
        return self


class Order(_Check):
    """A metric is higher in one variant than in another, with the same seeds."""

    kind: Literal["order"]
    metric: Metric = ACCURACY
    higher: Operand
    lower: Operand
    by: Annotated[float, Field(ge=0)]  # the smallest difference that counts

    def variants(self) -> list[str]:
        return [*self.higher, *self.lower]

    @model_validator(mode="after")
    def _complete(self) -> Order:
        if len(self.higher) != len(self.lower):
            raise ValueError("higher and lower are either both variants or both pairs of variants")
        if self.higher == self.lower:
            raise ValueError("higher and lower are the same")
        return self


class Same(_Check):
    """Variants do not differ in a metric by more than a margin: an equivalence test of each pair."""

    kind: Literal["same"]
    metric: Metric = ACCURACY
    of: Annotated[tuple[str, ...], Field(min_length=2)]
    within: Positive

    def variants(self) -> list[str]:
        return list(self.of)


class Band(_Check):
    """A curve stays between ``low`` and ``high`` from a share of the training on, ``after`` (0: from the start)."""

    kind: Literal["band"]
    of: str
    metric: Curve
    low: float | None = None
    high: float | None = None
    after: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rate: Rate = 0.5  # it does in more than this share of all runs

    def variants(self) -> list[str]:
        return [self.of]

    @model_validator(mode="after")
    def _complete(self) -> Band:
        if self.low is None and self.high is None:
            raise ValueError("low, high or both are wanted")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class Event(_Check):
    """Something happens to the runs of a variant (one of several things if a list is given).

    ``how_often``: as a rule (``all``), in ``some`` runs (the paper says "may"), or as a rule not (``none``). A few
    seeds cannot tell all from nearly all, so the rule is one of more than ``rate`` of all runs.
    """

    kind: Literal["event"]
    of: str
    event: Events
    how_often: Literal["all", "some", "none"] = "all"
    rate: Rate = 0.5

    def variants(self) -> list[str]:
        return [self.of]


Check: TypeAlias = Final | Ratio | Trend | Order | Same | Band | Event
KINDS: dict[str, type[_Check]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in (Final, Ratio, Trend, Order, Same, Band, Event)
}


class Claim(BaseModel):
    """A sentence with the checks that decide it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    says: str
    where: str = ""  # in the paper; "": a claim of the user's own
    made_at: Annotated[str, _OneOf("scale", SCALES)] = "imagenet"  # the scale of the paper's claim
    scales: tuple[Annotated[str, _OneOf("scale", SCALES)], ...] = SCALES  # at which it can be checked
    note: str = ""  # what a reader must know about the check
    checks: tuple[Check, ...]

    def variants(self) -> list[str]:
        """The variants whose runs decide it, each once."""
        return list(dict.fromkeys(name for check in self.checks for name in check.variants()))


def claim_hash(claim: Claim, design: Design) -> str:
    """Of all that decides what a claim says: its words, its checks, where it is made, and the looks and the level.

    A field that is at its default leaves it as it is, so that a new kind of field changes no claim of before.
    """
    content = {
        "says": claim.says,
        "scales": claim.scales,
        "checks": [check.model_dump(mode="json", exclude_defaults=True) for check in claim.checks],
        "design": design.as_json(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class ClaimFile(BaseModel):
    """A claim as written; its name is the key, and its checks are read one by one, each as its own kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    says: str
    where: str = ""
    made_at: Annotated[str, _OneOf("scale", SCALES)] = "imagenet"
    scales: tuple[Annotated[str, _OneOf("scale", SCALES)], ...] = SCALES
    note: str = ""
    checks: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


def parse_claims(document: Document, variants: Mapping[str, tuple[str, ...]]) -> tuple[Claim, ...]:
    """The claims of a study. ``variants`` has the scales at which each variant is run.

    Raises SettingsError, with file and line, for a key, kind, metric or variant that does not exist, and for a claim
    that is to be checked at a scale at which one of its variants is not run.
    """
    claims = []
    for name in document.content.get("claims", {}):
        keys = ("claims", name)
        read = parse_model(ClaimFile, document, lambda _: list(ClaimFile.model_fields), keys)
        checks: tuple[Any, ...] = tuple(
            parse_kind(KINDS, document, (*keys, "checks", str(i)), what="check") for i in range(len(read.checks))
        )
        for i, check in enumerate(checks):
            _know(check, document, (*keys, "checks", str(i)), variants, read.scales)
        content = {field: getattr(read, field) for field in ClaimFile.model_fields if field != "checks"}
        claims.append(Claim.model_construct(name=name, checks=checks, **content))
    return tuple(claims)


def _know(
    check: Check,
    document: Document,
    keys: tuple[str, ...],
    variants: Mapping[str, tuple[str, ...]],
    scales: tuple[str, ...],
) -> None:
    """Refuse a check on a variant that the study does not have, or does not run where the check is made."""
    for name in check.variants():
        if name not in variants:
            raise SettingsError(
                f"{'.'.join(keys)}: the study has no variant {name!r}{nearest_or_some(name, list(variants))}"
                f"  [{document.at(*keys)}]"
            )
        absent = [scale for scale in scales if scale not in variants[name]]
        if absent:
            raise SettingsError(
                f"{'.'.join(keys[:2])}.scales: variant {name!r} is not run at {', '.join(absent)}; "
                f"it is run at {', '.join(variants[name])}  [{document.at(*keys)}]"
            )
