"""Launch folders: what was sent to a cluster, so that a later command, on any machine, can go on from it.

``RUNS/.launches/<id>/`` is private (mode 0700) and holds ``creator.json`` (who makes it), ``spec.json`` (the cells with
their settings, frozen),
``code/`` (the packages as they were), ``rounds/<n>.json`` (job ids, written before a job may start), ``cancelled`` (a
marker), ``tasks/`` (what the jobs report), ``announcements/`` (by which the tasks of a job agree on a cell),
``failures/``, ``cells/`` (what each cell prints) and ``jobs/`` (submitit's scripts, pickles and logs, which no reading
command opens). This module imports no torch.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import (
    Json,
    RunFolder,
    StoreError,
    is_process_alive,
    make_beside_runs,
    process_identity,
    read_json,
    write_json,
)
from experiments.runs.provenance import COMMIT, ROOT, commit_of
from experiments.slurm.profile import Cluster, Profile
from experiments.studies.study import Cell
from experiments.studies.yaml_files import Document
from simsiam.settings.fields import Settings

FOLDER = ".launches"
FORMAT = 2
PACKAGES = ("simsiam", "experiments", "analysis", "commands")
CREATOR = "creator.json"  # in a launch's folder, from its first moment on: the process that makes it
LOCK_TOLD_SECONDS = 3.0  # that a lock is waited for without a word
SPECLESS_SECONDS = 86400.0  # after which a folder without a spec is taken to be nobody's, if its maker is not known


@dataclass(frozen=True)
class LaunchCell:
    """A cell of a launch; ``attempts_before`` is the highest lease that its run had when it was launched."""

    planned: PlannedCell
    attempts_before: int
    ranks: int  # processes that train it together


class _Record(BaseModel):
    """What is written into a file of a launch; keys that another version wrote in addition are left out."""

    model_config = ConfigDict(frozen=True)


class SpecCell(_Record):
    """A cell, as the spec lists it."""

    run: str
    study: str
    variant: str
    seed: int
    settings: str  # the key of its settings, which cells that differ only by their seed share
    attempts_before: int
    ranks: int


class Spec(_Record):
    """What was launched."""

    format: int
    launch: str
    user: str
    created: str
    command: str
    cluster: str
    profile: Profile
    profile_path: Path
    studies: tuple[str, ...]
    scale: str
    runs: Path
    data: Path
    settings: dict[str, Json]
    cells: tuple[SpecCell, ...]


class Round(_Record):
    """A submission."""

    number: int
    jobs: tuple[str, ...] = ()  # without the numbers of an array's tasks
    follow_up: str | None = None
    complete: bool = False  # nothing more is submitted in it
    released: bool = False  # its jobs may start
    slurm: str | None = None  # the name of the cluster
    refused: str | None = None  # what sbatch said
    steps: int | None = None  # of all cells, when the round had ended
    submitter: Json = {}

    @property
    def job_ids(self) -> list[str]:
        """Its jobs, the follow-up included."""
        return [*self.jobs, *([self.follow_up] if self.follow_up is not None else [])]


class TaskReport(_Record):
    """What a job last said of itself."""

    job: str = ""
    restart: int = 0
    cluster: str = ""
    host: str | None = None
    node: str | None = None
    cpus: tuple[int, ...] = ()
    gpus: str | None = None
    cells: tuple[str, ...] = ()  # the runs that it trains
    problem: str | None = None  # why it could do nothing
    waits: str | None = None  # what it waits for, in the surroundings
    warning: str | None = None


class Failure(_Record):
    """A failure of a cell."""

    reason: str = ""
    attempt: int | None = None
    final: bool = False  # it is not tried again in this launch
    counted: bool = True  # False: the surroundings were at fault, and it is tried again however often
    at: str = ""


R = TypeVar("R", bound=_Record)


class Launch:
    """One launch, by its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    @cached_property
    def spec(self) -> Spec:
        """What was launched. Raises StoreError."""
        spec = _read(Spec, self.path / "spec.json")
        if spec is None or spec.format != FORMAT:
            raise StoreError(f"{self.path}: is not the folder of a launch that this version can read")
        return spec

    def is_readable(self) -> bool:
        """Whether this version understands it; a damaged one is in nobody's way."""
        try:
            return self.spec.format == FORMAT
        except StoreError:
            return False

    @property
    def runs(self) -> Path:
        return self.spec.runs

    @cached_property
    def folders(self) -> list[Path]:
        """What its jobs must see on every node, at the same path as here."""
        return shared_folders(self.spec.runs, self.spec.data)

    @cached_property
    def cluster(self) -> Cluster:
        """The profile as it was when it was launched."""
        content = self.spec.profile.model_dump(mode="json")
        return Cluster(self.spec.cluster, self.spec.profile, Document(self.spec.profile_path, content))

    @cached_property
    def cells(self) -> list[LaunchCell]:
        """The frozen list, in its order. The same settings of many cells are read once."""
        known = dict[str, Settings]()
        found = []
        for item in self.spec.cells:
            if item.settings not in known:
                text = json.dumps(self.spec.settings[item.settings])
                known[item.settings] = Settings.model_validate_json(text)
            settings = known[item.settings].model_copy(update={"seed": item.seed})
            planned = PlannedCell(Cell(item.variant, settings, {}), item.settings, item.run, item.study)
            found.append(LaunchCell(planned, item.attempts_before, item.ranks))
        return found

    def run_ids(self) -> set[str]:
        """The runs that it trains."""
        return {item.run for item in self.spec.cells}

    @property
    def is_mine(self) -> bool:
        """Whether this user launched it: only then does SLURM show all its jobs, and let them be touched."""
        return self.path.stat().st_uid == os.getuid()

    @contextlib.contextmanager
    def lock(self, tell: Callable[[str], None]) -> Iterator[None]:
        """While something of it is submitted or cancelled, so that what is cancelled is not released thereafter."""
        with _locked(self.path / ".lock", tell):
            yield

    # --- whether it is cancelled ---

    def is_cancelled(self) -> bool:
        """Whether it has been cancelled: then nothing of it may be queued again."""
        return (self.path / "cancelled").exists()

    def mark_cancelled(self, reason: str) -> None:
        """From now on none of its jobs queues itself again."""
        write_json(self.path / "cancelled", {"reason": reason, "at": _now()}, secrets.token_hex(4))

    # --- rounds of submission ---

    def rounds(self) -> list[Round]:
        """Each submission, in order."""
        numbers = sorted(int(path.stem) for path in (self.path / "rounds").glob("[0-9]*.json"))
        return [_read(Round, self.path / "rounds" / f"{n}.json") or Round(number=n) for n in numbers]

    def write_round(self, content: Round) -> None:
        """Durably, before any job of it may start."""
        content = content.model_copy(update={"submitter": process_identity()})
        _write(content, self.path / "rounds" / f"{content.number}.json")

    def job_ids(self, slurm: str | None = None) -> set[str]:
        """All jobs that were recorded; of one cluster, if it is named."""
        rounds = (content for content in self.rounds() if slurm is None or content.slurm in (slurm, None))
        return {job for content in rounds for job in content.job_ids}

    # --- what jobs report ---

    def task(self, job: str) -> TaskReport:
        """What a job last said of itself."""
        return _read(TaskReport, self.path / "tasks" / f"{job}.json") or TaskReport()

    def write_task(self, report: TaskReport) -> None:
        """In the place of what its job said before."""
        _write(report, self.path / "tasks" / f"{report.job}.json")

    def tasks(self) -> dict[str, TaskReport]:
        """What each job last said of itself, by its id."""
        return {path.stem: self.task(path.stem) for path in (self.path / "tasks").glob("[0-9]*.json")}

    def record_failure(self, run_id: str, reason: str, attempt: int, *, final: bool = False) -> None:
        """Count a failure of a cell; after a final one it is not tried again in this launch."""
        failure = Failure(reason=reason, attempt=attempt, final=final, at=_now())
        _write(failure, self.path / "failures" / f"{run_id}.{secrets.token_hex(4)}.json")

    def record_blocked(self, run_id: str, reason: str, attempt: int) -> None:
        """A cell was ended by its surroundings, in place of what was said of that before."""
        failure = Failure(reason=reason, attempt=attempt, counted=False, at=_now())
        _write(failure, self.path / "failures" / f"{run_id}.blocked.json")

    def all_failures(self, run_id: str = "*") -> list[Failure]:
        """What has ended attempts at a cell, or at any, in this launch: its own failures and its surroundings'."""
        return [_read(Failure, path) or Failure() for path in (self.path / "failures").glob(f"{run_id}.*.json")]

    def failures(self, run_id: str) -> list[Failure]:
        """The failures of a cell in this launch."""
        return [failure for failure in self.all_failures(run_id) if failure.counted]

    def tried_again(self) -> Counter[str]:
        """Why attempts at cells have failed that are neither done nor given up, and how many of each reason."""
        runs = {path.name.partition(".")[0] for path in (self.path / "failures").glob("*.json")}
        still = (run_id for run_id in runs if not self._is_over(run_id))
        return Counter(failure.reason for run_id in still for failure in self.all_failures(run_id))

    def has_given_up(self, run_id: str) -> bool:
        """Whether a cell has used up what it may fail in this launch."""
        failures = self.failures(run_id)
        return len(failures) >= self.cluster.profile.max_failures or any(failure.final for failure in failures)

    def missing(self) -> list[LaunchCell]:
        """The cells that are not done and not given up. One that cannot be looked at now is not done."""
        return [cell for cell in self.cells if not self._is_over(cell.planned.run_id)]

    def _is_over(self, run_id: str) -> bool:
        try:
            return RunFolder(self.runs, run_id).result() is not None or self.has_given_up(run_id)
        except OSError:
            return False


def _read(kind: type[R], path: Path) -> R | None:
    """A record; None if there is none, or a damaged one."""
    content = read_json(path)
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError:
        return None


def _write(record: _Record, path: Path) -> None:
    write_json(path, record.model_dump(mode="json"), secrets.token_hex(4))


@contextlib.contextmanager
def one_at_a_time(runs: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Wait for other commands that submit cells of a folder of runs, also on other machines where locks reach them."""
    with contextlib.suppress(OSError):
        make_beside_runs(runs / FOLDER)
    with _locked(runs / FOLDER / ".lock", tell):
        yield


@contextlib.contextmanager
def _locked(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    import fcntl  # not on Windows, from where nothing is submitted

    with contextlib.ExitStack() as stack:
        # Another user's lock, a file system without locks: leases still keep a cell from two owners.
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(path, "a+"))
            told_at = time.monotonic() + LOCK_TOLD_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > told_at:
                        told_at = float("inf")
                        tell(f"Waiting for {path.read_text().strip() or 'another command'}, which holds {path}.")
                    time.sleep(0.2)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} (since {_now()})\n")
            file.flush()
        yield


def launch_folders(runs: Path) -> list[Path]:
    """The folders of launches that train into a folder of runs, whoever's, oldest first."""
    try:
        paths = [path for path in (runs / FOLDER).iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(paths, key=lambda path: path.name.rsplit("-", 3)[1:])


def all_launches(runs: Path) -> list[Launch]:
    """The launches that train into a folder of runs, oldest first, without other users', which cannot be read."""
    found = [Launch(path) for path in launch_folders(runs) if os.access(path / "spec.json", os.R_OK)]
    return [launch for launch in found if launch.is_readable()]


def abandoned(runs: Path) -> list[Path]:
    """This user's folders of launches that never were: their launcher was killed before it asked SLURM for anything."""
    found = []
    for path in launch_folders(runs):
        with contextlib.suppress(OSError):
            details = path.stat()
            was_begun = (path / "spec.json").exists() and any((path / "rounds").glob("*.json"))
            if details.st_uid != os.getuid() or was_begun:
                continue
            alive = is_process_alive(read_json(path / CREATOR) or {})
            if alive is False or (alive is None and time.time() - details.st_mtime > SPECLESS_SECONDS):
                found.append(path)
    return found


def shared_folders(runs: Path, data: Path) -> list[Path]:
    """What jobs share with the machine that launches: the folder of runs, and that of images if there is one yet."""
    return [runs, *([data] if data.exists() else [])]


def create(made: Plan, cells: Sequence[tuple[PlannedCell, int]], cluster: Cluster, *, command: str) -> Launch:
    """Make the folder of a launch: cells frozen, code copied. Nothing is submitted."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", made.studies[0].name if len(made.studies) == 1 else "all")[:40]
    launch_id = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = made.runs / FOLDER / launch_id
    settings: dict[str, Json] = {}
    for planned, _ in cells:
        if planned.config_id not in settings:
            settings[planned.config_id] = planned.cell.settings.model_dump(mode="json")
    spec = Spec(
        format=FORMAT,
        launch=launch_id,
        user=getpass.getuser(),
        created=_now(),
        command=command,
        cluster=cluster.name,
        profile=cluster.profile,
        profile_path=cluster.document.path.absolute(),
        studies=tuple(study.name for study in made.studies),
        scale=made.scale.name,
        runs=made.runs,
        data=made.data,
        settings=settings,
        cells=tuple(
            SpecCell(
                run=planned.run_id,
                study=planned.study,
                variant=planned.cell.variant,
                seed=planned.cell.seed,
                settings=planned.config_id,
                attempts_before=attempts_before,
                ranks=cluster.profile.ranks,
            )
            for planned, attempts_before in cells
        ),
    )
    try:
        path.mkdir(parents=True, mode=0o700)
        write_json(path / CREATOR, process_identity(), "new")
        for folder in ("rounds", "tasks", "announcements", "failures", "cells", "jobs"):
            (path / folder).mkdir()
        copy_code(path / "code")
        _write(spec, path / "spec.json")
    except OSError as error:
        raise StoreError(f"{path}: the launch folder cannot be written ({error.strerror})  [--runs]") from None
    return Launch(path)


def copy_code(to: Path) -> None:
    """The packages as they are now, changes that are not committed included; jobs run this copy, not the original."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    write_json(to / COMMIT, commit_of(ROOT), "new")


def absolute(path: Path) -> Path:
    """An absolute path as it was written: an automounter's name is valid on every node, what it resolves to is not."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def current(cells: Sequence[PlannedCell], launches: Sequence[Launch]) -> Iterator[tuple[Launch, set[str]]]:
    """The launches that hold some of the cells, newest first, with those runs."""
    wanted = {planned.run_id for planned in cells}
    for launch in reversed(launches):
        shared = wanted & launch.run_ids()
        if shared:
            yield launch, shared


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
