"""The page of a study: one HTML file that opens from disk, with the answer first."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from analysis.figures.drawing import Drawing
from analysis.figures.layout import reference_values
from analysis.formats import DASH, format_hours, format_seconds, percent_range
from analysis.frames.load import accuracy_of, counts, describe_state, device_hours
from analysis.report import in_words
from analysis.report.table import Table
from analysis.verdicts.two_sources import Sources
from analysis.verdicts.verdicts import Verdict
from experiments.studies.study import Study
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import METRICS, REFERENCES
from simsiam.settings.fields import description

# By this a document is known as one that may be written anew.
MADE_BY = "Made from run folders and study files alone, by"
_TRACES = re.compile(r'<meta http-equiv="refresh"[^>]*>\n|<p class="live">.*?</p>\n', re.DOTALL)


@dataclass(frozen=True)
class PlacedFigure:
    """A figure on a page: its drawing, and where there is one its SVG, wide for a page and narrow for a phone."""

    drawing: Drawing
    wide: str  # data URI
    narrow: str


def place(drawing: Drawing, folder: Path) -> PlacedFigure:
    """A drawing with its files, which lie in ``folder``."""
    if drawing.absent:
        return PlacedFigure(drawing, "", "")
    wide, narrow = (data_uri((folder / f"{drawing.name}{end}.svg").read_bytes()) for end in ("", "-narrow"))
    return PlacedFigure(drawing, wide, narrow)


def render(
    study: Study,
    runs: pd.DataFrame,
    table: Table,
    verdicts: Sequence[Verdict],
    figures: Sequence[PlacedFigure],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    scale: str,
    command: str,
    warnings: Sequence[str],
    out_dir: Path,
    pairing: str = "",
    noise: Sequence[tuple[str, Sources]] = (),
    live: Live | None = None,
    linked: bool = True,
) -> str:
    """The page as text. ``settings`` are those of each variant, by dotted path; ``out_dir`` is where it will lie.

    ``linked``: whether run folders stay where they are, and so have links.
    """
    differing, shared = split_settings(settings)
    return template("page.html.jinja").render(
        study=study,
        verdicts=verdicts,
        kinds=kinds(verdicts),
        scale=scale,
        answer=in_words.answer(verdicts, runs),
        numbers=in_words.in_numbers(runs),
        warnings=warnings,
        figures=figures,
        table=table,
        variants=list(settings),
        differing=differing,
        shared=shared,
        accuracy=METRICS[accuracy_of(runs)].heading,
        references=[
            (f"{name}, {METRICS[metric].name_in_table}", percent_range(low, high), REFERENCES[name].meaning)
            for metric in dict.fromkeys((accuracy_of(runs), "knn_top1"))
            for name, (low, high), _ in reference_values(runs, metric)
        ],
        runs=run_lines(runs, out_dir, linked=linked),
        provenance=provenance(runs),
        cost=cost(runs),
        pairing=pairing,
        noise=noise,
        command=command,
        live=live,
        no_results=in_words.no_results(scale, (str(flat["data.name"]) for flat in settings.values())),
    )


def template(name: str) -> jinja2.Template:
    """A template of this folder; it escapes what is put into it, and fails for what is not there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def kinds(verdicts: Sequence[Verdict]) -> list[str]:
    """How what was checked differs from what the paper claims, each sentence once."""
    return list(dict.fromkeys(sentence for verdict in verdicts for sentence in verdict.difference_in_kind))


def data_uri(svg: bytes) -> str:
    """An SVG as the address of an image, so that a page needs no other file."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


# --- settings, runs, provenance ----------------------------------------------------------------------------------


def split_settings(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, str, list[str]]], list[tuple[str, str, str]]]:
    """What tells the variants apart (path, meaning, value of each) and what they share (path, meaning, value)."""
    differing, shared = [], []
    for path in dict.fromkeys(path for flat in settings.values() for path in flat):
        if path == "seed":
            continue
        values = [show(flat[path]) if path in flat else "-" for flat in settings.values()]
        if len(set(values)) > 1:
            differing.append((path, description(path), values))
        else:
            shared.append((path, description(path), values[0]))
    return differing, shared


def show(value: Any) -> str:
    """A setting as a reader would write it: switches are on or off."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "on", False: "off"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_lines(runs: pd.DataFrame, out_dir: Path, *, linked: bool = True) -> list[dict[str, str]]:
    """A line for each run, with a link to its folder that holds as long as page and runs stay where they are."""
    lines, accuracy = [], f"final_{accuracy_of(runs)}"
    for (_, run), does_count in zip(runs.iterrows(), counts(runs), strict=True):
        try:
            link = quote(os.path.relpath(run["path"], out_dir).replace(os.sep, "/")) + "/"
        except ValueError:  # on another drive
            link = ""
        has_accuracy = does_count and pd.notna(run[accuracy])
        lines.append(
            {
                "variant": str(run["variant"]),
                "seed": str(run["seed"]),
                "state": describe_state(run),
                "accuracy": f"{run[accuracy]:.1f}" if has_accuracy else DASH,
                "time": DASH if pd.isna(run["seconds"]) else format_seconds(run["seconds"]),
                "note": run["note"],
                "run": run["run"],
                "link": link if linked and run["state"] != "missing" else "",
            }
        )
    return lines


PROVENANCE = {
    "git_commit": "commit",
    "code": "hash of the code",
    "versions": "versions",
    "device": "device",
    "threads": "threads a run",
    "host": "host",
    "command": "command",
}


def provenance(runs: pd.DataFrame) -> list[tuple[str, list[tuple[str, int]]]]:
    """What the runs were made with: for each thing its values, and how many runs have each."""
    lines: list[tuple[str, list[tuple[str, int]]]] = []
    for column, label in PROVENANCE.items():
        values = [_provenance_text(column, run) for _, run in runs.iterrows() if pd.notna(run[column])]
        if values:
            lines.append((label, list(Counter(values).items())))
    started = sorted(runs["started"].dropna())
    if started:
        span = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
        lines.append(("started", [(span, len(started))]))
    return lines


def _provenance_text(column: str, run: pd.Series) -> str:
    if column == "threads":
        return f"{run[column]:.0f}"
    changed = column == "git_commit" and run["git_dirty"] in (True,)
    return f"{run[column]} (with uncommitted changes)" if changed else str(run[column])


def cost(runs: pd.DataFrame) -> str:
    """What all runs have cost so far, in one sentence; "" if that is not known."""
    known = runs[runs["seconds"].notna()]
    if not len(known):
        return ""
    parts = []
    for kind, unit in (("cpu", "core-hours"), ("cuda", "GPU-hours")):
        hours = float(device_hours(known[known["device_type"] == kind]).sum())
        if hours > 0:
            parts.append(f"{format_hours(hours)} {unit}")
    memory = known["peak_memory_bytes"].max()
    text = f"{len(known)} run{'s' if len(known) != 1 else ''}: {format_seconds(known['seconds'].sum())} of training"
    text += f", {' and '.join(parts)}" if parts else ""
    return text + ("." if pd.isna(memory) else f"; at most {memory / 2**30:.2g} GiB of memory.")


@dataclass(frozen=True)
class Live:
    """That a page is being remade, as it says itself."""

    seconds: int  # between two reloads
    as_of: str  # the local time at which the page was made


def make_still(page: Path) -> None:
    """Leave a page as it is, but for its reloading; nothing if it is not there."""
    if page.exists():
        write_page(page, _TRACES.sub("", page.read_text(encoding="utf-8")))


def write_page(page: Path, text: str) -> None:
    """In one step, so that no browser reloads half a page."""
    write_atomically(page, lambda file: file.write(text.encode()), aside=str(os.getpid()))
