"""Inside a job: its first task, which takes cells from its launch's list, and the follow-up that submits what is left.

Told to stop, the task lets its trainings write checkpoints; then it asks for the job to be queued again and waits to
be killed, because a job that ends by itself is not queued again. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.launcher import CellTask
from experiments.local.pool import Ended, Progress
from experiments.runs import slurm_environment
from experiments.runs.folder import Heartbeats, RunFolder, StoreError
from experiments.runs.states import CellResult, End, State
from experiments.runs.surroundings import surrounding_fault, waits
from experiments.slurm import commands, mps
from experiments.slurm.commands import SlurmError
from experiments.slurm.job.announcements import Announcement, losses
from experiments.slurm.job.notify import FIRST_FAILURE, STANDS_STILL, notify, notify_if_ended
from experiments.slurm.job.other_tasks import OtherTask
from experiments.slurm.job.task import PATIENCE_SECONDS, JobTask, crash_advice, say
from experiments.slurm.launch import Launch, LaunchCell, TaskReport

UNCOUNTED_SECONDS = 60.0  # that a job may take to count a failure that it saw
SEARCH_SECONDS = 5.0  # between two searches of the list for a cell, while there is none
KILL_SECONDS = 600.0  # to wait for the end that follows a requeue


@dataclass
class Blocked:
    """A cell that its surroundings have ended: why, in which attempt, and when to try again."""

    reason: str
    attempt: int
    waits: Iterator[float] = field(default_factory=waits)
    try_at: float = 0.0
    recorded: bool = False

    def put_off(self) -> float:
        """Until the next try; returns the seconds."""
        seconds = next(self.waits)
        self.try_at = time.monotonic() + seconds
        return seconds


def work(folder: str, index: int, num_tasks: int) -> None:
    """Train cells of a launch until none is left: one task of an array."""
    launch = Launch(Path(folder))
    if slurm_environment.rank() == 0:
        with mps.service(launch.cluster.profile):
            FirstTask(launch, index, num_tasks).run()
    else:
        OtherTask(launch).run()


class FirstTask(JobTask):
    """The first task of a job, most often the only one: it takes cells from the launch's list."""

    def __init__(self, launch: Launch, index: int, num_tasks: int) -> None:
        super().__init__(launch)
        self.heartbeats = Heartbeats()
        self.num_tasks, self.index = num_tasks, index
        self.taken = 0
        self.announced = 0
        self.search_at = 0.0
        self.uncounted: dict[tuple[str, int], float] = {}
        self.warned = False
        self.costs: dict[str, float] = {}
        self.blocked: dict[str, Blocked] = {}
        self.idle_since = time.monotonic()  # without a cell that is trained
        self.trouble = ""  # with the launch's own folder
        self.waits_for = ""  # as it was told last

    def run(self) -> None:
        """Train cells until none is left, or until told to stop; then be queued again, if anything is left."""
        earlier = self.patiently(self.begin)
        self.pool = self.make_pool()
        self.left = in_order(self.launch.cells, earlier, self.index / self.num_tasks)
        self.wait_for_the_others()
        pauses = waits()
        while not self.stopping:
            try:
                self.fill()
                if not self.pool.cells() and not self.waiting():
                    break
                self.hear()
            except OSError as error:  # the disk with the launch's folder: the trainings go on
                if surrounding_fault(error) is None:
                    raise
                seconds, self.trouble = next(pauses), str(error)
                say(f"{error}; trying again in {seconds:.0f} s")
                self.tell_waits()
                self.hear_for(seconds)
            else:
                pauses, self.trouble = waits(), ""
                self.tell_waits()
            if self.has_waited_in_vain():
                say(f"gives its node back; the follow-up goes on: {self.waits_for}")
                break
        say(f"stopping: {self.stopping}" if self.stopping else "no cell can be trained here any more")
        self.pool.stop.set()
        while self.pool.cells():
            self.hear()
        self.pool.dismiss()
        if self.stopping and self.is_to_be_queued_again():
            self.queue_again()
        if self.ranks.num_ranks > 1:
            self.announcements.announce(Announcement(self.announced + 1, None))
        with contextlib.suppress(OSError):
            notify_if_ended(self.launch)

    def begin(self) -> Sequence[str]:
        """Read what is to be trained, and report; returns what this job trained before it was started again."""
        earlier = self.launch.task(self.job).cells
        self.report(earlier)
        return earlier if self.launch.cells else ()

    def is_to_be_queued_again(self) -> bool:
        """Whether anything is left for this job. Taken to be so where that cannot be looked up now."""
        try:
            return not self.is_superseded() and not self.launch.is_cancelled() and self.waiting(anything=True)
        except OSError:
            return True

    def look_for_the_end(self) -> None:
        """Whether the launch was cancelled."""
        with contextlib.suppress(OSError):
            if not self.stopping and self.is_time_to_look() and self.launch.is_cancelled():
                self.stopping = "the launch was cancelled"

    # --- the job's other tasks ---

    def wait_for_the_others(self) -> None:
        """Until each has its images, however long a copy takes; one that fails ends the job."""
        while not self.stopping and not self.patiently(lambda: self.announcements.are_all_ready(self.ranks.num_ranks)):
            time.sleep(1)
            self.look_for_the_end()

    def announce(self, task: CellTask) -> CellTask:
        """Have the job's other tasks, if there are any, train a cell together with this one."""
        if self.ranks.num_ranks == 1:
            return task
        self.announced += 1
        planned, retry, before = task.planned, task.retry_failed, task.attempts_before
        self.announcements.announce(Announcement(self.announced, planned.run_id, retry, before))
        return replace(task, rendezvous=self.announcements.rendezvous(self.announced))

    # --- which cells ---

    def fill(self) -> None:
        """Start cells while there is room for them."""
        limit = self.launch.cluster.profile.cells_per_task
        if time.monotonic() < self.search_at:
            return
        while not self.stopping and self.pool.has_room() and (limit is None or self.taken < limit):
            if self.is_superseded():
                self.stopping = "this job was started again elsewhere"
                return
            task = self.next_task()
            if task is None:
                self.search_at = time.monotonic() + SEARCH_SECONDS
                return
            announced = self.announce(task)
            self.taken += 1
            say(f"{task.planned.label} ({task.planned.run_id}): started")
            self.pool.train(announced)
            self.report_cells()

    def next_task(self) -> CellTask | None:
        """The first cell that nobody trains. What is done or given up leaves the list for good."""
        training = {planned.run_id for planned in self.pool.cells()}
        for cell in self.left[:]:
            run_id = cell.planned.run_id
            if run_id in training or not self.may_be_tried(run_id):
                continue
            try:
                status = RunFolder(self.launch.runs, run_id).status(self.heartbeats)
            except OSError as error:
                if surrounding_fault(error) is None:
                    raise
                self.block(run_id, str(error), cell.attempts_before)
                continue
            if status.state == State.DONE or self.launch.has_given_up(run_id):
                self.left.remove(cell)
                self.blocked.pop(run_id, None)
            elif status.state == State.FAILED and status.lease > cell.attempts_before:
                if self.is_counted(run_id, status.lease):
                    return CellTask(cell.planned, retry_failed=True, attempts_before=self.attempts_before(cell))
            elif status.state != State.RUNNING:
                # A failure that comes to be known only now is not this job's to try again.
                retry = status.state == State.FAILED
                return CellTask(cell.planned, retry_failed=retry, attempts_before=self.attempts_before(cell))
        return None

    def attempts_before(self, cell: LaunchCell) -> int:
        """The last attempt that says nothing of the cell itself: those that its surroundings ended do not count."""
        blocked = (each for each in self.launch.all_failures(cell.planned.run_id) if not each.counted)
        return max([cell.attempts_before, *(each.attempt or 0 for each in blocked)])

    # --- faults of the surroundings ---

    def block(self, run_id: str, reason: str, attempt: int) -> None:
        """Put a cell off, for longer each time."""
        blocked = self.blocked.setdefault(run_id, Blocked(reason, attempt))
        blocked.reason, blocked.attempt, blocked.recorded = reason, attempt, False
        say(f"{run_id}: {reason}; trying again in {blocked.put_off():.0f} s")
        self.record_blocked(run_id, blocked)

    def record_blocked(self, run_id: str, blocked: Blocked) -> None:
        """In the launch's folder, as soon as that can be written."""
        with contextlib.suppress(OSError):
            self.launch.record_blocked(run_id, blocked.reason, blocked.attempt)
            blocked.recorded = True

    def may_be_tried(self, run_id: str) -> bool:
        """Whether a cell's surroundings have had their time, and their fault is on record."""
        blocked = self.blocked.get(run_id)
        if blocked is None:
            return True
        if time.monotonic() < blocked.try_at:
            return False
        if not blocked.recorded:
            self.record_blocked(run_id, blocked)
        if not blocked.recorded:
            blocked.put_off()
        return blocked.recorded

    def tell_waits(self) -> None:
        """To `status`, if it has changed: in the job's report, and in the queue, since a full disk takes no report."""
        training = {planned.run_id for planned in self.pool.cells()}
        reasons = [blocked.reason for run_id, blocked in self.blocked.items() if run_id not in training]
        what = self.trouble or next(iter(reasons), "")
        if what == self.waits_for:
            return
        self.waits_for = what
        self.tell_queue(what and f"waits: {what}")
        with contextlib.suppress(OSError):
            self.report(training)

    def has_waited_in_vain(self) -> bool:
        """Whether this job only holds a node: its follow-up comes back when the surroundings may be well again."""
        if self.pool.cells() or not self.waits_for:
            self.idle_since = time.monotonic()
        if time.monotonic() - self.idle_since <= PATIENCE_SECONDS:
            return False
        notify(self.launch, STANDS_STILL, self.waits_for)
        return True

    def hear_for(self, seconds: float) -> None:
        """Go on listening to the cells, and to signals, while nothing else can be done."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopping:
            self.hear()

    def is_counted(self, run_id: str, attempt: int) -> bool:
        """Whether a failure in this launch has been counted: by the job that saw it, or, if that died, by this one."""
        if any(failure.attempt == attempt for failure in self.launch.failures(run_id)):
            return True
        since = self.uncounted.setdefault((run_id, attempt), time.monotonic())
        if time.monotonic() - since > UNCOUNTED_SECONDS:
            self.launch.record_failure(run_id, "failed in a job that then died itself", attempt)
        return False

    def waiting(self, *, anything: bool = False) -> bool:
        """Whether a cell may yet fall to this job: one whose owner, elsewhere, has not been seen to be alive."""
        limit = self.launch.cluster.profile.cells_per_task
        if limit is not None and self.taken >= limit and not anything:
            return False
        if self.uncounted:
            self.uncounted = {key: since for key, since in self.uncounted.items() if not self.is_counted(*key)}
            return True
        for cell in self.left:
            try:
                status = RunFolder(self.launch.runs, cell.planned.run_id).status(self.heartbeats)
            except OSError:
                return True
            is_blocked = cell.planned.run_id in self.blocked and not status.is_alive
            if status.state != State.DONE and (anything or is_blocked or not status.certain):
                return True
        return False

    # --- what the cells tell ---

    def hear(self) -> None:
        """Take in news; now and then look whether the launch was cancelled."""
        for news in self.pool.listen():
            if isinstance(news, Progress):
                self.watch_grace(news.planned.run_id, news.numbers)
                if "checkpoint_seconds" in news.numbers:  # its disk takes checkpoints again
                    self.blocked.pop(news.planned.run_id, None)
            else:
                self.ended(news)
                with contextlib.suppress(OSError):
                    self.report_cells()
        self.look_for_the_end()

    def ended(self, news: Ended) -> None:
        run_id, label = news.planned.run_id, news.planned.label
        self.costs.pop(run_id, None)
        self.search_at = 0.0
        state, reason = self.explained(news.result)
        if state == End.CRASHED and self.stopping:
            return  # a process that dies while the job is being ended was ended with it
        say(f"{label}: {state}" + (f": {reason}" if reason else ""))
        if state in (End.ELSEWHERE, End.BLOCKED):  # ELSEWHERE: another job was a moment earlier
            self.taken -= 1
        try:
            attempt = RunFolder(self.launch.runs, run_id).highest_lease()
            if state in (End.CRASHED, End.FAILED, End.GIVEN_UP):
                self.launch.record_failure(run_id, reason, attempt, final=state == End.GIVEN_UP)
            if state == End.CRASHED and self.launch.has_given_up(run_id):
                self.mark_failed(news, reason)
            if state != End.DONE and self.launch.has_given_up(run_id):
                notify(self.launch, FIRST_FAILURE, f"{label}: {reason}")
        except OSError as error:
            say(f"{label}: this could not be recorded: {error}")
            attempt = 0
        if state == End.BLOCKED:
            return self.block(run_id, reason, attempt)
        self.blocked.pop(run_id, None)

    def explained(self, result: CellResult) -> CellResult:
        """With what this task knows of a crash, or, if another rank is gone, what that one's task has written down."""
        if result.state == End.CRASHED:
            return CellResult(End.CRASHED, crash_advice(result.reason, self.launch))
        if result.state == End.INTERRUPTED:
            return CellResult(End.CRASHED, losses(self.announcements.rendezvous(self.announced)) or result.reason)
        return result

    def mark_failed(self, news: Ended, reason: str) -> None:
        """A process that crashes leaves no state behind; say so for it, once it is not tried again."""
        run = RunFolder(self.launch.runs, news.planned.run_id)
        with contextlib.suppress(StoreError, OSError, RuntimeError):
            attempt = run.claim(news.planned.cell.settings, self.heartbeats, retry_failed=True)
            if attempt is not None:
                attempt.fail(f"{reason}\n")

    def watch_grace(self, run_id: str, progress: dict[str, Any]) -> None:
        """Warn once when what a stop takes would not fit well into the grace time."""
        self.costs[run_id] = progress.get("checkpoint_seconds", 0.0) + progress.get("unheard_seconds", 0.0)
        grace = self.launch.cluster.profile.grace
        longest = progress.get("unheard_seconds", 0.0)
        if not self.warned and sum(self.costs.values()) > grace / 2:
            self.warned = True
            text = (
                f"the checkpoints of this job and the longest time between two steps ({longest:.1f} s, evaluations"
                f" included) take {sum(self.costs.values()):.1f} s, more than half of the grace time of {grace} s:"
                " fewer cells_per_gpu, a partition with a longer GraceTime, or smaller evaluations"
            )
            say(f"warning: {text}")
            with contextlib.suppress(OSError):
                self.report_cells(warning=text)

    # --- what the job tells ---

    def report(self, cells: Iterable[str], warning: str | None = None) -> None:
        if self.is_superseded():
            return
        report = TaskReport(
            job=self.job,
            restart=self.restart,
            cluster=self.job_cluster,
            host=socket.gethostname(),
            node=slurm_environment.node(),
            cpus=tuple(sorted(os.sched_getaffinity(0))),
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            cells=tuple(cells),
            warning=warning or self.launch.task(self.job).warning,
            waits=self.waits_for or None,
        )
        self.launch.write_task(report)

    def report_cells(self, warning: str | None = None) -> None:
        if self.stopping:
            return  # what it trained last is what it begins with when it is started again
        self.report([planned.run_id for planned in self.pool.cells()], warning)

    # --- the end ---

    def queue_again(self) -> None:
        """Ask to be started again, and wait for the kill. Not for a job that somebody cancels: that would revive it."""
        if shutil.which("scontrol") is None:  # as in a container
            return say("cannot be queued again without SLURM's commands; the follow-up submits what it leaves")
        deadline = time.monotonic() + KILL_SECONDS
        asked = False
        while time.monotonic() < deadline:
            if not asked:
                try:
                    state, restarts = commands.own_state()
                    # PREEMPTED, CANCELLED, COMPLETING, PENDING: SLURM has decided what becomes of this job.
                    if state == "RUNNING" and restarts == self.restart and not self.launch.is_cancelled():
                        commands.requeue(self.job)
                        say("queued again")
                    else:
                        say(f"not queued again: SLURM says {state}")
                    asked = True
                except (SlurmError, OSError) as error:  # its controller is away, or the disk: ask again
                    say(f"cannot be queued again yet: {error}")
            time.sleep(2)


def in_order(cells: Sequence[LaunchCell], earlier: Sequence[str], start: float) -> list[LaunchCell]:
    """The list as a job goes through it: first what it trained before, then from a place of its own on."""
    turn = int(start * len(cells))
    turned = [*cells[turn:], *cells[:turn]]
    return sorted(turned, key=lambda cell: cell.planned.run_id not in earlier)


# --- afterwards --------------------------------------------------------------------------------------------------
