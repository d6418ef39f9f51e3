"""Commands on a SLURM cluster: launch, cancel, logs."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from commands.console import Table, about, count, make_console, number, print_json, say
from commands.integrations import completion
from commands.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    AsJson,
    Data,
    Retrain,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    check_writable,
    plan_for,
    register,
    retrained,
    said_of_code,
    same_options,
    scale_named,
    studies_named,
    with_images,
)
from commands.until_decided import Budget, Campaign, MaxSeeds, UntilDecided, limits_of
from simsiam.errors import SettingsError, nearest

if TYPE_CHECKING:
    from experiments.launcher import Launcher, LaunchView
    from experiments.plan import Plan, PlannedCell
    from experiments.slurm.profile import Cluster

FILES_PER_RUN = 14  # settings, provenance, state, result, two checkpoints, and of each attempt a lease and curves

ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="A profile: an example that ships, or a .yaml file.",
        autocompletion=completion.clusters,
    ),
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
    until_decided: UntilDecided = False,
    budget: Budget = None,
    max_seeds: MaxSeeds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted; submit nothing.")] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Stay, and submit again what is lost, until the grid is done.")
    ] = False,
) -> None:
    """Submit a study's cells to a SLURM cluster, and return. Again: only what is missing or failed is submitted.

    With --until-decided: the seeds of the next look, only where a claim is open; with --supervise look after look, else
    the same command submits the look after that.
    """
    from experiments.registry import launcher_for
    from experiments.slurm.profile import load_cluster

    with _on_interrupt("nothing was submitted"):
        chosen = load_cluster(cluster)
        runs, data = _places(chosen, runs, data)
        launcher = launcher_for(chosen)
        chosen_scale, studies = scale_named(scale), studies_named(study)
        limits = limits_of(until_decided, budget, max_seeds, seeds)
        to_train = partial(plan_for, studies, chosen_scale, seeds, runs=runs, data=data, to_train=True)
        if retrain:
            _, set_ = retrained(lambda given: to_train(overrides=given), set_)
        campaign = Campaign(studies, chosen_scale, set_ or [], runs, data, limits) if until_decided else None
        make = campaign.plan if campaign else partial(to_train, overrides=set_)
        made = make()
        for text in said_of_code(made):
            say(text)
        if dry_run:
            todo = campaign.next_cells() if campaign else made
            return None if todo is None else _estimate(todo, launcher.preview(todo, say))
        launcher.check(made)
        made = with_images(made, make, say)
        check_writable(runs)
        register(list(made.studies), runs)
        options = shlex.join(same_options(chosen_scale, seeds, set_, runs, data))
        see = f"See: python run_ablation.py status {shlex.quote(study)} {options} --watch".rstrip()
        if campaign is None:
            return _submit(launcher, made, see, supervise)
        while (look := campaign.next_cells()) is not None:
            _submit(launcher, look, see, supervise)
            if not supervise:
                return say("When they have ended, the same command submits the look after this one.")
    return None


def _submit(launcher: Launcher, made: Plan, see: str, supervise: bool) -> None:
    """Submit the cells of a plan; supervised, stay until they have ended, and end the program if not all end well."""
    from simsiam.settings.own_code import keep

    keep((planned.cell.settings for planned in made.cells), made.runs)
    summary = launcher.submit(made, say, command=shlex.join(sys.argv), supervised=supervise)
    if summary.submitted:
        say(f"{made.title}: {count(len(summary.submitted), 'cell')} submitted as {summary.launch}.")
    else:
        say(f"{made.title}: nothing to submit.")
    say(see)
    if supervise:
        say("Supervising: Ctrl-C ends this, not the jobs.")
        with _on_interrupt("the jobs go on; `launch --supervise` again submits what they lose"):
            if not launcher.supervise(made, say):
                sys.exit(FAILURE)
        say("Nothing is left to do.")


@contextlib.contextmanager
def _on_interrupt(what_stands: str) -> Iterator[None]:
    """A line for who presses Ctrl-C, unless where that happened it is known better."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise error if str(error) else KeyboardInterrupt(what_stands) from None


def _estimate(made: Plan, todo: list[PlannedCell]) -> None:
    """What the cells of a dry run will cost."""
    from experiments.plan import estimate

    results = (status.result for status in made.statuses().values() if status.result is not None)
    saved = [float(result.get("seconds", 0.0)) for result in results]
    if saved:
        say(f"Done already: {count(len(saved), 'cell')}, which took {sum(saved) / 3600:,.1f} hours.")
    if not todo:
        return say(f"{made.title}: nothing to submit.")
    estimates = [estimate(planned.cell.settings, made.scale) for planned in todo]
    seconds, size = sum(item.seconds for item in estimates), sum(item.bytes for item in estimates)
    longest = about(max(item.seconds for item in estimates))
    say(
        f"{count(len(todo), 'cell')}: about {seconds / 3600:,.2g} hours if each had {made.scale.speed.device}; the"
        f" longest cell about {longest}."
    )
    files = count(FILES_PER_RUN * len(todo) + 100, "file")
    say(f"About {size / 1e6:,.0f} MB and {files} in {made.runs}/. Nothing was submitted.")


def cancel(
    study: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[STUDY]", help="The study, with the options that it was launched with; or --launch."),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
    scale: ScaleName = None,
    set_: Set = None,
    seeds: Seeds = None,
    launch_id: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--launch", metavar="ID", help="This launch, whatever it holds, from any folder: see `launches`."),
    ] = None,
) -> None:
    """Cancel the jobs of a study. Its cells keep their checkpoints; `launch` goes on from there."""
    from experiments.registry import queues

    if launch_id is not None:
        if not any(queue.cancel_launch(runs, launch_id, say) for queue in queues()):
            known = [view.id for queue in queues() for view in queue.launches(runs)]
            where = f"neither in {runs} nor in the queue"
            raise SettingsError(f"launch: {launch_id!r} is {where}{nearest(launch_id, known)}  [--launch]")
        return
    if study is None:
        raise SettingsError("cancel what? A STUDY, or --launch ID: `launches` lists them")
    problem = ""
    cancelled: list[str] = []
    try:
        made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    except SettingsError as error:  # its file was changed, or is gone; its jobs are not
        problem = str(error)
    else:
        cancelled = [name for queue in queues() for name in queue.cancel(made, say)]
    if cancelled:
        return
    views = [view for queue in queues() for view in queue.launches(runs) if not view.is_over]
    meant = [view for view in views if study == "all" or Path(study).stem in (view.studies or ())]
    if problem and not meant:
        raise SettingsError(problem)
    if not meant:
        return say("There is nothing to cancel.")
    reason = problem or "no launch holds exactly the cells that these options name; they may hold others, too"
    say(f"Nothing was cancelled: {reason}.")
    say(f"Of {study} there are, in {runs}/; `cancel --launch ID` cancels one:")
    _print_launches(meant)
    sys.exit(FAILURE)


def launches(runs: Runs = DEFAULT_RUNS, as_json: AsJson = False) -> None:
    """The launches that train into a folder of runs, everybody's: state, jobs, cells that are left, age."""
    from experiments.registry import queues

    views = [view for queue in queues() for view in queue.launches(runs)]
    if as_json:
        return print_json({"runs": str(runs), "launches": [asdict(view) for view in views]})
    if not views:
        return say(f"{runs}/: nothing was launched there.")
    _print_launches(views)


def _print_launches(views: list[LaunchView]) -> None:
    table = Table("launch", "owner", "study", "scale", "state", "jobs>", "left>", "age>", optional=("scale", "study"))
    for view in views:
        numbers = [number(each, ",") for each in (view.jobs, view.left)]
        studies = ", ".join(view.studies or ()) or "-"
        age = about(max(0.0, time.time() - view.created))
        table.add_row(view.id, view.owner, studies, view.scale or "-", view.state, *numbers, age)
    make_console().print(table)


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A profile: an example that ships, or a .yaml file.",
            autocompletion=completion.clusters,
        ),
    ],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit a job of two minutes that reports what works on a cluster, and how its jobs are ended."""
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
    runs, data = _places(chosen, runs, DEFAULT_DATA)
    check_writable(runs)
    if not try_out(chosen, runs, data, say):
        sys.exit(FAILURE)


def usage(
    launch_id: Annotated[str, typer.Argument(metavar="ID", help="A launch: see `launches`.")],
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """What the jobs of a launch used of what they asked for, from SLURM's accounting, and what to ask for next time."""
    from experiments.slurm.launch import all_launches
    from experiments.slurm.usage import usage_of

    known = {each.id: each for each in all_launches(runs)}
    if launch_id not in known:
        raise SettingsError(f"launch: {launch_id!r} is not in {runs}{nearest(launch_id, list(known))}  [ID]")
    for line in usage_of(known[launch_id]):
        say(line)


def _places(chosen: Cluster, runs: Path, data: Path) -> tuple[Path, Path]:
    """Where runs and images are: as the command says, else as the profile does."""
    from experiments.slurm.launch import absolute
    from experiments.slurm.profile import expanded

    runs = absolute((runs == DEFAULT_RUNS and expanded(chosen, "runs")) or runs)
    data = absolute((data == DEFAULT_DATA and expanded(chosen, "data")) or data)
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
