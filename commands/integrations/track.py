"""Runs in the tracker that a group already uses: track."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Optional

import typer

from commands.console import count, say
from commands.integrations import completion
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
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
from experiments.runs.states import ENDED
from simsiam.errors import SettingsError, nearest

SECONDS = 30
KINDS = ("tensorboard", "wandb", "mlflow", "trackio", "parquet", "csv")


def track(
    study: StudyName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TRACKER",
            help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.",
            autocompletion=completion.one_of(*KINDS),
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where local files go. Default: tracking/TRACKER/."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help=f"Look again every {SECONDS} s, until all runs have ended.")
    ] = False,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
) -> None:
    """Tell a tracker of the runs of a study, from their folders; also while they train, with --follow.

    A run is one run there, however often it was preempted; its seeds are a group. What was told is remembered in --out,
    so the same command tells only what is new. (A run's weights are written by `export`.)
    """
    from analysis.report.one_study import report_variants
    from analysis.tracking.feed import tell
    from analysis.tracking.tables import FORMATS, write_tables
    from analysis.tracking.trackers import TRACKERS
    from experiments.studies.study import seeds_from_text

    if to not in KINDS:
        raise SettingsError(f"to: {to!r} is not one of {', '.join(KINDS)}{nearest(to, list(KINDS))}  [--to]")
    chosen, folder = scale_named(scale), out or Path("tracking") / to
    plans = [plan_for([loaded], chosen, seeds, set_, runs, data) for loaded in studies_named(study)]
    if not follow:
        require_runs(plans, "tell of")
    send = TRACKERS[to](folder) if to not in FORMATS else None
    stopped = threading.Event()
    if follow:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: stopped.set())
    asked = None if seeds is None else seeds_from_text(seeds)
    while True:
        states: dict[str, str] = {}
        told = 0
        for made in plans:
            (loaded,) = made.studies
            variants = report_variants(loaded, made, asked)
            if send is None:
                states |= write_tables(to, variants, made.runs, folder / loaded.name)
            else:
                num, found = tell(send, loaded.name, variants, made.runs, folder)
                told, states = told + num, states | found
        counted = ", ".join(f"{num} {state}" for state, num in sorted(Counter(states.values()).items()))
        news = f"{count(told, 'new point')}; " if send else ""
        say(f"{time.strftime('%H:%M:%S')}  {news}{count(len(states), 'run')}: {counted}")
        if not follow or set(states.values()) <= set(ENDED):
            break
        if stopped.wait(SECONDS):
            raise KeyboardInterrupt
    say(f"{to}: {folder.absolute()}" if to not in ("mlflow", "trackio") else f"{to}: where its own settings say")
