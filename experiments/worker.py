"""One run, from claim to result, in the process that calls it: what every launcher starts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.store import Attempt, Heartbeats, LeaseLostError, RunFolder, read_json, write_json
from simsiam import metrics
from simsiam.config import Settings
from simsiam.data import Dataset, Split
from simsiam.distributed import LOST
from simsiam.knn import raw_pixel_top1
from simsiam.loading import subset
from simsiam.metrics import Point
from simsiam.rendezvous import ALONE, Team
from simsiam.train import Hooks, train

HEARTBEAT_SECONDS = 5.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Surroundings:
    """Where a run is trained and who watches; none of it changes its numbers."""

    runs: Path
    device: torch.device
    threads: int
    should_stop: Callable[[], bool]
    on_progress: Callable[[dict[str, Any]], None]
    retry_failed: bool = False
    command: str = ""


class RankFailedError(Exception):
    """Another rank of a run has failed; the message is what it has reported."""


def run_cell(
    run_id: str, settings: Settings, dataset: Dataset, where: Surroundings, team: Team = ALONE
) -> tuple[str, str]:
    """Train a run to its end, unless it is somebody else's. Returns its state and, for a failed one, why.

    The state is "done", "stopped", "failed", or "elsewhere" (done already, or owned by another process). With a
    ``team`` of several ranks this is rank 0's part, and the state may be "interrupted": another rank is gone.
    """
    attempt = RunFolder(where.runs, run_id).claim(settings, Heartbeats(), retry_failed=where.retry_failed)
    if attempt is None:
        team.ranks.broadcast(None)
        return "elsewhere", ""
    attempt.num_ranks = team.ranks.world_size
    heart = _Heart(attempt)
    try:
        heart.start()
        state = _train(attempt, heart, settings, dataset, where, team)
    except LeaseLostError:
        heart.stop()
        return "elsewhere", ""
    except LOST as error:
        heart.stop()
        if failure := team.first_failure():
            return "failed", _record_failure(attempt, RankFailedError(failure))
        with contextlib.suppress(LeaseLostError, OSError):
            attempt.interrupt()
        return "interrupted", str(error)
    except Exception as error:  # whatever it is, the other cells of the grid go on
        heart.stop()
        return "failed", _record_failure(attempt, error)
    return state, ""


def _train(
    attempt: Attempt, heart: _Heart, settings: Settings, dataset: Dataset, where: Surroundings, team: Team
) -> str:
    folder = attempt.folder.path
    # Sums depend on how many threads share them: a resumed run keeps the count it started with.
    earlier = attempt.provenance()["attempts"]
    threads = int(earlier[0]["threads"]) if earlier else where.threads
    torch.set_num_threads(threads)
    team.ranks.broadcast((attempt.number, threads))
    references = reference_lines(settings, dataset, where.runs)
    attempt.write_provenance(references, _provenance(where, dataset, threads, team.ranks.world_size))
    num_steps = settings.epochs * (len(dataset.train) // settings.batch_size)
    attempt.progress = {"num_steps": num_steps, "epochs": settings.epochs}

    def on_point(point: Point) -> None:
        attempt.progress = {**attempt.progress, **_numbers(point)}
        where.on_progress(attempt.progress)

    def on_step(step: int) -> None:
        attempt.progress["step"] = step

    hooks = Hooks(
        should_stop=where.should_stop, before_publishing=attempt.check_ownership, on_point=on_point, on_step=on_step
    )
    if where.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where.device)
    outcome = train(
        settings, dataset, folder, attempt=attempt.number, device=where.device, hooks=hooks, ranks=team.ranks
    )
    heart.stop()
    if outcome is None:
        attempt.write_state("stopped")
        return "stopped"
    points = metrics.merge(folder)
    final: Point = {}
    for point in points:
        final |= _numbers(point)
    result = {
        "outcome": outcome,
        "stopped_early": final["step"] < num_steps,
        "final": final,
        "seconds": attempt.seconds(),
        "device_seconds": attempt.device_seconds(),
        "threads": threads,
        "peak_memory_bytes": _peak_memory(where.device),
    }
    attempt.finish(points, result)
    return "done"


def _numbers(point: Point) -> Point:
    """A point without its spectrum, which is for the curves alone."""
    return {name: value for name, value in point.items() if not isinstance(value, list)}


def _record_failure(attempt: Attempt, error: Exception) -> str:
    """Keep the traceback in the run's folder; returns the reason in a line."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        attempt.fail("".join(traceback.format_exception(error)))
    except Exception as second:  # a full disk, most likely the failure itself
        return f"{reason} (and failure.txt could not be written: {second})"
    return f"{reason} (see {attempt.folder.path / 'failure.txt'})"


class _Heart(threading.Thread):
    """Publishes the state every few seconds, from a thread: a run whose steps hang still has a heartbeat."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._attempt, self._stopped = attempt, threading.Event()

    def run(self) -> None:
        while True:
            try:
                self._attempt.write_state("running")
            except LeaseLostError:
                return  # the training finds out when it next publishes
            except OSError as error:  # a full disk, a network that is away: the next beat may go through
                print(f"{self._attempt.folder.path}: no heartbeat written ({error})", file=sys.stderr, flush=True)
            if self._stopped.wait(HEARTBEAT_SECONDS):
                return

    def stop(self) -> None:
        """End the thread; after this nobody else writes the state."""
        self._stopped.set()
        self.join()


# --- what goes beside the numbers --------------------------------------------------------------------------------


def reference_lines(settings: Settings, dataset: Dataset, runs: Path) -> dict[str, float]:
    """kNN top-1 (percent) that needs no learning: raw centred pixels, and chance. Computed once a data set."""
    evaluation = settings.evaluation
    key = [
        dataset.fingerprint,
        settings.data.image_size,
        settings.data.evaluate_on,
        settings.data.num_train,
        evaluation.bank_size,
        evaluation.query_size,
        evaluation.knn_k,
        evaluation.knn_temperature,
    ]
    path = runs / ".references" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
    known = read_json(path)
    if known is None:
        bank = dataset.train.take(subset(len(dataset.train), evaluation.bank_size, "bank"))
        queries = dataset.test.take(subset(len(dataset.test), evaluation.query_size, "query"))
        counts = torch.from_numpy(queries.labels).bincount()
        known = {"chance": 100 * counts.max().item() / len(queries)}
        if isinstance(bank, Split) and isinstance(queries, Split):
            known["raw_pixels"] = raw_pixel_top1(
                bank.images,
                bank.labels,
                queries.images,
                queries.labels,
                k=evaluation.knn_k,
                temperature=evaluation.knn_temperature,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known, str(os.getpid()))
    return known


def _provenance(where: Surroundings, dataset: Dataset, threads: int, num_ranks: int) -> dict[str, Any]:
    device = where.device
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": where.command,
        **_code(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy")},
        },
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": threads,
        "ranks": num_ranks,
        "data_fingerprint": dataset.fingerprint,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


@cache
def _code() -> dict[str, Any]:
    """Which code made the numbers: a hash of the core's sources and, in a checkout, its commit."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "simsiam").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    in_checkout = (ROOT / ".git").exists()  # an installed copy may lie inside somebody else's repository
    changes = git("status", "--porcelain", "--untracked-files=no") if in_checkout else None
    return {
        "code": digest.hexdigest()[:16],
        "git_commit": git("rev-parse", "HEAD") if in_checkout else None,
        "git_dirty": None if changes is None else bool(changes),
    }


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process (which may have trained other runs before)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
