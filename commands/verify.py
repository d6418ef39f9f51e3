"""The command that checks claims: verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import make_console, print_json, print_prose, say
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    AsJson,
    Data,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    plan_for,
    require_runs,
    scale_named,
    studies_named,
)

if TYPE_CHECKING:
    from analysis.verdicts.verdicts import Verdict
    from experiments.studies.study import Study


def verify(
    study: StudyName = "all",
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on what is undecided, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the claims of a study, or of all: supported, contradicted or undecided, with the numbers.

    Exit code 0 if no claim is contradicted, 1 if one is, or if there is no run to check; with --strict also 1 if a
    claim is undecided.
    """
    from analysis.report.all_studies import in_words
    from analysis.report.one_study import gather, report_variants
    from analysis.verdicts.family import family
    from analysis.verdicts.verdicts import as_json as plain
    from analysis.verdicts.verdicts import verdicts
    from experiments.studies.study import seeds_from_text, study_names

    chosen = scale_named(scale)
    asked = None if seeds is None else seeds_from_text(seeds)
    found: list[tuple[Study, list[Verdict]]] = []
    plans = [plan_for([loaded], chosen, seeds, set_, runs, data) for loaded in studies_named(study)]
    require_runs(plans, "check claims on")
    for made in plans:
        (loaded,) = made.studies
        points, frame = gather(report_variants(loaded, made, asked), runs)
        found.append((loaded, verdicts(loaded.claims, points, frame, chosen.name, loaded.design, loaded.name)))
    everything = [verdict for _, of_study in found for verdict in of_study]
    # One study of the paper is no family: its claims were made together with all others.
    whole = None if study in study_names() else family(everything)
    if as_json:
        content: dict[str, Any] = {
            loaded.name: [{**plain(verdict), "adjusted": whole and whole.of(verdict)} for verdict in of_study]
            for loaded, of_study in found
        }
        print_json({"scale": chosen.name, "family": whole and whole.as_json(), "studies": content})
    else:
        for loaded, of_study in found:
            _print(loaded, of_study)
        say(" ".join([in_words(everything), *(whole.sentences if whole else [])]))
    outcomes = {verdict.outcome for verdict in everything}
    if "contradicted" in outcomes or (strict and "undecided" in outcomes):
        sys.exit(FAILURE)


def _print(study: Study, verdicts: list[Verdict]) -> None:
    from analysis.report.page import kinds

    console = make_console()
    console.print(f"{study.name}: {study.title}{f' ({study.where})' if study.where else ''}", style="bold")
    for verdict in verdicts:
        where = f" ({verdict.claim.where})" if verdict.claim.where else ""
        print_prose(console, f"  {verdict.label.upper()}  {verdict.claim.says}{where}")
        for text in (verdict.reading, *verdict.notes, verdict.conclusion):
            if text:
                print_prose(console, f"      {text}")
    for sentence in kinds(verdicts):
        print_prose(console, f"  {sentence}")
    console.print("" if verdicts else "  No claims are made.\n")
