"""The table of a study: the paper's number and ours side by side, as Markdown, LaTeX and CSV from one description."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd

from analysis.formats import DASH, escape_latex, escape_markdown, format_estimate, format_hours, format_seconds
from experiments.study import PaperResult


@dataclass(frozen=True)
class Column:
    """A heading: ``group`` stands above the headings that share it."""

    key: str
    heading: str
    group: str = ""
    is_number: bool = True
    width: float | None = None  # in print, em: a longer text is broken into lines; None: never


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
        texts = [self.headings(), *([entry.full for entry in row] for row in self.rows)]
        cells = [[escape_markdown(text) for text in row] for row in texts]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = [
            "-" * (width - 1) + (":" if column.is_number else "-")
            for width, column in zip(widths, self.columns, strict=True)
        ]
        lines = [self._pipes(row, widths) for row in (cells[0], rule, *cells[1:])]
        notes = "".join(f"\n{escape_markdown(note)}\n" for note in self.notes)
        return f"{escape_markdown(self.caption)}\n\n" + "\n".join(lines) + "\n" + notes

    def _pipes(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(cells, widths, self.columns, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    def latex(self) -> str:
        """A booktabs table; needs ``\\usepackage{booktabs}`` and, before TeX Live 2018, UTF-8 input."""
        alignment = "".join("r" if column.is_number else "l" for column in self.columns)
        above, rules, at = [], [], 1
        for name, span in self.groups():
            above.append(f"\\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}" if name else " & ".join([""] * span))
            if name:
                rules.append(f"\\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        body = [" & ".join(_latex_cell(*cell) for cell in self.cells(row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                "% needs \\usepackage{booktabs}",
                r"\begin{table*}",
                r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
                rf"\caption{{{escape_latex(self.caption)}}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"\toprule",
                " & ".join(above) + r" \\",
                " ".join(rules),
                " & ".join(_latex_heading(column) for column in self.columns) + r" \\",
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


# --- the table of a study ----------------------------------------------------------------------------------------

OURS = (  # key, column of the runs, heading, decimals for a single run, most decimals
    ("knn_top1", "final_knn_top1", "kNN top-1 (%)", 1, 2),
    ("z_std_relative", "final_z_std_relative", "std × √d", 2, 4),  # noqa: RUF001
    ("effective_rank", "final_effective_rank", "effective rank", 0, 1),
    ("loss", "final_loss", "loss", 3, 4),
)


def study_table(runs: pd.DataFrame, paper: Mapping[str, PaperResult], title: str, scale: str) -> Table:
    """A row for each variant: what the paper reports, and what our runs came to.

    ``runs`` has a row for each run that was asked for (missing ones too) and the column ``variant``; ``paper`` has the
    paper's result of each variant, in the order of the rows. Means are over the runs that ended, diverged ones left
    out; the spread is the sample standard deviation over seeds.
    """
    ours = f"Ours ({scale} scale)"
    columns = (
        Column("variant", "variant", is_number=False, width=9),
        Column("paper_top1", "ImageNet linear top-1 (%)", "Paper", width=5.5),
        *(Column(key, heading, ours, width=5.5 if key == "knn_top1" else None) for key, _, heading, _, _ in OURS),
        Column("outcome", "outcome (runs)", ours, is_number=False, width=6.5),
        Column("cost", "cost per run", ours, width=6),
    )
    rows = []
    for name, result in paper.items():
        of_variant = runs[runs["variant"] == name]
        first = (Entry(name or "(no name)", exact={"": name}), paper_entry(result))
        ours_entries = [estimate_entry(of_variant, column, single, most) for _, column, _, single, most in OURS]
        rows.append((*first, *ours_entries, outcome_entry(of_variant), cost_entry(of_variant)))
    notes = [
        "Paper and ours are different quantities: the paper's is the linear evaluation of a ResNet-50 on ImageNet, "
        f"pre-trained for 100 epochs unless noted; ours is the kNN accuracy of this study at {scale} scale. Compare "
        "the order of the variants and the failure modes, not the numbers.",
        "Ours: mean ± sample standard deviation over seeds at the end of training, diverged runs left out. kNN is the "
        "weighted kNN on backbone features; std is that of z/|z|: 1/√d for an isotropic Gaussian z, 0 for a constant.",
        *(
            f"Paper, {', '.join(name for name, result in paper.items() if result.note == note)}: {note}"
            for note in dict.fromkeys(result.note for result in paper.values() if result.note)
        ),
    ]
    losses = set(runs["loss.name"].dropna()) if "loss.name" in runs else set[str]()
    if len(losses) > 1:
        notes.append(f"The variants have different losses ({', '.join(sorted(losses))}), whose values do not compare.")
    return Table(f"{title}: the paper's results and ours, at {scale} scale.", columns, tuple(rows), tuple(notes))


def paper_entry(result: PaperResult) -> Entry:
    """The paper's number, with its spread and trials where it gives them."""
    exact: dict[str, float | int | str] = {
        "": math.nan if result.top1 is None else result.top1,
        "_spread": math.nan if result.spread is None else result.spread,
        "_trials": 0 if result.trials is None else result.trials,
    }
    if result.top1 is None:
        return Entry(reason="not reported", exact=exact)
    decimals = max(1, len(repr(result.top1).partition(".")[2]))
    text = f"{result.top1:.{decimals}f}"
    if result.spread is not None:
        text += f" ± {result.spread:.{decimals}f}"
    if result.trials is not None:
        text += f" ({result.trials} trials)"
    return Entry(text, exact=exact)


def estimate_entry(runs: pd.DataFrame, column: str, single: int, most: int) -> Entry:
    """Mean and standard deviation of a final value over the runs of a variant that ended with one."""
    ended = runs[(runs["state"] == "done") & (runs["outcome"] != "diverged")]
    values = ended[column].dropna().to_numpy(float)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else math.nan
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    exact: dict[str, float | int | str] = {"_mean": mean, "_sd": sd, "_runs": len(values)}
    if not len(values):
        return Entry(reason=_why_nothing(runs), exact=exact)
    text = format_estimate(mean, sd, single, most)
    if len(values) < len(runs) and column == "final_knn_top1":
        text += f" ({len(values)} of {len(runs)})"
    return Entry(text, exact=exact)


def outcome_entry(runs: pd.DataFrame) -> Entry:
    """How many runs came to what: ``collapsed (3/3)``, ``healthy (1/2); running, epoch 3/8 (1/2)``."""
    counts = runs.apply(describe_state, axis=1).value_counts(sort=False) if len(runs) else pd.Series(dtype=int)
    text = "; ".join(f"{what} ({count}/{len(runs)})" for what, count in counts.items()) or f"{DASH} (not run)"
    return Entry(text, exact={"": text})


def describe_state(run: pd.Series) -> str:
    """What a run came to, or how far it is, in a few words."""
    if run["state"] == "done":
        outcome = "ended" if pd.isna(run["outcome"]) else str(run["outcome"])
        return f"{outcome}, stopped early" if run["stopped_early"] and outcome != "diverged" else outcome
    if run["state"] == "failed":
        return "failed: see failure.txt"
    if run["state"] in ("missing", "pending"):
        return "not run"
    state = "state unknown" if run["state"] == "unknown" else str(run["state"])
    if pd.isna(run["epoch"]):
        return state
    planned = run.get("epochs", math.nan)
    return f"{state}, epoch {int(run['epoch'])}" + ("" if pd.isna(planned) else f"/{int(planned)}")


def _why_nothing(runs: pd.DataFrame) -> str:
    if not len(runs):
        return "not run"
    reasons = runs.apply(describe_state, axis=1)
    if (runs["state"] == "done").all() and not (runs["outcome"] == "diverged").any():
        return "not logged"
    return "; ".join(dict.fromkeys(reasons[~reasons.isin(["healthy", "collapsed"])]))


def cost_entry(runs: pd.DataFrame) -> Entry:
    """Wall time of a run and its core-hours (on a CPU) or device-hours, means over the runs that ended."""
    ended = runs[(runs["state"] == "done") & runs["seconds"].notna()]
    wall, hours = float(ended["seconds"].mean()), float(device_hours(ended).mean())
    exact: dict[str, float | int | str] = {"_seconds_per_run": wall, "_device_hours_per_run": hours}
    if not len(ended):
        return Entry(reason=_why_nothing(runs), exact=exact)
    unit = "GPU-h" if (ended["device_type"] == "cuda").any() else "core-h"
    text = format_seconds(wall) + (f", {format_hours(hours)} {unit}" if hours >= 0 else "")
    return Entry(text, exact=exact)


def device_hours(runs: pd.DataFrame) -> pd.Series[float]:
    """Hours of a GPU for runs on one; of a core, which is time by threads, for runs on a CPU."""
    seconds = runs["device_seconds"].fillna(runs["seconds"])
    hours: pd.Series[float] = seconds.where(runs["device_type"] == "cuda", seconds * runs["threads"]) / 3600
    return hours.astype(float)


def _latex_heading(column: Column) -> str:
    """A heading in as many lines as keep it narrow."""
    lines = r" \\ ".join(escape_latex(line) for line in textwrap.wrap(column.heading, 10))
    return rf"\shortstack[{'r' if column.is_number else 'l'}]{{{lines}}}"


def _latex_cell(column: Column, entry: Entry, span: int) -> str:
    text = escape_latex(entry.full)
    if span > 1:
        return rf"\multicolumn{{{span}}}{{c}}{{{text}}}"
    if column.width and len(entry.full) > 2 * column.width:  # a character is half an em, more or less
        side = "left" if column.is_number else "right"
        return rf"\parbox[t]{{{column.width}em}}{{\ragged{side} {text}\strut}}"
    return text
