"""The curves of a run on disk: each attempt appends to a file of its own; readers merge them.

``metrics.<n>.jsonl`` opens with ``{"attempt": n, "resumed_at_step": s}`` (null for a start from nothing), then holds
one JSON object a line, each with ``epoch`` and ``step``. Where attempts overlap, the later one wins from its resume
step on. When the run ends, the merged points are written once as ``metrics.jsonl``.

This module imports no torch.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Point = dict[str, Any]


def finite(point: Point) -> Point:
    """A point without NaN and infinity, which JSON has not: they become None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in point.items()
    }


def pack(bits: NDArray[np.bool_]) -> str:
    """One truth value an image, (N,), as a text of N / 6 characters: base64 of numpy's packbits."""
    import numpy as np  # here, since what only lists runs reads this module

    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack(text: str, num: int) -> NDArray[np.bool_]:
    """The ``num`` truth values of :func:`pack`. Raises ValueError if the text is of another number of them."""
    import numpy as np

    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-num // 8):
        raise ValueError(f"{len(packed)} bytes do not hold {num} bits")
    return np.unpackbits(packed, count=num).astype(bool)


class MetricsWriter:
    """Appends points to the file of one attempt. A point is on its way to disk when ``write`` returns."""

    def __init__(self, folder: Path, attempt: int, resumed_at_step: int | None) -> None:
        self._file = open(folder / f"metrics.{attempt}.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._line({"attempt": attempt, "resumed_at_step": resumed_at_step})

    def write(self, point: Point) -> None:
        """Append a point, see :func:`finite`."""
        self._line(finite(point))

    def sync(self) -> None:
        """Return when all points are safe on disk; called before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _line(self, value: Point) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()


def merge(
    folder: Path, read: Callable[[Path], list[Point]] | None = None, *, from_attempts: bool = False
) -> list[Point]:
    """All points of a run, in order of step: from ``metrics.jsonl`` if the run has ended, else from its attempts.

    ``from_attempts``: from these in any case; they stay where they are when a run ends.

    ``read`` gives the objects of one file, of an attempt's with its first line, for a reader that must take whatever it
    finds; by default a line that is not JSON raises ValueError.
    """
    read = read or _lines
    merged = folder / "metrics.jsonl"
    if merged.exists() and not from_attempts:
        return read(merged)
    points: list[Point] = []
    for path in attempt_files(folder):
        lines = read(path)
        if not lines:  # killed before its first line was whole
            continue
        resumed_at = lines[0].get("resumed_at_step")
        points = [point for point in points if resumed_at is not None and point["step"] <= resumed_at] + lines[1:]
    return points


def attempt_files(folder: Path) -> list[Path]:
    """``metrics.<n>.jsonl`` of all attempts, in order."""
    found = {path: re.fullmatch(r"metrics\.([0-9]{1,9})\.jsonl", path.name) for path in folder.glob("metrics.*.jsonl")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.name.split(".")[1]))


def _lines(path: Path) -> list[Point]:
    """The whole lines of a file; a last line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]
