"""Ours and the peers measured side by side: repeats in random order, medians and spread, ratios with an interval.

Each repeat runs every contender once, in a new random order, so that a noisy machine disturbs all alike. The two
clocks are wall time and CPU time, the latter of this process and of its children that have ended. A ratio is the
median over the repeats of the ratio within a repeat; its interval holds 95 % of the medians of resampled repeats.
"""

from __future__ import annotations

import argparse
import csv
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from simsiam.machine import num_cores

RESAMPLINGS = 2000
Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Contender:
    """One way to do the work: ``run`` does ``amount`` units of it. Ours may do more at a time than a slow peer."""

    name: str
    run: Callable[[], object]
    amount: float = 1.0


@dataclass(frozen=True)
class Reach:
    """What a ratio is meant to be."""

    bound: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"

    def verdict(self, low: float, high: float) -> str:
        """Yes or no where the whole interval is on one side of the bound; else unsure."""
        if not self.at_least:
            low, high = -high, -low
        bound = self.bound if self.at_least else -self.bound
        return "yes" if low >= bound else "no" if high < bound else "unsure"


@dataclass(frozen=True)
class Row:
    """A line of the table and of the CSV."""

    benchmark: str
    what: str
    unit: str  # of ours and peer
    ours: float  # median
    ours_iqr: float
    peer_name: str
    peer: float
    peer_iqr: float
    clock: Clock  # which of the two the numbers and the verdict rest on
    ratio: float  # ours over peer
    ratio_low: float
    ratio_high: float
    other_clock_ratio: float
    reach: str
    reached: str
    repeats: int
    threads: int
    machine: str
    note: str


class Bench:
    """The rows of one benchmark module, and the options of its command line."""

    def __init__(self, name: str, description: str, threads: int = 1) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
        parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats")
        parser.add_argument("--data", type=Path, help="a folder with cifar10/{train,test}/CLASS/IMAGE and photographs/")
        parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"), help="where the CSV goes")
        options = parser.parse_args()
        self.name, self.quick, self.threads = name, bool(options.quick), threads
        self.data: Path | None = options.data
        self.out: Path = options.out
        self.rows: list[Row] = []
        import torch

        torch.set_num_threads(threads)

    def folder(self, name: str) -> Path | None:
        """``name`` in the folder of ``--data``; None, with a line that says so, where it is not given."""
        if self.data is not None and (self.data / name).is_dir():
            return (self.data / name).resolve()
        missing = "--data is not given" if self.data is None else f"{self.data / name} does not exist"
        print(f"{self.name}: rows that need real images in {name}/ are skipped: {missing}", flush=True)
        return None

    def repeats(self, full: int) -> int:
        """How often to measure."""
        return min(5, full) if self.quick else full

    def compare(
        self,
        what: str,
        unit: str,
        ours: Contender,
        peers: Sequence[tuple[Contender, Reach | None]],
        *,
        repeats: int,
        clock: Clock = "cpu",
        seconds: bool = False,
        note: str = "",
        warm_up: bool = True,
    ) -> None:
        """Measure ours against each peer: units a second, or with ``seconds`` the time of a unit."""
        contenders = [ours, *(peer for peer, _ in peers)]
        samples = _measure(contenders, repeats, warm_up)
        values = {name: [_values(times, seconds) for times in of_name] for name, of_name in samples.items()}
        mine = values[ours.name]
        for peer, reach in peers:
            pairs = [
                (me[clock] / other[clock], me[_other(clock)] / other[_other(clock)])
                for me, other in zip(mine, values[peer.name], strict=True)
            ]
            self.add(
                what,
                unit,
                ours=[value[clock] for value in mine],
                peer_name=peer.name,
                peer=[value[clock] for value in values[peer.name]],
                ratios=[pair[0] for pair in pairs],
                other_ratios=[pair[1] for pair in pairs],
                clock=clock,
                reach=reach,
                note=note,
            )

    def add(
        self,
        what: str,
        unit: str,
        *,
        ours: Sequence[float],
        peer_name: str,
        peer: Sequence[float],
        ratios: Sequence[float],
        other_ratios: Sequence[float] = (),
        clock: Clock,
        reach: Reach | None,
        note: str = "",
    ) -> None:
        """A row of what was measured."""
        low, high = _interval(ratios)
        self.rows.append(
            Row(
                self.name,
                what,
                unit,
                statistics.median(ours),
                _iqr(ours),
                peer_name,
                statistics.median(peer),
                _iqr(peer),
                clock,
                statistics.median(ratios),
                low,
                high,
                statistics.median(other_ratios) if other_ratios else float("nan"),
                str(reach) if reach else "",
                reach.verdict(low, high) if reach else "",
                len(ratios),
                self.threads,
                machine(),
                note,
            )
        )
        if len(self.rows) == 1:
            print(f"\n{self.name}: {machine()}; threads: {self.threads}; ratio [95 % interval] and verdict")
        _print(self.rows[-1])
        self._write()

    def _write(self) -> None:
        """The CSV, after each row: what was measured stays, also if the rest is not."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{self.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(
                {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
                for row in self.rows
            )


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine() -> str:
    """The processor, the cores this process may use, and the versions that matter."""
    import torch

    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {num_cores()} cores, torch {torch.__version__.partition('+')[0]}"


def _measure(
    contenders: Sequence[Contender], repeats: int, warm_up: bool
) -> dict[str, list[tuple[float, float, float]]]:
    """(wall seconds, CPU seconds, amount) of each repeat."""
    if warm_up:
        for contender in contenders:
            contender.run()
    samples: dict[str, list[tuple[float, float, float]]] = {contender.name: [] for contender in contenders}
    order = random.Random(0)
    for _ in range(repeats):
        for contender in order.sample(contenders, len(contenders)):
            wall, cpu = time.perf_counter(), cpu_seconds()
            contender.run()
            samples[contender.name].append(
                (time.perf_counter() - wall, max(cpu_seconds() - cpu, 1e-9), contender.amount)
            )
    return samples


def _values(times: tuple[float, float, float], seconds: bool) -> dict[Clock, float]:
    wall, cpu, amount = times
    if seconds:
        return {"wall": wall / amount, "cpu": cpu / amount}
    return {"wall": amount / wall, "cpu": amount / cpu}


def _other(clock: Clock) -> Clock:
    return "wall" if clock == "cpu" else "cpu"


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    order = random.Random(0)
    medians = sorted(statistics.median(order.choices(ratios, k=len(ratios))) for _ in range(RESAMPLINGS))
    return medians[round(0.025 * RESAMPLINGS)], medians[round(0.975 * RESAMPLINGS) - 1]


def _iqr(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def _print(row: Row) -> None:
    print(
        f"  {row.what}, {row.unit} ({row.clock} time, {row.repeats} repeats):"
        f" ours {row.ours:.4g} (IQR {row.ours_iqr:.2g}),"
        f" {row.peer_name} {row.peer:.4g} (IQR {row.peer_iqr:.2g}),"
        f" ratio {row.ratio:.3g} [{row.ratio_low:.3g}, {row.ratio_high:.3g}]"
        + (f", to reach {row.reach}: {row.reached}" if row.reach else "")
        + (f"; {row.note}" if row.note else ""),
        flush=True,
    )
