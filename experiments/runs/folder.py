"""Run folders: who owns a run, what state it is in, what was made with what.

Ownership holds on network file systems, where locks are often off and clocks differ. The owner of a run is the
highest ``lease.<n>``, created exclusively and read back to find one's own random token; a lease is never deleted.
Taking over a dead run is creating n + 1, so exactly one contender wins. An owner checks that its lease is still the
highest before it publishes anything. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from experiments.runs import slurm_environment
from experiments.runs.states import State
from simsiam.errors import UserError
from simsiam.machine import machine_identity
from simsiam.record.atomic_files import sync_folder, write_atomically
from simsiam.settings.fields import Settings, without_effect
from simsiam.settings.identity import outside_id

DEAD_AFTER = 300.0  # seconds without a heartbeat, on the observer's own monotonic clock

Json = dict[str, Any]


class LeaseLostError(UserError, RuntimeError):
    """Another attempt has taken the run over; this one must publish nothing more."""


class StoreError(UserError, RuntimeError):
    """A run folder cannot be used, and why; the message is for the user."""


def read_json(path: Path) -> Json | None:
    """The object in a file, or None if there is none (not there yet, or not readable as JSON)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Json, aside: str) -> None:
    """Publish an object atomically."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text + "\n"), aside=aside, mode="w")


def make_beside_runs(path: Path) -> None:
    """Make a folder beside run folders, for whoever may make those: a lab's users share it as they share the place."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(path.parent.stat().st_mode))


def run_names(runs: Path) -> set[str]:
    """The names of the run folders. Raises StoreError if the place cannot be read."""
    try:
        return {entry.name for entry in os.scandir(runs)}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise StoreError(f"{runs}: run folders cannot be read here ({error.strerror})  [--runs]") from None


def _plain(values: Json) -> Json:
    """What is of the kind that was written: numbers of a sensible size, and texts; a damaged value is left out."""
    texts = ("state", "host", "beat_at")
    return {
        key: value
        for key, value in values.items()
        if (key in texts and isinstance(value, str))
        or (isinstance(value, int | float) and key not in texts and abs(value) < 1e15)
    }


# --- who is alive ------------------------------------------------------------------------------------------------


@cache
def _pid_space() -> str:
    """The machine and its space of process ids; what a pid means is known only within it."""
    with contextlib.suppress(OSError):  # not Linux
        return f"{machine_identity()} {os.readlink('/proc/self/ns/pid')}"
    return machine_identity()


def _start_time(pid: int) -> str | None:
    """When a process started, in units that are the same for all who ask; None if there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            # The second field, the command in brackets, may hold spaces and brackets of its own.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]  # a zombie does no work any more
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def own_job() -> Json:
    """The batch job that this process is part of: {"job", "restart", "cluster"}; empty outside of one.

    SLURM's, or what another launcher put into ABLATION_JOB as JSON. A job that is started again keeps its id, and
    ``restart`` counts how often that was.
    """
    named = os.environ.get("ABLATION_JOB")
    return json.loads(named) if named else slurm_environment.job()


def _is_earlier_life(owner: Json) -> bool:
    """Whether the owner is this very job before it was started again: it is dead, or cut off from its cluster."""
    mine = own_job()
    same = bool(mine) and all(owner.get(key) == mine[key] for key in ("job", "cluster"))
    return same and isinstance(owner.get("restart"), int) and owner["restart"] < mine["restart"]


def process_identity() -> Json:
    """This process, so that others on the same machine can tell whether it still lives: see is_process_alive."""
    return {
        "machine": _pid_space(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_time": _start_time(os.getpid()),
    }


def is_process_alive(identity: Json) -> bool | None:
    """Whether a process lives; None if it was on another machine, or there before this one was last booted."""
    if identity.get("machine") != _pid_space() or not isinstance(identity.get("pid"), int):
        return None
    return _start_time(identity["pid"]) == identity.get("start_time")


# --- a run's folder ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What a run's folder says of it."""

    state: State
    detail: Json  # state.json: step, epoch, loss ... as of the last heartbeat
    result: Json | None = None
    lease: int = 0  # the highest when the state was read
    certain: bool = True  # False: that it is running is only a guess until the heartbeat has been seen to change

    @property
    def is_alive(self) -> bool:
        """Whether its owner is known to live, and not just taken to be."""
        return self.state == State.RUNNING and self.certain


class RunFolder:
    """The folder of one run: reading its state, and claiming it."""

    def __init__(self, runs: Path, run_id: str) -> None:
        self.path = runs / run_id
        self.run_id = run_id

    def result(self) -> Json | None:
        """What the run came to, if it has ended."""
        result = read_json(self.path / "result.json")
        if result is None or not isinstance(result.get("outcome"), str) or not isinstance(result.get("final"), dict):
            return None  # none, or a damaged one: the run is finished again from its checkpoint
        return {**result, "final": _plain(result["final"])}

    def highest_lease(self) -> int:
        """The number of the newest attempt; 0 if there was none."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return 0
        return max((int(name[6:]) for name in names if re.fullmatch(r"lease\.\d+", name)), default=0)

    def status(self, heartbeats: Heartbeats | None = None) -> Status:
        """The state as far as this machine can tell; see :class:`Heartbeats` for what it takes to call a run dead."""
        lease = self.highest_lease()  # first: what is read after it is at least as new
        result = self.result()
        detail = _plain(read_json(self.path / "state.json") or {})
        if result is not None:
            return Status(State.DONE, detail, result, lease)
        if lease == 0:
            return Status(State.PENDING, detail)
        if detail.get("attempt") == lease and detail.get("state") in (State.FAILED, State.STOPPED, State.INTERRUPTED):
            return Status(State(detail["state"]), detail, None, lease)
        owner = self.owner(lease)
        alive = False if _is_earlier_life(owner) else is_process_alive(owner)
        certain = alive is not None
        if alive is None:
            # On another machine, or a lease caught between its creation and its writing: only the heartbeat tells.
            counter = (lease, detail.get("heartbeat") if detail.get("attempt") == lease else None)
            alive = heartbeats is None or heartbeats.is_beating(self.run_id, counter)
            certain = heartbeats is not None and heartbeats.has_beaten(self.run_id)
        return Status(State.RUNNING if alive else State.INTERRUPTED, detail, None, lease, certain or not alive)

    def owner(self, lease: int) -> Json:
        """Who holds a lease: host, process and batch job."""
        return read_json(self.path / f"lease.{lease}") or {}

    def claim(self, settings: Settings, heartbeats: Heartbeats, *, retry_failed: bool) -> Attempt | None:
        """Become the owner of the run; None if it is done, failed (and not to be retried) or somebody else's.

        Raises StoreError if the folder holds a run with other settings, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_config(settings)
            status = self.status(heartbeats)
            if status.state in (State.DONE, State.RUNNING) or (status.state == State.FAILED and not retry_failed):
                return None
            # The lease after the one that was judged: whoever else judged the same one wants the same number.
            return self._take(status.lease + 1, status.detail)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _check_config(self, settings: Settings) -> None:
        """A folder is made for the settings in its config.yaml; never reuse it for others."""
        path, wanted = self.path / "config.yaml", settings.model_dump(mode="json")
        unnamed = outside_id() | without_effect(settings)
        if path.exists():
            try:
                found = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
                raise StoreError(f"{path}: is damaged; move the folder away to train this run anew") from None
            # A switch that is newer than the folder has a default that keeps the old behaviour.
            if (
                not isinstance(found, dict)
                or not isinstance(found.get("data"), dict)
                or _naming(_with_defaults(found), unnamed) != _naming(wanted, unnamed)
            ):
                raise StoreError(f"{path}: holds other settings than this run's; move the folder away")
        else:
            text = yaml.safe_dump(wanted, sort_keys=False)
            write_atomically(path, lambda file: file.write(text), aside=secrets.token_hex(4), mode="w")

    def _take(self, number: int, before: Json) -> Attempt | None:
        token = secrets.token_hex(16)
        owner = {"token": token, **process_identity(), **own_job()}
        path, aside = self.path / f"lease.{number}", self.path / f".lease.{token}"
        try:
            with open(aside, "x", encoding="utf-8") as file:
                json.dump(owner, file)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)  # exclusive, and whole from its first moment on
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(self.path)
        # A network file system may report a failure that was none, or a success twice: the token that is there has won.
        if (read_json(path) or {}).get("token") != token or self.highest_lease() != number:
            return None
        for earlier in range(1, number):  # what a killed attempt was writing aside
            for leftover in self.path.glob(f".*.{earlier}"):
                leftover.unlink(missing_ok=True)
        return Attempt(self, number, before)


def _with_defaults(found: Json) -> Json:
    defaults = Settings().model_dump(mode="json")
    return {
        key: {**value, **found[key]}
        if isinstance(value, dict) and isinstance(found.get(key), dict)
        else found.get(key, value)
        for key, value in {**dict.fromkeys(found), **defaults}.items()
    }


def _naming(config: Json, unnamed: frozenset[str]) -> Json:
    """Settings without those that name no run, such as the path of an image folder, whose fingerprint is in the id."""
    return {
        key: {leaf: item for leaf, item in value.items() if f"{key}.{leaf}" not in unnamed}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


class Heartbeats:
    """Which owners on other machines are alive: those whose counter has changed within the last five minutes.

    The time is measured on this process's own monotonic clock from when it first saw a value; clocks and file times
    of different machines are never compared.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}
        self._beaten: set[str] = set()

    def is_beating(self, run_id: str, counter: object) -> bool:
        now = time.monotonic()
        if run_id not in self._seen or self._seen[run_id][0] != counter:
            if run_id in self._seen:
                self._beaten.add(run_id)
            self._seen[run_id] = (counter, now)
        return now - self._seen[run_id][1] < DEAD_AFTER

    def has_beaten(self, run_id: str) -> bool:
        """Whether the counter was seen to change, so that its owner is known to be alive and not just taken to be."""
        return run_id in self._beaten


class Attempt:
    """The right to train a run, until somebody takes it over."""

    def __init__(self, folder: RunFolder, number: int, before: Json) -> None:
        self.folder, self.number = folder, number
        self._heartbeat = 0
        self._started = time.monotonic()
        self._seconds_before = float(before.get("seconds", 0.0))
        self._device_seconds_before = float(before.get("device_seconds", self._seconds_before))
        self.num_ranks = 1  # processes that train it, each on a device of its own
        self.progress: Json = {}

    def check_ownership(self) -> None:
        """Raises LeaseLostError if another attempt has taken over."""
        if self.folder.highest_lease() != self.number:
            raise LeaseLostError(f"{self.folder.path}: another attempt has taken this run over")

    def seconds(self) -> float:
        """Wall time of the run so far, over all its attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def device_seconds(self) -> float:
        """The same, counted once for each rank."""
        return self._device_seconds_before + self.num_ranks * (time.monotonic() - self._started)

    def write_state(self, state: State) -> None:
        """Publish the state, the progress and a new count of the heartbeat."""
        self.check_ownership()
        self._heartbeat += 1
        value = {
            "state": state,
            "attempt": self.number,
            "heartbeat": self._heartbeat,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": self.seconds(),
            "device_seconds": self.device_seconds(),
            "beat_at": time.strftime("%Y-%m-%d %H:%M:%S"),  # for people; no program compares it
            **self.progress,
        }
        write_json(self.folder.path / "state.json", value, str(self.number))

    def provenance(self) -> Json:
        """provenance.json as earlier attempts left it."""
        return read_json(self.folder.path / "provenance.json") or {"references": {}, "attempts": []}

    def write_provenance(self, references: Json, attempt: Json) -> None:
        """Add this attempt to provenance.json."""
        earlier = [item for item in self.provenance()["attempts"] if item.get("attempt") != self.number]
        value = {"references": references, "attempts": [*earlier, {"attempt": self.number, **attempt}]}
        write_json(self.folder.path / "provenance.json", value, str(self.number))

    def finish(self, points: Iterable[Json], result: Json) -> None:
        """Publish the merged curves, then the result, then the state."""
        self.check_ownership()
        lines = "".join(json.dumps(point) + "\n" for point in points)
        write_atomically(
            self.folder.path / "metrics.jsonl", lambda file: file.write(lines), aside=str(self.number), mode="w"
        )
        self.check_ownership()
        write_json(self.folder.path / "result.json", {**result, "attempts": self.number}, str(self.number))
        (self.folder.path / "failure.txt").unlink(missing_ok=True)
        self.write_state(State.DONE)

    def interrupt(self) -> None:
        """Give the run up for others to claim at once: this process lives, but another rank of it is gone."""
        self.write_state(State.INTERRUPTED)

    def fail(self, traceback: str) -> None:
        """Record an exception; a retry may take the run up again."""
        self.check_ownership()
        write_atomically(
            self.folder.path / "failure.txt", lambda file: file.write(traceback), aside=str(self.number), mode="w"
        )
        self.write_state(State.FAILED)
