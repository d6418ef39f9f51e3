"""What it costs a run of the cpu scale to record more than the loss: each part's share of the run's time.

Random images of CIFAR-10's number and size stand in for the real ones, since time does not depend on what they show.

    python -m benchmarks.record_cost
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from experiments.studies.study import load_scale
from simsiam.data.batches import held_out_views
from simsiam.data.dataset import Dataset, Split
from simsiam.evaluation.diagnostics import OF_FEATURES, OF_HELD_OUT_VIEWS, effective_rank
from simsiam.evaluation.knn import knn_classes
from simsiam.settings.checks import validate
from simsiam.training import logged
from simsiam.training.loop import Hooks, Training

STEPS = 100  # that the time of a step is taken over


def images(num: int, seed: int) -> Split:
    draws = np.random.default_rng(seed)
    return Split(draws.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8), draws.integers(0, 10, num))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    settings = validate({path: value.value for path, value in load_scale("cpu").layer.items()})
    train, test, classes = images(50_000, 0), images(10_000, 1), tuple("abcdefghij")
    dataset = Dataset("noise", train, test, classes, (0.5,) * 3, (0.3,) * 3, "-", 3, 32)
    with tempfile.TemporaryDirectory() as place:
        run = Training(settings, dataset, Path(place), 1, torch.device("cpu"), Hooks())
        batches = run.source.epoch(0, 0)
        output = run.update(next(batches))
        step = seconds(lambda: [run.update(next(batches)) for _ in range(STEPS)]) / STEPS
        z1, z2 = run.views_of_batch(output)
        points = seconds(lambda: [logged.of_step(run.model, z1, z2, more=True) for _ in range(20)]) / 20
        plain = seconds(lambda: [logged.of_step(run.model, z1, z2, more=False) for _ in range(20)]) / 20
        run.model.eval()
        with torch.inference_mode():
            start = time.perf_counter()
            (bank, bank_labels), (queries, _) = run.features("bank"), run.features("query")
            extraction = time.perf_counter() - start
            z = run.model.projector(queries[: 4 * settings.projector.output_dim])
            knn = seconds(lambda: knn_classes(bank, bank_labels, queries, k=200, temperature=0.1))
            rank = seconds(lambda: effective_rank(z))
            views = held_out_views(settings, dataset, run.encode, run.device, run.ranks)
            parts = {
                "LiDAR: its views": seconds(
                    lambda: held_out_views(settings, dataset, run.encode, run.device, run.ranks)
                ),
                **{name: seconds(lambda f=f: f(views)) for name, f in OF_HELD_OUT_VIEWS.items()},  # type: ignore[misc]
                **{name: seconds(lambda f=f: f(queries)) for name, f in OF_FEATURES.items()},  # type: ignore[misc]
            }
        linear = seconds(lambda: run.linear_classes(bank, bank_labels, queries))
    num_evaluations = settings.epochs + 1
    num_points = run.num_steps / settings.evaluation.log_every_steps
    cost = {
        "training": step * run.num_steps,
        "features of all images": extraction * num_evaluations,
        "kNN": knn * num_evaluations,
        "effective rank": rank * num_evaluations,
        "linear, twice": 2 * linear,
        "more of each logged step": (points - plain) * num_points,
        **{name: value * num_evaluations for name, value in parts.items()},
    }
    total = sum(cost.values())
    print(f"{total:.0f} s a run on one thread: {run.num_steps} steps, {num_evaluations} evaluations\n")
    for name, value in cost.items():
        print(f"| {name} | {value:.1f} s | {100 * value / total:.2f} % |")
    new = sum(value for name, value in cost.items() if name in ("more of each logged step", *parts))
    print(f"\nDiagnostics together: {100 * new / total:.2f} %")


if __name__ == "__main__":
    main()
