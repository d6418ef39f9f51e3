"""What SLURM tells a process in its environment; the one file that reads SLURM's variables. Imports no torch."""

from __future__ import annotations

import os
import socket
from typing import Any

# What a job sets, and what would change a command of SLURM behind the back of who calls it: SBATCH_PARTITION goes
# before a script's own lines, SQUEUE_PARTITION hides jobs.
PREFIXES = (
    "SLURM_", "SUBMITIT_", "ABLATION_JOB", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_", "SBATCH_", "SRUN_", "SALLOC_",
    "SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_", "SACCT_", "SACCTMGR_", "SPRIO_", "SSHARE_", "SSTAT_", "SCROUN_",
)  # fmt: skip
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where the cluster is, and who asks


def job() -> dict[str, Any]:
    """The SLURM job (or array task) that this process is part of; empty outside of one.

    A job that SLURM starts again keeps its id, so the count of restarts is part of its identity.
    """
    name = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # absent in a job that is no array
        name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if name is None:
        return {}
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    return {"job": name, "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)), "cluster": cluster}


def rank() -> int:
    """The number of this task among those that srun started."""
    return int(os.environ["SLURM_PROCID"])


def num_tasks() -> int:
    """How many tasks srun started."""
    return int(os.environ["SLURM_NTASKS"])


def local_rank() -> int:
    """The number of this task among those on its node."""
    return int(os.environ["SLURM_LOCALID"])


def node() -> str:
    """SLURM's name of this node; outside of a job, the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def memory_bytes() -> int:
    """What the job may use on this node; 0 if it is not limited."""
    return int(os.environ.get("SLURM_MEM_PER_NODE", 0)) * 2**20


def visible_gpus() -> list[str]:
    """The GPUs that SLURM has given to this process."""
    return [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]


def without_job() -> dict[str, str]:
    """The environment for SLURM's commands, and for the job, which inherits the one that sbatch is called in.

    Without what an enclosing job, a shell on a GPU node, or the user's own habits left in it.
    """
    return {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(PREFIXES)}
