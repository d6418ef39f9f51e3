"""What the monitor adds to a plain training loop, in CPU time: ``python -m benchmarks.monitor``.

Ours is a plain loop over the small ResNet of the `cpu` scale (d = 512, batch 64, views made beforehand) with a
:class:`analysis.monitor.CollapseMonitor` that measures every 50 steps, the peer the same loop without. Nothing else is
in the loop, no augmentation and no data loading, so that the share is overstated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from analysis.monitor import CollapseMonitor
from benchmarks.harness import Bench, Contender, Reach
from experiments.studies.study import load_scale, load_study, make_cells
from simsiam.model.siamese import Siamese

MOST = Reach(1.01, at_least=False)


def loop(steps: int, monitored: bool) -> None:
    settings = next(iter(make_cells(load_study("stop-gradient"), load_scale("cpu"), [0], []))).settings
    torch.manual_seed(0)
    views = torch.randn(2, settings.batch_size, 3, settings.data.image_size, settings.data.image_size)
    model = Siamese(settings, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:
        monitor = CollapseMonitor(Path(folder) / "run", total_steps=steps) if monitored else None
        for _ in range(steps):
            output = model(views[0], views[1])
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.update(output.z1, output.z2, None, output.loss)


def main() -> None:
    bench = Bench("monitor", "The cost of the monitor in a plain training loop, in CPU time.")
    steps = 100 if bench.quick else 500
    bench.compare(
        "a plain loop with the monitor, over one without",
        "s of CPU time a step",
        Contender("with", lambda: loop(steps, True), steps),
        [(Contender("without", lambda: loop(steps, False), steps), MOST)],
        repeats=bench.repeats(9),
        seconds=True,
        note=f"small ResNet, batch 64, {steps} steps, measured every 50",
    )


if __name__ == "__main__":
    main()
