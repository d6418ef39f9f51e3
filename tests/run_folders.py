"""Run folders with a known truth, for the tests of the analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from simsiam.settings.identity import config_id

FINGERPRINT = "generated"
STEPS_PER_EPOCH = 20


def settings(**values: Any) -> Settings:
    """Settings of a small run; ``target__stop_gradient=False`` sets ``target.stop_gradient``."""
    flat = {"epochs": 8, "batch_size": 256, **{key.replace("__", "."): value for key, value in values.items()}}
    return validate(flat)


def curves(kind: str, seed: int, epochs: int, until: float, knn: float) -> list[dict[str, Any]]:
    """Points like those of a run that is ``healthy``, ``collapsed`` or ``diverged``, up to epoch ``until``."""
    random = np.random.default_rng(seed)
    points: list[dict[str, Any]] = [{"epoch": 0.0, "step": 0, "knn_top1": 52.0 + seed, "effective_rank": 28.0}]
    points[0]["linear_top1"] = 57.0 + seed
    for step in range(1, epochs * STEPS_PER_EPOCH + 1):
        epoch = step / STEPS_PER_EPOCH
        if epoch > until:
            break
        if kind == "diverged" and epoch > 2.5:
            points.append({"epoch": epoch, "step": step, "diverged": True})
            break
        if step % 5 == 0 or step == 1:
            healthy = kind != "collapsed"
            loss = -0.88 * (1 - np.exp(-epoch)) if healthy else -1 + np.exp(-6 * epoch)
            std = 0.97 if healthy else 0.05 + 0.92 * np.exp(-2 * epoch)
            loss, std = loss + random.normal(0, 0.01), std + random.normal(0, 0.005)
            loss = -loss * 10 ** (4 * epoch) if kind == "diverged" else max(loss, -1.0)
            points.append(
                {"epoch": epoch, "step": step, "loss": loss, "lr": 0.06, "z_std": std / 16, "z_std_relative": std}
                | {"grad_norm": 0.2, "images_per_s": 2500.0}
            )
        if step % STEPS_PER_EPOCH == 0:
            top1 = 52 + (knn - 52) * (1 - np.exp(-epoch)) / (1 - np.exp(-epochs)) + random.normal(0, 0.4)
            points.append({"epoch": epoch, "step": step, "knn_top1": top1, "effective_rank": 140.0 + seed})
            points[-1]["spectrum"] = [0.2, 0.1, 0.01]
            if epoch == epochs:
                points[-1]["linear_top1"] = top1 + 4
    return points


def write_run(
    runs: Path, config: Settings, seed: int, kind: str = "healthy", *, state: str = "done", until: float = 1e9,
    knn: float = 84.0, seconds: float = 120.0, device: str = "cpu", fingerprint: str = FINGERPRINT,
) -> Path:  # fmt: skip
    """A run folder as the store leaves it."""
    folder = runs / f"{config_id(config, fingerprint)}-s{seed}"
    folder.mkdir(parents=True)
    config = config.model_copy(update={"seed": seed})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    attempt = {
        "attempt": 1, "git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": False, "code": "c0de",
        "versions": {"python": "3.11.2", "torch": "2.9.0"}, "device": device, "threads": 2, "host": "node1",
        "command": "run_ablation.py run study", "data_fingerprint": fingerprint, "started": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    (folder / "provenance.json").write_text(
        json.dumps(
            {"references": {"raw_pixels": 82.1, "raw_pixels_linear": 83.0, "chance": 10.0}, "attempts": [attempt]}
        )
    )
    points = curves(kind, seed, config.epochs, until, knn)
    final: dict[str, Any] = {}
    for point in points:
        final |= point
    progress = {"step": final["step"], "epoch": final["epoch"], "epochs": config.epochs, "num_steps": 160}
    (folder / "state.json").write_text(json.dumps({"state": state, "attempt": 1, "seconds": seconds, **progress}))
    lines = "".join(json.dumps(point) + "\n" for point in points)
    if state == "done":
        (folder / "metrics.jsonl").write_text(lines)
        result = {
            "outcome": kind, "stopped_early": kind == "diverged", "final": final, "seconds": seconds,
            "device_seconds": seconds, "threads": 2, "peak_memory_bytes": 2**30, "attempts": 1,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    else:
        first = json.dumps({"attempt": 1, "resumed_at_step": None}) + "\n"
        (folder / "metrics.1.jsonl").write_text(first + lines + '{"epoch": 3.1, "st')  # the last line is half-written
    if state == "failed":
        (folder / "failure.txt").write_text("Traceback (most recent call last):\nRuntimeError: out of memory\n")
    return folder
