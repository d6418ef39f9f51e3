"""The training step on a GPU, beside the bare network and the peers: ``make bench-gpu``, ``python -m benchmarks.gpu``.

Ours is the program's own step with the making of its views, as it is and with ``execution.cuda_graph``. The bare
network is forward and backward on views that are ready. lightly is its transform in a DataLoader, its heads and its
loss around the same backbone; kornia makes views on the GPU. ImageNet's crops are ready in pinned memory, as loader
processes leave them: what decoding takes is not part of this. It ends with the table for docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import machine
from benchmarks.images import smooth
from benchmarks.peers import LightlySimSiam, kornia_views, lightly_loader
from benchmarks.training import bare_steps, generated, make_training
from experiments.studies.study import load_scale, load_study, make_cells
from simsiam.data.batches import Batch
from simsiam.data.views import draw_pair, views, views_of_crops, widest_blur
from simsiam.machine import num_cores
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.training.loop import Training

WINDOWS = 5  # measured one after another; the median counts
EPOCHS, IMAGES = 800, {"cifar": 50_000, "imagenet": 1_281_167}

Run = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """A line of the table."""

    what: str
    who: str
    pairs: float  # a second, the median
    spread: float  # between the quartiles
    peak: int  # bytes of the device
    num_images: int  # in an epoch; 0: it is no training


def settings_of(scale: str, **changes: object) -> Settings:
    """The baseline of a scale."""
    cell = make_cells(load_study("stop-gradient"), load_scale(scale), [0])[0]
    return validate(flatten(cell.settings) | {path.replace("__", "."): value for path, value in changes.items()})


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    what: str, who: str, make: Callable[[], Run], amount: int, device: torch.device, seconds: float, num_images: int = 0
) -> Result:
    """Pairs a second of ``make()``, which does ``amount`` pairs a call; alone on the device, after it has warmed up."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    run = make()
    for _ in range(5):
        run()
    speeds = []
    for _ in range(WINDOWS):
        wait(device)
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / WINDOWS:
            run()
            calls += 1
        wait(device)
        speeds.append(calls * amount / (time.perf_counter() - started))
    low, middle, high = statistics.quantiles(speeds, n=4, method="inclusive")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    print(f"  {what}, {who}: {middle:,.0f} pairs/s, {peak / 2**30:.1f} GiB", flush=True)
    return Result(what, who, middle, high - low, peak, num_images)


def steps(training: Training, batches: Iterator[Batch]) -> Run:
    """One step a call."""

    def run() -> None:
        training.step = 0
        training.update(next(batches))

    return run


def from_memory(training: Training) -> Iterator[Batch]:
    """The program's own batches, of images in memory, without end."""
    for epoch in itertools.count():
        yield from training.source.epoch(epoch, 0)


def from_crops(training: Training) -> Iterator[Batch]:
    """Batches of crops that a loader has made: the same pixels each time, but other colours and blur."""
    settings, device = training.settings, training.device
    num, size = settings.batch_size, settings.data.image_size
    crops, index = smooth(16, size).repeat(-(-2 * num // 16), 1, 1, 1)[: 2 * num], torch.arange(num)
    crops = crops.pin_memory() if device.type == "cuda" else crops
    both, widest = (settings.augment, settings.augment), widest_blur(settings.augment)
    for epoch in itertools.count():
        drawn = draw_pair(both, size, size, index, seed=0, epoch=epoch)
        statistics_of = {"mean": training.dataset.mean, "std": training.dataset.std}
        on_device = crops.to(device, non_blocking=True)
        yield Batch(index, (views_of_crops(on_device, drawn, **statistics_of, widest_blur=widest),))


def of_training(
    name: str,
    scale: str,
    settings: Settings,
    device: torch.device,
    seconds: float,
    batches: Callable[..., Iterator[Batch]],
) -> list[Result]:
    """Ours, ours captured, and the bare network."""
    dataset, amount = generated(2 * settings.batch_size), settings.batch_size
    captured = validate(flatten(settings) | {"execution.cuda_graph": True})

    def ours(chosen: Settings) -> Run:
        training = make_training(chosen, dataset, device)
        return steps(training, batches(training))

    def bare() -> Run:
        training = make_training(settings, dataset, device)
        return bare_steps(training, 1, next(batches(training)))

    given = amount, device, seconds, IMAGES[scale]
    return [
        measure(name, "ours", lambda: ours(settings), *given),
        measure(name, "ours, captured", lambda: ours(captured), *given),
        measure(name, "bare network", bare, *given),
    ]


def of_lightly(name: str, settings: Settings, device: torch.device, seconds: float) -> Result:
    """lightly's step in bfloat16, with as many loader processes as there are cores."""
    dataset, amount = generated(20_000), settings.batch_size

    def make() -> Run:
        model = LightlySimSiam(settings, device)
        loader = lightly_loader(dataset, amount, num_cores())
        batches = (batch for _ in itertools.count() for batch in loader)

        def run() -> None:
            (x1, x2), _ = next(batches)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                model.step(x1.to(device, non_blocking=True), x2.to(device, non_blocking=True))

        return run

    return measure(name, f"lightly, {num_cores()} loader processes", make, amount, device, seconds, IMAGES["cifar"])


def of_views(device: torch.device, seconds: float, with_kornia: bool) -> list[Result]:
    """The making of views alone, on the device."""
    images, index, epochs = smooth(512).to(device), torch.arange(512), itertools.count()
    settings = settings_of("cifar")
    given = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "size": 32, "seed": 0}

    def ours() -> tuple[Tensor, Tensor]:
        return views(images, index, settings.augment, epoch=next(epochs), **given)  # type: ignore[arg-type]

    found = [measure("two views of 32x32, batch 512", "ours", lambda: ours, 512, device, seconds)]
    if with_kornia:
        make = lambda: kornia_views(images, 0.0)  # noqa: E731
        found.append(measure("two views of 32x32, batch 512", "kornia, batched", make, 512, device, seconds))
    return found


def table(results: list[Result], card: str) -> str:
    """Markdown, with the card's name; shares are of the bare network in the same rows."""
    bare = {result.what: result.pairs for result in results if result.who == "bare network"}
    lines = [
        f"{card}.",
        "",
        f"| what | who | pairs/s | of the bare network | {EPOCHS} epochs, h | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        share = f"{result.pairs / bare[result.what]:.0%}" if result.what in bare else ""
        hours = f"{EPOCHS * result.num_images / result.pairs / 3600:,.1f}" if result.num_images else ""
        pairs = f"{result.pairs:,.0f} ± {result.spread:,.0f}"
        lines.append(f"| {result.what} | {result.who} | {pairs} | {share} | {hours} | {result.peak / 2**30:.1f} |")
    return "\n".join(lines) + "\n"


def card_of(device: torch.device) -> str:
    """What this was measured on."""
    if device.type == "cpu":
        return machine()
    return f"{torch.cuda.get_device_name(device)}, {machine()}, CUDA {torch.version.cuda}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The training step on a GPU.")
    parser.add_argument("--seconds", type=float, default=30.0, help="that each row is measured for (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"), help="where gpu.md goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "make bench-gpu: torch sees no GPU here (torch.cuda.is_available() is false)\n")
    device, seconds = torch.device("cuda", 0), options.seconds
    cifar, imagenet = settings_of("cifar"), settings_of("imagenet", batch_size=256)
    names = "CIFAR ResNet-18, batch 512, bfloat16", "ImageNet ResNet-50, batch 256, bfloat16"
    results = of_training(names[0], "cifar", cifar, device, seconds, from_memory)
    results.append(of_lightly(names[0], cifar, device, seconds))
    results += of_views(device, seconds, with_kornia=True)
    results += of_training(names[1], "imagenet", imagenet, device, seconds, from_crops)
    text = table(results, card_of(device))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
