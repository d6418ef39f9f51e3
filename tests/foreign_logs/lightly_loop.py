"""Trainings with lightly's heads, losses and measures in a Lightning loop, logged as Lightning and TensorBoard log.

``python tests/foreign_logs/lightly_loop.py FOLDER``, in an environment with lightly and tensorboard. The images are
those of plain_loop.py. The std is lightly's ``std_of_l2_normalized``, of which its documentation says what it tells.
"""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import SimCLRProjectionHead, SimSiamPredictionHead, SimSiamProjectionHead
from lightly.utils.debug import std_of_l2_normalized
from plain_loop import digits, knn, mlp, view
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    def __init__(
        self, kind: str, lr: float, detach: bool, per_step: bool, measures: tuple[str, ...], total: int
    ) -> None:
        super().__init__()
        self.backbone = mlp(64, 256, 128)
        self.kind, self.lr, self.detach, self.per_step, self.measures = kind, lr, detach, per_step, measures
        self.total = total
        if kind == "simsiam":
            self.head, self.h = SimSiamProjectionHead(128, 128, 64), SimSiamPredictionHead(64, 16, 64)
            self.criterion = NegativeCosineSimilarity()
        else:
            self.head = SimCLRProjectionHead(128, 128, 64)
            self.criterion = NTXentLoss(temperature=0.5) if kind == "simclr" else BarlowTwinsLoss()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        (x,) = batch
        z1, z2 = (self.head(self.backbone(view(x, 0.15))) for _ in range(2))
        if self.kind == "simsiam":
            t1, t2 = (z1.detach(), z2.detach()) if self.detach else (z1, z2)
            loss = 0.5 * (self.criterion(self.h(z1), t2) + self.criterion(self.h(z2), t1))
        else:
            loss = self.criterion(z1, z2)
        self.log("train_loss_ssl", loss, on_step=self.per_step, on_epoch=True)
        if "std" in self.measures:
            self.log("representation_std", std_of_l2_normalized(z1.detach()), on_step=self.per_step, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if "knn" not in self.measures or self.current_epoch % 5:
            return
        images, labels = digits()
        self.backbone.eval()
        with torch.no_grad():
            f = self.backbone(images.flatten(1))
        self.backbone.train()
        self.log("kNN_accuracy", 100 * knn(f[:1400], labels[:1400], f[1400:], labels[1400:]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.total)]


RUNS: dict[str, dict[str, Any]] = {
    "lightly-a.csv": {"kind": "simsiam", "lr": 0.1, "per_step": True, "measures": ("std", "knn")},
    "lightly-b.csv": {"kind": "simsiam", "lr": 0.5, "detach": False, "epochs": 120, "measures": ("std", "knn")},
    "lightly-c.csv": {"kind": "simclr", "lr": 0.1, "measures": ("std", "knn")},
    "lightly-d.csv": {"kind": "barlow", "lr": 0.05, "measures": ("std",)},
    "lightly-e.csv": {"kind": "simsiam", "lr": 0.1, "epochs": 3, "measures": ("std", "knn")},
    "lightly-f.csv": {"kind": "simclr", "lr": 1e-5, "measures": ("std",)},
    "lightly-g.tfevents": {"kind": "simsiam", "lr": 0.1, "per_step": True, "measures": ("std", "knn")},
    "lightly-h.tfevents": {"kind": "simsiam", "lr": 0.5, "detach": False, "epochs": 120, "measures": ("std",)},
    "wandb-a.csv": {"kind": "simsiam", "lr": 0.1, "per_step": True, "measures": ("std", "knn")},
    "wandb-b.csv": {"kind": "simsiam", "lr": 0.1, "per_step": True, "measures": ()},
}


def as_wandb(source: Path, target: Path, run: str) -> None:
    """What the button "Export data as CSV" of a chart with several metrics gives: run - metric, with its range."""
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("step", "epoch")]
    with open(target, "w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["Step", *(f"{run} - {name}{end}" for name in names for end in ("", "__MIN", "__MAX"))])
        for row in rows:
            writer.writerow([row["step"], *(row[name] for name in names for _ in range(3))])


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    images, _ = digits()
    loader = DataLoader(TensorDataset(images[:1400]), batch_size=128, shuffle=True, drop_last=True)
    for number, (name, options) in enumerate(RUNS.items()):
        pl.seed_everything(number, verbose=False)
        options = {"epochs": 40, "detach": True, "per_step": False, **options}
        epochs = options.pop("epochs")
        with tempfile.TemporaryDirectory() as place:
            logger = (TensorBoardLogger if name.endswith("tfevents") else CSVLogger)(place, name="", version="")
            trainer = pl.Trainer(
                max_epochs=epochs, logger=logger, log_every_n_steps=5, enable_progress_bar=False, accelerator="cpu",
                enable_checkpointing=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Model(total=epochs, **options), loader)
            (written,) = [*Path(place).rglob("metrics.csv"), *Path(place).rglob("events.out.tfevents.*")]
            if name.startswith("wandb"):
                as_wandb(written, folder / name, "happy-sun-7")
            else:
                shutil.copy(written, folder / name)
        print(name, trainer.callback_metrics)


if __name__ == "__main__":
    main()
