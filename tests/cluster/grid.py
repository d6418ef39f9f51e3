"""A real SLURM for tests, and small grids on it that can be disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.runs.folder import RunFolder
from experiments.slurm.launch import Launch, all_launches
from simsiam.record import curves as metrics
from tests import pictures
from tests.conftest import ROOT

HERE = Path(__file__).parent
STEPS_PER_EPOCH = 10
CELL = ["--scale", "smoke", "--set", f"data.num_train={64 * STEPS_PER_EPOCH}", "--set", "evaluation.bank_size=200"]
GRACE = 20  # seconds before the end of a time limit


@dataclass
class Slurm:
    """A cluster that slurm_up.sh started."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    undisturbed: threading.Lock = field(default_factory=threading.Lock)  # held while something is submitted

    @classmethod
    def start(cls, folder: Path, **options: str) -> Slurm:
        subprocess.run([HERE / "slurm_up.sh", folder], env=os.environ | options, check=True, timeout=120)
        shell = subprocess.run(
            ["bash", "-c", f". {folder}/env; env -0"], capture_output=True, text=True, check=True
        ).stdout
        wanted = ("SLURM_CONF", "MYSQL_UNIX_PORT")
        return cls(folder, dict(item.split("=", 1) for item in shell.split("\0") if item.startswith(wanted)))

    def stop(self) -> None:
        subprocess.run([HERE / "slurm_down.sh", self.folder], check=True, timeout=180)

    def call(self, *command: str, check: bool = True) -> str:
        for _ in range(10):  # one of the tests takes the controller away for a moment
            done = subprocess.run(
                command, env=os.environ | self.environment, capture_output=True, text=True, timeout=120
            )
            if done.returncode == 0 or not re.search("contact slurm|timed out", done.stderr):
                break
            time.sleep(2)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def pid(self, name: str) -> int:
        """The process of a daemon, by its pid file."""
        return int((self.folder / f"{name}.pid").read_text())

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a daemon and wait until it is gone."""
        pid = self.pid(name)
        os.kill(pid, number)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split())


@dataclass
class Grid:
    """A study in a folder of its own, launched with a profile of its own."""

    slurm: Slurm
    folder: Path
    study: str = "stop-gradient"
    options: Sequence[str] = (*CELL, "--set", "epochs=12")
    profile: dict[str, Any] = field(default_factory=dict)
    sleep: float = 0.15  # seconds, after each step
    user: int | None = None
    python: str = sys.executable

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.trace_file = self.folder / "trace"
        profile = {
            "partition": "low", "gpus_per_task": 0, "cpus_per_task": 1, "array_parallelism": 2, "time_limit": 20,
            "checkpoint_minutes": 0.05, "grace": GRACE,
            "setup": [
                f"export ABLATION_OBSERVER=tests.cluster.observer:record TRACE_FILE={self.trace_file}"
                f" TRACE_SLEEP={self.sleep} PYTHONPATH={ROOT}:{sysconfig.get_path('purelib')} OMP_NUM_THREADS=1"
            ],
        }  # fmt: skip
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump({**profile, **self.profile}, width=1000))
        if self.user is not None:
            os.chown(self.folder, self.user, self.user)

    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("ABLATION_", "SLURM_"))}
        ours = {"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(self.folder)} if self.user else {}
        return clean | self.slurm.environment | ours

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        identity: dict[str, Any] = {} if self.user is None else {"user": self.user, "group": self.user}
        return subprocess.run(
            [self.python, str(ROOT / "run_ablation.py"), *arguments],
            cwd=self.folder,
            env=self.environment() | options.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=400,
            **identity,
            **options,
        )

    def launch_with(self, name: str, script: str) -> subprocess.CompletedProcess[str]:
        """`launch` with a command of SLURM replaced by a script, in which $REAL is the true one."""
        fake = self.folder / "bin" / name
        fake.parent.mkdir()
        real = self.slurm.call("bash", "-c", f"command -v {name}")
        fake.write_text(f"#!/bin/bash\nREAL={real}\n{script}\n")
        fake.chmod(0o755)
        path = f"{fake.parent}:{os.environ['PATH']}"
        with self.slurm.undisturbed:
            return self.command("launch", self.study, *self.options, "--cluster", "cluster.yaml", env={"PATH": path})

    def launch(self, *more: str) -> str:
        # Supervising takes as long as the grid.
        with contextlib.nullcontext() if "--supervise" in more else self.slurm.undisturbed:
            done = self.command("launch", self.study, *self.options, "--cluster", "cluster.yaml", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run_folders(self) -> list[RunFolder]:
        launched = {run_id for launch in all_launches(self.runs) for run_id in launch.run_ids()}
        return [RunFolder(self.runs, run_id) for run_id in sorted(launched)]

    def latest(self) -> Launch:
        return all_launches(self.runs)[-1]

    def jobs(self) -> list[str]:
        """Ids of this grid's jobs that wait or run, array tasks one by one, the follow-up left out."""
        names = {launch.id for launch in all_launches(self.runs)}
        lines = self.slurm.call("squeue", "-h", "-r", "-o", "%i %T %j").splitlines()
        return [line.split()[0] for line in lines if line.split()[2] in names]

    def state_of(self, job: str) -> str:
        return self.slurm.call("squeue", "-h", "-j", job, "-o", "%T", check=False)

    def wait_until_past(self, step: int, seconds: float = 400) -> None:
        """Until every run has made some steps and is being trained."""

        def past() -> bool:
            return bool(self.run_folders()) and all(
                (run.path / "state.json").exists() and self.steps(run) > step for run in self.run_folders()
            )

        wait_for(past, seconds)

    def steps(self, run: RunFolder) -> int:
        return max((event.step for event in self.trace() if event.run == run.run_id), default=0)

    def is_done(self) -> bool:
        return bool(self.run_folders()) and all(run.result() is not None for run in self.run_folders())

    def wait_until_done(self, seconds: float = 600) -> None:
        wait_for(self.is_done, seconds, lambda: self.describe())

    def describe(self) -> str:
        logs = [path.read_text()[-3000:] for path in self.runs.glob(".launches/*/jobs/*_log.out")]
        states = [f"{run.run_id}: {run.status().state} {run.status().detail}" for run in self.run_folders()]
        return "\n".join([str(self.folder), *states, self.slurm.call("squeue", "-r", check=False), *logs])

    def trace(self) -> list[Event]:
        if not self.trace_file.exists():
            return []
        found = []
        for line in self.trace_file.read_text().splitlines():
            at, run, attempt, step, what, job, node = line.split()
            found.append(Event(float(at), run, int(attempt), int(step), what, job, node))
        return found

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        return curves(self.runs)

    def repeated(self) -> int:
        """Steps that were made more than once, of all runs together."""
        made = [(event.run, event.step) for event in self.trace() if event.what == "step"]
        return len(made) - len(set(made))

    def attempts(self) -> int:
        return sum(run.highest_lease() for run in self.run_folders())

    def check_one_publisher(self) -> None:
        """No attempt publishes a checkpoint once a later one has published or made a step."""
        latest: dict[str, int] = {}
        for event in sorted(self.trace(), key=lambda event: event.at):
            if event.what == "checkpoint":
                assert event.attempt >= latest.get(event.run, 0), f"{event} was published late"
            latest[event.run] = max(latest.get(event.run, 0), event.attempt)


Fault = Callable[[Grid], None]


@contextlib.contextmanager
def all_at_once(
    faults: Iterable[Fault], make: Callable[[Fault], Grid], seconds: float
) -> Iterator[dict[str, Future[Grid]]]:
    """Let each fault happen to a grid of its own, side by side; the grids by the fault's name, once they are done."""

    def play(fault: Fault) -> Grid:
        grid = make(fault)
        fault(grid)
        grid.wait_until_done(seconds)
        return grid

    with ThreadPoolExecutor(len(list(faults))) as threads:
        yield {fault.__name__: threads.submit(play, fault) for fault in faults}


@dataclass(frozen=True)
class Event:
    at: float
    run: str
    attempt: int
    step: int
    what: str
    job: str
    node: str


def curves(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """All points of all runs, but for the speed, the one number that depends on the machine's mood."""
    return {
        path.parent.name: [{**point, "images_per_s": None} for point in metrics.merge(path.parent)]
        for path in runs.glob("*/config.yaml")
    }


def images(folder: Path) -> list[str]:
    """Write pictures into files; returns the options that name them."""
    pictures.write(folder / "data", 64, 16)
    settings = (f"{name}={json.dumps(value)}" for name, value in pictures.SETTINGS.items())
    return ["--data", str(folder / "data"), *(part for item in settings for part in ("--set", item))]


def wait_for(condition: Callable[[], bool], seconds: float = 120, explain: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s\n{explain()}"
        time.sleep(0.3)


def processes(text: str) -> list[int]:
    """Processes whose command line or environment holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if text in (path / "environ").read_text(errors="replace") + (path / "cmdline").read_text(errors="replace"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text())
