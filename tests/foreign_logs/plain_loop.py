"""Trainings in a plain PyTorch loop, which shares no code with this project: handwritten digits, an MLP.

``python tests/foreign_logs/plain_loop.py FOLDER`` writes the logs and embeddings of every run of :data:`RUNS`, each in
the form that its name ends with. The images are scikit-learn's digits (1,797 of 8x8 pixels, ten classes); a view is an
image moved by up to a pixel, with a random contrast and noise.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

Rows = list[dict[str, Any]]


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def view(images: Tensor, noise: float) -> Tensor:
    moved = F.pad(images, (1, 1, 1, 1))
    dx, dy = np.random.randint(0, 3, 2)
    moved = moved[:, :, dy : dy + 8, dx : dx + 8]
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.6, 1.4)
    return (moved * contrast + noise * torch.randn_like(moved)).flatten(1)


def mlp(*widths: int, bn: bool = True, last: str = "none") -> nn.Sequential:
    """Linear layers with BN and ReLU between; ``last`` is what follows the last one: none, affine or plain BN."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(after)] if bn else []
            layers.append(nn.ReLU())
    if last != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last == "affine"))
    return nn.Sequential(*layers)


def info_nce(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss over both views."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similar = z @ z.T / temperature
    similar.fill_diagonal_(-1e9)
    n = len(z1)
    return F.cross_entropy(similar, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def knn(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int = 20) -> float:
    similar = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    votes = F.one_hot(bank_labels[similar.topk(k, dim=1).indices], 10).sum(1)
    return (votes.argmax(1) == labels).float().mean().item()


def train(
    *, seed: int = 0, method: str = "simsiam", stop: bool = True, predictor: str = "mlp", hidden: int = 16,
    dim: int = 64, batch: int = 128, lr: float = 0.1, epochs: int = 60, bn: bool = True, out_bn: str = "plain",
    noise: float = 0.15,
    momentum: float = 0.9, decay: float = 1e-4, predictor_lr: float = 1.0, temperature: float = 0.2, every: int = 5,
    few: int = 0, until: int | None = None, optimizer: str = "sgd",
) -> tuple[Rows, dict[str, Tensor]]:  # fmt: skip
    """The logged rows of a training, and the embeddings of the test images at its end.

    few: so many channels of z are used, the others are 0 (a dimensional collapse by hand).
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    images, labels = digits()
    train_x, train_y, test_x, test_y = images[:1400], labels[:1400], images[1400:], labels[1400:]
    backbone = mlp(64, 256, 128, bn=bn)
    projector = mlp(128, 128, dim, bn=bn, last=out_bn)
    h = nn.Identity() if predictor == "none" else mlp(dim, hidden, dim, bn=bn)
    groups = [{"params": [*backbone.parameters(), *projector.parameters()], "lr": lr}]
    if predictor == "mlp":
        groups.append({"params": list(h.parameters()), "lr": lr * predictor_lr})
    opt: torch.optim.Optimizer
    if optimizer == "adam":
        opt = torch.optim.Adam(groups, lr=lr)
    else:
        opt = torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=decay)
    mask = torch.ones(dim)
    if few:
        mask[few:] = 0
    per_epoch = len(train_x) // batch
    rows: Rows = []
    step = 0
    for epoch in range(epochs if until is None else until):
        order = torch.randperm(len(train_x))
        for i in range(per_epoch):
            step += 1
            for group, base in zip(opt.param_groups, (lr, lr * predictor_lr), strict=False):
                group["lr"] = base * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            x = train_x[order[i * batch : (i + 1) * batch]]
            z1, z2 = (projector(backbone(view(x, noise))) * mask for _ in range(2))
            if method == "simclr":
                loss = info_nce(z1, z2, temperature)
            else:
                t1, t2 = (z1.detach(), z2.detach()) if stop else (z1, z2)
                agree = F.cosine_similarity(h(z1), t2).mean() / 2 + F.cosine_similarity(h(z2), t1).mean() / 2
                loss = 2 - 2 * agree if method == "byol-loss" else -agree
            opt.zero_grad()
            loss.backward()
            opt.step()
            if step % every == 0 or step == 1:
                with torch.no_grad():
                    std = F.normalize(z1, dim=1).std(0).mean().item()
                rows.append(
                    {"epoch": epoch, "step": step, "loss": loss.item(), "std": std, "lr": opt.param_groups[0]["lr"]}
                )
        if epoch % 5 == 4 or epoch == 0:
            backbone.eval()
            projector.eval()
            with torch.no_grad():
                f_train, f_test = backbone(train_x.flatten(1)), backbone(test_x.flatten(1))
                value = math.nan if not f_test.isfinite().all() else knn(f_train, train_y, f_test, test_y)
            backbone.train()
            projector.train()
            rows[-1] |= {"knn": value}
    backbone.eval()
    projector.eval()
    with torch.no_grad():
        f = backbone(test_x.flatten(1))
        views = torch.stack([projector(backbone(view(test_x, noise))) * mask for _ in range(4)], 1)
        ends = {"z": projector(f) * mask, "features": f, "labels": test_y, "views": views}
    return rows, ends


# Everything is decided here, before any rule sees a log. `columns` renames, and what has no name is not written.
PLAIN = {"epoch": "epoch", "step": "step", "loss": "loss", "std": "z_std", "knn": "knn_acc"}
LOSS = {"epoch": "epoch", "loss": "loss"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain-a.csv": ({"seed": 0}, PLAIN),
    "plain-b.csv": ({"seed": 1, "stop": False, "lr": 0.5, "epochs": 120, "every": 10}, PLAIN),
    "plain-c.jsonl": ({"seed": 2, "stop": False, "out_bn": "affine"}, PLAIN),
    "plain-d.jsonl": ({"seed": 3, "out_bn": "affine", "dim": 128, "hidden": 32}, PLAIN),
    "plain-e.csv": ({"seed": 4, "bn": False, "out_bn": "none", "lr": 1e25}, PLAIN),
    "plain-f.csv": ({"seed": 5, "predictor": "fixed", "epochs": 40}, PLAIN),
    "plain-g.csv": ({"seed": 6, "lr": 3e-4, "epochs": 40}, PLAIN),
    "plain-h.csv": ({"seed": 7, "until": 2, "every": 7}, PLAIN),
    "plain-i.csv": ({"seed": 8, "predictor_lr": 30.0, "lr": 0.8, "momentum": 0.99, "batch": 64}, PLAIN),
    "plain-j.csv": ({"seed": 9, "predictor": "none", "out_bn": "affine"}, PLAIN),
    "plain-k.csv": ({"seed": 10, "method": "byol-loss"}, {**PLAIN, "loss": "train/loss", "std": "train/z_std"}),
    "plain-l.csv": ({"seed": 11, "method": "simclr", "out_bn": "none"}, PLAIN),
    "plain-m.csv": ({"seed": 12, "few": 3}, PLAIN),
    "plain-n.csv": ({"seed": 13, "stop": False, "bn": False, "out_bn": "none", "lr": 0.3}, PLAIN),
    "plain-o.csv": ({"seed": 14}, LOSS),
    "plain-p.csv": ({"seed": 15, "stop": False, "bn": False, "out_bn": "none", "lr": 0.3}, LOSS),
    "plain-q.csv": ({"seed": 16, "stop": False, "out_bn": "affine"}, {"std": "representation_std", "epoch": "epoch"}),
    "plain-r.csv": ({"seed": 17, "stop": False, "method": "byol-loss"}, {**PLAIN, "std": "collapse"}),
    "plain-s.jsonl": ({"seed": 18, "optimizer": "adam", "lr": 1e-3, "batch": 64},
        {**PLAIN, "step": "_step", "loss": "train_loss"}),
    "plain-t.jsonl": ({"seed": 19, "bn": False, "out_bn": "none", "lr": 1e3, "method": "simclr", "temperature": 0.02},
        PLAIN),
    "plain-u.csv": ({"seed": 20, "few": 2, "out_bn": "affine"}, {**PLAIN, "std": "std of z"}),
    "plain-v.csv": ({"seed": 21, "batch": 32, "every": 20, "dim": 256, "hidden": 64},
        {**PLAIN, "loss": "Loss", "std": "Z_STD", "knn": "kNN top-1"}),
    "ends-a.npz": ({"seed": 30, "epochs": 40}, {}),
    "ends-b.npz": ({"seed": 31, "stop": False, "out_bn": "affine", "epochs": 20}, {}),
    "ends-c.npy": ({"seed": 32, "few": 3, "epochs": 40}, {}),
    "ends-d.pt": ({"seed": 33, "out_bn": "affine", "epochs": 40}, {}),
    "ends-e.npy": ({"seed": 34, "stop": False, "bn": False, "out_bn": "none", "epochs": 20, "lr": 0.3}, {}),
    "ends-f.safetensors": ({"seed": 35, "method": "simclr", "out_bn": "none", "epochs": 40}, {}),
}  # fmt: skip


def write(path: Path, rows: Rows) -> None:
    rows = [{key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_ends(path: Path, ends: dict[str, Tensor]) -> None:
    z, labels = ends["z"].half(), ends["labels"]
    if path.suffix == ".npz":
        np.savez_compressed(path, z=z.numpy(), labels=labels.numpy())
    elif path.suffix == ".npy":
        np.save(path, z.numpy())
    elif path.suffix == ".pt":
        torch.save({"embeddings": z, "targets": labels}, path)
    else:
        from safetensors.torch import save_file

        save_file({"embeddings": z.contiguous(), "labels": labels.contiguous()}, path)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, (options, columns) in RUNS.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        rows, ends = train(**options)
        if name.startswith("ends"):
            write_ends(folder / name, ends)
        else:
            write(
                folder / name, [{columns[key]: value for key, value in row.items() if key in columns} for row in rows]
            )
        last = rows[-1]
        print(
            name,
            options,
            {key: round(value, 4) for key, value in last.items()},
            [r["knn"] for r in rows if "knn" in r][::4],
        )


if __name__ == "__main__":
    main()
