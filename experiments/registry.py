"""The launchers and queues that there are, for the commands: the one place that names them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.launcher import Launcher, Queue
from experiments.slurm.profile import Cluster
from experiments.slurm.queue import SlurmQueue


def queues() -> Sequence[Queue]:
    """Every queue that jobs of this program may be in. `run` has none: it stays until its cells have ended."""
    return [SlurmQueue()]


def launcher_for(cluster: Cluster) -> Launcher:
    """What submits to a cluster."""
    from experiments.slurm.launcher import SlurmLauncher  # imports submitit

    return SlurmLauncher(cluster)
