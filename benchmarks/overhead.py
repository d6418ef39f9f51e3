"""What a run costs beyond its steps, in CPU time: ``python -m benchmarks.overhead``.

Ours is a whole run as a worker trains it: lease, heartbeat, logged points, diagnostics, checkpoints, result. The bare
loop makes the same views, and the same forward, backward and update, and nothing else. Neither evaluates by kNN but on
a few images, at the end.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Bench, Contender, Reach
from benchmarks.training import CPU, SMALL, generated
from experiments.launcher import RunContext
from experiments.local.train_cell import run_cell
from experiments.runs.states import End
from simsiam.data.batches import make_source
from simsiam.data.dataset import Dataset
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from simsiam.training.optim import make_optimizer, set_rates


def bare_loop(settings: Settings, dataset: Dataset) -> None:
    """The steps of a run and nothing else."""
    source = make_source(settings, dataset, CPU)
    model = Siamese(settings, 3, len(dataset.train)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(settings, model)
    steps = len(dataset.train) // settings.batch_size
    for step in range(settings.epochs * steps):
        if step % steps == 0:
            batches = source.epoch(step // steps, 0)
        set_rates(optimizer, settings, step, steps, settings.epochs * steps)
        loss = model(*next(batches).pairs[0]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def whole_run(settings: Settings, dataset: Dataset, runs: Path, run_id: str) -> None:
    """A run as a worker trains it."""
    context = RunContext(runs, CPU, torch.get_num_threads(), lambda: False, lambda progress: None)
    result = run_cell(run_id, settings, dataset, context)
    assert result.state == End.DONE, result.reason


def main() -> None:
    bench = Bench("overhead", "The cost of logging, diagnostics, checkpoints and heartbeat, in CPU time.")
    changes: dict[str, Any] = {"batch_size": 64, "evaluation.bank_size": 100, "evaluation.query_size": 100}
    settings = validate({"data.name": "synthetic", "data.storage": "memory", "epochs": 2, **SMALL, **changes})
    dataset = generated(2_560 if bench.quick else 6_400)
    numbers = itertools.count()
    steps = settings.epochs * (len(dataset.train) // settings.batch_size)
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> None:
            whole_run(settings, dataset, Path(folder), f"run{next(numbers)}")

        bench.compare(
            "a run with all it writes, over its bare steps",
            "s of CPU time a step",
            Contender("ours", ours, steps),
            [(Contender("bare loop", lambda: bare_loop(settings, dataset), steps), Reach(1.03, at_least=False))],
            repeats=3 if bench.quick else 15,
            seconds=True,
            note=f"small ResNet, batch 64, {steps} steps, 2 epochs; the run's start and end are part of it",
        )


if __name__ == "__main__":
    main()
