"""What a launcher is: it has the cells of a plan trained somewhere, tells how they stand, and cancels them.

The state of a run is in its folder, whoever trains it. So a launcher needs no record of results: it starts processes
that call ``run_cell``, which claims the run, or leaves it to its owner. How to add one: docs/launchers.md. This module
imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from experiments.plan import Plan, PlannedCell
from experiments.runs.folder import Json, Status
from experiments.runs.states import CellResult, State

if TYPE_CHECKING:
    import torch

    from simsiam.data.dataset import Dataset

Tell = Callable[[str], None]  # shows a line to the user


@dataclass(frozen=True)
class RunContext:
    """Where a run is trained and who watches; none of it changes its numbers."""

    runs: Path
    device: torch.device
    threads: int
    should_stop: Callable[[], bool]
    on_progress: Callable[[dict[str, Any]], None]
    retry_failed: bool = False
    attempts_before: int | None = None  # attempts after it may give up for lack of progress; None: none does
    checkpoint_seconds: float = 60.0  # between two checkpoints within an epoch
    command: str = ""
    is_patient: bool = False  # its launcher tries again what the surroundings have ended: that is no failure


@dataclass
class Summary:
    """What became of the cells of a plan: run ids; ``failures`` has the reason of each failed one."""

    submitted: list[str] = field(default_factory=list)  # to a queue: they are trained after the call has returned
    launch: str = ""  # what they were submitted as
    done: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped_failures: list[str] = field(default_factory=list)  # they failed before, and were left alone


class Launcher(ABC):
    """Has cells trained: in this process and its children, or by jobs that it submits to a queue."""

    @abstractmethod
    def check(self, made: Plan) -> None:
        """Called before anything is downloaded or written.

        Raises SettingsError for cells that it cannot train, RuntimeError where there is no queue to submit to.
        """

    @abstractmethod
    def submit(self, made: Plan, tell: Tell, *, command: str, supervised: bool = False) -> Summary:
        """Have all cells trained that are not done and not trained elsewhere.

        command: goes into their records. supervised: ``supervise`` is called next, so nothing else needs to submit
        again what is lost.

        Returns once they are in the queue; a launcher without a queue returns when they have ended. Raises
        RuntimeError when the queue does not answer or refuses.
        """

    @abstractmethod
    def preview(self, made: Plan, tell: Tell) -> list[PlannedCell]:
        """Tell what ``submit`` would do, and return the cells. Writes and submits nothing, and needs no queue.

        Raises SettingsError for cells that it cannot train.
        """

    @abstractmethod
    def supervise(self, made: Plan, tell: Tell) -> bool:
        """Stay, and submit again what is lost. Returns whether everything is done or has failed."""


@dataclass(frozen=True)
class QueueView:
    """What a queue says of the runs of a plan, at one moment."""

    jobs: Mapping[str, str] | None = None  # by the id of each job: what is said of it; None: the queue does not answer
    waiting: Mapping[str, str] = field(default_factory=dict)  # by run id: what the jobs do that are to train it
    notes: list[str] = field(default_factory=list)  # what else the user should know
    # Whether the queue would know the job that owns a run (see process_identity, own_job), and does not any more. Of
    # another user's job, or one on another cluster, it cannot tell.
    has_lost: Callable[[Json], bool] = lambda owner: False


@dataclass(frozen=True)
class LaunchView:
    """A launch, as `launches` lists it. None: it is another user's, and only its folder's name can be read."""

    id: str
    owner: str
    state: str
    jobs: int | None  # in the queue; None: the queue does not answer
    created: float  # in seconds of the folder's file system
    studies: tuple[str, ...] | None = None
    scale: str | None = None
    left: int | None = None  # cells that are neither done nor given up
    is_over: bool = False  # nothing of it is or will be in the queue


class Queue(ABC):
    """Where jobs of this user wait and run, whatever launcher submitted them."""

    @abstractmethod
    def look(self, made: Plan) -> QueueView:
        """Ask the queue, once, about the runs of a plan. Does not raise when it does not answer."""

    @abstractmethod
    def cancel(self, made: Plan, tell: Tell) -> list[str]:
        """Cancel the jobs of this user's launches that hold cells of a plan and no others. Returns the launches.

        A run that is being trained writes a checkpoint and stops. Raises RuntimeError when the queue does not answer.
        """

    @abstractmethod
    def cancel_launch(self, runs: Path, launch_id: str, tell: Tell) -> bool:
        """Cancel one launch, whatever it holds and wherever its runs are. Returns whether there is such a launch.

        Raises RuntimeError when the queue does not answer, or refuses.
        """

    @abstractmethod
    def launches(self, runs: Path) -> list[LaunchView]:
        """The launches that train into a folder of runs, whoever's, oldest first."""

    @abstractmethod
    def logs(self, made: Plan, planned: PlannedCell) -> list[Path]:
        """The files that the jobs of a cell have printed into so far."""

    @abstractmethod
    def leftovers(self, runs: Path) -> dict[Path, list[Path]]:
        """For `gc`: by each launch that is known to have ended, the folders in it that nothing needs any more."""


def missing(made: Plan, queued: Container[str]) -> tuple[list[tuple[PlannedCell, Status]], int, int]:
    """The cells of a plan that are to be submitted, each with the status of its run.

    Then how many of the others are left to the queue, in which they are ``queued`` by their run ids, and how many to an
    owner that is known to live.
    """
    statuses = made.statuses()
    left = [planned for planned in made.unique() if statuses[planned.run_id].state != State.DONE]
    waiting = [(planned, statuses[planned.run_id]) for planned in left if planned.run_id not in queued]
    todo = [(planned, status) for planned, status in waiting if not status.is_alive]
    return todo, len(left) - len(waiting), len(waiting) - len(todo)


# --- the processes that train a cell together --------------------------------------------------------------------


@dataclass(frozen=True)
class CellTask:
    """A cell that a worker process is to train."""

    planned: PlannedCell
    retry_failed: bool = False
    attempts_before: int | None = None  # those after it may give up for lack of progress; None: none does
    rendezvous: Path | None = None  # the file by which its ranks find each other; None: the worker starts them itself


class Ranks(Protocol):
    """In a worker process: the ranks that train its cells, of which it is one itself."""

    rank: int  # of the worker
    device: int  # the number of the worker's GPU, among those that it sees

    def run_cell(self, task: CellTask, dataset: Dataset, context: RunContext) -> CellResult:
        """Train a cell, together with the other ranks."""

    def close(self) -> None:
        """The worker ends."""


class RanksStarter(Protocol):
    """How the processes come to be that train a cell together. It is sent to each worker, so it must pickle."""

    @property
    def num_ranks(self) -> int:
        """Processes that train each cell."""

    def start(self, worker: int, data: Path, stop: Event) -> Ranks:
        """Called in the worker process with its number on this machine; ``stop`` is set when it is to stop."""
