"""What `report` costs on a study of 100, 300 and 1,000 runs: ``python -m benchmarks.reporting``.

Each report is a whole process, on generated runs of 800 epochs with five seeds a variant: the first one reads all run
folders, a second one finds them in the cache of curves. Times are of the wall clock, on at most two cores; memory is
the most that the process had. The limits: 60 s and 2 GiB for 1,000 runs, and no more than linear in the runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.harness import Bench, Reach
from experiments.plan import Plan, make_plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint

ROOT = Path(__file__).parent.parent
SEEDS, DIFFERENT = 5, 23  # seeds a variant; curves that are not the same
EPOCHS, STEPS_PER_EPOCH, LOGGED_EVERY, EVALUATED_EVERY = 800, 97, 50, 10  # those of CIFAR-10 (App. D)
MOST_SECONDS, MOST_BYTES = 60.0, 2 * 2**30


def points_of_a_run(random: np.random.Generator) -> list[dict[str, Any]]:
    """The curves of a healthy run, with all that is logged by default."""
    points: list[dict[str, Any]] = []
    num_steps = EPOCHS * STEPS_PER_EPOCH
    for step in range(0, num_steps + 1, LOGGED_EVERY):
        done = step / num_steps
        std = 0.9 + random.normal(0, 0.005)
        points.append(
            {"epoch": step / STEPS_PER_EPOCH, "step": step, "loss": -0.9 * (1 - math.exp(-9 * done)), "lr": 0.06}
            | {"z_std": std / 45, "z_std_relative": std, "grad_norm": 0.2, "images_per_s": 4000.0}
            | {"positive_cosine": 0.9 * done, "uniformity": -3.5, "centre": 0.01 + 0.001 * std}
            | {f"grad_norm_{part}": 0.1 + 0.01 * std for part in ("backbone", "projector", "predictor")}
        )
    for epoch in range(0, EPOCHS + 1, EVALUATED_EVERY):
        points.append(
            {"epoch": float(epoch), "step": epoch * STEPS_PER_EPOCH, "effective_rank": 300 + random.normal()}
            | {"knn_top1": 30 + 60 * (1 - math.exp(-epoch / 100)) + random.normal(0, 0.3)}
            | {"explained_variance_area": 0.8, "spectrum": [0.2 * 0.93**rank for rank in range(64)]}
        )
    return sorted(points, key=lambda point: float(point["step"]))


def write_runs(made: Plan) -> None:
    """A folder for each run of a plan, as an ended run leaves it."""
    curves = [points_of_a_run(np.random.default_rng(seed)) for seed in range(DIFFERENT)]
    lines = ["".join(json.dumps(point) + "\n" for point in points) for points in curves]
    provenance = {
        "references": {"raw_pixels": 35.0, "chance": 10.0},
        "attempts": [
            {"attempt": 1, "git_commit": "0" * 40, "git_dirty": False, "code": "generated", "device": "generated"}
            | {"versions": {"python": "3"}, "threads": 1, "host": "here", "started": "2026-01-02T03:04:05Z"}
            | {"command": "run_ablation.py run study", "data_fingerprint": "generated"}
        ],
    }
    for place, planned in enumerate(made.cells):
        folder = made.runs / planned.run_id
        folder.mkdir(parents=True)
        final: dict[str, Any] = {}
        for point in curves[place % DIFFERENT]:
            final |= point
        end = {"step": final["step"], "epoch": float(EPOCHS), "epochs": EPOCHS, "num_steps": final["step"]}
        result = {
            "outcome": "healthy", "stopped_early": False, "final": final, "seconds": 1e4, "device_seconds": 1e4,
            "threads": 1, "peak_memory_bytes": 2**30, "attempts": 1,
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(planned.cell.settings.model_dump(mode="json")))
        (folder / "metrics.jsonl").write_text(lines[place % DIFFERENT])
        (folder / "state.json").write_text(json.dumps({"state": "done", "attempt": 1, "seconds": 1e4, **end}))
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "provenance.json").write_text(json.dumps(provenance))


def make_study(folder: Path, num_runs: int) -> tuple[Plan, Path]:
    """A grid over the learning rate with a claim, and its runs."""
    rates = [round(0.001 * place, 4) for place in range(1, num_runs // SEEDS + 1)]
    variants = {f"rate {rate}": {"settings": {"optimizer.lr": rate}} for rate in rates}
    first, second, *_, last = variants
    checks = [
        {"kind": "order", "higher": first, "lower": last, "by": 0.5},
        {"kind": "same", "of": [first, second, last], "within": 1.0},
    ]
    claims = {"first": {"says": "The first rate is best.", "checks": checks}}
    path = folder / f"study-{num_runs}.yaml"
    path.write_text(yaml.safe_dump({"title": "Many runs", "variants": variants, "claims": claims}, sort_keys=False))
    overrides = [f"epochs={EPOCHS}"]
    made = make_plan(
        load_study(str(path)), load_scale("smoke"), list(range(SEEDS)), overrides, folder / "runs", folder / "data"
    )
    assert fingerprint(made.cells[0].cell.settings.data, made.data) is not None
    shutil.rmtree(made.runs, ignore_errors=True)
    write_runs(made)
    return made, path


def report(made: Plan, path: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak bytes of the command."""
    arguments = ["--scale", "smoke", "--seeds", str(SEEDS), "--set", f"epochs={EPOCHS}", "--runs", str(made.runs)]
    command = [sys.executable, str(ROOT / "run_ablation.py"), "report", str(path), *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--data", str(made.data), "--out", str(path.with_suffix(""))],
        stdout=subprocess.DEVNULL,
        preexec_fn=two_cores,
    )
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"report ended with {process.returncode}"
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def two_cores() -> None:
    """Leave this process the first two of its cores."""
    with contextlib.suppress(AttributeError):  # not on every system
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def main() -> None:
    bench = Bench("reporting", "`report` on 100, 300 and 1,000 runs of 800 epochs.", threads=1)
    sizes = (20, 60, 200) if bench.quick else (100, 300, 1000)
    seconds: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            made, path = make_study(Path(name), size)
            for which in ("first", "second"):
                wall, cpu, peak = report(made, path)
                seconds[which, size] = wall, cpu
                say = limit_row(bench, f"{which} report on {size} runs", size == 1000)
                say("s", wall, MOST_SECONDS, f"{cpu:.1f} s of CPU time")
                say("GiB", peak / 2**30, MOST_BYTES / 2**30, "peak memory")
    small = sizes[0]
    for size in sizes[1:]:
        for which in ("first", "second"):
            (wall, cpu), (small_wall, small_cpu) = seconds[which, size], seconds[which, small]
            bench.add(
                f"{which} report on {size} runs, over {small}",
                "s a run",
                ours=[wall / size],
                peer_name=f"{small} runs",
                peer=[small_wall / small],
                ratios=[wall / size / (small_wall / small)],
                other_ratios=[cpu / size / (small_cpu / small)],
                clock="wall",
                reach=Reach(1.1, at_least=False),
            )


def limit_row(bench: Bench, what: str, has_limit: bool) -> Callable[[str, float, float, str], None]:
    """Adds rows on a report, its limit as the peer; only the largest study has to keep it."""

    def add(unit: str, value: float, limit: float, note: str) -> None:
        reach = Reach(1.0, at_least=False) if has_limit else None
        ratios = [value / limit]
        bench.add(
            what,
            unit,
            ours=[value],
            peer_name="limit",
            peer=[limit],
            ratios=ratios,
            clock="wall",
            reach=reach,
            note=note,
        )

    return add


if __name__ == "__main__":
    main()
