"""When a study is judged: after which numbers of seeds, and at what level. Declared before its runs are seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

LOOKS = (3, 5, 8, 12, 16)
LEVEL = 0.95


def _grow(looks: tuple[int, ...]) -> tuple[int, ...]:
    if any(later - earlier < 2 for earlier, later in pairwise(looks)):
        raise ValueError("each look needs at least 2 seeds more than the one before")
    return looks


_NumSeeds = Annotated[int, Field(ge=2, le=1000)]
_Several = Annotated[tuple[_NumSeeds, ...], Field(min_length=1, max_length=20)]
Looks = Annotated[
    _Several,
    BeforeValidator(
        lambda value: (value,) if isinstance(value, int) and not isinstance(value, bool) else value,
        json_schema_input_type=_NumSeeds | _Several,
    ),
    AfterValidator(_grow),
]
Level = Annotated[float, Field(ge=0.8, le=0.999)]


@dataclass(frozen=True)
class Design:
    """The looks at a study, in numbers of seeds, and the level that all of them together keep.

    One look is a fixed number of seeds, whose interval is Student's.
    """

    looks: tuple[int, ...] = LOOKS
    level: float = LEVEL

    @property
    def is_fixed(self) -> bool:
        return len(self.looks) == 1

    @property
    def last(self) -> int:
        """The seeds of the last look; more of them count for no verdict."""
        return self.looks[-1]

    def next_look(self, seeds: int) -> int | None:
        """The first look that needs more seeds than there are; None after the last."""
        return next((look for look in self.looks if look > seeds), None)

    def as_json(self) -> dict[str, Any]:
        return {"looks": list(self.looks), "level": self.level}
