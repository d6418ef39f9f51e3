"""Commands on a SLURM cluster: launch, cancel, logs."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from experiments.console import about, count, say
from experiments.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILURE,
    Data,
    Runs,
    ScaleName,
    Seeds,
    Set,
    StudyName,
    check_writable,
    plan_for,
    same_options,
    scale_named,
    studies_named,
    with_images,
)
from simsiam.config import SettingsError, check_ranks, nearest

if TYPE_CHECKING:
    from experiments.cluster import Cluster
    from experiments.launches import Launch
    from experiments.plan import Plan, PlannedCell
    from experiments.scheduler import Job

FILES_PER_RUN = 14  # settings, provenance, state, result, two checkpoints, and of each attempt a lease and curves
SUPERVISE_SECONDS = 60.0
MAX_RESUBMISSIONS = 20

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted; submit nothing.")] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Stay, and submit again what is lost, until the grid is done.")
    ] = False,
) -> None:
    """Submit a study's cells to a SLURM cluster, and return. Again: only what is missing or failed is submitted."""
    from experiments import scheduler, slurm
    from experiments.cluster import load_cluster, warnings
    from experiments.launches import all_launches, create, one_at_a_time

    chosen = load_cluster(cluster)
    runs, data = _places(chosen, runs, data)
    chosen_scale = scale_named(scale)
    make = partial(plan_for, studies_named(study), chosen_scale, seeds, set_, runs, data)
    made = make()
    for planned in made.cells:
        check_ranks(planned.cell.settings, chosen.profile.ranks, _place_of_ranks(chosen))
    if dry_run:
        return _dry_run(made, chosen)
    jobs = scheduler.my_jobs()  # before anything is written: is there a SLURM at all?
    made = with_images(made, make, say)
    check_writable(runs)
    for note in (*warnings(chosen), *_partition_warnings(chosen)):
        say(f"warning: {note}")
    with one_at_a_time(runs):  # so that no other `launch` takes the same cells to be missing
        for note in slurm.recover(runs, jobs):
            say(note)
        todo, notes = _todo(made, all_launches(runs), scheduler.my_jobs(), chosen)
        for note in notes:
            say(note)
        if todo:
            launched = create(made, todo, chosen, runs=runs, data=data, command=shlex.join(sys.argv))
            launched.cluster = chosen  # with the lines of its file, for messages
            follow_up = chosen.profile.follow_up and not supervise
            note = slurm.submit_round(launched, launched.cells, with_follow_up=follow_up)
            jobs_of_it = ", ".join(launched.rounds()[-1]["jobs"])
            say(f"{made.title}: {count(len(todo), 'cell')} submitted as {launched.id}, job {jobs_of_it}.")
            if note:
                say(f"note: {note}")
        else:
            say(f"{made.title}: nothing to submit.")
    options = shlex.join(same_options(chosen_scale, seeds, set_, runs, data))
    say(f"See: python run_ablation.py status {shlex.quote(study)} {options} --watch".rstrip())
    if supervise:
        _supervise(made)


def _place_of_ranks(chosen: Cluster) -> str:
    key = "tasks_per_node" if chosen.profile.tasks_per_node > 1 else "nodes"
    return f"{key}: {chosen.at(key)}"


def _todo(
    made: Plan, launches: list[Launch], jobs: list[Job], chosen: Cluster
) -> tuple[list[tuple[PlannedCell, int]], list[str]]:
    """The cells to submit, each with its highest lease: what is not done and in no launch that still has jobs."""
    from experiments.launches import current
    from experiments.slurm import jobs_of

    statuses = made.statuses()
    covered: dict[str, Launch] = {}
    for earlier, shared in current(made.unique(), launches):
        if not earlier.is_cancelled() and jobs_of(earlier, jobs):
            covered |= {run_id: earlier for run_id in shared if not earlier.has_given_up(run_id)}
    todo, elsewhere, queued = [], 0, 0
    for planned in made.unique():
        status = statuses[planned.run_id]
        if status.state == "done":
            continue
        if planned.run_id in covered:
            queued += 1
        elif status.state == "running" and status.certain:
            elsewhere += 1
        else:
            todo.append((planned, status.lease))
    notes = []
    if queued:
        names = sorted({item.id for item in covered.values()})
        notes.append(f"{count(queued, 'cell')} left to {', '.join(names)}, which has jobs in the queue.")
        if any(item.cluster.profile != chosen.profile for item in covered.values()):
            notes.append(
                "Those were submitted with another profile than it is now: `cancel` first to submit them anew."
            )
    if elsewhere:
        notes.append(f"{count(elsewhere, 'cell')} left to another process on this machine.")
    return todo, notes


def _dry_run(made: Plan, cluster: Cluster) -> None:
    from experiments import scheduler
    from experiments.cluster import warnings
    from experiments.launches import Launch, LaunchCell, all_launches
    from experiments.plan import estimate
    from experiments.slurm import arrays, script

    statuses = made.statuses()
    try:
        jobs, more = scheduler.my_jobs(), _partition_warnings(cluster)
    except scheduler.SlurmError:  # a machine without SLURM can show the script, too
        jobs, more = [], []
    missing, notes = _todo(made, all_launches(made.runs), jobs, cluster)
    for note in notes:
        say(note)
    todo = [planned for planned, _ in missing]
    cells = [LaunchCell(planned, lease, cluster.profile.ranks) for planned, lease in missing]
    for planned in todo:
        say(f"{planned.label}  {planned.run_id}  {statuses[planned.run_id].state}")
    if not cells:
        return say(f"{made.title}: nothing to submit.")
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(Path(folder) / "LAUNCH")
        launch.cluster = cluster
        text = script(launch, cells).replace(folder, str(made.runs / ".launches"))
        tasks = [len(indices) for indices, _ in arrays(launch, cells, 1001)]
    say(f"\n{text}")
    estimates = [estimate(planned.cell.settings, made.scale) for planned in todo]
    seconds, size = sum(item.seconds for item in estimates), sum(item.bytes for item in estimates)
    kind = "GPU hours" if cluster.profile.on_gpu else "hours"
    say(
        f"{count(len(todo), 'cell')} in {count(sum(tasks), 'task')} of {count(len(tasks), 'array')};"
        f" {cluster.profile.cells_at_once} at a time in each task, {cluster.profile.threads} CPU threads for each."
    )
    longest = about(max(item.seconds for item in estimates))
    say(f"About {seconds / 3600:,.1f} {kind} if each had {made.scale.speed.device}; the longest cell about {longest}.")
    files = count(FILES_PER_RUN * len(todo) + 100, "file")
    say(f"About {size / 1e6:,.0f} MB and {files} in {made.runs}/. Nothing was submitted.")
    for note in (*warnings(cluster), *more):
        say(f"warning: {note}")


def _partition_warnings(cluster: Cluster) -> list[str]:
    from experiments.scheduler import SlurmError, partition, seconds_from

    profile = cluster.profile
    try:
        found = partition(profile.partition)
    except SlurmError:
        return []  # sbatch will say it, and about which line
    name, notes = found.get("PartitionName"), []
    grace = seconds_from(found.get("GraceTime", ""))
    if found.get("PreemptMode", "OFF") != "OFF" and grace is not None and grace < profile.grace:
        notes.append(
            f"grace: partition {name} gives jobs {grace} s when it takes them away, not {profile.grace} s"
            f"  [{cluster.at('grace')}]"
        )
    if profile.follow_up and found.get("PreemptMode") == "CANCEL" and "partition" not in profile.follow_up_options:
        notes.append(
            f"follow_up: partition {name} cancels the jobs that it takes away, the follow-up too, if it is running"
            f" then: another partition for it in follow_up_options is safer  [{cluster.at('partition')}]"
        )
    return notes


def _supervise(made: Plan) -> None:
    """Submit again what was lost, until nothing is left to do."""
    from experiments import scheduler, slurm
    from experiments.launches import all_launches, current

    say("Supervising: Ctrl-C ends this, not the jobs.")
    idle = 0
    while True:
        launches = [item for item, _ in current(made.unique(), all_launches(made.runs)) if not item.is_cancelled()]
        missing = {item.id: item.missing() for item in launches}
        if not any(missing.values()):
            break
        try:
            jobs = scheduler.my_jobs()
            for item in launches:
                if missing[item.id] and not slurm.jobs_of(item, jobs):
                    idle += 1
                    if idle > MAX_RESUBMISSIONS:
                        say(f"{item.id}: submitted again {MAX_RESUBMISSIONS} times, and still not done: giving up")
                        sys.exit(FAILURE)
                    say(f"{item.id}: {count(len(missing[item.id]), 'cell')} lost; submitting again")
                    slurm.submit_round(item, missing[item.id], with_follow_up=False)
        except scheduler.SlurmError as error:
            say(f"{error}; trying again")
        time.sleep(SUPERVISE_SECONDS)
    say("Nothing is left to do.")


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
    from experiments import scheduler, slurm
    from experiments.launches import all_launches, current

    made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    jobs = scheduler.my_jobs()
    known = [launched.id for launched in all_launches(runs)]
    if launch_id is not None and launch_id not in known:
        raise SettingsError(f"launch: {launch_id!r} is not in {runs}{nearest(launch_id, known)}  [--launch]")
    found, refused = 0, 0
    for launched, shared in list(current(made.unique(), all_launches(runs))):
        if launch_id is not None and launched.id != launch_id:
            continue
        others = len(launched.run_ids() - shared)
        if launched.is_cancelled() and not slurm.jobs_of(launched, jobs):
            continue
        if not slurm.jobs_of(launched, jobs) and not launched.missing():
            continue
        if others and launch_id is None:
            refused += 1
            say(f"{launched.id}: holds {count(others, 'other cell')}, too: cancel --launch {launched.id}")
            continue
        found += 1
        say(f"{launched.id}: {count(slurm.cancel(launched, jobs), 'job')} cancelled")
    if not found and not refused:
        say("There is nothing to cancel.")
    if refused:
        sys.exit(FAILURE)


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile: an example that ships, or a .yaml file.")],
    runs: Runs = DEFAULT_RUNS,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit a job of a minute that reports what works on a cluster, and how its jobs are ended."""
    from experiments.check import check as check_cluster
    from experiments.cluster import load_cluster

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
    from experiments.check import try_out
    from experiments.cluster import load_cluster

    chosen = load_cluster(name)
    runs, _ = _places(chosen, runs, DEFAULT_DATA)
    check_writable(runs)
    if not try_out(chosen, runs, say):
        sys.exit(FAILURE)


def _places(chosen: Cluster, runs: Path, data: Path) -> tuple[Path, Path]:
    """Where runs and images are: as the command says, else as the profile does."""
    from experiments.launches import absolute

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
    from experiments.launches import all_launches, current
    from experiments.store import RunFolder

    made = plan_for(studies_named(study), scale_named(scale), seeds, set_, runs, data)
    if cell > len(made.cells):
        raise SettingsError(f"cell: {cell} must be at most {len(made.cells)}, the cells of {study}  [--cell]")
    planned = made.cells[cell - 1]
    run = RunFolder(runs, planned.run_id)
    say(f"{planned.label}: {run.path}")
    folders = [launched.path for launched, _ in current([planned], all_launches(runs))]
    read: dict[Path, int] = {}
    while True:
        job = run.owner(run.highest_lease()).get("job")  # of the newest attempt
        for folder in folders:  # of each task of a job; of all jobs, if none has begun the cell
            for path in (*folder.glob(f"jobs/{job or '*'}_*_log.out"), *folder.glob(f"cells/{planned.run_id}.*log")):
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
