"""Cluster profiles: what a job on a SLURM cluster asks for, and how cells are spread over jobs.

The ones that ship in ``clusters/`` are examples to copy; a user's own lies anywhere. This module imports no torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from experiments.studies.yaml_files import Document, parse_model, read
from simsiam.errors import SettingsError, nearest

HERE = Path(__file__).parent.parent / "clusters"
# What the program sets itself; in `options:` they would contradict it, or break what makes a grid safe.
RESERVED = (
    "array", "chdir", "comment", "dependency", "error", "export", "hold", "job-name", "no-requeue", "open-mode",
    "output", "parsable", "requeue", "signal", "test-only", "wait", "wrap",
)  # fmt: skip
# sbatch's options that a profile has keys for, which its checks and messages go by.
KEYS = {
    "account": "account", "A": "account", "constraint": "constraint", "C": "constraint", "cpus-per-task":
    "cpus_per_task", "c": "cpus_per_task", "gpus": "gpus_per_task", "G": "gpus_per_task", "gpus-per-node":
    "gpus_per_task", "gpus-per-task": "gpus_per_task", "mem": "memory", "nodes": "nodes", "N": "nodes", "ntasks":
    "tasks_per_node", "n": "tasks_per_node", "ntasks-per-node": "tasks_per_node", "partition": "partition", "p":
    "partition", "qos": "qos", "q": "qos", "time": "time_limit", "t": "time_limit",
}  # fmt: skip


def minutes_from(value: Any) -> Any:
    """SLURM's notation of a time (minutes, H:MM:SS, D-HH:MM:SS ...) in minutes, rounded up."""
    if not isinstance(value, str):
        return value
    if value.strip().isdecimal():
        return int(value)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value.strip())
    if not match or (match[1] is None and match[3] is None):
        raise ValueError("must be a number of minutes, or a time such as 4:00:00 or 2-12:00:00 (days-hours)")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:
        hours, minutes, seconds = first, second, third
    elif match[4] is None:  # SLURM reads 30:00 as minutes and seconds
        hours, minutes, seconds = 0, first, second
    else:
        hours, minutes, seconds = first, second, third
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


def memory_from(value: Any) -> Any:
    """SLURM's notation of memory, as it is."""
    if value is not None and not re.fullmatch(r"\d+[KMGT]", str(value)):
        raise ValueError("must be a number with K, M, G or T, such as 32G")
    return value


def mount_from(value: Any) -> Any:
    """A mount as the containers' commands take it."""
    if not isinstance(value, str) or not re.fullmatch(r"/[^:,]*:/[^:,]*(:[^:,]+)?", value):
        raise ValueError("must be /SOURCE:/TARGET, two absolute paths without commas")
    return value


def one_of_many(value: Any) -> Any:
    """A list of partitions as SLURM writes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) and value else value


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Container(BaseModel):
    """An image in which the tasks of a job run. The job's script and the follow-up run outside of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["apptainer", "pyxis", "enroot"]
    image: Text  # as apptainer exec, srun --container-image or enroot start takes it
    mounts: tuple[Annotated[str, BeforeValidator(mount_from)], ...] = ()  # /SOURCE:/TARGET
    options: tuple[str, ...] = ()  # further ones, of that command


class Profile(BaseModel):
    """What is asked of a cluster for each job."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    description: str = ""
    # Where
    partition: Annotated[Text, BeforeValidator(one_of_many)] | None = None  # several: whichever starts a job first
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    # How much, for each job
    nodes: Count = 1
    tasks_per_node: Count = 1
    gpus_per_task: Annotated[int, Field(ge=0)] = 1
    cpus_per_task: Count = 4
    memory: Annotated[str, BeforeValidator(memory_from)] | None = None  # of a node
    time_limit: Annotated[Count, BeforeValidator(minutes_from)] = 240  # minutes
    array_parallelism: Count = 8  # jobs at the same time
    # How cells are spread
    cells_per_gpu: Count = 1
    mps: bool = False  # NVIDIA's service by which they compute at the same time
    cells_per_task: Count | None = None  # none: a task takes cells until none is left
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_failures: Count = 2  # of a cell, before it counts as failed
    # Where a job finds things
    setup: tuple[str, ...] = ()
    python: Text | None = None  # on the nodes, or in the container; none: the one that launches, or python3
    container: Container | None = None
    options: dict[str, str | int | bool] = {}
    srun_options: tuple[str, ...] = ()
    runs: Text | None = None
    data: Text | None = None
    local_data: Text | None = None
    # Interruptions
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    grace: Annotated[int, Field(ge=1)] = 120  # seconds
    follow_up: bool = True
    follow_up_options: dict[str, str | int | bool] = {}
    notify: Text | None = None  # a shell command that gets a summary, at the end, a failure and a standstill

    @field_validator("options", "follow_up_options")
    @classmethod
    def _no_reserved(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for given in options:
            name = given.replace("_", "-").lstrip("-")
            if name in RESERVED and not (name == "dependency" and info.field_name == "options"):
                raise ValueError(
                    f"the option {name} cannot be set here: the launcher does so itself, or could not work with it"
                )
            if name in KEYS and info.field_name == "options":
                raise ValueError(f"the option {name} cannot be set here: it is the profile's own key `{KEYS[name]}`")
        return options

    @field_validator("srun_options")
    @classmethod
    def _no_reserved_srun(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for given in options:
            found = re.match(r"--([\w-]+)|-(\w)", given)
            if found is None:
                raise ValueError(f"{given} must begin with -, as srun's options do, such as --cpu-bind=cores")
            name = found[1] or found[2]
            if name in (*RESERVED, *KEYS, "kill-on-bad-exit", "K", "unbuffered", "u"):
                raise ValueError(f"the option {name} cannot be set here: the launcher does so itself")
        return options

    @property
    def ranks(self) -> int:
        """Processes that train one cell together."""
        return self.nodes * self.tasks_per_node

    @property
    def on_gpu(self) -> bool:
        """Whether cells are trained on GPUs."""
        return self.device == "cuda" or (self.device == "auto" and self.gpus_per_task > 0)

    @property
    def cells_at_once(self) -> int:
        """Cells that one task trains at the same time."""
        return self.cells_per_gpu * (self.gpus_per_task if self.on_gpu and self.ranks == 1 else 1)

    @property
    def threads(self) -> int:
        """CPU threads for each cell."""
        return max(1, self.cpus_per_task // self.cells_at_once)


@dataclass(frozen=True)
class Cluster:
    """A profile and the file that it comes from."""

    name: str
    profile: Profile
    document: Document

    def at(self, key: str) -> str:
        """``file:line`` of a key, for a message."""
        return self.document.at(key)


def cluster_names() -> list[str]:
    """The profiles that ship, which are examples."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load_cluster(name: str) -> Cluster:
    """A profile that ships, by name, or a user's own, by the path of its file. Raises SettingsError."""
    path = HERE / f"{name}.yaml"
    if name not in cluster_names():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise SettingsError(
                f"cluster: {name!r} is neither an example that ships ({', '.join(cluster_names())}) nor a .yaml file"
                f"{nearest(name, cluster_names())}  [--cluster]"
            )
    document = read(path)
    profile = parse_model(Profile, document, lambda keys: list((Container if keys else Profile).model_fields))
    as_written = {key: _as_written(getattr(profile, key), document, key) for key in ("options", "follow_up_options")}
    cluster = Cluster(path.stem, profile.model_copy(update=as_written), document)
    profile = cluster.profile
    if profile.device == "cuda" and profile.gpus_per_task == 0:
        raise SettingsError(f"device: cuda needs gpus_per_task of at least 1  [{cluster.at('device')}]")
    if profile.grace >= profile.time_limit * 60:
        raise SettingsError(
            f"grace: {profile.grace} s must be less than the time limit of {profile.time_limit} min, or every job would"
            f" be told to stop as it starts  [{cluster.at('grace')}]"
        )
    if profile.ranks > 1 and profile.cells_per_gpu > 1:
        raise SettingsError(
            f"cells_per_gpu: must be 1, not {profile.cells_per_gpu}, where {profile.ranks} tasks train each cell"
            f" together (nodes x tasks_per_node)  [{cluster.at('cells_per_gpu')}]"
        )
    if profile.mps and (profile.cells_per_gpu == 1 or not profile.on_gpu):
        raise SettingsError(
            f"mps: true needs cells that share a GPU (cells_per_gpu of at least 2)  [{cluster.at('mps')}]"
        )
    if profile.cpus_per_task < profile.cells_at_once:
        raise SettingsError(
            f"cpus_per_task: {profile.cpus_per_task} must be at least the {profile.cells_at_once} cells that a task"
            f" trains at once (cells_per_gpu x gpus_per_task)  [{cluster.at('cpus_per_task')}]"
        )
    return cluster


def expanded(cluster: Cluster, key: Literal["runs", "data", "local_data"]) -> Path | None:
    """A path of a profile, with ~ and the variables of this process; None if the profile has none.

    Raises SettingsError for a variable that is not set.
    """
    text = getattr(cluster.profile, key)
    if text is None:
        return None
    path = os.path.expandvars(os.path.expanduser(text))
    if unset := re.search(r"\$(\w+|\{[^}]*\})", path):
        raise SettingsError(f"{key}: {text}: the variable {unset[0]} is not set here  [{cluster.at(key)}]")
    return Path(path)


def _as_written(options: dict[str, str | int | bool], document: Document, key: str) -> dict[str, str | int | bool]:
    """Options of sbatch as the file has them: ``exclude: 010`` is no ten; but true and false are flags."""
    return {
        name: value if isinstance(value, bool | str) else document.written[key, name] for name, value in options.items()
    }


def warnings(cluster: Cluster) -> list[str]:
    """What is allowed, but will not go well."""
    profile, found = cluster.profile, []
    if profile.container and profile.container.image.startswith("/") and not os.path.exists(profile.container.image):
        image = profile.container.image
        found.append(f"container: the image {image} is not there on this machine  [{cluster.at('container')}]")
    limit = profile.time_limit * 60
    if limit < profile.checkpoint_minutes * 60 + profile.grace:
        found.append(
            f"time_limit: {profile.time_limit} min is shorter than a checkpoint interval"
            f" ({profile.checkpoint_minutes:g} min) and the grace time ({profile.grace} s) together"
            f"  [{cluster.at('time_limit')}]"
        )
    if profile.grace > limit / 2:
        found.append(
            f"grace: {profile.grace} s is more than half of the time limit: a job would be told to stop before it"
            f" has done much  [{cluster.at('grace')}]"
        )
    return found
