"""How long the command takes to answer: ``python -m benchmarks.command``, part of ``make bench``.

Each row is a whole process, from its start to its end, several times; times are in seconds of wall time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    repeats, slow = 7, False
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {repeats} repeats each")
    print(f"{'command':24}{'median':>8}{'min':>8}{'max':>8}{'limit':>8}")
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
            median = statistics.median(times)
            slow |= median > limit
            print(f"{name:24}{median:8.2f}{min(times):8.2f}{max(times):8.2f}{limit:8.1f}")
    sys.exit(slow)


if __name__ == "__main__":
    main()
