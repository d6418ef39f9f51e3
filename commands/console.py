"""How the commands print: tables, JSON, numbers as a person says them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

UNBOUNDED = 10_000  # characters


def make_console() -> Console:
    """A console that takes no name for markup, and whose tables keep their lines whole in a pipe."""
    from rich.console import Console

    width = None if Console().is_terminal else UNBOUNDED
    return Console(width=width, markup=False, highlight=False, emoji=False)  # names are the user's: [red] is no colour


def print_prose(console: Console, text: str) -> None:
    """A sentence, wrapped between words on a terminal, under its own indentation; a line in a pipe."""
    from rich.padding import Padding
    from rich.text import Text

    words = text.lstrip(" ")
    console.print(Padding(Text(words), (0, 0, 0, len(text) - len(words)), expand=False))


class Table:
    """Rows under headings, which a terminal shows as far as it is wide.

    A heading that ends in > is of a column of numbers. ``optional`` are the headings that a narrow terminal goes
    without, the first to go first. Where even the others do not fit, with no word broken, each row is a record: a line
    for each heading. A pipe gets everything, each row in a line.
    """

    def __init__(self, *headings: str, optional: Sequence[str] = ()) -> None:
        self.headings = headings
        self.optional = optional
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.text import Text

        shown = list(range(len(self.headings)))
        names = [heading.rstrip(">") for heading in self.headings]
        for name in ("", *self.optional):
            if name in names:
                shown.remove(names.index(name))
            least, most = zip(*(self._widths(index) for index in shown), strict=True)
            spare = options.max_width - self._table(shown, least).__rich_measure__(console, options).maximum
            if spare < 0:
                continue
            widths = list(least)
            for _ in range(min(spare, sum(most) - sum(least))):  # each time to the column that lacks most
                widths[max(range(len(shown)), key=lambda i: most[i] - widths[i])] += 1
            yield self._table(shown, widths)
            if hidden := [name for index, name in enumerate(names) if index not in shown]:
                yield Text(f"Not shown at this width: {', '.join(hidden)}.", style="dim")
            return
        for row in self.rows:
            yield Text("")
            yield from (Text(f"{name}: {cell}") for name, cell in zip(names, row, strict=True) if cell not in ("", "-"))

    def _widths(self, index: int) -> tuple[int, int]:
        """The least and the greatest width of use to a column: its longest word, its longest cell."""
        from rich.cells import cell_len

        heading = self.headings[index]
        cells = [heading.rstrip(">"), *(row[index] for row in self.rows)]
        most = max(cell_len(line) for cell in cells for line in (cell.splitlines() or [""]))
        words = [word for cell in cells for word in cell.split()]
        return most if heading.endswith(">") else max(map(cell_len, words), default=0), most

    def _table(self, shown: Sequence[int], widths: Sequence[int]) -> Any:
        from rich import box, table

        made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, width in zip(shown, widths, strict=True):
            heading = self.headings[index]
            made.add_column(heading.rstrip(">"), justify="right" if heading.endswith(">") else "left", width=width)
        for row in self.rows:
            made.add_row(*(row[index] for index in shown))
        return made


def say(message: str) -> None:
    """Print now, even into a pipe."""
    print(message, flush=True)


def print_json(value: Any) -> None:
    """For scripts."""
    print(json.dumps(value, indent=1))


def count(number: int, noun: str) -> str:
    """``1 run``, ``3,200 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def about(seconds: float) -> str:
    """A time in the unit in which a person would say it."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def number(value: Any, form: str) -> str:
    """A number, or a dash for what is not there (yet)."""
    return "-" if value is None else format(value, form)


def duration(seconds: float | None) -> str:
    """``1:02:03``, or a dash."""
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
