"""How costs grow with the number of cells, images and steps: ``python -m benchmarks.growth``.

Ours is the cost of a unit at 10 and 100 times the size, the peer that at the size itself: 1 is linear growth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.grid import SMOKE
from benchmarks.harness import Bench, Contender, Reach
from benchmarks.training import CPU, SMALL, generated, make_training, our_steps
from experiments.plan import make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import load
from simsiam.settings.checks import validate
from simsiam.training.loop import train

LINEAR = Reach(1.1, at_least=False)


def plan(num_cells: int, folder: Path) -> Callable[[], object]:
    """Plan a grid of so many cells."""
    rates = ", ".join(f"{0.0001 * place:.4f}" for place in range(1, num_cells + 1))
    path = folder / f"grid{num_cells}.yaml"
    path.write_text(f"title: Growth\ngrid:\n  optimizer.lr: [{rates}]\n")
    scale = load_scale("smoke")
    return lambda: make_plan(load_study(str(path)), scale, [0], [], folder / "runs", folder / "data")


def steps_of_a_run(epochs: int) -> Callable[[], object]:
    """A whole training of 2 steps an epoch with a tiny network."""
    settings = validate(SMOKE | {"epochs": epochs, "evaluation.every_epochs": epochs})
    dataset = load(settings.data, Path())

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(settings, dataset, Path(folder), attempt=1, device=CPU)

    return run


def main() -> None:
    bench = Bench("growth", "Costs of a unit at 10 and 100 times the size.")
    repeats = 3 if bench.quick else 7
    settings = validate({"data.name": "synthetic", "data.storage": "memory", **SMALL})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for factor in (10, 100):
            bench.compare(
                f"planning {100 * factor} cells, over 100",
                "s a cell",
                Contender(f"{factor}x", plan(100 * factor, folder), 100 * factor),
                [(Contender("1x", plan(100, folder), 100), LINEAR)],
                repeats=repeats,
                seconds=True,
            )
        for factor in (10, 100):
            large, small = (make_training(settings, generated(num)) for num in (500 * factor, 500))
            bench.compare(
                f"a step with {500 * factor} images in the data set, over 500",
                "s a step",
                Contender(f"{factor}x", our_steps(large, 5), 5),
                [(Contender("1x", our_steps(small, 5), 5), LINEAR)],
                repeats=repeats,
                seconds=True,
            )
        for factor in (10,) if bench.quick else (10, 100):
            bench.compare(
                f"a run of {40 * factor} steps, over one of 40",
                "s a step",
                Contender(f"{factor}x", steps_of_a_run(20 * factor), 40 * factor),
                [(Contender("1x", steps_of_a_run(20), 40), LINEAR)],
                repeats=3 if factor == 100 else repeats,
                seconds=True,
            )


if __name__ == "__main__":
    main()
