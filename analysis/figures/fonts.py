"""The fonts of the figures: what a text measures, where it breaks, and which fonts have its characters.

Figures are set in DejaVu Sans, the file that comes with matplotlib, so that they are the same on every machine. What it
does not have (Chinese, Korean, emoji ...) is taken from a font of the machine that has it.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

MAIN = "DejaVu Sans"
NO_FALLBACK = "Last Resort"  # matplotlib's, which has a box for everything


def text_width(text: str, size: float) -> float:
    """Inches that a line of plain text takes at a size in points, in the fonts of the rcParams."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of at most ``width`` inches at a size in points, broken at spaces.

    A word that is wider is broken as a path is (``loss.|arguments.|power=|0.5``), and a part that is wider anywhere.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if text_width(joined, size) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for part in re.split(r"(?<=[=_/:])|(?<=\.)(?=[A-Za-z])", word):
            for piece in [part] if text_width(part, size) <= width else part:
                if lines[-1] and text_width(lines[-1] + piece, size) > width:
                    lines.append("")
                lines[-1] += piece
    return [line for line in lines if line]


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font file has glyphs for that can be drawn; none of one that cannot be read."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # gone, or bitmaps only
        return frozenset()
    return frozenset(font.get_charmap())


def fallbacks(texts: Iterable[str]) -> tuple[list[str], set[int]]:
    """Families of this machine that have what the main one lacks of texts, and the code points that none has."""
    wanted = {ord(character) for text in texts for character in text if not character.isspace()}
    wanted -= _characters(fontManager.findfont(MAIN))
    families: list[str] = []
    # Sorted: the same machine takes the same font, in whatever order its files were found.
    for name, path in sorted({(font.name, font.fname) for font in fontManager.ttflist if font.style == "normal"}):
        if not wanted:
            break
        if not name.startswith(NO_FALLBACK) and (has := wanted & _characters(path)):
            families.append(name)
            wanted -= has
    return families, wanted


def use_fonts_for(labels: Sequence[str]) -> list[str]:
    """Add to the fonts of the rcParams what labels need; the labels, numbered where no font has them.

    To be called within ``rc_context(style.RC)``. A label with a character that no font of the machine has becomes
    ``no. 3``, by its place, and a warning names it: a row of boxes tells nothing.
    """
    families, missing = fallbacks(labels)
    matplotlib.rcParams["font.family"] = [*dict.fromkeys([MAIN, *matplotlib.rcParams["font.family"], *families])]
    drawn = [f"no. {i + 1}" if missing.intersection(map(ord, label)) else label for i, label in enumerate(labels)]
    changed = [f"{label!r} is drawn as '{text}'" for label, text in zip(labels, drawn, strict=True) if label != text]
    if changed:
        warnings.warn(
            f"no font of this machine has all characters: {', '.join(changed)}. Install one that has them",
            stacklevel=2,
        )
    return drawn
