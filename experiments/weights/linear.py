"""Linear evaluation of a run's frozen backbone, on one rank or many; it never retrains a run.

The result of a protocol lies beside the run, as ``linear-<protocol>.json``: it belongs to the evaluation, not to what
names the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.runs.folder import RunFolder, StoreError, read_json, write_json
from experiments.weights.load import load_model
from simsiam.data.sets import load
from simsiam.distributed.ranks import LOST, RankLostError
from simsiam.distributed.rendezvous import Rendezvous, device_of, join
from simsiam.errors import DataError, SettingsError
from simsiam.evaluation.linear import NonFiniteError, Protocol, evaluate_linear
from simsiam.machine import idle_cores
from simsiam.settings.fields import Settings
from simsiam.settings.own_code import look_in

OnEpoch = Callable[[int, float], None]


def result_path(run: RunFolder, protocol: Protocol) -> Path:
    """Where the result of a protocol lies."""
    return run.path / f"linear-{protocol.name}.json"


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, where the images are, and how."""

    run: RunFolder
    settings: Settings
    data: Path
    protocol: Protocol
    device_type: str  # cpu or cuda


def evaluate_run(task: Evaluation, num_ranks: int, on_epoch: OnEpoch) -> dict[str, Any]:
    """Evaluate the backbone of a run that has ended, unless that was done by the same protocol before.

    num_ranks: processes on this machine that do it together, a GPU or a share of the cores each. Raises StoreError
    when one of them dies.
    """
    path = result_path(task.run, task.protocol)
    known = read_json(path)
    if known is not None and known.get("protocol") == task.protocol.model_dump(mode="json"):
        return known
    with tempfile.TemporaryDirectory() as folder:
        ranks = [Rendezvous(rank, num_ranks, Path(folder) / "rendezvous.json") for rank in range(num_ranks)]
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=_follow, args=(task, rank), daemon=True) for rank in ranks[1:]]

        def look_for_the_others() -> None:
            if dead := [process for process in others if process.exitcode is not None]:
                raise RankLostError(f"one of the {num_ranks} ranks ended with exit code {dead[0].exitcode}")

        try:
            for process in others:
                process.start()
            result = _evaluate(task, ranks[0], on_epoch, look_for_the_others)
        except LOST as error:
            raise StoreError(f"{task.run.path}: {error}") from None
        finally:
            for process in others:
                process.kill()  # it has nothing left to do
                process.join()
    write_json(path, result, str(os.getpid()))
    return result


def _evaluate(
    task: Evaluation, rendezvous: Rendezvous, on_epoch: OnEpoch, while_waiting: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """One rank's part; the result is the same on all."""
    device = device_of(task.device_type, rendezvous.rank)
    # Torch heeds OMP_NUM_THREADS and what cores it is bound to, but neither other ranks nor who else uses the cores:
    # beside others one thread is quicker than two that wait for each other.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, round(idle_cores()) // rendezvous.world_size)))
    look_in(task.run.path.absolute().parent)  # in a process of its own this rank knows of no sources yet
    dataset = load(task.settings.data, task.data)
    model = load_model(task.run.path, task.settings, dataset.num_channels, len(dataset.train)).to(device)
    with join(rendezvous, device, while_waiting=while_waiting) as group:
        return evaluate_linear(
            model.backbone,
            task.settings,
            dataset,
            task.protocol,
            device=device,
            seed=task.settings.seed,
            on_epoch=on_epoch,
            ranks=group.ranks,
        )


def _follow(task: Evaluation, rendezvous: Rendezvous) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's
    with contextlib.suppress(*LOST, NonFiniteError, SettingsError, StoreError, DataError):  # rank 0 tells
        _evaluate(task, rendezvous, on_epoch=lambda epoch, loss: None)
