"""The tasks of a job but the first: each trains its part of the cell that task 0 announces. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from experiments.meetings import Call, write_loss
from experiments.member import Member, crash_advice, say
from experiments.pool import News, Task


class Follower(Member):
    """It decides nothing: which cell, when a job ends, whether it is queued again."""

    def run(self) -> None:
        """Follow until task 0 announces the end. A job that is being stopped is waited for, as task 0 does."""
        self.pool = self.make_pool()
        self.board.sign(self.seat.rank)
        known = {cell.planned.run_id: cell.planned for cell in self.launch.cells}
        call, meeting = Call(0, None), Path()
        while True:
            latest = self.board.latest()
            if latest is not None and latest.number > call.number:
                call, meeting = latest, self.board.meeting(latest.number)
                self.abandon()
                if call.run_id is None:
                    return
                say(f"{known[call.run_id].label} ({call.run_id}): started, as rank {self.seat.rank}")
                self.pool.train(Task(known[call.run_id], call.retry_failed, call.attempts_before, meeting))
            if self.stopping:
                self.pool.stop.set()
            for news in self.pool.listen():
                self.hear(news, meeting)
            if self.is_time_to_look() and self.is_superseded():
                return self.abandon()

    def abandon(self) -> None:
        """End a process that still waits for ranks which are gone: task 0 is further."""
        if self.pool.cells():
            self.pool.kill()
            while self.pool.cells():
                list(self.pool.listen())

    def hear(self, news: News, meeting: Path) -> None:
        """Task 0 hears from its own rank how a cell ended; what only this task can know is written down for it."""
        if news.kind == "crashed" and not self.stopping:
            reason = crash_advice(news.content, self.launch)
        elif news.kind == "ended" and news.content[0] == "failed":
            reason = news.content[1]
        else:
            return
        write_loss(meeting, self.seat.rank, f"rank {self.seat.rank}: {reason}")
        say(f"{news.planned.label}: {reason}")
