"""Training and linear evaluation on two threads, beside processes that are busy all the time.

``python -m benchmarks.shared_cores``. The same work in processes of their own, whose threads wait for each other in
different ways: they spin for a moment, they sleep at once, or GNU's OpenMP is left to itself, which spins for
milliseconds. Ours is what the program chooses when it starts: to spin on cores of its own, to sleep beside others. One
thread is there for comparison; it has other numbers. Busy processes are sessions of their own, as other users' are.
What else the machine does counts as busy too.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Bench, Reach
from benchmarks.training import CPU, SMALL, generated, make_training, our_steps
from simsiam.evaluation.linear import FEATURES, evaluate_linear
from simsiam.machine import num_cores
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate

BUSY = "import os, time\nend = time.monotonic() + 300\nwhile time.monotonic() < end and os.getppid() == {}: pass"
SPIN, SLEEP = ({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": count} for count in ("2000", "0"))
BUSY_PROCESSES = (0, 1, 2)
SECONDS = 1.0
WAYS: dict[str, tuple[int, dict[str, str]]] = {  # threads, environment
    "spin for a moment": (2, SPIN),
    "sleep at once": (2, SLEEP),
    "OpenMP's own": (2, {}),
    "one thread": (1, SPIN),
}


class Child:
    """A process that does the work for as long as it is asked to."""

    def __init__(self, work: str, way: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in SPIN}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.shared_cores", work, way],
            env=environment | WAYS[way][1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def rate(self) -> float:
        """Pieces of work a second."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that do nothing all the time, for five minutes at most."""
    command = [sys.executable, "-c", BUSY.format(os.getpid())]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def piece_of(work: str) -> Callable[[], object]:
    """A step, or the first part of a linear evaluation."""
    settings = validate({"data.name": "synthetic", "data.storage": "memory", **SMALL})
    dataset = generated(2_000)
    if work == "training":
        return our_steps(make_training(settings, dataset), 1)
    backbone = Siamese(settings, 3).backbone
    protocol = FEATURES.model_copy(update={"epochs": 5})
    return lambda: evaluate_linear(backbone, settings, dataset, protocol, device=CPU)


def child(work: str, way: str) -> None:
    """Each time a line comes, work for a while and print how many pieces a second that was."""
    threads, _ = WAYS[way]
    torch.set_num_threads(threads)
    piece = piece_of(work)
    piece()
    for _ in sys.stdin:
        print(_pieces_in(SECONDS, piece), flush=True)


def _pieces_in(seconds: float, piece: Callable[[], object]) -> float:
    started, number = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        piece()
        number += 1
    return number / passed


def main() -> None:
    """Print the tables, or be one of the processes that are measured."""
    if len(sys.argv) == 3 and sys.argv[2] in WAYS:
        return child(*sys.argv[1:])
    bench = Bench("shared_cores", "Training and linear evaluation beside busy processes.", threads=2)
    for work, unit, amount in (("training step, small ResNet", "images/s", 128), ("linear evaluation", "a second", 1)):
        measure(bench, work, unit, amount, repeats=2 if bench.quick else 5)


def measure(bench: Bench, work: str, unit: str, amount: int, repeats: int) -> None:
    """The rows of one work. A repeat takes all ways in random order beside 0, 1 and 2 busy processes."""
    with contextlib.ExitStack() as stack:
        children = {way: Child(work.split()[0], way) for way in WAYS}
        for one in children.values():
            stack.callback(one.close)
            one.rate()  # until it has started
        rates: dict[tuple[str, int], list[float]] = {(way, number): [] for way in WAYS for number in BUSY_PROCESSES}
        order = random.Random(0)
        for _ in range(repeats):
            for number in BUSY_PROCESSES:
                with busy(number):
                    for way in order.sample(list(WAYS), len(WAYS)):
                        rates[way, number].append(amount * children[way].rate())
    alone = rates["spin for a moment", 0]
    for number in BUSY_PROCESSES:
        chosen = "sleep at once" if number else "spin for a moment"
        what, ours = f"{work}, beside {number or 'no'} busy", rates[chosen, number]
        peers = {way: rates[way, number] for way in WAYS if way != chosen}
        to_reach = "fair share of ours beside none" if number else ""
        if number:
            peers[to_reach] = [min(1.0, num_cores() / (2 + number)) * rate for rate in alone]
        for name, theirs in peers.items():
            bench.add(
                what,
                unit,
                ours=ours,
                peer_name=name,
                peer=theirs,
                ratios=[mine / other for mine, other in zip(ours, theirs, strict=True)],
                clock="wall",
                reach=Reach(0.95) if name == to_reach else None,
            )


if __name__ == "__main__":
    main()
