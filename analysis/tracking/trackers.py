"""The trackers that runs are told to: TensorBoard, Weights & Biases, MLflow, Trackio. Each package is optional.

Where they write, and whether they go online, is for their own settings to say (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``,
``TRACKIO_SPACE_ID`` ...).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.tracking.feed import Points, Send, TrackedRun
from simsiam.errors import SettingsError

PROJECT = "simsiam-ablations"


def tensorboard(out: Path) -> Send:
    """Event files in ``OUT/STUDY/VARIANT/sSEED``, so that TensorBoard shows seeds beside each other."""
    summary = _package("tensorboard.summary", "tensorboard")

    def send(run: TrackedRun, points: Points) -> None:
        writer = summary.Writer(str(out / run.study / run.variant.replace("/", "-") / f"s{run.seed}"))
        for step, metrics in points:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
        writer.close()

    return send


def wandb(out: Path) -> Send:
    """Runs whose id is the folder's name, resumed whenever there is news; seeds are a group."""
    package = _package("wandb")
    out.mkdir(parents=True, exist_ok=True)

    def send(run: TrackedRun, points: Points) -> None:
        name = f"{run.variant} s{run.seed}"
        with package.init(
            project=PROJECT, id=run.name, name=name, group=run.group, job_type=run.study, config=run.settings,
            resume="allow", dir=str(out), settings=package.Settings(console="off", silent=True, x_disable_stats=True),
        ) as opened:  # fmt: skip
            for step, metrics in points:
                opened.log(metrics, step=step)
            opened.summary.update({"state": run.state, **run.result})

    return send


def mlflow(out: Path) -> Send:
    """Runs of the experiment STUDY, found again by the tag ``run_folder``; seeds share the tag ``group``."""
    entities, tracking = _package("mlflow.entities", "mlflow"), _package("mlflow.tracking", "mlflow")
    del out  # it writes where MLFLOW_TRACKING_URI says
    client = tracking.MlflowClient()

    def send(run: TrackedRun, points: Points) -> None:
        found = client.get_experiment_by_name(run.study)
        experiment = found.experiment_id if found else client.create_experiment(run.study)
        known = client.search_runs([experiment], f"tags.run_folder = '{run.name}'")
        if known:
            id_ = known[0].info.run_id
        else:
            tags = {"run_folder": run.name, "group": run.group, "variant": run.variant}
            made = client.create_run(experiment, tags=tags, run_name=f"{run.variant} s{run.seed}")
            id_ = made.info.run_id
            settings = [entities.Param(name, str(value)) for name, value in run.settings.items()]
            for start in range(0, len(settings), 100):  # the most that one call takes
                client.log_batch(id_, params=settings[start : start + 100])
        now = int(time.time() * 1000)
        metrics = [entities.Metric(name, value, now, step) for step, at in points for name, value in at.items()]
        for start in range(0, len(metrics), 1000):
            client.log_batch(id_, metrics=metrics[start : start + 1000])
        client.set_tag(id_, "state", run.state)
        if "outcome" in run.result:
            client.set_tag(id_, "outcome", run.result["outcome"])
        status = {"done": "FINISHED", "failed": "FAILED"}.get(run.state, "RUNNING")
        client.update_run(id_, status=status)

    return send


def trackio(out: Path) -> Send:
    """Runs named by their folder, resumed whenever there is news; seeds are a group."""
    package = _package("trackio")
    del out  # it writes where TRACKIO_DIR says

    def send(run: TrackedRun, points: Points) -> None:
        config = {**run.settings, "variant": run.variant}
        package.init(
            project=PROJECT, name=run.name, group=run.group, config=config, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        for step, metrics in points:
            package.log(metrics, step=step)
        package.finish()

    return send


TRACKERS: dict[str, Callable[[Path], Send]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
}


def _package(module: str, package: str = "") -> Any:
    """An optional package. Raises SettingsError, with what to install, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise SettingsError(
            f"to: {name} is not installed here ({error}): pip install 'simsiam-ablations[{name}]'  [--to]"
        ) from None
