"""How a job's tasks start Python: on the node, or in a container of Apptainer, Pyxis or Enroot. Imports no torch."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.slurm.profile import Container, Profile
from simsiam.errors import SettingsError

# A program between srun and Python may undo what it is told about signals, so this stands on both sides of it. Until
# work() sees to them, TERM and USR2 must not kill the interpreter: a job that ends by itself while it is being
# preempted is not queued again.
IGNORE = "trap '' TERM USR2; "
GUARD = IGNORE + 'exec "$0" "$@"'
# Of the node, and wrong in a container.
NOT_PASSED = "PATH|HOME|PWD|OLDPWD|SHLVL|_|TMPDIR|LD_LIBRARY_PATH|PYTHONHOME|VIRTUAL_ENV"


@dataclass(frozen=True)
class Start:
    """What stands in the job's script before ``-m MODULE``, and the options of srun that go with it."""

    command: str
    srun_options: tuple[str, ...] = ()


def start(profile: Profile, folder: Path, shared: Sequence[Path]) -> Start:
    """How a task of a job starts Python; a container has ``folder`` to work in, ``shared`` at their paths."""
    container = profile.container
    if container is None:
        return Start(shlex.join(["bash", "-c", GUARD, profile.python or sys.executable]))
    for path in shared:
        if re.search("[:,]", str(path)):
            raise SettingsError(f"{path}: a folder that is mounted into a container must have no : or , in its name")
    inside = ["sh", "-c", f"cd {shlex.quote(str(folder))} && {GUARD}", profile.python or "python3"]
    mounts = [*(f"{path}:{path}" for path in dict.fromkeys(map(str, shared))), *container.mounts]
    if container.kind == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
        return Start(shlex.join(inside), (*options, *container.options))
    return Start(_wrapped(container, mounts, inside, gpus=profile.on_gpu))


def _wrapped(container: Container, mounts: Sequence[str], inside: Sequence[str], *, gpus: bool) -> str:
    if container.kind == "apptainer":
        options = ["--nv"] if gpus else []
        options += [part for mount in mounts for part in ("--bind", mount)]
        return shlex.join(
            ["bash", "-c", GUARD, "apptainer", "exec", *options, *container.options, container.image, *inside]
        )
    # Enroot takes over no variable that is not named.
    variables = f"$(compgen -e | grep -vxE {shlex.quote(NOT_PASSED)} | sed 's/^/--env /')"
    options = [part for mount in mounts for part in ("--mount", mount)]
    rest = shlex.join([*options, *container.options, container.image, *inside])
    return shlex.join(["bash", "-c", f'{IGNORE}exec enroot start {variables} {rest} "$@"', "enroot"])
