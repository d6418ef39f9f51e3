"""The main job in one command: the study of Fig. 2 on real images, with its report."""

from __future__ import annotations

from pathlib import Path

from commands.console import say
from commands.options import DEFAULT_DATA, DEFAULT_RUNS, Data, Jobs, Runs, computes_in_bfloat16
from commands.report import report
from commands.studies import run

SEEDS = "3"
STUDY = "stop-gradient"


def demo(runs: Runs = DEFAULT_RUNS, data: Data = DEFAULT_DATA, jobs: Jobs = None) -> None:
    """Train and report the study of Figure 2, with and without stop-gradient, on CIFAR-10 or else Fashion-MNIST.

    CIFAR-10 is taken from the image folder DATA/cifar10/{train,test}/CLASS/, or downloaded; where neither can be,
    Fashion-MNIST takes its place, at a scale of its own. Precision is bfloat16 where the processor has it. Stop it at
    any time: the same command goes on from there.
    """
    scale, settings, why = images(data)
    say(why)
    if computes_in_bfloat16():
        settings = [*settings, "precision=bfloat16"]
        say("Precision: bfloat16, which this processor computes in.")
    run(STUDY, runs, data, scale, settings, SEEDS, jobs=jobs)
    report(STUDY, runs, data, scale, settings, SEEDS)


def images(data: Path) -> tuple[str, list[str], str]:
    """Which images the demo trains on: the scale, the settings that choose them, and why they are chosen."""
    from experiments.studies.study import load_scale
    from simsiam.data.sets import prepare
    from simsiam.errors import DataError
    from simsiam.settings.fields import DataSettings

    folder = data / "cifar10"
    if (folder / "train").is_dir():
        return "cpu", ["data.name=folder", "data.path=cifar10"], f"Images: CIFAR-10, from the folder {folder}/."
    cifar10 = DataSettings(name="cifar10", storage="memory", image_size=32)
    try:
        prepare(cifar10, data, progress=say)
    except DataError as error:
        reason = str(error).splitlines()[0]
        return (
            "fashion",
            [],
            f"Images: Fashion-MNIST, since CIFAR-10 can't be had ({reason}). With CIFAR-10 as images in"
            f" {folder}/train/CLASS/ and {folder}/test/CLASS/ the demo takes that.",
        )
    return "cpu", [], f"Images: CIFAR-10, at the scale cpu: {load_scale('cpu').description}."
