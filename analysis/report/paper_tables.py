"""The paper's tables in their own form, with our number beside each of the paper's: ``report paper``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from analysis.formats import DASH
from analysis.frames.load import accuracy_of, came_to, counts
from analysis.report import page
from analysis.report.study_table import decimals_of, estimate_entry, paper_entry
from analysis.report.table import Column, Entry, Table
from experiments.studies.study import PaperResult, Scale, Study
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import METRICS, Metric

FILE = Path(__file__).with_suffix(".yaml")
PAPER, OURS = "paper", "ours"
TITLE = "The paper's tables, and ours"


class Row(BaseModel):
    """A row as the paper has it: its text, and a variant for each heading of results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: tuple[str, ...]
    of: tuple[str, ...]


class Layout(BaseModel):
    """A table of the paper. A transposed one has the paper's numbers in a row, and ours in the next."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    study: str
    text: tuple[str, ...]
    results: tuple[str, ...]
    rows: tuple[Row, ...]
    transposed: bool = False
    note: str = ""

    def place(self, name: str) -> tuple[str, str]:
        """The study and the variant of a cell."""
        study, colon, variant = name.partition(": ")
        return (study, variant) if colon else (self.study, name)

    def studies(self) -> set[str]:
        """Those that its numbers are of."""
        return {self.place(name)[0] for row in self.rows for name in row.of}


@cache
def layouts() -> tuple[Layout, ...]:
    """Every table of the paper that this program has numbers for, in the paper's order."""
    return TypeAdapter(tuple[Layout, ...]).validate_python(yaml.safe_load(FILE.read_text()))


@dataclass(frozen=True)
class StudyResults:
    """The runs of a study, as ``gather`` gives them, which say their variant."""

    study: Study
    runs: pd.DataFrame

    def of(self, variant: str) -> pd.DataFrame:
        """Those of one variant."""
        runs: pd.DataFrame = self.runs[self.runs["variant"] == variant]
        return runs


def tables(results: Mapping[str, StudyResults], scale: Scale) -> Iterator[Table]:
    """The paper's tables whose studies are in ``results``, by name, with ours at a scale."""
    for layout in layouts():
        if layout.studies() <= results.keys():
            yield _table(layout, results, scale)


def _table(layout: Layout, results: Mapping[str, StudyResults], scale: Scale) -> Table:
    metric = METRICS[accuracy_of(results[layout.study].runs)]
    places = [layout.place(name) for row in layout.rows for name in row.of]
    of_variants = [results[study].of(variant) for study, variant in places]
    decimals = decimals_of(of_variants, metric)
    cells = [[_cell(*layout.place(name), results, metric, decimals) for name in row.of] for row in layout.rows]
    ours = f"Ours: {metric.heading}, {scale.name} scale, mean ± sample standard deviation over seeds."
    if not any(counts(runs).any() for runs in of_variants):
        ours = f"Ours: no run has ended at {scale.name} scale."
    notes = tuple(text for text in (ours, layout.note) if text)
    texts = [Column(f"text{at}", heading, is_number=False) for at, heading in enumerate(layout.text)]
    if layout.transposed:
        numbers = [Column(f"result{at}", heading) for at, heading in enumerate(layout.results)]
        rows = [(Entry(label), *(pair[which] for pair in cells[0])) for which, label in enumerate((PAPER, OURS))]
        return Table(layout.title, (*texts, *numbers), tuple(rows), notes)
    numbers = [
        Column(f"result{at}_{which}", which, heading)
        for at, heading in enumerate(layout.results)
        for which in (PAPER, OURS)
    ]
    rows = [
        (*(Entry(text or DASH) for text in row.text), *(entry for pair in of_row for entry in pair))
        for row, of_row in zip(layout.rows, cells, strict=True)
    ]
    return Table(layout.title, (*texts, *numbers), tuple(rows), notes)


def _cell(
    study: str, variant: str, results: Mapping[str, StudyResults], metric: Metric, decimals: int
) -> tuple[Entry, Entry]:
    """The paper's number and ours, with the word for what our runs came to unless all are healthy."""
    of_study = results[study]
    paper: PaperResult = next(each.paper for each in of_study.study.variants if each.name == variant)
    theirs = paper_entry(paper)
    if paper.top1 is None and paper.note:
        theirs = Entry(paper.note.partition(";")[0])
    if variant not in of_study.runs["variant"].cat.categories:
        return theirs, Entry(reason="not at this scale")
    runs = of_study.of(variant)
    ours = estimate_entry(runs, metric, decimals, say_how_many=True)
    words = [word for word in dict.fromkeys(came_to(runs)) if word not in ("", "healthy")]
    if not ours.text or not words:
        return theirs, ours
    return theirs, Entry(f"{ours.text}, {' or '.join(words)}", exact=ours.exact)


def runs_of(results: Mapping[str, StudyResults]) -> pd.DataFrame:
    """The runs of all studies, each once."""
    runs: pd.DataFrame = pd.concat([each.runs for each in results.values()]).drop_duplicates("run")
    return runs


def write(
    results: Mapping[str, StudyResults],
    scale: Scale,
    folder: Path,
    *,
    command: str,
    no_results: str,
    markdown: Path | None = None,
) -> Path:
    """``index.html``, ``tables.md`` and ``tables.tex`` in a folder, and the Markdown in a file of one's own, too.

    Returns the page. Raises OSError.
    """
    found = list(tables(results, scale))
    folder.mkdir(parents=True, exist_ok=True)
    runs = runs_of(results)
    ended = f"{int(counts(runs).sum())} of {len(runs)} runs have ended and did not diverge."
    head = f"# {TITLE} at {scale.name} scale\n\n{page.MADE_BY}\n\n    {command}\n\n{ended}\n"
    warning = f"\n**These are no results.** {no_results}\n" if no_results else ""
    document = "\n".join([head, warning, *(f"## {table.markdown()}" for table in found)])
    texts = {folder / "tables.md": document, folder / "tables.tex": "\n".join(_latex(table) for table in found)}
    for path, text in (texts | ({markdown: document} if markdown else {})).items():
        write_atomically(path, partial(_put, text), aside=str(os.getpid()), mode="w")
    html = page.template("paper.html.jinja").render(
        title=TITLE,
        scale=scale.name,
        note=scale.note,
        ended=ended,
        tables=found,
        command=command,
        no_results=no_results,
    )
    page.write_page(folder / "index.html", html)
    return folder / "index.html"


def _latex(table: Table) -> str:
    """LaTeX numbers tables by itself, so that the paper's number stands behind."""
    number, _, what = table.caption.partition(": ")
    return replace(table, caption=f"{what[0].upper()}{what[1:]} ({number} of the paper).").latex()


def _put(text: str, file: IO[str]) -> None:
    file.write(text)


def studies() -> Sequence[str]:
    """The studies that the paper's tables need, each once."""
    return sorted({name for layout in layouts() for name in layout.studies()})
