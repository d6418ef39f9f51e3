"""One run, from claim to result, in the process that calls it: what every launcher starts."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.launcher import RunContext
from experiments.runs.code_changes import training_code
from experiments.runs.folder import (
    Attempt,
    Heartbeats,
    LeaseLostError,
    RunFolder,
    make_beside_runs,
    own_job,
    read_json,
    write_json,
)
from experiments.runs.provenance import code, processor, registered_claims
from experiments.runs.states import CellResult, End, State
from experiments.runs.surroundings import surrounding_fault
from simsiam.data.batches import subset
from simsiam.data.dataset import Dataset, Split
from simsiam.distributed.ranks import LOST
from simsiam.distributed.rendezvous import ALONE, RankGroup
from simsiam.errors import UserError
from simsiam.evaluation.knn import raw_pixel_top1
from simsiam.evaluation.linear import raw_pixel_linear_top1
from simsiam.machine import CoreWatch
from simsiam.record import checkpoint, curves
from simsiam.record.curves import Point
from simsiam.settings.fields import Settings
from simsiam.settings.own_code import look_in, loss_ends
from simsiam.training.loop import Hooks, train

HEARTBEAT_SECONDS = 5.0
SHARED_MEMORY = Path("/dev/shm")
MAX_WITHOUT_PROGRESS = 3  # attempts of a run


class RankFailedError(UserError):
    """Another rank of a run has failed; the message is what it has reported."""


class OtherCodeError(UserError):
    """A run that is made anew with some code cannot be made with another."""


def run_cell(
    run_id: str, settings: Settings, dataset: Dataset, context: RunContext, group: RankGroup = ALONE
) -> CellResult:
    """Train a run to its end, unless another process owns it or it is done already.

    With a ``group`` of several ranks this is the part of rank 0; the result is "interrupted" when another rank is gone.
    The reason says why a cell failed; of a done one, that it collapsed or diverged and how many images were replaced.
    """
    attempt = RunFolder(context.runs, run_id).claim(settings, Heartbeats(), retry_failed=context.retry_failed)
    if attempt is None:
        group.ranks.broadcast(None)
        return CellResult(End.ELSEWHERE)
    attempt.num_ranks = group.ranks.world_size
    heartbeat = _Heartbeat(attempt, context.device)
    try:
        if reason := _lack_of_progress(attempt, context.attempts_before):
            group.ranks.broadcast(None)  # there is nothing to train
            attempt.fail(f"{reason}\n")
            return CellResult(End.GIVEN_UP, reason)
        heartbeat.start()
        return _train(attempt, heartbeat, settings, dataset, context, group)
    except LeaseLostError:
        heartbeat.stop()
        return CellResult(End.ELSEWHERE)
    except LOST as error:
        heartbeat.stop()
        if failure := group.first_failure():
            return CellResult(End.FAILED, _record_failure(attempt, RankFailedError(failure)))
        with contextlib.suppress(LeaseLostError, OSError):
            attempt.interrupt()
        return CellResult(End.INTERRUPTED, str(error))
    except Exception as error:  # whatever it is, the other cells of the grid go on
        heartbeat.stop()
        if context.is_patient and _is_blocked(error, context.runs):
            with contextlib.suppress(LeaseLostError, OSError):
                attempt.interrupt()
            return CellResult(End.BLOCKED, advice(error, attempt.folder.path) or str(error))
        return CellResult(End.FAILED, _record_failure(attempt, error))


def _train(
    attempt: Attempt,
    heartbeat: _Heartbeat,
    settings: Settings,
    dataset: Dataset,
    context: RunContext,
    group: RankGroup,
) -> CellResult:
    folder = attempt.folder.path
    # Sums depend on how many threads share them: a resumed run keeps the count it started with.
    earlier = attempt.provenance()["attempts"]
    threads = int(earlier[0]["threads"]) if earlier else context.threads
    torch.set_num_threads(threads)
    group.ranks.broadcast((attempt.number, threads))
    if settings.code and settings.code != training_code():
        raise OtherCodeError(
            f"this run is to be trained with the code {settings.code}; that at hand is {training_code()}  [code]"
        )
    look_in(context.runs)
    references = {**reference_lines(settings, dataset, context.runs), **loss_ends(settings)}
    attempt.write_provenance(references, _provenance(context, dataset, threads, group.ranks.world_size))
    num_steps = settings.epochs * (len(dataset.train) // settings.batch_size)
    attempt.progress = {"num_steps": num_steps, "epochs": settings.epochs}

    watch = _Watch(attempt, heartbeat, context)
    hooks = Hooks(
        should_stop=watch.should_stop,
        before_publishing=watch.before_publishing,
        on_point=watch.on_point,
        on_step=watch.on_step,
        on_saved=watch.on_saved,
        checkpoint_seconds=context.checkpoint_seconds,
    )
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
    outcome = train(
        settings, dataset, folder, attempt=attempt.number, device=context.device, hooks=hooks, ranks=group.ranks
    )
    heartbeat.stop()
    if outcome is None:
        attempt.write_state(State.STOPPED)
        return CellResult(End.STOPPED)
    points = curves.merge(folder)
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
        "peak_memory_bytes": _peak_memory(context.device),
        "gpu_busy_percent": heartbeat.gpu_busy_percent(),
    }
    attempt.finish(points, result)
    replaced = final.get("replaced_images")
    words = [outcome] * (outcome != "healthy") + [f"{replaced} damaged images replaced"] * bool(replaced)
    return CellResult(End.DONE, ", ".join(words))


def _lack_of_progress(attempt: Attempt, attempts_before: int | None) -> str:
    """Why the run is to be given up: its last attempts all died where this one would start. Empty if it is not."""
    if attempts_before is None:
        return ""
    earlier = range(attempts_before + 1, attempt.number)[-MAX_WITHOUT_PROGRESS:]
    here = checkpoint.step(attempt.folder.path) or 0
    # An attempt that has no curves died before its first step.
    if len(earlier) < MAX_WITHOUT_PROGRESS or any(_resumed_at(attempt, number, here) != here for number in earlier):
        return ""
    return (
        f"given up: {MAX_WITHOUT_PROGRESS} attempts ended after step {here} without a checkpoint beyond it. If the node"
        f" was taken away each time, checkpoints must come more often than that"
    )


def _resumed_at(attempt: Attempt, number: int, default: int) -> int:
    try:
        with open(attempt.folder.path / f"metrics.{number}.jsonl", encoding="utf-8") as file:
            return int(json.loads(file.readline())["resumed_at_step"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return default


class _Watch:
    """What a run tells its launcher while it trains, and how its launcher stops it."""

    def __init__(self, attempt: Attempt, heartbeat: _Heartbeat, context: RunContext) -> None:
        self._attempt, self._heartbeat, self._context, self._cores = attempt, heartbeat, context, CoreWatch()
        self._observe = _observer()
        self._last_look: float | None = None
        self._saving_since = 0.0

    def should_stop(self) -> bool:
        """Asked between two steps; how long a request to stop can go unnoticed is part of the progress."""
        now = time.monotonic()
        if self._last_look is not None:
            self._grow("unheard_seconds", now - self._last_look)
        self._last_look = now
        return self._heartbeat.lost or self._context.should_stop()

    def before_publishing(self) -> None:
        self._attempt.check_ownership()
        self._saving_since = time.monotonic()

    def on_saved(self, step: int) -> None:
        self._grow("checkpoint_seconds", time.monotonic() - self._saving_since)
        self._last_look = None if self._last_look is None else time.monotonic()
        self._observe(self._attempt.folder.run_id, self._attempt.number, step, "checkpoint")

    def on_point(self, point: Point) -> None:
        shared = {"cores_are_shared": self._cores.are_shared()}
        self._attempt.progress = {**self._attempt.progress, **_numbers(point), **shared}
        self._context.on_progress(self._attempt.progress)

    def on_step(self, step: int) -> None:
        self._heartbeat.last_step = time.monotonic()
        self._attempt.progress["step"] = step
        self._observe(self._attempt.folder.run_id, self._attempt.number, step, "step")

    def _grow(self, name: str, seconds: float) -> None:
        self._attempt.progress[name] = max(round(seconds, 3), self._attempt.progress.get(name, 0.0))


Observer = Callable[[str, int, int, str], object]


@cache
def _observer() -> Observer:
    """The user's own, ABLATION_OBSERVER=module:function, called with (run, attempt, step, "step" or "checkpoint")."""
    name = os.environ.get("ABLATION_OBSERVER")
    if not name:
        return lambda run, attempt, step, event: None
    module, _, function = name.partition(":")
    observer: Observer = getattr(importlib.import_module(module), function)
    return observer


def _numbers(point: Point) -> Point:
    """A point without its spectrum and its images' correctness, which are for the curves alone."""
    return {name: value for name, value in point.items() if not isinstance(value, list | str)}


def _record_failure(attempt: Attempt, error: Exception) -> str:
    """Keep the traceback in the run's folder; returns the reason in a line."""
    reason = advice(error, attempt.folder.path) or f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        attempt.fail("".join(traceback.format_exception(error)))
    except Exception as second:  # a full disk, most likely the failure itself
        return f"{reason} (and failure.txt could not be written: {second})"
    return f"{reason} (see {attempt.folder.path / 'failure.txt'})"


def _is_blocked(error: Exception, runs: Path) -> bool:
    """Whether to wait for the surroundings; not for room in shared memory, which the job itself has used up."""
    return surrounding_fault(error) is not None and _full_place(error, runs) != SHARED_MEMORY


def advice(error: Exception, folder: Path) -> str:
    """What to change, for an error that says that memory or disk ran out; empty for any other.

    ``folder``: the run's, or that of all runs.
    """
    text = str(error).splitlines()[0] if str(error) else ""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left" in text or is_full:
        place = _full_place(error, folder)
        if place == SHARED_MEMORY:
            return (
                f"no room in {place} ({text}), the memory that processes share: give it more (docker --shm-size,"
                " `mount -o remount,size=`), or fewer cells at a time (-j)"
            )
        if place is not None:
            return f"no room to write ({text}): {place} is full, or its quota is; free room there"
        return f"no room to write ({text}): `gc` frees what ended runs do not need"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"out of memory on the GPU ({text}): a smaller batch_size, fewer cells at a time (-j, or cells_per_gpu in a"
            " cluster's profile), or a larger GPU"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return (
            f"out of memory ({text}): fewer cells at a time (-j, or cells_per_gpu in a cluster's profile), more"
            " `memory` in the profile, or data.storage=files"
        )
    return ""


def _full_place(error: Exception, folder: Path) -> Path | None:
    """Where there was no room, if it was not on the file system of ``folder``.

    An error names its file only where that was being opened. Otherwise the code that raised it tells (locks and shared
    tensors are files in /dev/shm), or which place has no room.
    """
    called = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    name = error.filename if isinstance(error, OSError) else None
    if isinstance(name, str | bytes):
        path = Path(os.fsdecode(name)).absolute()
        path = next(place for place in (path.parent, *path.parents) if place.exists())
        return None if path.stat().st_dev == folder.stat().st_dev else path
    if "shared memory" in str(error) or any("multiprocessing" in parts for parts in called):
        return SHARED_MEMORY
    temporary = Path(tempfile.gettempdir())
    return temporary if _has_no_room(temporary) and not _has_no_room(folder) else None


def _has_no_room(place: Path) -> bool:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize < 2**20 or (found.f_files > 0 and found.f_favail == 0)


class _Heartbeat(threading.Thread):
    """Publishes the state every few seconds, from a thread: a run whose steps hang still has a heartbeat.

    At each it looks how busy the GPU is.
    """

    def __init__(self, attempt: Attempt, device: torch.device) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._attempt, self._stopped = attempt, threading.Event()
        self._device, self._gpu_busy = device, list[int]()
        self.lost = False  # whether another attempt has taken the run over
        self.last_step = time.monotonic()

    def run(self) -> None:
        while True:
            try:
                self._attempt.progress["still_seconds"] = round(time.monotonic() - self.last_step, 1)
                self._attempt.write_state(State.RUNNING)
            except LeaseLostError:
                self.lost = True
                return
            except OSError as error:  # a full disk, a network that is away: the next beat may go through
                print(f"{self._attempt.folder.path}: no heartbeat written ({error})", file=sys.stderr, flush=True)
            if self._device.type == "cuda":
                # Whatever NVML lacks (its package, its driver, the right), the run goes on without this number.
                with contextlib.suppress(Exception):
                    self._gpu_busy.append(torch.cuda.utilization(self._device))
            if self._stopped.wait(HEARTBEAT_SECONDS):
                return

    def gpu_busy_percent(self) -> float | None:
        """Mean percent of the time in which kernels ran on the GPU, whoever's: of rank 0, in this attempt."""
        return fmean(self._gpu_busy) if self._gpu_busy else None

    def stop(self) -> None:
        """End the thread, if it was started; after this nobody else writes the state."""
        self._stopped.set()
        if self.is_alive():
            self.join()


# --- what goes beside the numbers --------------------------------------------------------------------------------


def reference_lines(settings: Settings, dataset: Dataset, runs: Path) -> dict[str, float]:
    """Top-1 (percent) that needs no learning: kNN and linear on pixels, and chance. Computed once a data set."""
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
    if known is None or (evaluation.linear and "raw_pixels" in known and "raw_pixels_linear" not in known):
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
            if evaluation.linear:
                known["raw_pixels_linear"] = raw_pixel_linear_top1(
                    bank.images, bank.labels, queries.images, queries.labels
                )
        make_beside_runs(path.parent)
        with contextlib.suppress(PermissionError):  # another user's: it is computed again each time
            write_json(path, known, str(os.getpid()))
    return known


def _provenance(context: RunContext, dataset: Dataset, threads: int, num_ranks: int) -> dict[str, Any]:
    device = context.device
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": context.command,
        **code(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy")},
        },
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "threads": threads,
        "ranks": num_ranks,
        "data_fingerprint": dataset.fingerprint,
        "claims": registered_claims(context.runs),
        "slurm_job": own_job() or None,
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process (which may have trained other runs before)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
