"""Whether a change of the code left every number as it was: one smoke run of each variant of every study.

::

    python -m benchmarks.same_numbers write before.json
    python -m benchmarks.same_numbers compare before.json

Drives the public command line and reads run folders with json and torch alone, so that it works before and after a
change of the code's layout. Compares bit for bit: hold the machine, torch and the threads fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOT_NUMBERS = ("second", "per_s", "time", "bytes", "memory")  # parts of the names of what speed changes
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
METHODS = "comparison"  # the study whose variants are the five methods


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_ablation.py"), *arguments],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def curves(folder: Path) -> dict[str, str]:
    """A hash of each logged metric's values, in order."""
    series: dict[str, list[Any]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            if not any(part in name for part in NOT_NUMBERS):
                series.setdefault(name, []).append(value)
    return {name: sha(json.dumps(values).encode()) for name, values in sorted(series.items())}


def weights(folder: Path) -> dict[str, str]:
    """A hash of each checkpoint's model: names, types, shapes and bytes, in the order of the names."""
    import torch

    found = {}
    for path in sorted(folder.glob("checkpoint.pt")):
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        digest = hashlib.sha256()
        for name in sorted(state):
            tensor = state[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        found["model"] = digest.hexdigest()
    if not found:
        raise SystemExit(f"{folder}: holds no checkpoint")
    return found


def measure(jobs: int) -> dict[str, Any]:
    """Per "ranks study/variant/seed": the run's id, its curves and its weights, as hashes."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for ranks, study in ((1, "all"), (2, METHODS)):
            where = ("--scale", "smoke", "--seeds", "1", "--runs", str(Path(place) / f"ranks-{ranks}"))
            data = ("--data", str(Path(place) / "data"))
            command("run", study, *where, *data, "--device", "cpu", "--jobs", str(jobs), "--ranks", str(ranks))
            for cell in json.loads(command("plan", study, *where, *data, "--json"))["cells"]:
                folder = Path(place) / f"ranks-{ranks}" / cell["run"]
                name = f"{ranks} {cell['study']}/{cell['variant']}/{cell['seed']}"
                found[name] = {"run": cell["run"], **curves(folder), **weights(folder)}
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Every number that is not as it was."""
    found = []
    for name in sorted({*before, *after}):
        one, other = before.get(name, {}), after.get(name, {})
        found += [f"{name}: {key}" for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="cells trained at the same time (default: 2)")
    arguments = parser.parse_args()
    before = json.loads(arguments.file.read_text()) if arguments.action == "compare" else None
    after = measure(arguments.jobs)
    if before is None:
        arguments.file.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")
        print(f"{arguments.file}: {len(after)} runs")
        return
    found = differences(before, after)
    print(*found, f"{len(after)} runs, {len(found)} differences", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
