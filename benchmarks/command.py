"""How long the command takes to answer: ``python -m benchmarks.command``, part of ``make bench``.

Each row is a whole process, from its start to its end, several times; times are in seconds of wall time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bench, Reach

ROOT = Path(__file__).parent.parent
GRID = """\
title: Ten thousand cells
grid:
  optimizer.lr: [{rates}]
  optimizer.weight_decay: [{decays}]
"""
ROWS = [
    ("--help", ["--help"], 0.5),
    ("list", ["list"], 0.5),
    ("status", ["status", "stop-gradient"], 0.5),
    ("plan of 10,000 cells", ["plan", "ten-thousand.yaml", "--scale", "smoke", "--json"], 3.0),
]


def main() -> None:
    """Print the table; exit code 1 if a row is slower than it is meant to be."""
    bench = Bench("command", "How long the command takes to answer, in seconds of wall time.")
    repeats = 3 if bench.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        rates = ", ".join(f"{0.001 * i:.3f}" for i in range(1, 101))
        decays = ", ".join(f"{0.00001 * i:.5f}" for i in range(1, 101))
        (Path(folder) / "ten-thousand.yaml").write_text(GRID.format(rates=rates, decays=decays))
        for name, arguments, limit in ROWS:
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                command = [sys.executable, str(ROOT / "run_ablation.py"), *arguments]
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
                times.append(time.perf_counter() - started)
            bench.add(
                f"run_ablation.py {name}, over its limit",
                "s",
                ours=times,
                peer_name="limit",
                peer=[limit],
                ratios=[taken / limit for taken in times],
                clock="wall",
                reach=Reach(1.0, at_least=False),
            )
    sys.exit(any(row.ratio > 1 for row in bench.rows))


if __name__ == "__main__":
    main()
