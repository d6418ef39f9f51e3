"""A table as Markdown, LaTeX and CSV from one description."""

from __future__ import annotations

import csv
import io
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
        """A booktabs table of the width of the text, over both columns of a paper with two.

        Needs ``\\usepackage{booktabs}`` and, before TeX Live 2018, UTF-8 input.
        """
        alignment = "".join("r" if column.is_number else "l" for column in self.columns)
        widths = self._shares()
        above, rules, at = [], [], 1
        for name, span in self.groups():
            above.append(f"\\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}" if name else " & ".join([""] * span))
            if name:
                rules.append(f"\\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        body = [" & ".join(_latex_cell(*cell, widths) for cell in self.cells(row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                "% needs \\usepackage{booktabs}",
                r"\begin{table*}",
                r"\centering\scriptsize\setlength{\tabcolsep}{2pt}",
                rf"\caption{{{escape_latex(self.caption)}}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"\toprule",
                " & ".join(above) + r" \\",
                " ".join(rules),
                " & ".join(_latex_box(column, column.heading, widths, "b") for column in self.columns) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\par\medskip\begin{minipage}{\linewidth}\raggedright",
                *(rf"{escape_latex(note)}\par" for note in self.notes),
                r"\end{minipage}",
                r"\end{table*}",
                "",
            ]
        )

    def _shares(self) -> dict[str, float]:
        """The part of the text's width that each column takes, by its key.

        Each has room for its longest word; what is left of :data:`LINE` goes to those with long texts.
        """
        texts = [[column.heading] for column in self.columns]
        for row in self.rows:
            covered = 0
            for _, entry, span in self.cells(row):
                texts[covered] += [entry.full] if span == 1 else []
                covered += span
        least = [GAP + max(len(word) for text in column for word in text.split()) for column in texts]
        wanted = [max(0.0, GAP + max(map(len, column)) - word) for column, word in zip(texts, least, strict=True)]
        spare = max(0, LINE - sum(least)) / max(sum(wanted), 1)
        rooms = [word + min(spare, 1) * more for word, more in zip(least, wanted, strict=True)]
        whole = max(sum(rooms), LINE)
        return {column.key: room / whole for column, room in zip(self.columns, rooms, strict=True)}

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


LINE = 120  # characters of \scriptsize in 397 pt, the narrowest text of conferences
GAP = 1.5  # characters, between two columns


def _latex_box(column: Column, text: str, shares: Mapping[str, float], at: str = "t") -> str:
    """A text in as many lines as its column's share of the width takes; ``at``: which of them stands on the row's."""
    side = "left" if column.is_number else "right"
    width = rf"\dimexpr{shares[column.key]:.3f}\linewidth-2\tabcolsep"
    return rf"\parbox[{at}]{{{width}}}{{\ragged{side} {escape_latex(text)}\strut}}"


def _latex_cell(column: Column, entry: Entry, span: int, shares: Mapping[str, float]) -> str:
    if span > 1:
        return rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(entry.full)}}}"
    return _latex_box(column, entry.full, shares)
