"""Launch folders: what was sent to a cluster, so that a later command, on any machine, can go on from it.

``RUNS/.launches/<id>/`` is private (mode 0700) and holds ``spec.json`` (the cells with their settings, frozen),
``code/`` (the packages as they were), ``rounds/<n>.json`` (job ids, written before a job may start), ``cancelled`` (a
tombstone), ``tasks/`` (what the jobs report), ``failures/``, ``cells/`` (what each cell prints) and ``jobs/``
(submitit's scripts, pickles and logs, which no reading command opens). This module imports no torch.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.cluster import Cluster, Profile
from experiments.documents import Document
from experiments.plan import Plan, PlannedCell
from experiments.provenance import COMMIT, ROOT, commit_of
from experiments.store import Json, RunFolder, StoreError, process_identity, read_json, write_json
from experiments.study import Cell
from simsiam.config import Settings

FOLDER = ".launches"
FORMAT = 1
PACKAGES = ("simsiam", "experiments", "analysis")


@dataclass(frozen=True)
class LaunchCell:
    """A cell of a launch; ``attempts_before`` is the highest lease that its run had when it was launched."""

    planned: PlannedCell
    attempts_before: int
    ranks: int  # processes that train it together


class Launch:
    """One launch, by its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    @cached_property
    def spec(self) -> Json:
        """What was launched. Raises StoreError."""
        spec = read_json(self.path / "spec.json")
        if spec is None or spec.get("format") != FORMAT:
            raise StoreError(f"{self.path}: is not the folder of a launch that this version can read")
        return spec

    def is_readable(self) -> bool:
        """Whether this version understands it; a damaged one is in nobody's way."""
        try:
            return bool(self.spec)
        except StoreError:
            return False

    @property
    def runs(self) -> Path:
        return Path(self.spec["runs"])

    @cached_property
    def cluster(self) -> Cluster:
        """The profile as it was when it was launched."""
        content = self.spec["profile"]
        return Cluster(self.spec["cluster"], Profile(**content), Document(Path(self.spec["profile_path"]), content))

    @cached_property
    def cells(self) -> list[LaunchCell]:
        """The frozen list, in its order. The same settings of many cells are read once."""
        known = dict[str, Settings]()
        found = []
        for item in self.spec["cells"]:
            key = item["settings"]
            if key not in known:
                known[key] = Settings.model_validate_json(json.dumps(self.spec["settings"][key]))
            settings = known[key].model_copy(update={"seed": item["seed"]})
            planned = PlannedCell(Cell(item["variant"], settings, {}), key, item["run"], item["study"])
            found.append(LaunchCell(planned, item["attempts_before"], item["ranks"]))
        return found

    def run_ids(self) -> set[str]:
        """The runs that it trains."""
        return {item["run"] for item in self.spec["cells"]}

    # --- the tombstone ---

    def is_cancelled(self) -> bool:
        """Whether it has been cancelled: then nothing of it may be queued again."""
        return (self.path / "cancelled").exists()

    def write_tombstone(self, reason: str) -> None:
        """From now on none of its jobs queues itself again."""
        write_json(self.path / "cancelled", {"reason": reason, "at": _now()}, secrets.token_hex(4))

    # --- rounds of submission ---

    def rounds(self) -> list[Json]:
        """Each submission: {"number", "jobs": [...], "follow_up", "complete", "released", "submitter"}."""
        numbers = sorted(int(path.stem) for path in (self.path / "rounds").glob("[0-9]*.json"))
        return [{**(read_json(self.path / "rounds" / f"{n}.json") or {}), "number": n} for n in numbers]

    def write_round(self, content: Json) -> None:
        """Durably, before any job of it may start."""
        name = self.path / "rounds" / f"{content['number']}.json"
        write_json(name, {**content, "submitter": process_identity()}, secrets.token_hex(4))

    def job_ids(self) -> set[str]:
        """All jobs that were recorded, without the number of an array's task."""
        return {
            str(job)
            for content in self.rounds()
            for job in (*content.get("jobs", ()), content.get("follow_up"))
            if job is not None
        }

    # --- what jobs report ---

    def task(self, job: str) -> Json:
        """What a job last said of itself."""
        return read_json(self.path / "tasks" / f"{job}.json") or {}

    def write_task(self, job: str, content: Json) -> None:
        write_json(self.path / "tasks" / f"{job}.json", content, secrets.token_hex(4))

    def tasks(self) -> dict[str, Json]:
        """What each job last said of itself, by its id."""
        return {path.stem: self.task(path.stem) for path in (self.path / "tasks").glob("[0-9]*.json")}

    def record_failure(self, run_id: str, reason: str, attempt: int, *, final: bool = False) -> None:
        """Count a failure of a cell; after a final one it is not tried again in this launch."""
        name = f"{run_id}.{secrets.token_hex(4)}"
        content = {"reason": reason, "attempt": attempt, "final": final, "at": _now()}
        write_json(self.path / "failures" / f"{name}.json", content, "new")

    def failures(self, run_id: str) -> list[Json]:
        """The failures of a cell in this launch."""
        return [read_json(path) or {} for path in (self.path / "failures").glob(f"{run_id}.*.json")]

    def has_given_up(self, run_id: str) -> bool:
        """Whether a cell has used up what it may fail in this launch."""
        failures = self.failures(run_id)
        return len(failures) >= self.cluster.profile.max_failures or any(item.get("final") for item in failures)

    def missing(self) -> list[LaunchCell]:
        """The cells that are not done and not given up."""
        return [
            cell
            for cell in self.cells
            if RunFolder(self.runs, cell.planned.run_id).result() is None and not self.has_given_up(cell.planned.run_id)
        ]


def all_launches(runs: Path) -> list[Launch]:
    """The launches that train into a folder of runs, oldest first, without other users', which cannot be read."""
    try:
        paths = [path for path in (runs / FOLDER).iterdir() if os.access(path / "spec.json", os.R_OK)]
    except OSError:
        return []
    found = [Launch(path) for path in sorted(paths, key=lambda path: path.name.rsplit("-", 3)[1:])]
    return [launch for launch in found if launch.is_readable()]


def create(
    made: Plan, cells: Sequence[tuple[PlannedCell, int]], cluster: Cluster, *, runs: Path, data: Path, command: str
) -> Launch:
    """Make the folder of a launch: cells frozen, code copied. Nothing is submitted."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", made.studies[0].name if len(made.studies) == 1 else "all")[:40]
    launch_id = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = runs / FOLDER / launch_id
    try:
        path.mkdir(parents=True, mode=0o700)
        for folder in ("rounds", "tasks", "failures", "cells", "jobs"):
            (path / folder).mkdir()
        copy_code(path / "code")
        settings: dict[str, Any] = {}
        listed = []
        for planned, attempts_before in cells:
            if planned.config_id not in settings:
                settings[planned.config_id] = planned.cell.settings.model_dump(mode="json")
            listed.append(
                {
                    "run": planned.run_id,
                    "study": planned.study,
                    "variant": planned.cell.variant,
                    "seed": planned.cell.seed,
                    "settings": planned.config_id,
                    "attempts_before": attempts_before,
                    "ranks": cluster.profile.ranks,
                }
            )
        spec = {
            "format": FORMAT,
            "launch": launch_id,
            "user": getpass.getuser(),
            "created": _now(),
            "command": command,
            "cluster": cluster.name,
            "profile": cluster.profile.model_dump(mode="json"),
            "profile_path": str(cluster.document.path.absolute()),
            "studies": [study.name for study in made.studies],
            "scale": made.scale.name,
            "runs": str(runs),
            "data": str(data),
            "settings": settings,
            "cells": listed,
        }
        write_json(path / "spec.json", spec, "new")
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
