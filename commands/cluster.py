"""Commands on a SLURM cluster: launch, cancel, logs."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from commands.console import about, count, say
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    Data,
    Retrain,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    check_writable,
    other_code_of,
    plan_for,
    retrained,
    same_options,
    scale_named,
    studies_named,
    with_images,
)
from simsiam.errors import SettingsError, nearest

if TYPE_CHECKING:
    from experiments.plan import Plan, PlannedCell
    from experiments.slurm.profile import Cluster

FILES_PER_RUN = 14  # settings, provenance, state, result, two checkpoints, and of each attempt a lease and curves

ClusterName = Annotated[
    str, typer.Option("--cluster", metavar="NAME", help="A profile: an example that ships, or a .yaml file.")
]


def launch(
    study: StudyName,
    cluster: ClusterName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    retrain: Retrain = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted; submit nothing.")] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Stay, and submit again what is lost, until the grid is done.")
    ] = False,
) -> None:
    """Submit a study's cells to a SLURM cluster, and return. Again: only what is missing or failed is submitted."""
    from experiments.registry import launcher_for
    from experiments.slurm.profile import load_cluster
    from simsiam.settings.own_code import keep

    chosen = load_cluster(cluster)
    runs, data = _places(chosen, runs, data)
    launcher = launcher_for(chosen)
    chosen_scale = scale_named(scale)
    studies = studies_named(study)
    if retrain:
        _, set_ = retrained(
            lambda given: plan_for(studies, chosen_scale, seeds, given, runs, data, to_train=True), set_
        )
    make = partial(plan_for, studies, chosen_scale, seeds, set_, runs, data, to_train=True)
    made = make()
    if other := other_code_of(made):
        say(str(other))
    if dry_run:
        return _estimate(made, launcher.preview(made, say), "GPU hours" if chosen.profile.on_gpu else "hours")
    launcher.check(made)
    made = with_images(made, make, say)
    check_writable(runs)
    keep((planned.cell.settings for planned in made.cells), runs)
    summary = launcher.submit(made, say, command=shlex.join(sys.argv), supervised=supervise)
    if summary.submitted:
        say(f"{made.title}: {count(len(summary.submitted), 'cell')} submitted as {summary.launch}.")
    else:
        say(f"{made.title}: nothing to submit.")
    options = shlex.join(same_options(chosen_scale, seeds, set_, runs, data))
    say(f"See: python run_ablation.py status {shlex.quote(study)} {options} --watch".rstrip())
    if supervise:
        say("Supervising: Ctrl-C ends this, not the jobs.")
        if not launcher.supervise(made, say):
            sys.exit(FAILURE)
        say("Nothing is left to do.")


def _estimate(made: Plan, todo: list[PlannedCell], unit: str) -> None:
    """What the cells of a dry run will cost."""
    from experiments.plan import estimate

    if not todo:
        return say(f"{made.title}: nothing to submit.")
    estimates = [estimate(planned.cell.settings, made.scale) for planned in todo]
    seconds, size = sum(item.seconds for item in estimates), sum(item.bytes for item in estimates)
    longest = about(max(item.seconds for item in estimates))
    say(
        f"{count(len(todo), 'cell')}: about {seconds / 3600:,.1f} {unit} if each had {made.scale.speed.device}; the"
        f" longest cell about {longest}."
    )
    files = count(FILES_PER_RUN * len(todo) + 100, "file")
    say(f"About {size / 1e6:,.0f} MB and {files} in {made.runs}/. Nothing was submitted.")


def cancel(
    study: StudyName,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    launch_id: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--launch", metavar="ID", help="This launch alone, whatever it holds."),
    ] = None,
) -> None:
    """Cancel the jobs of a study. Its cells keep their checkpoints; `launch` goes on from there."""
    from experiments.registry import queues

    made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    asked = queues()
    if launch_id is not None:
        known = {name: queue for queue in asked for name in queue.launches(runs)}
        if launch_id not in known:
            raise SettingsError(f"launch: {launch_id!r} is not in {runs}{nearest(launch_id, list(known))}  [--launch]")
        asked = [known[launch_id]]
    all_done = [queue.cancel(made, say, launch_id) for queue in asked]
    if not all(all_done):
        sys.exit(FAILURE)


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile: an example that ships, or a .yaml file.")],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit a job of a minute that reports what works on a cluster, and how its jobs are ended."""
    from experiments.slurm.check import check as check_cluster
    from experiments.slurm.profile import load_cluster

    chosen = load_cluster(name)
    runs, data = _places(chosen, runs, data)
    check_writable(runs)
    if not check_cluster(chosen, runs, data, say):
        sys.exit(FAILURE)


def selftest(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile with GPUs and `memory`.")],
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """Test on a cluster what one machine without a GPU cannot show: exclusive GPUs, NCCL, out-of-memory kills."""
    from experiments.slurm.check import try_out
    from experiments.slurm.profile import load_cluster

    chosen = load_cluster(name)
    runs, _ = _places(chosen, runs, DEFAULT_DATA)
    check_writable(runs)
    if not try_out(chosen, runs, say):
        sys.exit(FAILURE)


def _places(chosen: Cluster, runs: Path, data: Path) -> tuple[Path, Path]:
    """Where runs and images are: as the command says, else as the profile does."""
    from experiments.slurm.launch import absolute

    profile = chosen.profile
    runs = absolute(Path(profile.runs) if profile.runs and runs == DEFAULT_RUNS else runs)
    data = absolute(Path(profile.data) if profile.data and data == DEFAULT_DATA else data)
    if "%" in str(runs):
        raise SettingsError(f"runs: {runs} must not hold a %, which SLURM replaces in the names of logs  [--runs]")
    return runs, data


def logs(
    study: StudyName,
    cell: Annotated[int, typer.Option("--cell", min=1, help="Which cell: the line of `status`, counted from 1.")],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what comes, until Ctrl-C.")] = False,
) -> None:
    """What a cell printed on the cluster, and the log of the job that it runs in."""
    from experiments.registry import queues
    from experiments.runs.folder import RunFolder

    made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    if cell > len(made.cells):
        raise SettingsError(f"cell: {cell} must be at most {len(made.cells)}, the cells of {study}  [--cell]")
    planned = made.cells[cell - 1]
    run = RunFolder(runs, planned.run_id)
    say(f"{planned.label}: {run.path}")
    read: dict[Path, int] = {}
    while True:
        for path in (path for queue in queues() for path in queue.logs(made, planned)):
            read.setdefault(path, 0)
        for path in (*read, run.path / "failure.txt"):
            if path.exists():
                with open(path, "rb") as file:
                    file.seek(read.get(path, 0))
                    new = file.read()
                if new:
                    say(f"--- {path}\n{new.decode(errors='replace').rstrip()}")
                read[path] = read.get(path, 0) + len(new)
        if not follow:
            break
        time.sleep(2)
    if not any(read.values()):
        say("It has no log: it was not launched on a cluster, or has not begun.")
