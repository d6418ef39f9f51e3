"""A grid of 12 short cells on two cores: ``python -m benchmarks.grid``.

Ours is one ``run_ablation.py grid`` with two warm workers; the peer is a process for each cell, one after another.
Then what a warm worker spends on a cell beyond training it.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.overhead import whole_run
from benchmarks.training import CPU
from simsiam.data.sets import load
from simsiam.settings.checks import validate
from simsiam.training.loop import train

ROOT = Path(__file__).parent.parent
RATES = [f"{0.01 * place:.2f}" for place in range(1, 13)]
SHORT = {"data.name": "synthetic", "data.storage": "memory", "data.image_size": 16, "augment.blur_probability": 0.0}
SMOKE = {
    **SHORT,
    "data.num_train": 128,
    "epochs": 1,
    "batch_size": 64,
    "backbone.name": "small",
    "backbone.width": 8,
    "projector.num_layers": 2,
    "projector.hidden_dim": 64,
    "projector.output_dim": 64,
    "predictor.hidden_dim": 16,
    "evaluation.bank_size": 100,
    "evaluation.query_size": 100,
}


def grid(rates: list[str], workers: int, folder: str) -> None:
    """The command, as a user gives it."""
    command = [sys.executable, str(ROOT / "run_ablation.py"), "grid", f"optimizer.lr={','.join(rates)}"]
    command += ["--scale", "smoke", "--seeds", "1", "-j", str(workers), "--runs", folder]
    subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def main() -> None:
    bench = Bench("grid", "A grid of 12 short cells, and the start-up cost of a cell.", threads=1)
    rates = RATES[:4] if bench.quick else RATES

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            grid(rates, 2, folder)

    def peer() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for rate in rates:
                grid([rate], 1, folder)

    bench.compare(
        f"a grid of {len(rates)} short cells",
        "cells/s",
        Contender("ours, two warm workers", ours, len(rates)),
        [(Contender("one process a cell, one after another", peer, len(rates)), Reach(1.5))],
        repeats=2 if bench.quick else 5,
        clock="wall",
        warm_up=False,
    )

    settings = validate(SMOKE)
    started, waits = itertools.count(), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(6 if bench.quick else 13):
            dataset = load(settings.data, Path(folder))
            begin = time.perf_counter()
            whole_run(settings, dataset, Path(folder), f"run{next(started)}")
            whole = time.perf_counter() - begin
            (bare := Path(folder) / f"bare{number}").mkdir()
            begin = time.perf_counter()
            train(settings, dataset, bare, attempt=1, device=CPU)
            waits.append((whole, time.perf_counter() - begin))
    after_first = waits[1:]
    bench.add(
        "what a warm worker spends on a cell beyond its training",
        "s",
        ours=[whole for whole, _ in after_first],
        peer_name="training alone",
        peer=[alone for _, alone in after_first],
        ratios=[whole - alone for whole, alone in after_first],
        clock="wall",
        reach=Reach(0.3, at_least=False),
        note=f"the ratio column holds the difference in s; the first cell took {waits[0][0]:.2f} s,"
        f" those after it {statistics.median(whole for whole, _ in after_first):.2f} s",
    )


if __name__ == "__main__":
    main()
