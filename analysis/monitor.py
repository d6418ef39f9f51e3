"""A monitor for anybody's training loop: does the network collapse?

::

    from analysis.monitor import CollapseMonitor

    monitor = CollapseMonitor("runs/mine", total_steps=epochs * len(loader), steps_per_epoch=len(loader))
    for x1, x2 in ...:
        ...
        monitor.update(z1, z2, p1, loss)
    print(monitor.verdict())

It needs torch, numpy and pydantic, and for the verdict pandas and scipy. The folder is one that ``diagnose``,
``compare`` and :func:`analysis.load_runs` read: docs/diagnosis.md.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from simsiam.errors import SettingsError
from simsiam.evaluation.diagnostics import OF_A_VIEW, OF_VIEWS, effective_rank, output_std
from simsiam.record.atomic_files import write_atomically
from simsiam.record.catalogue import OUTPUT_BN
from simsiam.record.curves import MetricsWriter, Point, attempt_files, merge

if TYPE_CHECKING:
    from analysis.diagnosis.rules import Diagnosis

RANK_EVERY = 10  # of the logged steps: a rank costs as much as all other measures together


class CollapseMonitor:
    """Measures z now and then while a network trains, writes what it measured, and says what it means.

    Between two logged steps :meth:`update` keeps a reference to the loss and does nothing else, so that nothing waits
    for the device. Of several ranks, rank 0 writes, and what is measured is its own part of the batch.

    Args:
        folder: where the curves are written; it must not hold a run yet, unless ``first_step`` says where one goes on.
            None: nothing is written.
        total_steps: how many steps the training will have. What is not over is judged by how far it is.
        every: steps between two measurements; the first step is measured, too.
        steps_per_epoch: gives the curves a time in epochs. None: their time is in steps.
        loss: the name of the loss, as of the setting ``loss.name``: it tells chance and optimum.
        output_bn: whether z comes out of a BN: ``affine``, ``plain`` (without scale and shift) or ``none``.
        batch_size: images in the whole batch. None: as many as z1 of the first step has.
        classes: how many the images have; it tells how many directions z needs.
        first_step: steps that were made before, of a training that goes on.
        settings: what else is known, by dotted path as in a run's ``config.yaml``, to name causes
            (``{"target.stop_gradient": False}``) and losses (``{"loss.temperature": 0.5}``).

    Raises SettingsError for an argument that is not allowed, or a folder that holds a run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        total_steps: int,
        every: int = 50,
        steps_per_epoch: int | None = None,
        loss: str = "cosine",
        output_bn: str = "affine",
        batch_size: int | None = None,
        classes: int | None = None,
        first_step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (("total_steps", total_steps, 1), ("every", every, 1), ("first_step", first_step, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingsError(f"{name}: {value!r} is no whole number of {least} or more  [CollapseMonitor]")
        if output_bn not in OUTPUT_BN:
            raise SettingsError(f"output_bn: {output_bn!r} is not one of {', '.join(OUTPUT_BN)}  [CollapseMonitor]")
        self.step = first_step
        self.total_steps, self.every, self.steps_per_epoch = total_steps, every, steps_per_epoch
        self.classes = classes
        self.settings: dict[str, Any] = {
            "loss.name": loss, **OUTPUT_BN[output_bn], **(settings or {}),
        }  # fmt: skip
        if batch_size is not None:
            self.settings["batch_size"] = batch_size
        self.points: list[Point] = []
        self.folder = Path(folder) if folder is not None and _rank() == 0 else None
        self._losses: list[Tensor | float] = []  # since the last logged step
        self._bad_since: int | None = None  # the step from which on no loss was finite
        self._marked = False  # that it diverged
        self._num_logged = 0
        self._closed = False
        self._started = time.monotonic()
        self._writer = self._open(first_step) if self.folder is not None else None

    @torch.no_grad()
    def update(
        self, z1: Tensor, z2: Tensor | None = None, p1: Tensor | None = None, loss: Tensor | float | None = None
    ) -> None:
        """Tell of one step: z1, z2, p1 (B, d), the projections of two views and the prediction of the first's.

        Without a loss, it is the negative cosine of p1 and z2. Call it once a step, after the loss is known.
        """
        self.step += 1
        if loss is None and p1 is not None and z2 is not None:
            loss = -F.cosine_similarity(p1.detach().float(), z2.detach().float(), dim=1).mean()
        if loss is not None:
            self._losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        if self.step % self.every and self._num_logged and self.step != self.total_steps:
            return
        self._log(z1.detach(), None if z2 is None else z2.detach())

    def evaluate(self, *, z: Tensor | None = None, knn_top1: float | None = None) -> None:
        """Tell of an evaluation: z (N, d) of held-out images, N >= 4d wanted; kNN accuracy in percent."""
        point: Point = {} if z is None else {"effective_rank": effective_rank(z.detach())}
        if knn_top1 is not None:
            point["knn_top1"] = float(knn_top1)
        self._write(point)

    def verdict(self) -> Diagnosis:
        """What happened so far, by the rules of docs/diagnosis.md; ``print`` shows it with its evidence."""
        import pandas as pd

        from analysis.diagnosis.rules import diagnose

        self._read_losses()
        points = [*self.points]
        if self._bad_since is not None and not self._marked:
            points.append({**self._time(self._bad_since), "diverged": True})
        frame = pd.DataFrame(points or [{"step": self.step, "epoch": 0.0}])
        marked = frame["diverged"].eq(True) if "diverged" in frame else False
        return diagnose(frame.assign(diverged=marked, run=self._name), self._row())

    def close(self) -> Diagnosis:
        """Write the result; the verdict. To be called when training has ended."""
        verdict = self.verdict()
        if self._closed:
            return verdict
        self._closed = True
        if self._bad_since is not None and not self._marked:
            self._mark()
        if self._writer is not None and self.folder is not None:
            self._writer.sync()
            self._writer.close()
            final: Point = {}
            for point in self.points:
                final |= point
            outcome = {"divergence": "diverged", "complete collapse": "collapsed"}.get(verdict.verdict, "healthy")
            seconds = time.monotonic() - self._started
            result = {
                "outcome": outcome, "stopped_early": False, "final": final, "seconds": seconds,
                "device_seconds": seconds, "threads": torch.get_num_threads(), "peak_memory_bytes": _peak_memory(),
                "attempts": len(attempt_files(self.folder)),
            }  # fmt: skip
            self._json("result.json", result)
            self._state("done")
        return verdict

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._state("stopped")

    # --- measuring -----------------------------------------------------------------------------------------------

    def _log(self, z1: Tensor, z2: Tensor | None) -> None:
        if z1.dim() != 2 or (z2 is not None and z2.shape != z1.shape):
            raise SettingsError(
                f"z1: of shape {tuple(z1.shape)}{'' if z2 is None else f' and z2 of {tuple(z2.shape)}'}; both are to be"
                " (batch, channels)  [CollapseMonitor.update]"
            )
        first = "projector.output_dim" not in self.settings
        self.settings.setdefault("projector.output_dim", z1.shape[1])
        self.settings.setdefault("batch_size", len(z1))
        if first and self.folder is not None:
            self._config()
        loss = self._read_losses()
        views = [z1] if z2 is None else [z1, z2]
        measures = {"z_std": output_std, **OF_A_VIEW}
        values = {name: torch.stack([measure(z) for z in views]).mean() for name, measure in measures.items()}
        if z2 is not None:
            values |= {name: measure(z1, z2) for name, measure in OF_VIEWS.items()}
        found = torch.stack([value.float() for value in values.values()]).tolist()  # the one wait for the device
        point: Point = dict(zip(values, found, strict=True))
        point["z_std_relative"] = point["z_std"] * math.sqrt(z1.shape[1])
        if self._bad_since is None and all(map(math.isfinite, found)):
            if loss is not None:
                point = {"loss": loss, **point}
            if self._num_logged % RANK_EVERY == 0 or self.step == self.total_steps:
                point["effective_rank"] = effective_rank(z1)
            self._write(point)
        elif self._bad_since is not None and self.step - self._bad_since >= self.every - 1 and not self._marked:
            self._mark()
        self._num_logged += 1

    def _read_losses(self) -> float | None:
        """The newest loss; and since when none was finite, if that is so."""
        if not self._losses:
            return None
        kept, self._losses = self._losses, []
        values = torch.stack([torch.as_tensor(loss, dtype=torch.float32).cpu() for loss in kept]).tolist()
        first = self.step - len(values) + 1
        for step, value in enumerate(values, first):
            if math.isfinite(value):
                self._bad_since = None
            elif self._bad_since is None:
                self._bad_since = step
        return float(values[-1])

    def _mark(self) -> None:
        self._marked = True
        assert self._bad_since is not None
        self._write({"diverged": True}, self._bad_since)

    def _write(self, point: Point, step: int | None = None) -> None:
        point = {**self._time(self.step if step is None else step), **point}
        self.points.append(point)
        if self._writer is not None:
            self._writer.write(point)
            self._state("running")

    def _time(self, step: int) -> Point:
        return {"epoch": step / (self.steps_per_epoch or 1), "step": step}

    @property
    def _name(self) -> str:
        return self.folder.name if self.folder is not None else "this training"

    def _row(self) -> dict[str, Any]:
        """What the frame of runs holds of it."""
        of = self.steps_per_epoch or 1
        return {
            "run": self._name, "state": "done" if self._closed or self.step >= self.total_steps else "running",
            "outcome": None, "epoch": self.step / of, "epochs": self.total_steps / of,
            "unit_of_time": "epoch" if self.steps_per_epoch else "step", "logged_every": self.every,
            "reference_chance": 100 / self.classes if self.classes else math.nan, **self.settings,
        }  # fmt: skip

    # --- the folder ----------------------------------------------------------------------------------------------

    def _open(self, first_step: int) -> MetricsWriter:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        attempts = attempt_files(self.folder)
        if (attempts or (self.folder / "config.yaml").exists()) and not first_step:
            raise SettingsError(
                f"{self.folder}: holds a run; nothing is overwritten. Name another folder, or give first_step, the"
                " steps that were made, to go on  [CollapseMonitor]"
            )
        self.points = [point for point in merge(self.folder, from_attempts=True) if point["step"] <= first_step]
        for name in ("metrics.jsonl", "result.json"):
            (self.folder / name).unlink(missing_ok=True)  # of an attempt that had ended; its own file stays
        number = 1 + max((int(path.name.split(".")[1]) for path in attempts), default=0)
        self._attempt = {
            "attempt": number, "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "threads": torch.get_num_threads(), "versions": {"torch": torch.__version__}, "git_dirty": None,
            **dict.fromkeys(("device", "host", "git_commit", "code", "command")),
        }  # fmt: skip
        chance = 100 / self.classes if self.classes else None
        self._json(
            "provenance.json", {"references": {"raw_pixels": None, "chance": chance}, "attempts": [self._attempt]}
        )
        return MetricsWriter(self.folder, number, first_step or None)

    def _config(self) -> None:
        """The settings that are known; ``foreign`` says that all others are not, and are no defaults."""
        assert self.folder is not None
        nested: dict[str, Any] = {"foreign": True, "epochs": math.ceil(self.total_steps / (self.steps_per_epoch or 1))}
        for path, value in self.settings.items():
            section, _, leaf = path.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[leaf] = value
        text = json.dumps(nested, indent=1)  # which is YAML, too
        write_atomically(self.folder / "config.yaml", lambda file: file.write(text), aside="monitor", mode="w")

    def _state(self, state: str) -> None:
        of = self.steps_per_epoch or 1
        progress = {"step": self.step, "epoch": self.step / of, "epochs": self.total_steps / of}
        seconds = time.monotonic() - self._started
        self._json(
            "state.json",
            {"state": state, "attempt": self._attempt["attempt"], "seconds": seconds, "num_steps": self.total_steps}
            | progress,
        )

    def _json(self, name: str, value: Any) -> None:
        assert self.folder is not None
        temporary = self.folder / f".{name}.monitor"
        temporary.write_text(json.dumps(value), encoding="utf-8")
        os.replace(temporary, self.folder / name)


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
