"""Published numbers of others, by scale and by method: a second reference beside the paper's. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from experiments.studies.yaml_files import parse_model, read

PATH = Path(__file__).parent.parent / "published.yaml"


class Published(BaseModel):
    """One number that somebody published, with what it was got by."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    measure: Literal["linear", "knn"]
    top1: Annotated[float, Field(ge=0, le=100)]  # percent
    epochs: int
    source: str
    batch_size: int | None = None  # None: the source does not say
    recipe: str = ""

    def __str__(self) -> str:
        """``linear 91.94 (800 epochs, batch 512, rate 0.06; source)``."""
        batch = f", batch {self.batch_size}" if self.batch_size else ""
        recipe = f", {self.recipe}" if self.recipe else ""
        return f"{NAMES[self.measure]} {self.top1:g} ({self.epochs} epochs{batch}{recipe}: {self.source})"


NAMES = {"linear": "linear", "knn": "kNN"}


class _File(RootModel[dict[str, dict[str, tuple[Published, ...]]]]):
    pass


@cache
def _all() -> dict[str, dict[str, tuple[Published, ...]]]:
    return parse_model(_File, read(PATH), lambda keys: list(Published.model_fields)).root


def published_names() -> list[str]:
    """What ``published:`` of a variant may name."""
    return sorted({name for of_scale in _all().values() for name in of_scale})


def published(scale: str, name: str) -> tuple[Published, ...]:
    """The numbers for a scale; none for a scale or a name without any."""
    return _all().get(scale, {}).get(name, ())
