"""The monitor as a callback of Lightning, where Lightning is installed.

::

    trainer = Trainer(callbacks=[MonitorCallback("runs/mine", loss="cosine", output_bn="plain")])

``training_step`` returns ``{"loss": loss, "z1": z1, "z2": z2, "p1": p1}``, of which p1 may be missing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from analysis.monitor import CollapseMonitor
from simsiam.errors import SettingsError

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise SettingsError("analysis.lightning_callback needs Lightning: pip install lightning") from None

if TYPE_CHECKING:
    from analysis.diagnosis.rules import Diagnosis


class MonitorCallback(Callback):  # type: ignore[misc]
    """A :class:`CollapseMonitor` that counts the trainer's steps; ``verdict`` holds what it said at the end.

    Its arguments are those of the monitor, but for the numbers of steps, which the trainer knows.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__()
        self.folder, self.options = folder, options
        self.monitor: CollapseMonitor | None = None
        self.verdict: Diagnosis | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        batches = int(trainer.num_training_batches)
        self.monitor = CollapseMonitor(
            self.folder,
            total_steps=batches * int(trainer.max_epochs or 1),
            steps_per_epoch=batches,
            first_step=int(trainer.current_epoch) * batches,
            **self.options,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.monitor is not None
        if not isinstance(outputs, dict) or not {"loss", "z1", "z2"} <= outputs.keys():
            found = ", ".join(outputs) if isinstance(outputs, dict) else type(outputs).__name__
            raise SettingsError(
                f"training_step: is to return loss, z1 and z2 in a dict, not {found}  [MonitorCallback]"
            )
        self.monitor.update(outputs["z1"], outputs["z2"], outputs.get("p1"), outputs["loss"])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor is not None:
            self.verdict = self.monitor.close()
