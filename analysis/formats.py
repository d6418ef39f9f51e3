"""Numbers, times and texts as they are printed: rounded by what is known of them, escaped for where they go."""

from __future__ import annotations

import math
from collections.abc import Iterable

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def common_decimals(sds: Iterable[float], single: int, most: int) -> int:
    """Decimals for all numbers of a column: as many as the one asks for that is known best.

    Each asks for its uncertainty to the first digit (two if that is a 1), without one (NaN, or 0) for ``single``
    decimals; in no case for more than ``most``.
    """
    return max((_decimals(sd, single, most) for sd in sds), default=single)


def _decimals(sd: float, single: int, most: int) -> int:
    if not sd > 0:
        return single
    leading = f"{sd:.1e}"  # rounded to two digits, so that 0.0996 counts as 0.10
    return min(most, max(0, (1 if leading[0] == "1" else 0) - int(leading[4:])))


def format_estimate(mean: float, sd: float, decimals: int) -> str:
    """``84.1 ± 0.3``: a mean with its uncertainty, if it has one (no NaN), both to so many decimals."""
    text = f"{mean:.{decimals}f}".replace("-", MINUS)
    return text if math.isnan(sd) else f"{text} ± {sd:.{decimals}f}"


def format_apart(value: float, limit: float, decimals: int) -> tuple[str, str]:
    """A value and what it is compared with, with as many decimals as they need to differ in print; six at most."""
    if value == limit:
        return f"{value:.{decimals}f}", f"{limit:.{decimals}f}"
    needed = (n for n in range(decimals, 7) if f"{value:.{n}f}" != f"{limit:.{n}f}")
    places = next(needed, 6)
    return f"{value:.{places}f}", f"{limit:.{places}f}"


def format_signed(value: float) -> str:
    """``+0.6``, ``−3.3``; what rounds to zero is ``0.0``."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def format_seconds(seconds: float) -> str:
    """``45 s``, ``2.3 min``, ``26 min``, ``3.4 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    value, unit = (seconds / 60, "min") if seconds < 5970 else (seconds / 3600, "h")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def format_hours(hours: float) -> str:
    """To two digits, without an exponent."""
    if hours <= 0:
        return "0"
    return f"{hours:.{max(0, 1 - math.floor(math.log10(hours)))}f}"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "|": r"$\vert$", "±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", MINUS: "$-$", "\n": " ",  # noqa: RUF001
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """A text that LaTeX sets as it is."""
    text = text.replace("√d", "\0")  # \sqrt needs its argument
    return "".join(_LATEX.get(character, character) for character in text).replace("\0", r"$\sqrt{d}$")


def escape_markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    for character in r"\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def percent_range(low: float, high: float) -> str:
    """``82.1 %``, or ``80.0 to 82.1 %`` where runs differ."""
    return f"{low:.1f} %" if high - low < 0.05 else f"{low:.1f} to {high:.1f} %"
