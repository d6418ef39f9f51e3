"""What was tried for the training step and is not in the program: ``python -m benchmarks.alternatives``.

The small ResNet on two threads, with a thread that makes the next batch, in bfloat16, and with ``torch.compile`` (where
there is a C++ compiler; the first step, which compiles, is timed by itself). "Ours" is what the program does.
"""

from __future__ import annotations

import itertools
import queue
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import Bench, Contender
from benchmarks.training import SMALL, generated, make_training, our_steps
from simsiam.settings.checks import validate
from simsiam.training.loop import Training


def prefetched_steps(training: Training, num: int) -> Callable[[], object]:
    """``num`` steps whose batches another thread makes, one ahead; it waits while nobody takes them."""
    made: queue.Queue[Any] = queue.Queue(1)

    def make() -> None:
        torch.set_num_threads(1)  # of operations that this thread calls
        for epoch in itertools.count():
            for batch in training.source.epoch(epoch, 0):
                made.put(batch)

    threading.Thread(target=make, daemon=True).start()

    def run() -> None:
        training.step = 0
        for _ in range(num):
            training.update(made.get())

    return run


def main() -> None:
    bench = Bench("alternatives", "What was tried for the training step and is not in the program.", threads=2)
    if bench.quick:
        print("alternatives: skipped with --quick: compiling takes a minute")
        return
    dataset, num = generated(4000), 20
    settings = validate({"data.name": "synthetic", "data.storage": "memory", **SMALL})
    amount = num * settings.batch_size
    ours = Contender("ours", our_steps(make_training(settings, dataset), num), amount)
    others = [Contender("with a prefetch thread", prefetched_steps(make_training(settings, dataset), num), amount)]
    half = settings.model_copy(update={"precision": "bfloat16"})
    others.append(Contender("bfloat16", our_steps(make_training(half, dataset), num), amount))
    note = "no C++ compiler here, so nothing is compiled"
    if shutil.which("g++") or shutil.which("clang++"):
        seconds = []
        for name, chosen in (("compiled", settings), ("compiled, bfloat16", half)):
            training = make_training(chosen, dataset)
            training.model.compile()
            run = our_steps(training, num)
            started = time.perf_counter()
            our_steps(training, 1)()
            seconds.append(f"{name}: {time.perf_counter() - started:.0f} s")
            others.append(Contender(name, run, amount))
        note = f"the first step takes, {', '.join(seconds)}"
    bench.compare(
        "training step, small ResNet, batch 128",
        "images/s",
        ours,
        [(other, None) for other in others],
        repeats=bench.repeats(9),
        clock="wall",
        note=note,
    )


if __name__ == "__main__":
    main()
