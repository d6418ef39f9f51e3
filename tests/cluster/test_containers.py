"""Jobs in containers: stand-ins for the three runtimes, which know their command lines, on bubblewrap and a real SLURM.

In the stand-ins' container there is the system's /usr and /etc, an environment at /opt/env, what is mounted, and
nothing else of this machine: not the environment that launched, nor, with Enroot, a variable that was not named.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.cluster.grid import CELL, Grid, Slurm, wait_for
from tests.conftest import ROOT

IMAGE = "/images/simsiam.sif"
QUICK = [*CELL, "--set", "epochs=2"]
BASE = Path(sys.base_prefix).resolve()
IN_CONTAINER = f"""bwrap --tmpfs / --ro-bind /usr /usr --ro-bind /etc /etc --symlink usr/bin /bin \
  --symlink usr/lib /lib --symlink usr/lib64 /lib64 --dev /dev --proc /proc \
  --ro-bind {BASE} {BASE} --ro-bind {sys.prefix} /opt/env"""
APPTAINER = f"""
[ "$1" = exec ] || exit 2
shift
while [[ $1 == --* ]]; do
  case $1 in
    --bind) binds+=(--bind "${{2%%:*}}" "${{2#*:}}"); shift 2;;
    --containall) shift;;
    *) echo "unknown: $1"; exit 2;;
  esac
done
[ "$1" = {IMAGE} ] || exit 2
shift
exec {IN_CONTAINER} "${{binds[@]}}" "$@"
"""
ENROOT = f"""
[ "$1" = start ] || exit 2
shift
names=()
while [[ $1 == --* ]]; do
  case $1 in
    --mount) binds+=(--bind "${{2%%:*}}" "${{2#*:}}"); shift 2;;
    --env) names+=("$2=${{!2}}"); shift 2;;
    --rw) shift;;
    *) echo "unknown: $1"; exit 2;;
  esac
done
[ "$1" = {IMAGE} ] || exit 2
shift
exec env -i PATH=/usr/bin:/bin "${{names[@]}}" {IN_CONTAINER} "${{binds[@]}}" "$@"
"""
# Pyxis is a plug-in of srun: the options are srun's.
SRUN = f"""
real=$(PATH=${{PATH#*:}} command -v srun)
while [[ $1 == --* ]]; do
  case $1 in
    --container-image=*) image=${{1#*=}};;
    --container-mounts=*) IFS=, read -ra mounts <<<"${{1#*=}}";;
    --no-container-mount-home) ;;
    --output|--error) options+=("$1" "$2"); shift;;
    *) options+=("$1");;
  esac
  shift
done
[ "$image" = {IMAGE} ] || exit 2
for mount in "${{mounts[@]}}"; do binds+=(--bind "${{mount%%:*}}" "${{mount#*:}}"); done
exec "$real" "${{options[@]}}" {IN_CONTAINER} "${{binds[@]}}" "$@"
"""


def stand_in(folder: Path, name: str, script: str) -> Path:
    """An executable that records its command line, then does what the one of that name does."""
    file = folder / "bin" / name
    file.parent.mkdir()
    record = shlex.quote(str(folder / "record"))
    file.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>{record}\n{script}')
    file.chmod(0o755)
    return file.parent


def grid_in(kind: str, slurm: Slurm, folder: Path, options: list[str], name: str, script: str) -> Grid:
    folder.mkdir()
    path = stand_in(folder, name, script)
    extra = folder / "extra"
    extra.mkdir()
    profile = {
        "python": "/opt/env/bin/python",
        "container": {"kind": kind, "image": IMAGE, "mounts": [f"{extra}:/mnt/extra"], "options": options},
        "setup": [f"export PATH={path}:$PATH OMP_NUM_THREADS=1 A_NAME='with spaces'"],
    }
    return Grid(slurm, folder / "grid", options=QUICK, profile=profile)


KINDS = {
    "apptainer": (["--containall"], "apptainer", APPTAINER),
    "enroot": (["--rw"], "enroot", ENROOT),
    "pyxis": (["--no-container-mount-home"], "srun", SRUN),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_in_a_container(kind: str, slurm: Slurm, folder: Path) -> None:
    grid = grid_in(kind, slurm, folder / f"in-{kind}", *KINDS[kind])
    said = grid.launch()
    assert f"the image {IMAGE} is not there on this machine" in said
    wait_for(grid.is_done, 300, grid.describe)
    assert not Path("/opt/env").exists()  # outside
    record = (grid.folder.parent / "record").read_text()
    assert f"{grid.folder.parent / 'extra'}:/mnt/extra" in record
    assert f"{grid.runs}:{grid.runs}" in record
    assert not record.count(str(ROOT))
    wait_for(lambda: not grid.slurm.call("squeue", "-h", "-n", f"{grid.latest().id},{grid.latest().id}.next"))


def test_a_job_in_a_container_is_queued_again_and_goes_on(slurm: Slurm, folder: Path) -> None:
    grid = grid_in("apptainer", slurm, folder / "again", *KINDS["apptainer"])
    grid.options = [*CELL, "--set", "epochs=40"]
    grid.launch()
    wait_for(lambda: any(run.path.joinpath("checkpoint.pt").exists() for run in grid.run_folders()), 200, grid.describe)
    for job in grid.jobs():
        grid.slurm.call("scontrol", "requeue", job)
    grid.wait_until_done()
    assert grid.attempts() > len(grid.run_folders())


def test_cluster_check_looks_into_the_container(slurm: Slurm, folder: Path) -> None:
    grid = grid_in("enroot", slurm, folder / "check-enroot", *KINDS["enroot"])
    found = grid.command("cluster", "check", "cluster.yaml").stdout
    assert "python: /opt/env/bin/python" in found, found
    assert "torch seconds" in found
