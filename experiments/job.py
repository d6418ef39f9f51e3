"""Inside a job: a worker that pulls cells from its launch's list, and the follow-up that submits what is left.

A signal only sets a flag. The trainings read it between two steps, write a checkpoint and stop; then the job asks to
be queued again and waits to be killed, because a job that ends by itself is not queued again. This module imports no
torch: each cell is trained in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from experiments import scheduler
from experiments.launches import Launch, LaunchCell
from experiments.node import check_node, images_on_the_node
from experiments.pool import Machine, News, Pool, Task
from experiments.scheduler import SlurmError
from experiments.store import Heartbeats, RunFolder, StoreError, slurm_job

LOOK_SECONDS = 15.0  # between two looks for a tombstone
UNCOUNTED_SECONDS = 60.0  # that a job may take to count a failure that it saw
SEARCH_SECONDS = 5.0  # between two searches of the list for a cell, while there is none
RETRIES, RETRY_SECONDS = 8, 60.0  # of the follow-up, when SLURM does not take its jobs
MAX_IDLE_ROUNDS = 3  # rounds of a launch in which no cell made a step, before the follow-up stops
KILL_SECONDS = 600.0  # to wait for the end that follows a requeue


def work(folder: str, index: int, num_tasks: int) -> None:
    """Train cells of a launch until none is left: one task of an array."""
    _Worker(Launch(Path(folder)), index, num_tasks).run()


class _Worker:
    def __init__(self, launch: Launch, index: int, num_tasks: int) -> None:
        self.launch = launch
        self.stopping = ""  # why; a signal's name, or the tombstone
        for number in (signal.SIGTERM, signal.SIGUSR2):  # instead of submitit's, which act in the middle of a step
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        self.identity = slurm_job()
        self.job, self.restart = str(self.identity["job"]), int(self.identity["restart"])
        self.rank, self.ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        self.heartbeats = Heartbeats()
        self.num_tasks, self.index = num_tasks, index
        self.taken = 0
        self.search_at = 0.0
        self.uncounted: dict[tuple[str, int], float] = {}
        self.last_look = time.monotonic()
        self.warned = False
        self.costs: dict[str, float] = {}

    def _on_signal(self, number: int, frame: object) -> None:
        self.stopping = signal.Signals(number).name

    def run(self) -> None:
        profile = self.launch.cluster.profile
        earlier = self.launch.task(self.job).get("cells", [])  # of this job before it was started again
        self.report(earlier, problem=None)
        try:
            check_node(self.launch)
            data = images_on_the_node(self.launch)
        except (StoreError, OSError) as error:
            self.report(earlier, problem=str(error))
            raise
        self.left = in_order(self.launch.cells, earlier, self.index / self.num_tasks)
        machine = Machine(
            runs=self.launch.runs,
            data=data,
            num_workers=profile.cells_at_once,
            threads=profile.threads,
            device="cuda" if profile.on_gpu else "cpu",
            checkpoint_seconds=profile.checkpoint_minutes * 60,
            logs=self.launch.path / "cells",
        )
        self.pool = Pool(machine, self.launch.spec["command"], warm=False)
        while not self.stopping:
            self.fill()
            if not self.pool.cells() and not self.waiting():
                break
            self.hear()
        say(f"stopping: {self.stopping}" if self.stopping else "no cell is left to train")
        self.pool.stop.set()
        while self.pool.cells():
            self.hear()
        self.pool.dismiss()
        if (
            self.stopping
            and not self.is_superseded()
            and not self.launch.is_cancelled()
            and self.waiting(anything=True)
        ):
            self.queue_again()

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
            self.taken += 1
            say(f"{task.planned.label} ({task.planned.run_id}): started")
            self.pool.train(task)
            self.report_cells()

    def next_task(self) -> Task | None:
        """The first cell that nobody trains. What is done or given up leaves the list for good."""
        training = {planned.run_id for planned in self.pool.cells()}
        for cell in self.left[:]:
            run_id = cell.planned.run_id
            if run_id in training:
                continue
            status = RunFolder(self.launch.runs, run_id).status(self.heartbeats)
            if status.state == "done" or self.launch.has_given_up(run_id):
                self.left.remove(cell)
            elif status.state == "failed" and status.lease > cell.attempts_before:
                if self.is_counted(run_id, status.lease):
                    return Task(cell.planned, retry_failed=True, attempts_before=cell.attempts_before)
            elif status.state != "running":
                # A failure that comes to be known only now is not this job's to try again.
                retry = status.state == "failed"
                return Task(cell.planned, retry_failed=retry, attempts_before=cell.attempts_before)
        return None

    def is_counted(self, run_id: str, attempt: int) -> bool:
        """Whether a failure in this launch has been counted: by the job that saw it, or, if that died, by this one."""
        if any(item.get("attempt") == attempt for item in self.launch.failures(run_id)):
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
        statuses = (RunFolder(self.launch.runs, cell.planned.run_id).status(self.heartbeats) for cell in self.left)
        if self.uncounted:
            self.uncounted = {key: since for key, since in self.uncounted.items() if not self.is_counted(*key)}
            return True
        return any(status.state != "done" and (anything or not status.certain) for status in statuses)

    def is_superseded(self) -> bool:
        """Whether SLURM has started this job again while this process, cut off from it, went on."""
        return int(self.launch.task(self.job).get("restart", 0)) > self.restart

    # --- what the cells tell ---

    def hear(self) -> None:
        """Take in news; now and then look for the tombstone."""
        for news in self.pool.listen():
            if news.kind == "progress":
                self.watch_grace(news.planned.run_id, news.content)
            else:
                self.ended(news)
                self.report_cells()
        if time.monotonic() - self.last_look > LOOK_SECONDS and not self.stopping:
            self.last_look = time.monotonic()
            if self.launch.is_cancelled():
                self.stopping = "the launch was cancelled"

    def ended(self, news: News) -> None:
        run_id, label = news.planned.run_id, news.planned.label
        attempt = RunFolder(self.launch.runs, run_id).highest_lease()
        self.costs.pop(run_id, None)
        self.search_at = 0.0
        if news.kind == "crashed":
            # A process that dies while the job is being ended was ended with it.
            if not self.stopping:
                self.launch.record_failure(run_id, crash_advice(news.content, self.launch), attempt)
                say(f"{label}: its process was {news.content}")
                if self.launch.has_given_up(run_id):
                    self.mark_failed(news, crash_advice(news.content, self.launch))
            return
        state, reason = news.content
        say(f"{label}: {state}" + (f": {reason}" if reason else ""))
        if state == "elsewhere":  # another job was a moment earlier
            self.taken -= 1
        if state in ("failed", "given up"):
            self.launch.record_failure(run_id, reason, attempt, final=state == "given up")

    def mark_failed(self, news: News, reason: str) -> None:
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
            self.report_cells(warning=text)

    # --- what the job tells ---

    def report(self, cells: list[str], *, problem: str | None, warning: str | None = None) -> None:
        if self.rank != 0 or self.is_superseded():
            return
        before = self.launch.task(self.job)
        self.launch.write_task(
            self.job,
            {
                **self.identity,
                "host": socket.gethostname(),
                "node": os.environ.get("SLURMD_NODENAME"),
                "cpus": sorted(os.sched_getaffinity(0)),
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "cells": cells,
                "problem": problem,
                "warning": warning or before.get("warning"),
            },
        )

    def report_cells(self, warning: str | None = None) -> None:
        if self.stopping:
            return  # what it trained last is what it begins with when it is started again
        self.report([planned.run_id for planned in self.pool.cells()], problem=None, warning=warning)

    # --- the end ---

    def queue_again(self) -> None:
        """Ask to be started again, and wait for the kill. Not for a job that somebody cancels: that would revive it."""
        deadline = time.monotonic() + KILL_SECONDS
        asked = False
        while time.monotonic() < deadline:
            if not asked:
                try:
                    state, restarts = scheduler.own_state()
                    # PREEMPTED, CANCELLED, COMPLETING, PENDING: SLURM has decided what becomes of this job.
                    if state == "RUNNING" and restarts == self.restart and not self.launch.is_cancelled():
                        scheduler.requeue(self.job)
                        say("queued again")
                    else:
                        say(f"not queued again: SLURM says {state}")
                    asked = True
                except SlurmError as error:  # its controller is away: ask again
                    say(f"cannot be queued again yet: {error}")
            time.sleep(2)


def in_order(cells: list[LaunchCell], earlier: list[str], start: float) -> list[LaunchCell]:
    """The list as a worker goes through it: first what it trained before, then from a place of its own on."""
    turn = int(start * len(cells))
    turned = [*cells[turn:], *cells[:turn]]
    return sorted(turned, key=lambda cell: cell.planned.run_id not in earlier)


def crash_advice(how: str, launch: Launch) -> str:
    """Why the process of a cell may be gone, and the setting to change."""
    if "signal 9" in how:
        return (
            "its process was killed by signal 9, most likely because memory ran out: more `memory`, or fewer"
            f" `cells_per_gpu`  [{launch.cluster.at('memory')}]"
        )
    return f"its process was {how}"


# --- afterwards --------------------------------------------------------------------------------------------------


def follow_up(folder: str) -> None:
    """Start another round for the cells that are not done, unless the last rounds achieved nothing."""
    from experiments.slurm import submit_round

    launch = Launch(Path(folder))
    if launch.is_cancelled():
        return
    missing = launch.missing()
    total = sum(_steps(launch, cell) for cell in launch.cells)
    progress = [int(content["steps"]) for content in launch.rounds() if "steps" in content]
    say(f"{len(missing)} of {len(launch.cells)} cells are left")
    rounds = launch.rounds()
    launch.write_round({**rounds[-1], "steps": total})
    if not missing:
        return
    if len(progress) >= MAX_IDLE_ROUNDS and all(steps == total for steps in progress[-MAX_IDLE_ROUNDS:]):
        say(f"no cell made a step in {MAX_IDLE_ROUNDS} rounds: nothing is submitted any more")
        return
    for _ in range(RETRIES):
        try:
            return say(submit_round(launch, missing, with_follow_up=True) or "submitted again")
        except SlurmError as error:
            say(f"cannot be submitted yet: {error}")
            time.sleep(RETRY_SECONDS)


def _steps(launch: Launch, cell: LaunchCell) -> int:
    return int(RunFolder(launch.runs, cell.planned.run_id).status().detail.get("step", 0))


def say(message: str) -> None:
    """Into the job's log, now."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=sys.stdout, flush=True)
