"""What a user sees while a grid runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from commands.console import duration, number
from experiments.plan import PlannedCell
from experiments.runs.states import CellResult, End
from simsiam.record.catalogue import collapse_threshold

LOG_SECONDS = 30.0  # between two plain lines of one cell


def _shared(progress: dict[str, Any]) -> str:
    """Why a cell is slow, where that is so."""
    return " (others use its cores)" if progress.get("cores_are_shared") else ""


class Clock:
    """The time that a cell has left, from the steps it made since this launcher started it."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, progress: dict[str, Any]) -> float | None:
        step, num_steps = progress.get("step", 0), progress.get("num_steps")
        now = time.monotonic()
        if self._first is None:
            self._first = now, step
            return None
        elapsed, made = now - self._first[0], step - self._first[1]
        return None if made <= 0 or num_steps is None else elapsed / made * (num_steps - step)


class GridView:
    """A live view in a terminal; a line for each event, and now and then for each cell, where there is none."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console = console
        self.running: dict[str, tuple[PlannedCell, dict[str, Any], Clock]] = {}
        self.told: dict[str, float] = {}
        self.collapsed = set[str]()
        self.note = ""
        self.bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
        )
        self.task = self.bar.add_task("cells", total=total, completed=done)
        self.live = (
            Live(console=console, refresh_per_second=2, get_renderable=self._render) if console.is_terminal else None
        )

    def __enter__(self) -> GridView:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, planned: PlannedCell) -> None:
        self.note = ""
        self.running[planned.run_id] = (planned, {}, Clock())
        self._say(f"{planned.label}: started ({planned.run_id})", only_plain=True)

    def progressed(self, planned: PlannedCell, progress: dict[str, Any]) -> None:
        if planned.run_id not in self.running:
            return
        self._tell_collapse(planned, progress)
        _, _, clock = self.running[planned.run_id]
        left = clock.left(progress)
        self.running[planned.run_id] = (planned, progress, clock)
        now = time.monotonic()
        if not self.live and now - self.told.get(planned.run_id, 0) > LOG_SECONDS and "loss" in progress:
            self.told[planned.run_id] = now
            loss, std = number(progress["loss"], ".3f"), number(progress.get("z_std_relative"), ".3f")
            speed, knn = number(progress.get("images_per_s"), ".0f"), number(progress.get("knn_top1"), ".1f")
            self._say(
                f"{planned.label}: epoch {progress['epoch']:.1f}/{progress['epochs']}, loss {loss},"
                f" std x sqrt(d) {std}, kNN {knn} %, {speed} images/s{_shared(progress)}, {duration(left)} left"
            )

    def _tell_collapse(self, planned: PlannedCell, progress: dict[str, Any]) -> None:
        """Say it once when z collapses, which is what many a grid is run to see."""
        projector, std = planned.cell.settings.projector, progress.get("z_std_relative")
        threshold = collapse_threshold(
            planned.cell.settings.batch_size,
            bn_output=projector.bn_output,
            bn_output_affine=projector.bn_output_affine,
        )
        if std is not None and std < threshold and planned.run_id not in self.collapsed:
            self.collapsed.add(planned.run_id)
            self._say(f"{planned.label}: std x sqrt(d) {std:.2f}, collapsed at epoch {progress['epoch']:.1f}")

    def ended(self, planned: PlannedCell, result: CellResult) -> None:
        _, progress, _ = self.running.pop(planned.run_id, (planned, {}, Clock()))
        if result.state == End.DONE:
            self.bar.advance(self.task)
            outcome = f" ({result.reason})" if result.reason else ""
            self._say(f"{planned.label}: done{outcome}, kNN {number(progress.get('knn_top1'), '.1f')} %")
        elif result.state == End.STOPPED:
            self._say(f"{planned.label}: stopped at epoch {number(progress.get('epoch'), '.1f')}, checkpoint written")
        else:
            self._say(f"{planned.label}: failed: {result.reason}", style="red")

    def waiting(self, others: int) -> None:
        note = f"waiting for {others} cell{'s' * (others > 1)} that another process trains"
        if note != self.note:
            self.note = note
            self._say(note, only_plain=True)

    def stopping(self) -> None:
        self.note = "stopping: each running cell writes a checkpoint (Ctrl-C again stops at once, back to the last one)"
        self._say(self.note, only_plain=True)

    def _say(self, message: str, *, style: str = "", only_plain: bool = False) -> None:
        if not (self.live and only_plain):
            stamp = "" if self.live else time.strftime("%H:%M:%S ")
            self.console.print(Text(stamp + message, style=style), soft_wrap=True)

    def _render(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading, justify in (
            ("cell", "left"),
            ("epoch", "right"),
            ("loss", "right"),
            ("std x sqrt(d)", "right"),
            ("kNN %", "right"),
            ("images/s", "right"),
            ("left", "right"),
        ):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        for planned, progress, clock in self.running.values():
            epochs = progress.get("epochs", planned.cell.settings.epochs)
            table.add_row(
                Text(planned.label),
                f"{number(progress.get('epoch'), '.1f')}/{epochs}",
                number(progress.get("loss"), ".3f"),
                number(progress.get("z_std_relative"), ".3f"),
                number(progress.get("knn_top1"), ".1f"),
                number(progress.get("images_per_s"), ".0f") + _shared(progress),
                duration(clock.left(progress)),
            )
        whole = Table.grid()
        whole.add_row(table)
        whole.add_row(self.bar)
        if self.note:
            whole.add_row(Text(self.note, style="yellow"))
        return whole
