"""SLURM's commands: few calls, each with a time-out. This module imports no torch."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.runs import slurm_environment
from simsiam.errors import UserError

TIMEOUT = 30.0  # seconds, for a controller that is busy
AWAY = ("unable to contact", "socket timed out", "connection refused", "did not answer", "zero bytes")


class SlurmError(UserError, RuntimeError):
    """SLURM is not there, does not answer, or refuses; the message is for the user."""


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, as squeue shows it."""

    id: str
    user: str
    state: str
    reason: str
    left: str  # of its time limit
    nodes: str
    name: str
    start: str = ""  # when it began, or is expected to
    folder: str = ""  # that it works in; of a launch's job, the launch's
    comment: str = ""

    @property
    def is_pending(self) -> bool:
        """Whether it has yet to start."""
        return self.state == "PENDING"

    @property
    def is_held(self) -> bool:
        """Whether somebody must release it before it can start."""
        return "held" in self.reason.lower()

    def __str__(self) -> str:
        return self.state.lower() + (f" ({self.reason})" if self.is_pending else "")


def call(command: Sequence[str], timeout: float = TIMEOUT, *, given: str | None = None) -> str:
    """What a command of SLURM prints; ``given`` something to read, its messages too. Raises SlurmError."""
    environment = slurm_environment.without_job()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, input=given)
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: no such command: there is no SLURM here. `launch` needs a login node of the cluster;"
            " `run` trains on this machine"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: SLURM's controller did not answer within {timeout:.0f} s") from None
    if done.returncode != 0:
        message = " ".join((done.stderr or done.stdout).split())
        if "resolve_ctls" in message or "fetch_config" in message:
            raise SlurmError(
                f"{command[0]}: SLURM's commands are here, but they know of no cluster: this is no login node, or"
                " SLURM_CONF is not set"
            )
        raise SlurmError(message or f"{' '.join(command)}: exit code {done.returncode}")
    return done.stdout + (done.stderr if given is not None else "")


def insist(command: Sequence[str], timeout: float = TIMEOUT) -> str:
    """As :func:`call`, for what may be asked twice: three times, if the controller is away. Raises SlurmError."""
    for _ in range(2):
        try:
            return call(command, timeout)
        except SlurmError as error:
            if not is_away(error):
                raise
            time.sleep(5)
    return call(command, timeout)


def is_away(error: SlurmError) -> bool:
    """Whether the controller did not answer, rather than refuse."""
    return any(words in str(error).lower() for words in AWAY)


def my_jobs() -> list[Job]:
    """All jobs of this user that wait or run, the tasks of arrays one by one. Raises SlurmError."""
    return _jobs("--me")


def jobs_named(names: Sequence[str]) -> list[Job]:
    """Jobs of these names, whoever's, as far as the cluster shows them. Raises SlurmError."""
    return _jobs(f"--name={','.join(names)}") if names else []


def _jobs(which: str) -> list[Job]:
    # --all: also in partitions that are hidden.
    output = call(["squeue", which, "--all", "--array", "--noheader", "--format", "%i|%u|%T|%r|%L|%N|%j|%S|%Z|%k"])
    found = [line.split("|", 9) for line in output.splitlines() if line.count("|") >= 9]
    return [Job(*(*fields[:9], fields[9].removeprefix("(null)"))) for fields in found]


@dataclass(frozen=True)
class Used:
    """What one start of a job, or of a task of an array, has used, as SLURM's accounting has it."""

    job: str
    seconds: int
    limit_seconds: int  # that it could have taken; 0 if unlimited
    cpus: int
    cpu_seconds: float
    peak_bytes: float  # of one task; 0 if not on record


def used_by(jobs: Sequence[str]) -> list[Used]:
    """From the accounting, those that ran. Raises SlurmError, also where there is none."""
    fields = "JobID,ElapsedRaw,TimelimitRaw,AllocCPUS,TotalCPU,MaxRSS"
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--format={fields}", f"--jobs={','.join(jobs)}"]
    found: list[Used] = []
    for line in call(command, timeout=120).splitlines():
        name, seconds, limit, cpus, cpu, peak = line.split("|")
        if "." not in name and int(seconds or 0):
            minutes = int(limit) if limit.isdecimal() else 0
            found.append(Used(name, int(seconds), 60 * minutes, int(cpus or 0), seconds_of(cpu), 0.0))
        elif "." in name and found:  # a step of the job before
            found[-1] = replace(found[-1], peak_bytes=max(found[-1].peak_bytes, bytes_of(peak)))
    return found


def bytes_of(text: str) -> float:
    """``32G``, ``1500K``, ``7168Mn``; 0 for nothing."""
    match = re.match(r"([\d.]+)([KMGT]?)", text)
    return float(match[1]) * 1024.0 ** " KMGT".index(match[2] or " ") if match else 0.0


def seconds_of(text: str) -> float:
    """``1-02:03:04``, ``02:03.456``; 0 for nothing."""
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":") if part]
    return 86400 * float(days or 0) + sum(part * 60.0**power for power, part in enumerate(reversed(parts)))


def expected_start(script: str) -> str:
    """When and where SLURM would start a job of this script now, in its own words. Raises SlurmError if it refuses."""
    said = call(["sbatch", "--test-only"], given=script)
    found = re.search(r"to start at (\S+).*", said)
    return found[0] if found else " ".join(said.split())


def own_state() -> tuple[str, int]:
    """The state of the job that this process is part of, and how often it was restarted. Raises SlurmError."""
    output = call(["scontrol", "show", "job", "--oneliner", slurm_environment.job()["job"]])
    state, restarts = re.search(r"\bJobState=(\w+)", output), re.search(r"\bRestarts=(\d+)", output)
    return (state[1] if state else "UNKNOWN"), int(restarts[1]) if restarts else 0


def requeue(job: str) -> None:
    """Put a job (one task of an array, never the array) back into the queue. Raises SlurmError."""
    call(["scontrol", "requeue", job])


def begin(job: str, when: str) -> None:
    """Set when a job that waits may start: ``now``, ``now+10minutes``. Raises SlurmError."""
    insist(["scontrol", "update", f"JobId={job}", f"StartTime={when}"])


def comment(job: str, text: str) -> None:
    """Write something beside a job, where the queue shows it: needs no disk. Raises SlurmError."""
    call(["scontrol", "update", f"JobId={job}", f"Comment={' '.join(text.split())[:200]}"])


def release(job: str) -> None:
    """Let a held job start. Raises SlurmError."""
    insist(["scontrol", "release", job])


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Raises SlurmError."""
    for first in range(0, len(jobs), 200):
        insist(["scancel", *jobs[first : first + 200]], timeout=120)


def settings() -> Mapping[str, str]:
    """`scontrol show config` as a mapping. Raises SlurmError."""
    pairs = (line.split("=", 1) for line in call(["scontrol", "show", "config"]).splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cluster_name() -> str | None:
    """What the cluster that answers here calls itself. Raises SlurmError."""
    return settings().get("ClusterName")


def partition(name: str | None) -> Mapping[str, str]:
    """`scontrol show partition` of one partition, or of the default one. Raises SlurmError."""
    blocks = call(["scontrol", "show", "partition", "--oneliner", *([name] if name else [])]).splitlines()
    found = [dict(item.split("=", 1) for item in block.split() if "=" in item) for block in blocks if block]
    chosen = [block for block in found if name or block.get("Default") == "YES"]
    return chosen[0] if chosen else {}


def seconds_from(text: str) -> int | None:
    """``30`` or ``30 sec`` in seconds; None for anything else."""
    match = re.match(r"(\d+)\b", text)
    return int(match[1]) if match else None
