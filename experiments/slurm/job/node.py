"""The node that a job runs on: whether it is as the profile asks for, and images on its own disk. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from experiments.runs import slurm_environment
from experiments.runs.folder import StoreError
from experiments.runs.provenance import ROOT
from experiments.slurm import mps
from experiments.slurm.launch import Launch
from experiments.slurm.profile import expanded
from simsiam.data.sets import fingerprint, prepared_paths
from simsiam.machine import num_cores
from simsiam.settings.fields import DataSettings
from simsiam.settings.identity import config_id


def check_node(launch: Launch) -> None:
    """Raises StoreError for what would make every cell of this job fail, or its numbers differ."""
    profile, node = launch.cluster.profile, slurm_environment.node()
    if not (launch.path / "code").exists():
        raise StoreError(f"{launch.path / 'code'}: the launch's copy of the code is gone: `launch` again makes another")
    if launch.path / "code" != ROOT:
        raise StoreError(f"{node}: runs the code in {ROOT}, not the launch's copy: PYTHONPATH was changed by `setup`?")
    if num_cores() < profile.cpus_per_task:
        raise StoreError(
            f"cpus_per_task: {profile.cpus_per_task} were asked for, but this job may use only {num_cores()} of {node}"
            f"  [{launch.cluster.at('cpus_per_task')}]"
        )
    visible = slurm_environment.visible_gpus()
    if profile.on_gpu and len(visible) < profile.gpus_per_task:
        raise StoreError(
            f"gpus_per_task: {profile.gpus_per_task} were asked for, but SLURM gave {len(visible)} on {node}"
            f"  [{launch.cluster.at('gpus_per_task')}]"
        )
    if profile.mps and not mps.is_there():
        raise StoreError(f"mps: {mps.COMMAND} is not there on {node}  [{launch.cluster.at('mps')}]")
    data = launch.spec.data
    for planned in {cell.planned.cell.settings.data: cell.planned for cell in launch.cells}.values():
        settings = planned.cell.settings
        found = fingerprint(settings.data, data)
        if found is None:
            raise StoreError(
                f"{data}: the images of {settings.data.name} are not there on {node}; --data must name a folder that"
                f" every node sees  [{launch.cluster.at('data')}]"
            )
        if config_id(settings, found) != planned.config_id:
            raise StoreError(f"{data}: other images of {settings.data.name} are there on {node} than at the launch")


def images_on_the_node(launch: Launch) -> Path:
    """Where to read images from: the launch's place, or a copy of it on the node's own disk if the profile says so."""
    source = launch.spec.data
    target = expanded(launch.cluster, "local_data")
    if target is None:
        return source
    copy_images({cell.planned.cell.settings.data for cell in launch.cells}, source, target)
    return target


def copy_images(data_sets: Iterable[DataSettings], source: Path, target: Path) -> None:
    """Copy prepared data sets from one place to another, unless they are there.

    Of many jobs and tasks on a node one copies, and the others wait for it.
    """
    target.mkdir(parents=True, exist_ok=True)
    with open(target / ".copying", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however that ends
        for settings in data_sets:
            if fingerprint(settings, target) == fingerprint(settings, source):
                continue
            for path in prepared_paths(settings):  # what says that they are there comes last
                aside = target / f".{path.name}.partial"
                if aside.exists():  # of a copy that was killed
                    shutil.rmtree(aside)
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source / path, aside)
                try:
                    os.rename(aside, target / path)
                except OSError:  # there from before, of a copy that was killed between two folders
                    shutil.rmtree(aside)
