"""NVIDIA's Multi-Process Service: the cells that share a GPU compute on it at the same time, not in turns."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from experiments.slurm.profile import Profile

COMMAND = "nvidia-cuda-mps-control"


def is_there() -> bool:
    """Whether this node has the service's command."""
    return shutil.which(COMMAND) is not None


@contextlib.contextmanager
def service(profile: Profile) -> Iterator[None]:
    """The service, for processes that are started within, if the profile asks for it and the node has it.

    It is this job's own, with its pipes in a folder of its own; a job that is killed takes it along.
    """
    if not profile.mps or not is_there():  # check_node says what is missing
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(places)
        subprocess.run([COMMAND, "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run([COMMAND], input="quit\n", text=True, check=False)
            for name in places:
                del os.environ[name]
