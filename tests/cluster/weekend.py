"""A lab's weekend on a real SLURM, replayed: ``python -m tests.cluster.weekend [CELLS]`` (as root; 500 cells).

Three users. Two share a runs folder, and half of their cells; the third has a small disk of its own. Nodes are taken
away, the disk fills, a partition is drained while workers are cancelled, the code is edited and launched from, a launch
is cancelled and launched again. At the end every cell is done, each step of a run was published by one attempt, and
nobody had to do anything but what is in here; else each user's `status` says what to do, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.runs.folder import RunFolder
from experiments.slurm.launch import all_launches
from tests.cluster.grid import Grid, Slurm
from tests.cluster.test_launch import python_for_anybody
from tests.conftest import ROOT

NODES = 9
CELL = ["--scale", "smoke", "--set", "data.num_train=128", "--set", "evaluation.bank_size=100", "--set", "epochs=2"]
USERS = {"ann": 1, "bob": 5, "cem": 65534}  # ids of users that every Linux has
PATIENCE = 3600.0  # seconds


class Weekend:
    """The grids of the three users, and what happens to them, each event at a share of all cells done."""

    def __init__(self, place: Path, cells: int) -> None:
        self.place, self.began = place, time.monotonic()
        self.slurm = Slurm.start(place / "s", NODES=str(NODES), PORT="18700")
        python = python_for_anybody(place)
        shared = place / "runs"
        shared.mkdir()
        shared.chmod(0o1777)
        seeds = max(3, cells // 5)  # two variants each; half of ann's and bob's are the same
        theirs = {
            "ann": ["--seeds", f"0-{seeds - 1}", "--runs", str(shared)],
            "bob": ["--seeds", f"{seeds // 2}-{seeds // 2 + seeds - 1}", "--runs", str(shared)],
            "cem": ["--seeds", f"0-{seeds - 1}", "--set", "optimizer.lr=0.04"],
        }
        profile: dict[str, Any] = {"array_parallelism": 4, "max_failures": 2}
        self.grids = {
            name: Grid(
                self.slurm, place / name, options=[*CELL, *options], user=USERS[name], python=python, sleep=0.02,
                profile={**profile, "partition": "spot" if name == "bob" else "low"},
            )
            for name, options in theirs.items()
        }  # fmt: skip
        bobs = self.grids["bob"].folder / "bobs.yaml"  # another study, with the same variants
        shutil.copy(ROOT / "experiments" / "studies" / "stop-gradient.yaml", bobs)
        self.grids["bob"].study = str(bobs)
        self.disk = self.grids["cem"].runs
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={200 + 2 * cells}m", "tmpfs", self.disk], check=True)
        shutil.chown(self.disk, USERS["cem"])
        self.places = [shared, self.disk]

    def tell(self, text: str) -> None:
        text = " ".join(text.split())
        print(f"{time.monotonic() - self.began:6.0f} s  {self.done():4} done  {text}", flush=True)

    def wanted(self) -> set[Path]:
        return {place / run for place in self.places for each in all_launches(place) for run in each.run_ids()}

    def done(self) -> int:
        return sum((path / "result.json").exists() for path in self.wanted())

    def wait_until(self, share: float) -> None:
        """Until this share of all cells is done."""
        deadline = time.monotonic() + PATIENCE
        while self.done() < share * len(self.wanted()) and time.monotonic() < deadline:
            time.sleep(2)

    def launch(self, name: str) -> None:
        self.tell(f"{name} launches: " + self.grids[name].launch().splitlines()[-2])

    # --- what happens ---

    def nodes_are_taken(self) -> None:
        for node in ("n1", "n4", "n7"):
            command = ["sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5"]
            self.slurm.call(*command)

    def disk_fills(self) -> None:
        filler = self.disk / "filler"
        for size in (2**20, 2**12):
            with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
        time.sleep(15)
        filler.unlink()

    def partition_is_drained(self) -> None:
        self.slurm.call("scontrol", "update", "PartitionName=low", "State=DRAIN")
        ann = self.grids["ann"]
        names = {each.id for each in all_launches(self.places[0]) if each.spec.user != "root"}
        lines = self.slurm.call("squeue", "-h", "-r", "-u", str(USERS["ann"]), "-o", "%i %j").splitlines()
        workers = [line.split()[0] for line in lines if line.split()[1] in names]
        self.slurm.call("scancel", *workers)
        time.sleep(60)
        self.slurm.call("scontrol", "update", "PartitionName=low", "State=UP")
        self.tell("ann: " + " | ".join(ann.command("status", ann.study, *ann.options).stdout.splitlines()[:5]))

    def code_is_edited(self) -> None:
        """Ann launches from a checkout that has changed: nothing is trained again, and she is told."""
        copy = self.place / "edited"
        for package in ("simsiam", "experiments", "analysis", "commands"):
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "run_ablation.py", copy)
        with open(copy / "simsiam" / "model" / "losses.py", "a") as file:
            file.write("\nEDITED = True\n")
        ann = self.grids["ann"]
        command = [ann.python, str(copy / "run_ablation.py"), "launch", ann.study, *ann.options, "--cluster"]
        identity: dict[str, Any] = {"user": USERS["ann"], "group": USERS["ann"]}
        done = subprocess.run(
            [*command, "cluster.yaml"],
            cwd=ann.folder,
            env=ann.environment(),
            capture_output=True,
            text=True,
            **identity,
        )
        assert "other code" in done.stdout, done.stdout + done.stderr
        self.tell("ann, edited: " + next(line for line in done.stdout.splitlines() if "other code" in line)[:150])

    def bob_starts_again(self) -> None:
        bob = self.grids["bob"]
        self.tell("bob cancels: " + bob.command("cancel", bob.study, *bob.options).stdout.strip()[:150])
        self.launch("bob")

    def run(self) -> bool:
        for name in self.grids:
            self.launch(name)
        self.tell(f"{len(self.wanted())} cells in all")
        events: list[tuple[float, Callable[[], None]]] = [
            (0.1, self.nodes_are_taken), (0.2, self.disk_fills), (0.3, self.partition_is_drained),
            (0.45, self.nodes_are_taken), (0.5, self.code_is_edited), (0.6, self.bob_starts_again),
            (0.8, self.nodes_are_taken),
        ]  # fmt: skip
        for share, event in events:
            self.wait_until(share)
            self.tell(event.__name__.replace("_", " "))
            event()
        self.wait_until(1.0)
        for grid in self.grids.values():
            grid.check_one_publisher()
        for name, grid in self.grids.items():
            lines = grid.command("status", grid.study, *grid.options).stdout.splitlines()
            self.tell(f"{name}: " + " | ".join(line for line in lines[:4] if line.strip()))
        twice = [path for path in self.wanted() if len(list(path.glob("result.json"))) != 1]
        attempts = sum(RunFolder(path.parent, path.name).highest_lease() for path in self.wanted())
        self.tell(f"{len(self.wanted())} cells, {attempts} attempts, {len(twice)} without a result")
        return not twice


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    place = Path(tempfile.mkdtemp(prefix="we", dir="/tmp"))
    os.chmod(place, 0o755)
    weekend = Weekend(place, cells)
    try:
        sys.exit(0 if weekend.run() else 1)
    finally:
        weekend.slurm.stop()
        subprocess.run(["umount", "-l", weekend.disk], check=False)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
