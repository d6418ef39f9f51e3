"""The report of a study: figures, table and page, from its run folders, in one call."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from analysis.diagnosis.rules import diagnose_runs
from analysis.figures import style
from analysis.figures.drawing import Drawing, drawings
from analysis.frames.load import load_runs
from analysis.report import in_words, page
from analysis.report.page import Live
from analysis.report.study_table import study_table
from analysis.report.table import Table
from analysis.verdicts.pairing import pairing
from analysis.verdicts.quantities import StudyRuns
from analysis.verdicts.two_sources import Sources, sources_of_runs
from analysis.verdicts.verdicts import Verdict, verdicts
from experiments.plan import Plan, seeds_on_disk
from experiments.studies.published import Published, published
from experiments.studies.study import PaperResult, Study
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.identity import run_name


@dataclass(frozen=True)
class ReportVariant:
    """A variant of a study at a scale: its runs are the folders ``CONFIG_ID-sSEED``."""

    name: str
    config_id: str
    paper: PaperResult
    settings: Settings
    seeds: tuple[int, ...]  # asked for
    against: str | None = None  # the variant that its difference is taken to
    no_others: bool = False  # whether other seeds that are there are left out
    published: tuple[Published, ...] = ()  # what others report for it at this scale


def report_variants(study: Study, made: Plan, seeds: Sequence[int] | None) -> list[ReportVariant]:
    """The variants of a study that its plan runs. ``seeds``: those asked for; None: the study's and all there."""
    first = {planned.cell.variant: planned for planned in made.cells if planned.study == study.name}
    asked = tuple(range(study.num_seeds(made.scale.name)) if seeds is None else seeds)
    return [
        ReportVariant(
            name=variant.name,
            config_id=first[variant.name].config_id,
            paper=variant.paper,
            settings=first[variant.name].cell.settings,
            seeds=asked,
            against=variant.against,
            no_others=seeds is not None,
            published=published(made.scale.name, variant.published),
        )
        for variant in study.variants
        if variant.name in first
    ]


@dataclass(frozen=True)
class ReportFiles:
    """What a report wrote, and what it says."""

    study: Study
    page: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    table: Table  # .headings() and .lines() are its text
    answer: str  # to the study's question, by its claims
    numbers: str  # the same in numbers: each variant, or the range of many
    warnings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    drawings: tuple[Drawing, ...]  # in the order of the study's file
    runs: pd.DataFrame


def report(
    study: Study,
    variants: Sequence[ReportVariant],
    runs_dir: Path,
    out_dir: Path,
    *,
    scale: str,
    note: str = "",
    of_code: Sequence[str] = (),
    command: str = "",
    live: Live | None = None,
    linked: bool = True,
) -> ReportFiles:
    """Write ``index.html``, ``figure*.{pdf,svg,png}`` and ``table.{md,tex,csv}`` into ``out_dir``.

    Works at any time: what has not been run or is still running is a dash with its reason. The files are made in a
    folder beside ``out_dir`` and renamed into it at the end, so an interrupted report leaves the one before it; other
    files in ``out_dir`` stay. ``note`` goes under the table, ``of_code`` (what to know of the code that made the runs)
    among the warnings, ``command`` on the page, which reloads itself if it is ``live``, and has links to the run
    folders if it is ``linked``: if these stay where they are. Raises OSError if ``out_dir`` cannot be written.
    """
    points, runs = gather(variants, runs_dir)
    paper = {variant.name: variant.paper for variant in variants}
    against = {variant.name: variant.against for variant in variants}
    others = {variant.name: variant.published for variant in variants}
    table = study_table(runs, paper, study.title, scale, against, others, study.table)
    judged = tuple(verdicts(study.claims, points, runs, scale, study.design, study.name))
    warnings = (*of_code, *in_words.warnings(runs))
    if note:
        table = replace(table, notes=(*table.notes, note))
    out_dir = out_dir.absolute()
    out_dir.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        drawn = _make(
            made,
            study,
            variants,
            points,
            runs,
            table,
            judged,
            scale=scale,
            command=command,
            warnings=warnings,
            out_dir=out_dir,
            live=live,
            linked=linked,
        )
        # The page comes last: it holds the whole report, and is replaced in one step.
        names = sorted((path.name for path in made.iterdir()), key=lambda name: (name == "index.html", name))
        for name in names:
            os.replace(made / name, out_dir / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return ReportFiles(
        study=study,
        page=out_dir / "index.html",
        figures=tuple(out_dir / name for name in names if name.startswith("figure")),
        tables=tuple(out_dir / name for name in names if name.startswith("table")),
        table=table,
        answer=in_words.answer(judged, runs),
        numbers=in_words.in_numbers(runs),
        warnings=warnings,
        verdicts=judged,
        drawings=tuple(drawn),
        runs=runs,
    )


def seeds_in_common(variants: Sequence[ReportVariant], runs: pd.DataFrame) -> str:
    """What pairing the seeds of the variants with those of their baselines does; "" if that is not known yet."""
    study_runs = StudyRuns(pd.DataFrame({"run": []}), runs)
    finals = {variant.name: study_runs.finals(variant.name, "knn_top1") for variant in variants}
    found = pairing([(finals[each.name], finals[each.against]) for each in variants if each.against in finals])
    return "" if found is None else found.sentence


def noise(variants: Sequence[ReportVariant], runs: pd.DataFrame) -> list[tuple[str, Sources]]:
    """Of each variant's difference to its baseline where each image's correctness is recorded: what it varies with."""
    ended = runs[runs["state"] == "done"]
    folders = {
        name: {int(run["seed"]): Path(run["path"]) for _, run in ended[ended["variant"] == name].iterrows()}
        for name in (variant.name for variant in variants)
    }
    found = []
    for variant in variants:
        for metric, words in (("knn_correct", "kNN top-1"), ("linear_correct", "linear top-1")):
            if variant.against not in folders:
                continue
            split = sources_of_runs(folders[variant.name], folders[variant.against], metric)
            if split is not None:
                found.append((f"{words}, '{variant.name}' minus '{variant.against}'", split))
    return found


def gather(variants: Sequence[ReportVariant], runs_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points and runs of a study, with the column ``variant``: a row for each seed asked for or found."""
    found = seeds_on_disk(runs_dir)
    folders = [
        run_name(variant.config_id, seed)
        for variant in variants
        for seed in sorted({*variant.seeds, *(() if variant.no_others else found.get(variant.config_id, ()))})
    ]
    points, runs = load_runs(runs_dir, folders)
    names = {variant.config_id: variant.name for variant in variants}
    kind = pd.CategoricalDtype([variant.name for variant in variants])
    for frame in (points, runs):
        frame["variant"] = frame["config"].map(names).astype(kind)
    # A run that has not started has no folder to read its settings from.
    planned = {variant.name: flatten(variant.settings) for variant in variants}
    for path in ("epochs", "loss.name", "data.name", "projector.bn_output", "projector.bn_output_affine"):
        if path not in runs:
            runs[path] = None
        known = zip(runs["variant"], runs[path], strict=True)
        runs[path] = [planned[name][path] if pd.isna(value) else value for name, value in known]
    runs["diagnosis"] = [each.verdict for each in diagnose_runs(points, runs)]
    return points, runs


def _make(
    folder: Path,
    study: Study,
    variants: Sequence[ReportVariant],
    points: pd.DataFrame,
    runs: pd.DataFrame,
    table: Table,
    judged: Sequence[Verdict],
    *,
    scale: str,
    command: str,
    warnings: Sequence[str],
    out_dir: Path,
    live: Live | None,
    linked: bool,
) -> list[Drawing]:
    paper = {variant.name: variant.paper.top1 for variant in variants if variant.paper.top1 is not None}
    drawn = drawings(study.figures, points, runs, paper)
    for drawing in drawn:
        if drawing.draw is not None:
            style.save(drawing.draw(style.TWO_COLUMNS), folder / drawing.name)
            style.save(drawing.draw(style.ONE_COLUMN), folder / f"{drawing.name}-narrow")
    for kind, text in (("md", table.markdown()), ("tex", table.latex()), ("csv", table.csv())):
        (folder / f"table.{kind}").write_text(text, encoding="utf-8")
    figures = [page.place(drawing, folder) for drawing in drawn]
    settings = {variant.name: flatten(variant.settings) for variant in variants}
    html = page.render(
        study,
        runs,
        table,
        judged,
        figures,
        settings,
        scale=scale,
        command=command,
        warnings=warnings,
        out_dir=out_dir,
        pairing=seeds_in_common(variants, runs),
        noise=noise(variants, runs),
        live=live,
        linked=linked,
    )
    (folder / "index.html").write_text(html, encoding="utf-8")
    return drawn
