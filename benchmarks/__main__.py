"""All benchmarks, one process each: ``make bench``, or ``python -m benchmarks``.

Each is a module of its own, which prints its table and writes it as CSV. It runs in the environment that the program
gives its own workers: ours and peers alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from experiments.local.pool import ENVIRONMENT

# Those that compare with peers first, and what takes longest last.
MODULES = (
    "augmentation",
    "training",
    "photographs",
    "knn",
    "losses",
    "grid",
    "overhead",
    "memory",
    "growth",
    "reporting",
    "diagnostics",
    "monitor",
    "command",
    "shared_cores",
    "alternatives",
    "time_to_accuracy",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, one process each.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats: under 5 minutes")
    parser.add_argument("--data", type=Path, help="a folder with cifar10/{train,test}/CLASS/IMAGE and photographs/")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, metavar="NAME", help=" ".join(MODULES))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"), help="where the CSVs go")
    options = parser.parse_args()
    arguments = ["--quick"] * options.quick + ["--out", str(options.out)]
    if options.data:
        arguments += ["--data", str(options.data.resolve())]
    failed = []
    for name in options.only:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *arguments], env={**ENVIRONMENT, **os.environ}, check=False
        )
        failed += [name] * (done.returncode != 0)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(f"CSVs are in {options.out}; as a page: python -m benchmarks.document {options.out}")
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
