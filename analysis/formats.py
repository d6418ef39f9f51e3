"""Numbers, times and texts as they are printed: rounded by what is known of them, escaped for where they go."""

from __future__ import annotations

import math

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def format_estimate(mean: float, sd: float, single: int, most: int) -> str:
    """``84.1 ± 0.3``: the uncertainty to its first digit (two if that is a 1), the mean to the same place.

    Without an uncertainty (NaN, or 0), to ``single`` decimals; in no case to more than ``most``.
    """
    decimals = single
    if sd > 0:
        leading = f"{sd:.1e}"  # rounded to two digits, so that 0.0996 counts as 0.10
        decimals = min(most, max(0, (1 if leading[0] == "1" else 0) - int(leading[4:])))
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
