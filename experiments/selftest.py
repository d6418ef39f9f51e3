"""What a test on one machine without a GPU cannot show, for a user with a cluster to run: `cluster selftest`.

Runs inside a job of two tasks on one node, with the GPUs and memory of a profile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from experiments import slurm_environment


def exclusive_gpus() -> str:
    """Each task must see GPUs of its own, or share them knowingly: their UUIDs."""
    import torch

    if not torch.cuda.is_available():
        return f"FAILED: torch sees no GPU (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})"
    found = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
    return f"sees {len(found)}: {', '.join(found)}"


def nccl(folder: str) -> str:
    """An all-reduce over all tasks; its sum is known."""
    import torch
    import torch.distributed as dist

    rank, world = slurm_environment.rank(), slurm_environment.num_tasks()
    device = torch.device("cuda", slurm_environment.local_rank() % torch.cuda.device_count())
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    value = torch.full((1,), float(rank + 1), device=device)
    dist.all_reduce(value)
    dist.destroy_process_group()
    return "ok" if value.item() == world * (world + 1) / 2 else f"FAILED: the sum is {value.item()}"


def out_of_memory() -> str:
    """A child that takes more than the job may have must die alone, and of signal 9."""
    limit = slurm_environment.memory_bytes()
    if not limit:
        return "not tested: the profile sets no `memory`"
    code = f"block = bytearray({limit * 5 // 4})\nfor at in range(0, len(block), 4096): block[at] = 1"
    done = subprocess.run([sys.executable, "-c", code])
    if done.returncode == -9:
        return "ok: killed by signal 9, and this process lives"
    return f"FAILED: exit code {done.returncode}; memory is not limited by a cgroup"


def selftest(folder: str) -> None:
    """All tests, in each task of the job; the outcomes go to its log."""
    rank = slurm_environment.rank()
    tests: dict[str, Callable[[], str]] = {"exclusive GPUs": exclusive_gpus, "NCCL": lambda: nccl(folder)}
    if rank == 0:
        tests["out of memory"] = out_of_memory
    for name, test in tests.items():
        try:
            outcome = test()
        except Exception as error:  # the other tests go on
            outcome = f"FAILED: {type(error).__name__}: {error}"
        print(f"task {rank}: {name}: {outcome}", flush=True)
