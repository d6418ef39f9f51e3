"""Why SLURM refuses a job, in words that name the setting."""

from __future__ import annotations

from experiments.slurm.commands import SlurmError
from experiments.slurm.profile import Cluster

# What sbatch says, and the key of a profile that it is about.
BLAME = {
    "account": "account", "partition": "partition", "qos": "qos", "feature": "constraint", "constraint": "constraint",
    "time limit": "time_limit", "memory": "memory", "generic resource": "gpus_per_task", "gres": "gpus_per_task",
    "node count": "nodes", "cpu count": "cpus_per_task", "node configuration": "gpus_per_task",
    "unrecognized option": "options", "invalid option": "options",
}  # fmt: skip
LIMITS = ("submit limit", "submitjob", "jobs limit", "job count limit", "maxsubmit", "maxjobs", "job limit")


def message_of(error: Exception) -> str:
    """What sbatch printed, without submitit's frame around it."""
    lines = [line for line in str(error).splitlines() if "sbatch: " in line] or str(error).splitlines()[-1:]
    words = [line.partition("sbatch: ")[2] or line for line in lines]
    return "; ".join(word.removeprefix("error: ").strip() for word in words)


def is_limit(error: Exception) -> bool:
    """Whether SLURM refuses more jobs for now: what is in the queue makes room again."""
    return any(limit in message_of(error).lower() for limit in LIMITS)


def explained(message: str, cluster: Cluster) -> SlurmError:
    """sbatch's refusal with the line of the profile that it is about; an empty message is none, but no answer."""
    if not message:
        return SlurmError("sbatch ended without an answer: `launch` again cancels what it left, and goes on")
    lower = message.lower()
    key = next((key for words, key in BLAME.items() if words in lower), None)
    if any(limit in lower for limit in LIMITS):
        key = "array_parallelism" if cluster.profile.cells_per_task is None else "cells_per_task"
    place = f"  [{cluster.at(key)}]" if key else f"  [{cluster.document.path}]"
    value = getattr(cluster.profile, key, None) if key else None
    about = f"{key}: {value!r}: " if key and value is not None else ""
    return SlurmError(f"{about}sbatch refuses: {message}{place}")
