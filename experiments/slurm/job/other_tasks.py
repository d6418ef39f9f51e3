"""The tasks of a job but the first: each trains its part of the cell that task 0 announces. Imports no torch."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from experiments.launcher import CellTask
from experiments.local.pool import Ended
from experiments.runs.states import End
from experiments.runs.surroundings import FIRST_WAIT
from experiments.slurm.job.announcements import Announcement, write_loss
from experiments.slurm.job.task import JobTask, crash_advice, say


class OtherTask(JobTask):
    """It decides nothing: neither which cell, nor when a job ends, nor whether it is queued again."""

    def run(self) -> None:
        """Do what task 0 announces, until it announces the end: also while the job is being stopped."""
        self.pool = self.make_pool()
        self.announcements.mark_ready(self.ranks.rank)
        known = {cell.planned.run_id: cell.planned for cell in self.launch.cells}
        current, rendezvous = Announcement(0, None), Path()
        while True:
            try:
                latest = self.announcements.latest()
            except OSError as error:  # the disk is away: what is being trained goes on
                say(f"{error}; looking again")
                latest = None
                time.sleep(FIRST_WAIT)
            if latest is not None and latest.number > current.number:
                current, rendezvous = latest, self.announcements.rendezvous(latest.number)
                self.abandon()
                if current.run_id is None:
                    return
                planned = known[current.run_id]
                say(f"{planned.label} ({planned.run_id}): started, as rank {self.ranks.rank}")
                self.pool.train(CellTask(planned, current.retry_failed, current.attempts_before, rendezvous))
            if self.stopping:
                self.pool.stop.set()
            for news in self.pool.listen():
                if isinstance(news, Ended):
                    self.ended(news, rendezvous)
            with contextlib.suppress(OSError):
                if self.is_time_to_look() and self.is_superseded():
                    return self.abandon()

    def abandon(self) -> None:
        """End a process that still waits for ranks which are gone: task 0 is further."""
        if self.pool.cells():
            self.pool.kill()
            while self.pool.cells():
                list(self.pool.listen())

    def ended(self, news: Ended, rendezvous: Path) -> None:
        """Task 0 hears from its own rank how a cell ended; what only this task can know is written down for it."""
        state, reason = news.result
        if state == End.CRASHED and not self.stopping:
            reason = crash_advice(reason, self.launch)
        elif state != End.FAILED:
            return
        with contextlib.suppress(OSError):
            write_loss(rendezvous, self.ranks.rank, f"rank {self.ranks.rank}: {reason}")
        say(f"{news.planned.label}: {reason}")
