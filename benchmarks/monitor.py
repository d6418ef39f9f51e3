"""What the monitor adds to a plain training loop, in CPU time: ``python -m benchmarks.monitor``.

A plain loop over the small ResNet of the `cpu` scale (d = 512, batch 64, views made beforehand) calls a
:class:`analysis.monitor.CollapseMonitor` that measures every 50 steps; the peer is the same loop less the time in those
calls. Two loops, one with and one without, differ by several percent between themselves on any machine, and so can't
show one. Nothing else is in the loop, no augmentation and no data loading, so that the share is overstated.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from analysis.monitor import CollapseMonitor
from benchmarks.harness import Bench, Reach
from experiments.studies.study import load_scale, load_study, make_cells
from simsiam.model.siamese import Siamese

MOST = Reach(1.01, at_least=False)
EVERY = 50


def loop(steps: int) -> tuple[float, float]:
    """CPU seconds a step with the monitor's calls in it, and of the same steps without them."""
    settings = next(iter(make_cells(load_study("stop-gradient"), load_scale("cpu"), [0], []))).settings
    torch.manual_seed(0)
    views = torch.randn(2, settings.batch_size, 3, settings.data.image_size, settings.data.image_size)
    model = Siamese(settings, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    in_monitor = 0.0
    with tempfile.TemporaryDirectory() as folder:
        monitor = CollapseMonitor(Path(folder) / "run", total_steps=steps, every=EVERY)
        start = time.process_time()
        for _ in range(steps):
            output = model(views[0], views[1])
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            called = time.process_time()
            monitor.update(output.z1, output.z2, None, output.loss)
            in_monitor += time.process_time() - called
        whole = time.process_time() - start
    return whole / steps, (whole - in_monitor) / steps


def main() -> None:
    bench = Bench("monitor", "The cost of the monitor in a plain training loop, in CPU time.")
    steps = 100 if bench.quick else 500
    loop(EVERY)  # to warm up
    samples = [loop(steps) for _ in range(bench.repeats(5))]
    ours, without = [with_it for with_it, _ in samples], [rest for _, rest in samples]
    bench.add(
        "a plain loop with the monitor, over one without",
        "s of CPU time a step",
        ours=ours,
        peer_name="without",
        peer=without,
        ratios=[a / b for a, b in samples],
        clock="cpu",
        reach=MOST,
        note=f"small ResNet, batch 64, {steps} steps, measured every {EVERY}",
    )


if __name__ == "__main__":
    main()
