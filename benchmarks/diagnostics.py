"""What the default diagnostics add to training, in CPU time: ``python -m benchmarks.diagnostics``.

Ours is a run at `cpu` scale (small ResNet, d = 512, batch 64, a point every 25 steps) with ``evaluation.diagnostics``,
the peer the same run without. Images are generated. It has a third of the steps of an epoch of Fashion-MNIST, and two
evaluations, so that their share is overstated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Bench, Contender, Reach
from experiments.studies.study import load_scale, load_study, make_cells
from simsiam.data.sets import load
from simsiam.training.loop import train

NUM_IMAGES, EPOCHS = 1_920, 10
MOST = Reach(1.03, at_least=False)


def run_of(diagnostics: bool, epochs: int) -> tuple[Callable[[], object], int]:
    """A whole run, and how many steps it has."""
    overrides = [
        "data.name=synthetic",
        f"data.num_train={NUM_IMAGES}",
        f"epochs={epochs}",
        f"evaluation.every_epochs={epochs}",
        f"evaluation.diagnostics={str(diagnostics).lower()}",
    ]
    settings = next(iter(make_cells(load_study("stop-gradient"), load_scale("cpu"), [0], overrides))).settings
    dataset = load(settings.data, Path())

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(settings, dataset, Path(folder), attempt=1, device=torch.device("cpu"))

    return run, epochs * (NUM_IMAGES // settings.batch_size)


def main() -> None:
    bench = Bench("diagnostics", "The cost of the default diagnostics in training, in CPU time.")
    epochs = EPOCHS // 5 if bench.quick else EPOCHS
    (on, steps), (off, _) = (run_of(diagnostics, epochs) for diagnostics in (True, False))
    bench.compare(
        "a run with the default diagnostics, over one without",
        "s of CPU time a step",
        Contender("with", on, steps),
        [(Contender("without", off, steps), MOST)],
        repeats=bench.repeats(7),
        seconds=True,
        note=f"cpu scale, {steps} steps, 2 evaluations",
    )


if __name__ == "__main__":
    main()
