"""A third launcher, to show what one takes: its queue is a folder, and each of its jobs a process that trains one cell.

A job is ``<number>.json``; its process writes ``<number>.process`` as it begins, and waits until no other job of the
folder runs. ``python -m tests.folder_launcher FILE`` is what such a job runs.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.launcher import CellTask, Launcher, LaunchView, Queue, QueueView, RunContext, Summary, Tell, missing
from experiments.local.pool import LocalRanks
from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import Json, is_process_alive, process_identity, read_json, write_json
from experiments.runs.states import ENDED
from experiments.studies.study import Cell
from simsiam.data.sets import load
from simsiam.settings.checks import check_ranks
from simsiam.settings.fields import Settings
from tests.conftest import ROOT


@dataclass(frozen=True)
class FolderQueue(Queue):
    """The jobs in a folder. All of one submission are a launch."""

    folder: Path

    def jobs(self) -> dict[str, Json]:
        """Those that wait or run, by their numbers: the file's content and the process."""
        found = {}
        for path in sorted(self.folder.glob("*.json"), key=lambda path: int(path.stem)):
            process = read_json(path.with_suffix(".process")) or {}
            if is_process_alive(process):
                running = path.with_suffix(".running").exists()
                state = "running" if running else "waiting"
                found[path.stem] = {**json.loads(path.read_text()), "pid": process["pid"], "state": state}
        return found

    def look(self, made: Plan) -> QueueView:
        jobs = self.jobs()
        waiting = {job["run"]: f"{number} waits" for number, job in jobs.items() if job["state"] == "waiting"}
        said = {number: f"{number} {job['state']}" for number, job in jobs.items()}
        return QueueView(
            said, waiting, has_lost=lambda owner: owner["cluster"] == "folder" and owner["job"] not in said
        )

    def cancel(self, made: Plan, tell: Tell) -> list[str]:
        wanted = {planned.run_id for planned in made.cells}
        names = {job["launch"] for job in self.jobs().values() if job["run"] in wanted}
        return [name for name in sorted(names) if self.cancel_launch(made.runs, name, tell)]

    def cancel_launch(self, runs: Path, launch_id: str, tell: Tell) -> bool:
        mine = {number: job for number, job in self.jobs().items() if job["launch"] == launch_id}
        for number, job in mine.items():
            os.kill(job["pid"], signal.SIGTERM)
            tell(f"{number}: cancelled")
        return bool(mine)

    def launches(self, runs: Path) -> list[LaunchView]:
        jobs = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        names = sorted({job["launch"] for job in jobs if job["runs"] == str(runs)})
        queued = [job["launch"] for job in self.jobs().values()]
        return [LaunchView(name, "me", "-", queued.count(name), 0.0) for name in names]

    def logs(self, made: Plan, planned: PlannedCell) -> list[Path]:
        files = self.folder.glob("*.json")
        return [path.with_suffix(".log") for path in files if json.loads(path.read_text())["run"] == planned.run_id]

    def leftovers(self, runs: Path) -> dict[Path, list[Path]]:
        return {}


@dataclass(frozen=True)
class FolderLauncher(Launcher):
    """Starts a process for each cell, on this machine."""

    queue: FolderQueue
    num_ranks: int = 1

    def check(self, made: Plan) -> None:
        for planned in made.cells:
            check_ranks(planned.cell.settings, self.num_ranks, "num_ranks")
        if not self.queue.folder.is_dir():
            raise RuntimeError(f"{self.queue.folder}: there is no such queue")

    def submit(self, made: Plan, tell: Tell, *, command: str, supervised: bool = False) -> Summary:
        todo, _, _ = missing(made, {job["run"] for job in self.queue.jobs().values()})
        first = len(list(self.queue.folder.glob("*.json")))
        for number, (planned, status) in enumerate(todo, start=first):
            path = self.queue.folder / f"{number}.json"
            job = {
                "launch": f"from-{first}", "run": planned.run_id, "config": planned.config_id, "study": planned.study,
                "variant": planned.cell.variant, "settings": planned.cell.settings.model_dump(mode="json"),
                "runs": str(made.runs), "data": str(made.data), "command": command, "ranks": self.num_ranks,
                "attempts_before": status.lease,
            }  # fmt: skip
            write_json(path, job, "new")
            own_job = json.dumps({"job": str(number), "restart": 0, "cluster": "folder"})
            with open(path.with_suffix(".log"), "w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.folder_launcher", str(path)],
                    cwd=ROOT,
                    env=os.environ | {"ABLATION_JOB": own_job},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            while read_json(path.with_suffix(".process")) is None and process.poll() is None:
                time.sleep(0.1)  # in the queue, and seen to be
        return Summary([planned.run_id for planned, _ in todo], f"from-{first}")

    def preview(self, made: Plan, tell: Tell) -> list[PlannedCell]:
        return [planned for planned, _ in missing(made, {job["run"] for job in self.queue.jobs().values()})[0]]

    def supervise(self, made: Plan, tell: Tell) -> bool:
        while any(status.state not in ENDED for status in made.statuses().values()):
            if not self.queue.jobs():
                self.submit(made, tell, command="supervise")
            time.sleep(0.5)
        return True


def work(path: Path) -> None:
    """What a job does."""
    job = json.loads(path.read_text())
    write_json(path.with_suffix(".process"), process_identity(), "job")
    settings = Settings.model_validate_json(json.dumps(job["settings"]))
    planned = PlannedCell(Cell(job["variant"], settings, {}), job["config"], job["run"], job["study"])
    with open(path.parent / ".turn", "a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        path.with_suffix(".running").touch()
        stop = multiprocessing.get_context("spawn").Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        context = RunContext(
            Path(job["runs"]), torch.device("cpu"), 1, should_stop=stop.is_set, on_progress=lambda progress: None,
            retry_failed=True, attempts_before=job["attempts_before"], command=job["command"],
        )  # fmt: skip
        ranks = LocalRanks(job["ranks"]).start(0, Path(job["data"]), stop)
        result = ranks.run_cell(CellTask(planned), load(settings.data, Path(job["data"])), context)
        ranks.close()
        print(*result)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
