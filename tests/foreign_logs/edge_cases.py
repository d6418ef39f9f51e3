"""Logs with what logs have in practice: rows of NaN, restarts, missing columns, other separators, a million rows.

``python tests/foreign_logs/edge_cases.py FOLDER`` writes them; :func:`million_rows` is for the test itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

D = 256


def curve(seed: int, n: int, end: float = -0.85, speed: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """A loss that goes from 0 to ``end``, and the std of z/|z| of a healthy run."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, 1, n)
    return end * (1 - np.exp(-time / speed)) + random.normal(0, 0.01, n), (1 - random.uniform(0, 0.08, n)) / D**0.5


def table(path: Path, columns: dict[str, object], separator: str = ",", comma: bool = False) -> None:
    lines = [separator.join(columns)]
    for row in zip(*columns.values(), strict=True):  # type: ignore[call-overload]
        cells = [f"{value:.5g}" if isinstance(value, float) else str(value) for value in row]
        lines.append(separator.join(cell.replace(".", ",") if comma else cell for cell in cells))
    path.write_text("\n".join(lines) + "\n")


def million_rows(path: Path, n: int = 1_000_000) -> None:
    """A run without stop-gradient, logged at each of its steps."""
    time = np.linspace(0, 1, n)
    loss, std = -1 + np.exp(-time / 0.05), (0.01 + 0.99 * np.exp(-time / 0.05)) / D**0.5
    with open(path, "w") as file:
        file.write("epoch,global_step,train_loss,z_std,lr\n")
        rows = zip((time * 100).tolist(), range(n), loss.tolist(), std.tolist(), strict=True)
        file.writelines(f"{a:.4f},{b},{c:.5f},{d:.6f},0.05\n" for a, b, c, d in rows)


def main() -> None:
    folder = Path(sys.argv[1])
    n, steps = 200, list(range(10, 2001, 10))
    loss, std = curve(0, n)
    loss[[40, 41, 90, 150]] = np.nan
    table(folder / "edge-a.csv", {"iter": steps, "loss": loss.tolist(), "z_std": std.tolist()})
    loss, std = curve(1, n)
    loss[120:], std[120:] = np.nan, np.nan
    table(folder / "edge-b.csv", {"iter": steps, "loss": loss.tolist(), "z_std": std.tolist()})
    loss, std = curve(2, n)
    again = [*range(120), *range(90, 160), *range(140, n)]  # killed twice, resumed from a checkpoint
    table(
        folder / "edge-c.csv",
        {"step": [steps[i] for i in again], "loss": loss[again].tolist(), "z_std": std[again].tolist()},
    )
    collapsed, low = -1 + np.exp(-np.linspace(0, 8, n)), (0.03 + 0.9 * np.exp(-np.linspace(0, 12, n))) / D**0.5
    rows = {"step": steps[:120] + steps[60:], "loss": [*loss[:120], *collapsed[60:]], "z_std": [*std[:120], *low[60:]]}
    table(folder / "edge-d.csv", rows)
    table(folder / "edge-e.csv", {"epoch": [0], "loss": [-0.02], "z_std": [0.06]})
    loss, std = curve(3, n)
    table(folder / "edge-f.csv", {"epoch": list(range(n)), "z_std": std.tolist()})
    waves = -0.55 + 0.3 * np.sin(np.linspace(0, 90, n))
    table(
        folder / "edge-g.tsv", {"Epoch": list(range(n)), "Loss": waves.tolist(), "Std": std.tolist()}, ";", comma=True
    )
    loss, std = curve(4, n)
    rank = [f"{2.1 + 20 * np.exp(-i / 10):.2f}" if i % 10 == 9 else "None" for i in range(n)]
    table(
        folder / "edge-h.csv",
        {"": list(range(n)), "phase": ["train"] * n, "epoch": [i // 2 for i in range(n)], "loss": loss.tolist()}
        | {"z_std": std.tolist(), "rankme": rank},
    )
    loss, std = curve(5, n)
    with open(folder / "edge-i.jsonl", "w") as file:
        for i in range(150):
            bad = i >= 130
            value = {"loss": None if bad else round(loss[i], 4), "z_std": None if bad else round(std[i], 4)}
            file.write(json.dumps({"global_step": steps[i], "train": value}) + "\n")
        file.write('{"global_step": 1510, "tr')  # killed
    loss, _ = curve(6, n)
    loss[100:] = 10.0 ** np.linspace(1, 8, 100)
    loss[-1] = np.inf
    table(folder / "edge-j.csv", {"step": steps, "loss": loss.tolist()})
    level = 0.98 - 0.9 * np.exp(-np.arange(60) / 8)
    table(
        folder / "edge-k.csv",
        {
            "epoch": list(range(60)),
            "loss": (-1 + np.exp(-np.arange(60) / 6)).tolist(),
            "Collapse Level": level.tolist(),
        },
    )
    slow, std = -0.75 * np.linspace(0, 1, n), curve(7, n)[1]
    slow = slow + np.random.default_rng(7).normal(0, 0.01, n)
    table(
        folder / "edge-l.csv",
        {"epoch": [i // 20 for i in range(n)], "batch_idx": [i % 20 for i in range(n)], "loss": slow.tolist()}
        | {"z_std": std.tolist()},
    )
    random = np.random.default_rng(8)
    np.save(folder / "edge-m.npy", np.full((300, 64), 0.3, np.float16))
    z = random.normal(size=(300, 64)).astype(np.float16)
    z[17, 3] = np.nan
    np.savez_compressed(folder / "edge-n.npz", features=z)
    np.save(folder / "edge-o.npy", random.normal(size=(400, 64)).astype(np.float16))


if __name__ == "__main__":
    main()
