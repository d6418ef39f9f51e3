"""A table as Markdown, LaTeX and CSV from one description."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from analysis.formats import DASH, escape_latex, escape_markdown


@dataclass(frozen=True)
class Column:
    """A heading: ``group`` stands above the headings that share it."""

    key: str
    heading: str
    group: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Entry:
    """One cell: its text, or the reason why there is none; and its exact values for CSV, by the ends of their names."""

    text: str = ""
    reason: str = ""
    exact: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def full(self) -> str:
        """The text; for a cell without one a dash with the reason."""
        return self.text or f"{DASH} ({self.reason})"


@dataclass(frozen=True)
class Table:
    """Columns, rows of entries, and what a reader must know beside them."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]

    def groups(self) -> list[tuple[str, int]]:
        """What stands above the headings, and above how many of them; "" where nothing does."""
        return [(name, len(list(members))) for name, members in groupby(self.columns, key=lambda column: column.group)]

    def cells(self, row: Sequence[Entry]) -> Iterator[tuple[Column, Entry, int]]:
        """The cells of a row: the first column that each covers, its entry, and how many columns it covers.

        Entries next to each other that are missing for the same reason are one cell.
        """
        filled = zip(self.columns, row, strict=True)
        for reason, members in groupby(filled, key=lambda cell: "" if cell[1].text else cell[1].reason):
            of_reason = list(members)
            if reason:
                yield *of_reason[0], len(of_reason)
            else:
                yield from ((column, entry, 1) for column, entry in of_reason)

    def headings(self) -> list[str]:
        """One line of headings; the first of each group names it."""
        previous = ["", *(column.group for column in self.columns)]
        return [
            f"{column.group}: {column.heading}" if column.group not in ("", before) else column.heading
            for column, before in zip(self.columns, previous, strict=False)
        ]

    def lines(self) -> list[list[str]]:
        """The rows as text for a narrow terminal: a reason that several cells in a row share is given once."""
        return [
            [text for _, entry, span in self.cells(row) for text in [entry.full] + [DASH] * (span - 1)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """A pipe table, the caption above and the notes below."""
        notes = "".join(f"\n{escape_markdown(note)}\n" for note in self.notes)
        return f"{escape_markdown(self.caption)}\n\n{self.grid()}\n{notes}"

    def grid(self) -> str:
        """The pipe table alone."""
        texts = [self.headings(), *([entry.full for entry in row] for row in self.rows)]
        cells = [[escape_markdown(text) for text in row] for row in texts]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = [
            "-" * (width - 1) + (":" if column.is_number else "-")
            for width, column in zip(widths, self.columns, strict=True)
        ]
        return "\n".join(self._pipes(row, widths) for row in (cells[0], rule, *cells[1:]))

    def _pipes(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(cells, widths, self.columns, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    def latex(self) -> str:
        """A booktabs table within the width of the text, over both columns of a paper with two.

        Cells are plain, but for columns whose long texts would not fit: these break their lines. Of more columns than
        fit in this way, the last ones stand below the first, again with the names of the rows. Needs
        ``\\usepackage{booktabs}`` and, before TeX Live 2018, UTF-8 input.
        """
        panels = [panel._latex_panel() for panel in self._panels()]
        return "\n".join(
            [
                "% needs \\usepackage{booktabs}",
                r"\begin{table*}",
                rf"\centering\scriptsize\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}",
                rf"\caption{{{escape_latex(self.caption)}}}\smallskip",
                "\n\\par\\medskip\n".join(panels),
                r"\par\medskip\begin{minipage}{\linewidth}\raggedright",
                *(rf"{escape_latex(note)}\par" for note in self.notes),
                r"\end{minipage}",
                r"\end{table*}",
                "",
            ]
        )

    def _panels(self) -> list[Table]:
        """The table in parts whose columns fit beside each other; each begins with the first column."""
        rooms = self._rooms()
        if sum(least for least, _, _ in rooms) + GAP * (len(rooms) - 1) <= LINE:
            return [self]
        # Texts that break need a little more than their longest word, so as not to stand in a column of words.
        wanted = [GAP + min(whole, least + 15) for least, whole, _ in rooms]
        parts: list[list[int]] = [[0]]
        for at in range(1, len(self.columns)):
            if len(parts[-1]) > 1 and sum(wanted[place] for place in (*parts[-1], at)) > LINE + GAP:
                parts.append([0])
            parts[-1].append(at)
        return [
            Table(
                self.caption,
                tuple(self.columns[at] for at in part),
                tuple(tuple(row[at] for at in part) for row in self.rows),
                (),
            )
            for part in parts
        ]

    def _latex_panel(self) -> str:
        layout = self._latex_columns()
        body = [_latex_row([_latex_cell(*cell, layout) for cell in self.cells(row)], layout) for row in self.rows]
        return "\n".join(
            [
                rf"\begin{{tabular}}{{@{{}}{''.join(each.alignment for each in layout.values())}@{{}}}}",
                r"\toprule",
                *self._latex_head(layout),
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )

    def _latex_head(self, layout: Mapping[str, LatexColumn]) -> list[str]:
        """The groups, if there are any, then the headings: the lines of a long one are rows, the last is the lowest."""
        above, rules, at = [], [], 1
        for name, span in self.groups():
            above.append(f"\\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}" if name else " & ".join([""] * span))
            if name:
                rules.append(f"\\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        headings = [_wrapped(each.heading, layout[each.key].room) for each in self.columns]
        height = max(map(len, headings))
        rows = zip(*([""] * (height - len(lines)) + lines for lines in headings), strict=True)
        lines = [
            _latex_row([layout[key].cell(escape_latex(text)) for key, text in zip(layout, row, strict=True)], layout)
            for row in rows
        ]
        return [*([" & ".join(above) + r" \\", " ".join(rules)] if rules else []), *lines]

    def _rooms(self) -> list[tuple[float, float, float]]:
        """Of each column how many points its longest word takes, how many all in full, and of these its entries."""
        texts: list[list[str]] = [[] for _ in self.columns]
        for row in self.rows:
            covered = 0
            for _, entry, span in self.cells(row):
                texts[covered] += [_together(entry.full)] if span == 1 else []
                covered += span
        rooms = []
        for column, entries in zip(self.columns, texts, strict=True):
            least = max(_width(word) for text in [*entries, column.heading] for word in text.split(" "))
            full = max(map(_width, entries), default=0.0)
            rooms.append((least, max(least, full, min(_width(column.heading), HEADING)), full))
        return rooms

    def _latex_columns(self) -> dict[str, LatexColumn]:
        """How each column is set, by its key.

        Each has room for its longest word. If what is left of :data:`LINE` is not enough for all texts in full, the
        long ones share it, and break.
        """
        rooms = self._rooms()
        spare = LINE - GAP * (len(rooms) - 1) - sum(least for least, _, _ in rooms)
        share = min(1.0, max(0.0, spare / max(1.0, sum(whole - least for least, whole, _ in rooms))))
        return {
            column.key: LatexColumn("r" if column.is_number else "l", room, breaks=room < full - 0.01)
            for column, (least, whole, full) in zip(self.columns, rooms, strict=True)
            for room in [least + share * (whole - least)]
        }

    def csv(self) -> str:
        """Exact values, one column each; what is not there is ``nan``, and ``outcome`` says why."""
        rows = [
            {
                f"{column.key}{end}": value
                for column, entry in zip(self.columns, row, strict=True)
                for end, value in entry.exact.items()
            }
            for row in self.rows
        ]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()


# --- LaTeX ---------------------------------------------------------------------------------------------------------


LINE = 390.0  # points: the narrowest text of conferences, and a little air
GAP = 5.0  # points between two columns
HEADING = 60.0  # points of a heading in one line, where there is room
_NARROW, _WIDE = set("iljtfrI.,:;'!|()[]/- \N{NO-BREAK SPACE}"), set("mwMW±×%–−+=<>√")  # noqa: RUF001


@dataclass(frozen=True)
class LatexColumn:
    """How a column is set: on which side, how many points wide, and whether its long texts break."""

    side: str
    room: float
    breaks: bool

    @property
    def alignment(self) -> str:
        return rf"p{{{self.room / LINE:.3f}\linewidth}}" if self.breaks else self.side

    def cell(self, text: str) -> str:
        """A text in it; one that breaks has its side from the cell."""
        return rf"\ragged{'left' if self.side == 'r' else 'right'} {text}" if self.breaks and text else text


def _width(text: str) -> float:
    """About how many points a text takes in ``\\scriptsize``."""
    return sum(2.9 if c in _NARROW else 6.2 if c in _WIDE else 5.5 if c.isupper() else 4.0 for c in text)


def _wrapped(text: str, room: float) -> list[str]:
    """A text in lines of so many points, broken between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _width(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _together(text: str) -> str:
    """A text whose numbers do not break: before their spreads and units, and between the ends of an interval."""
    return re.sub(
        r" (?=[±%]|(?:s|h|min)\b)|(?<=±) |(?<=\d) (?=(?:to|of) )|(?<=\d (?:to|of)) ", "\N{NO-BREAK SPACE}", text
    )


def _latex_row(cells: Sequence[str], layout: Mapping[str, LatexColumn]) -> str:
    r"""Cells as a row. After ``\raggedright`` in the last one ``\\`` is the end of a line, not of a row.

    What begins with a bracket would be read as an option of the row above.
    """
    end = r"\tabularnewline" if [*layout.values()][-1].breaks else r"\\"
    first = f"{{}}{cells[0]}" if cells[0].startswith(("[", "*")) else cells[0]
    return f"{' & '.join([first, *cells[1:]])} {end}"


def _latex_cell(column: Column, entry: Entry, span: int, layout: Mapping[str, LatexColumn]) -> str:
    text = escape_latex(_together(entry.full))
    if span > 1:
        return rf"\multicolumn{{{span}}}{{c}}{{{text}}}"
    return layout[column.key].cell(text)
