"""All studies of a scale together: an index page for their pages, and one Markdown document with everything in it.

Both are made from the reports alone, which come from run folders and study files; no date or host gets in, so that the
same runs give the same document.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from analysis.figures.layout import reference_values
from analysis.formats import DASH, escape_markdown, percent_range
from analysis.frames.load import accuracy_of, came_to
from analysis.report import page
from analysis.report.in_words import answer, no_results
from analysis.report.one_study import ReportFiles
from analysis.report.page import Live, write_page
from analysis.verdicts.family import Family, family
from analysis.verdicts.verdicts import Verdict
from experiments.studies.study import Scale
from simsiam.record.catalogue import METRICS

OUTCOMES = ("supported", "contradicted", "undecided")

HOW_TO_READ = (
    "A claim is **supported** if the runs show it beyond chance, **contradicted** if they show that it is not so, and "
    "**undecided** otherwise: chance could have brought about either. The interval behind each verdict allows for all "
    "the looks that were taken at the runs while seeds were added (docs/claims.md). With one seed there is a direction "
    "only. Each claim states its smallest effect, its margin or its rate in the study's file.",
)


def write_index(
    reports: Sequence[ReportFiles], scale: Scale, command: str, path: Path, live: Live | None = None
) -> None:
    """The page that leads to the pages of the studies."""
    whole = family([verdict for report in reports for verdict in report.verdicts])
    rows = [
        {
            "study": report.study,
            "link": quote(os.path.relpath(report.page, path.absolute().parent).replace(os.sep, "/")),
            "verdicts": [(verdict, holds(verdict, whole)) for verdict in report.verdicts],
            "counts": counts(report.verdicts),
            **progress(report.runs),
            **_figure(report),
        }
        for report in reports
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    html = page.template("index.html.jinja").render(
        scale=scale.name,
        note=scale.note,
        total=in_words([verdict for report in reports for verdict in report.verdicts]),
        family=" ".join(whole.sentences),
        rows=rows,
        provenance=provenance(reports),
        command=command,
        live=live,
        no_results=no_results(scale.name, _images(reports)),
    )
    write_page(path, html)


def _figure(report: ReportFiles) -> dict[str, str]:
    """The first figure of a study that is there, as an image that the page holds itself, and its words."""
    drawing = next((drawing for drawing in report.drawings if drawing.draw is not None), None)
    if drawing is None:
        return {"figure": "", "alt": ""}
    return {"figure": page.data_uri((report.page.parent / f"{drawing.name}.svg").read_bytes()), "alt": drawing.alt}


def holds(verdict: Verdict, whole: Family) -> str:
    """Whether a verdict is one with the error kept for the whole set, in words; "" for an open one."""
    if verdict.outcome == "undecided":
        return ""
    return "holds for the whole set" if whole.of(verdict) == verdict.outcome else "not for the whole set"


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many claims came to what."""
    found = Counter(str(verdict.outcome) for verdict in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def progress(runs: pd.DataFrame) -> dict[str, int]:
    """How many runs were asked for, and how many have ended."""
    return {"asked": len(runs), "ended": int((runs["state"] == "done").sum())}


def in_words(verdicts: Sequence[Verdict]) -> str:
    """``Of 6 claims 2 are supported, 1 is contradicted, 3 are undecided (direction so far: 2 agree, 1 disagrees).``"""
    if not verdicts:
        return "No claims are made."
    total = counts(verdicts)
    parts = [f"{number} {'is' if number == 1 else 'are'} {outcome}" for outcome, number in total.items() if number]
    text = f"Of {len(verdicts)} claims {', '.join(parts)}" if len(verdicts) > 1 else f"The claim {parts[0][2:]}"
    open_ones = so_far(verdicts)
    return text + (f" (so far: {open_ones})." if open_ones else ".")


def so_far(verdicts: Sequence[Verdict]) -> str:
    """Where the undecided claims point: ``2 agree, 1 disagrees, 1 not run``; "" if there are none."""
    ways = Counter(str(verdict.direction) for verdict in verdicts if verdict.outcome == "undecided")
    several = {"agrees": "agree", "disagrees": "disagree", "unclear": "unclear", "not run": "not run"}
    return ", ".join(f"{ways[way]} {way if ways[way] == 1 else many}" for way, many in several.items() if ways[way])


def provenance(reports: Sequence[ReportFiles]) -> list[tuple[str, str]]:
    """What all runs were made with; runs that studies share count once, dates and hosts are left out."""
    runs = pd.concat([report.runs for report in reports], ignore_index=True).drop_duplicates("run")
    ended = runs[runs["state"] == "done"]
    outcomes = Counter(came_to(ended))
    states = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    lines = [("runs", f"{len(ended)} of {len(runs)} have ended" + (f" ({states})" if states else ""))]
    for column, label in (
        ("data.name", "images"),
        ("code", "hash of the code"),
        ("versions", "versions"),
        ("device", "device"),
        ("threads", "threads a run"),
    ):
        values = Counter(f"{value:g}" if isinstance(value, float) else str(value) for value in ended[column].dropna())
        if values:
            several = len(values) > 1
            lines.append((label, "; ".join(f"{value} ({n} runs)" if several else value for value, n in values.items())))
    return [*lines, ("cost", page.cost(ended) or DASH)]


# --- the document ------------------------------------------------------------------------------------------------


def markdown(reports: Sequence[ReportFiles], scale: Scale, command: str) -> str:
    """Everything in one document: how to read it, an overview, then each study with its table and its claims."""
    shared = _shared_notes(reports)
    everything = [verdict for report in reports for verdict in report.verdicts]
    lines = [
        f"# The paper's studies at {scale.name} scale" if len(reports) > 1 else f"# {reports[0].study.title}",
        "",
        page.MADE_BY,
        "",
        f"    {command}",
        "",
        *_no_results(reports, scale),
        f"Scale `{scale.name}`: {escape_markdown(scale.description)}.",
        "",
        *(f"- {label}: {escape_markdown(value)}" for label, value in provenance(reports)),
        "",
        "## How to read it",
        "",
        *(f"{text}\n" for text in HOW_TO_READ),
        *(f"{escape_markdown(note)}{where}\n" for note, where in shared.items()),
    ]
    if len(reports) > 1:
        whole = family(everything)
        total = " ".join([in_words(everything), *whole.sentences])
        lines += ["## Overview", "", f"{total}\n", *_overview(reports), ""]
    else:
        whole = None
    for report in reports:
        lines += _section(report, shared, whole)
    return "\n".join(lines).rstrip("\n") + "\n"


def _images(reports: Sequence[ReportFiles]) -> list[str]:
    return [str(name) for report in reports for name in report.runs["data.name"].dropna()]


def _no_results(reports: Sequence[ReportFiles], scale: Scale) -> list[str]:
    reason = no_results(scale.name, _images(reports))
    return [f"**These are no results.** {reason}", ""] if reason else []


def _shared_notes(reports: Sequence[ReportFiles]) -> dict[str, str]:
    """What would stand under most tables, so that it is said once, and under how many."""
    found = Counter(note for report in reports for note in dict.fromkeys(_notes(report)))
    shared = {note: count for note, count in found.items() if count > 1 and count >= len(reports) / 2}
    return {
        note: "" if count == len(reports) else f" ({count} of {len(reports)} studies)" for note, count in shared.items()
    }


def _notes(report: ReportFiles) -> list[str]:
    """What is to be said of a study's runs, table and claims: of the warnings the first sentence."""
    first_sentences = [warning.partition(". ")[0].rstrip(".") + "." for warning in report.warnings]
    return [*first_sentences, *report.table.notes, *page.kinds(report.verdicts)]


def _overview(reports: Sequence[ReportFiles]) -> list[str]:
    rows = [
        ["study", "in the paper", "runs that ended", *OUTCOMES, "of the undecided, so far"],
        ["---", "---", *["---:"] * 4, "---"],
    ]
    for report in reports:
        numbers, done = counts(report.verdicts), progress(report.runs)
        rows.append(
            [
                f"[{escape_markdown(report.study.title)}](#{_anchor(report)})",
                escape_markdown(report.study.where),
                f"{done['ended']} of {done['asked']}",
                *(str(numbers[outcome]) for outcome in OUTCOMES),
                so_far(report.verdicts) or DASH,
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _anchor(report: ReportFiles) -> str:
    return report.study.name.replace("_", "-")


def _section(report: ReportFiles, shared: Mapping[str, str], whole: Family | None) -> list[str]:
    study = report.study
    lines = [f'<a id="{_anchor(report)}"></a>\n', f"## {escape_markdown(study.title)}", ""]
    lines += [escape_markdown(" · ".join(filter(None, (study.where, study.question)))), ""]
    lines += [escape_markdown(answer(report.verdicts, report.runs)), "", report.table.grid(), ""]
    for metric in dict.fromkeys((accuracy_of(report.runs), "knn_top1")):
        references = [f"{name} {percent_range(*ends)}" for name, ends, _ in reference_values(report.runs, metric)]
        what = METRICS[metric].name_in_table
        lines += [f"Without learning, {what}: {', '.join(references)}.", ""] if references else []
    lines += [f"{escape_markdown(note)}\n" for note in _notes(report) if note not in shared]
    if report.verdicts:
        lines += [in_words(report.verdicts), ""]
        lines += [*(_bullet(verdict, whole) for verdict in report.verdicts), ""]
    return lines


def _bullet(verdict: Verdict, whole: Family | None) -> str:
    where = f" ({verdict.claim.where})" if verdict.claim.where else ""
    says = f"{verdict.claim.says.rstrip('.')}{where}."
    parts = [says, verdict.reading, *verdict.notes, verdict.conclusion]
    text = " ".join(escape_markdown(part) for part in parts if part)
    held = holds(verdict, whole) if whole else ""
    label = verdict.label[0].upper() + verdict.label[1:] + (f", {held}" if held else "")
    return f"- **{escape_markdown(label)}.** {text}"
