"""Simulated runs with known outcomes, for the test of the diagnosis.

Every curve is drawn from ranges that were set down before the rules were run on them, and were not changed after it:
lengths, noise, batch sizes, widths, losses and the times when things happen are all random. The kinds are told apart
clearly; runs on the edge between two of them are not in here. Two things were changed later, as real runs refute what
was there. A rank below half of the untrained network's was taken for a dimensional collapse whatever the accuracy. Now
z has fewer directions than 1.1 times the bits that name the classes, or loses directions together with accuracy; and
half of the healthy runs come to use few directions, at least three times the bits. And a loss with negatives that has
not converged is at most 0.35 of the way to what a network gives that knows the classes alone, not to the best there is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from simsiam.settings.fields import Settings, flatten

KINDS = (
    "divergence", "complete collapse", "oscillation", "no convergence", "dimensional collapse", "slow optimisation",
    "healthy", "too early to say",
)  # fmt: skip
Random = np.random.Generator


def draw_settings(random: Random) -> dict[str, Any]:
    """Settings by dotted path, of a random loss, batch size and width."""
    loss = random.choice(["cosine", "cosine", "cosine", "nt-xent", "info-nce", "swapped-prediction"])
    flat = flatten(Settings())
    flat |= {
        "batch_size": int(random.choice([32, 64, 128, 256, 512, 1024])),
        "epochs": int(random.choice([4, 20, 100])),
    }
    flat |= {"loss.name": str(loss), "projector.output_dim": int(random.choice([64, 256, 512, 2048]))}
    flat |= {
        "projector.bn_output_affine": bool(random.random() < 0.7),
        "projector.bn_output": bool(random.random() < 0.8),
    }
    flat |= {"loss.temperature": float(random.choice([0.1, 0.2, 0.5]))}
    flat |= {"target.queue_size": 4096 if loss == "info-nce" else 0}
    flat |= {"target.num_prototypes": int(random.choice([32, 300, 3000])) if loss == "swapped-prediction" else 0}
    return flat


def ends_of(flat: dict[str, Any]) -> tuple[float, float]:
    """Loss at chance and at its best, written out from the definitions of the losses."""
    if flat["loss.name"] == "cosine":
        return 0.0, -1.0
    others = {
        "nt-xent": 2 * flat["batch_size"] - 2,
        "info-nce": flat["target.queue_size"],
        "swapped-prediction": flat["target.num_prototypes"] - 1,
    }[flat["loss.name"]]
    return math.log(1 + others), math.log(1 + others * math.exp(-1 / flat["loss.temperature"]))


def way_of_classes(flat: dict[str, Any], classes: int) -> float:
    """The share of the way from chance to the best that a network comes which knows the classes alone.

    Of the others, one in ``classes`` is then as near as the positive.
    """
    chance, best = ends_of(flat)
    if flat["loss.name"] == "cosine":
        return 1.0
    others, apart = math.exp(chance) - 1, math.exp(-1 / flat["loss.temperature"])
    return (chance - math.log(1 + others / classes + (others - others / classes) * apart)) / (chance - best)


def simulate(kind: str, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The points of a run of a kind, and its row in the frame of runs."""
    random = np.random.default_rng([KINDS.index(kind), seed])
    flat = draw_settings(random)
    chance, best = ends_of(flat)
    epochs, num = flat["epochs"], int(random.integers(60, 600))
    time = np.linspace(1 / num, 1, num)  # share of the run
    plateau = random.uniform(0.75, 0.95)
    progress = plateau * (1 - np.exp(-time / random.uniform(0.01, 0.08)))
    std = np.full(num, random.uniform(0.8, 1.0))
    classes = int(random.choice([10, 100, 1000]))
    untrained = random.uniform(15, 40) if classes == 10 else random.uniform(40, 120)
    evaluations = np.linspace(0, 1, min(epochs, 30) + 1)
    rank = untrained * (1 + random.uniform(0.5, 3) * (1 - np.exp(-evaluations / 0.2)))
    if kind == "healthy" and random.random() < 0.5:  # few directions, as on real images, but more than bits
        rank[1:] = np.geomspace(2 * untrained, untrained, len(rank))[1:]
        rank = np.maximum(rank * np.linspace(1, random.uniform(0.1, 0.5), len(rank)), 3 * math.log2(classes))
    if kind == "complete collapse":
        speed = random.uniform(0.005, 0.15)
        # An output BN without scale and shift keeps a floor of 2/sqrt(B), where all images but one agree.
        hidden = flat["projector.bn_output"] and not flat["projector.bn_output_affine"]
        floor = 2 / math.sqrt(flat["batch_size"]) if hidden else 0.0
        std = floor + (std - floor) * np.exp(-time / speed) + random.uniform(0, 0.05)
        progress = 1 - np.exp(-time / speed) if flat["loss.name"] == "cosine" else 0.02 * time
        rank = 1 + untrained * np.exp(-evaluations / random.uniform(0.02, 0.15))
    elif kind == "dimensional collapse":
        loses_accuracy = bool(random.random() < 0.5)
        end = untrained * random.uniform(0.05, 0.4) if loses_accuracy else random.uniform(1.1, 1.1 * math.log2(classes))
        rank = end + (untrained * random.uniform(1, 2) - end) * np.exp(-evaluations / random.uniform(0.05, 0.15))
        rank[0] = untrained
        std *= random.uniform(0.6, 1.0)
    elif kind == "no convergence":
        progress = (
            random.uniform(0, 0.35) * way_of_classes(flat, classes) * (1 - np.exp(-time / random.uniform(0.01, 0.05)))
        )
    elif kind == "slow optimisation":
        progress = random.uniform(0.4, 0.8) * time ** random.uniform(0.8, 1.5)
    elif kind == "oscillation":
        size, cycles = random.uniform(0.12, 0.3), random.uniform(4, 40)
        grown = np.clip((time - random.uniform(0, 0.3)) / 0.1, 0, 1)
        progress = progress * 0.8 + size * grown * np.sin(2 * np.pi * cycles * time + random.uniform(0, 6))
    loss = chance - (chance - best) * progress
    noise = random.uniform(0.1, 0.45) if flat["loss.name"] == "cosine" else random.uniform(0.2, 0.8)  # of an image
    loss = loss + random.normal(0, noise / math.sqrt(flat["batch_size"]), num)
    if flat["loss.name"] == "cosine":
        loss = np.clip(loss, -1, 1)
    std = np.clip(std + random.normal(0, 0.01, num), 0, 1)
    rank = np.maximum(rank * (1 + random.normal(0, 0.04, len(rank))), 1)
    reached = random.uniform(0.01, 0.15) if kind == "too early to say" else 1.0
    if kind == "divergence":
        reached = random.uniform(0.02, 1.0)
    knn = 100 / classes + random.uniform(0, 60) * (1 - np.exp(-evaluations / 0.3))
    if kind == "dimensional collapse" and loses_accuracy:  # below even the untrained network's
        knn = 100 / classes + random.uniform(15, 40) - random.uniform(6, 14) * evaluations
    rows = [
        {"epoch": share * epochs, "step": round(share * epochs * 100), "loss": a, "z_std_relative": b}
        | {"centre": 1 - b**2}  # what the identity leaves where all channels vary alike
        for share, a, b in zip(time, loss, std, strict=True)
        if share <= reached
    ]
    rows += [
        {"epoch": share * epochs, "step": round(share * epochs * 100), "effective_rank": a, "knn_top1": b}
        for share, a, b in zip(evaluations, rank, knn, strict=True)
        if share <= reached
    ]
    points = pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True)
    points["diverged"] = False
    if kind == "divergence":
        last = {"epoch": reached * epochs, "step": round(reached * epochs * 100) + 1, "diverged": True}
        points = pd.concat([points, pd.DataFrame([last])], ignore_index=True)
    outcome = {"divergence": "diverged", "complete collapse": "collapsed"}.get(kind, "healthy")
    ended = kind != "too early to say"
    row = {"run": f"{kind} {seed}", "state": "done" if ended else "running", "outcome": outcome if ended else None}
    row |= {"epoch": reached * epochs, "untrained_knn_top1": knn[0], "reference_chance": 100 / classes, **flat}
    return points.assign(run=row["run"]), row
