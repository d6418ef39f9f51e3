"""What a study comes to at a scale: its cells, their runs, what is done already, and what the rest will cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from experiments.runs.folder import Heartbeats, RunFolder, Status, read_json, run_names
from experiments.runs.states import State
from experiments.studies.study import Cell, Scale, Study, make_cells, no_collection
from simsiam.data.sets import fingerprint
from simsiam.settings.fields import DataSettings, Settings
from simsiam.settings.identity import config_id, run_name, split_run_name


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the run that trains it."""

    cell: Cell
    config_id: str
    run_id: str
    study: str

    @property
    def label(self) -> str:
        return f"{self.study}: {self.cell.variant} s{self.cell.seed}"


@dataclass(frozen=True)
class Plan:
    """The cells of one or more studies at a scale, and the runs among them, each once."""

    studies: tuple[Study, ...]
    scale: Scale
    runs: Path
    data: Path
    cells: tuple[PlannedCell, ...]
    unprepared: tuple[DataSettings, ...]  # data sets that are not there yet; their cells' ids are not final

    @property
    def title(self) -> str:
        """What is planned, in a few words."""
        return self.studies[0].title if len(self.studies) == 1 else f"{len(self.studies)} studies"

    def unique(self) -> list[PlannedCell]:
        """One cell for each run, in the order in which to begin them.

        By seed, so that the first comparison is there soon; of one seed the long ones first, so that at the end nobody
        waits for one; then by variant.
        """
        by_run = {planned.run_id: planned for planned in self.cells}

        def turn(planned: PlannedCell) -> tuple[int, float]:
            return planned.cell.seed, -estimate(planned.cell.settings, self.scale).seconds

        return sorted(by_run.values(), key=turn)

    def statuses(self, heartbeats: Heartbeats | None = None) -> dict[str, Status]:
        """The state of each run; who looks more than once remembers the heartbeats."""
        there = run_names(self.runs)
        heartbeats = heartbeats or Heartbeats()
        pending = Status(State.PENDING, {})
        return {
            run_id: _status(RunFolder(self.runs, run_id), heartbeats) if run_id in there else pending
            for run_id in dict.fromkeys(planned.run_id for planned in self.cells)
        }


def _status(folder: RunFolder, heartbeats: Heartbeats) -> Status:
    """A run that this user may not read, say another's on a shared disk, is no reason not to show the others."""
    try:
        return folder.status(heartbeats)
    except OSError:
        return Status(State.UNREADABLE, {})


@no_collection()
def make_plan(
    study: Study,
    scale: Scale,
    seeds: list[int] | None,
    overrides: Iterable[str],
    runs: Path,
    data: Path,
    *,
    to_train: bool = False,
) -> Plan:
    """Plan a study. ``seeds``: these and no others; None: as many as the study asks for.

    A plan that is ``to_train`` has no more than that. One to read has, without ``seeds``, those that have been run
    beside them, and where the images are not prepared, it finds runs by the fingerprint that is on record with them.

    Raises SettingsError if any setting of any cell is wrong.
    """
    wanted = seeds or list(range(study.num_seeds(scale.name)))
    fingerprints = dict[DataSettings, str | None]()

    def planned(cells: Iterable[Cell]) -> Iterator[PlannedCell]:
        names = dict[int, str]()  # seeds of one variant share its settings otherwise
        for cell in cells:
            data_settings = cell.settings.data
            if data_settings not in fingerprints:
                known = fingerprint if to_train else partial(fingerprint_to_read, runs=runs)
                fingerprints[data_settings] = known(data_settings, data)
            key = id(cell.origins)
            if key not in names:
                names[key] = config_id(cell.settings, fingerprints[data_settings] or "unprepared")
            yield PlannedCell(cell, names[key], run_name(names[key], cell.seed), study.name)

    cells = list(planned(make_cells(study, scale, wanted, overrides)))
    if seeds is None and not to_train:
        there = seeds_on_disk(runs)
        more = set[int]().union(*(there.get(cell.config_id, ()) for cell in cells)) - set(wanted)
        if more:
            cells = list(planned(make_cells(study, scale, sorted({*wanted, *more}), overrides)))
    unprepared = tuple(settings for settings, known in fingerprints.items() if known is None)
    return Plan((study,), scale, runs, data, tuple(cells), unprepared)


def merge(plans: Sequence[Plan]) -> Plan:
    """Several studies as one plan; a configuration that they share is one run."""
    return Plan(
        studies=tuple(study for plan in plans for study in plan.studies),
        scale=plans[0].scale,
        runs=plans[0].runs,
        data=plans[0].data,
        cells=tuple(planned for plan in plans for planned in plan.cells),
        unprepared=tuple(dict.fromkeys(settings for plan in plans for settings in plan.unprepared)),
    )


def fingerprint_to_read(settings: DataSettings, data: Path, runs: Path) -> str | None:
    """The fingerprint of images, or the one that is on record with runs on them; None if neither is known."""
    return fingerprint(settings, data) or _recorded(settings, runs)


def _recorded(settings: DataSettings, runs: Path) -> str | None:
    """The fingerprint that runs on such data have on record; None if there is none, or more than one."""
    wanted = settings.model_dump(mode="json", exclude={"path"})
    found = set[object]()
    for name in run_names(runs):
        try:
            config = yaml.load(
                (runs / name / "config.yaml").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
            theirs = {**DataSettings().model_dump(mode="json"), **config["data"]}
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
        if {key: value for key, value in theirs.items() if key != "path"} == wanted:
            attempts = (read_json(runs / name / "provenance.json") or {}).get("attempts")
            if isinstance(attempts, list) and attempts and isinstance(attempts[-1], dict):
                found.add(str(attempts[-1].get("data_fingerprint", "")))
    found.discard("")
    return str(found.pop()) if len(found) == 1 else None


def seeds_on_disk(runs: Path) -> dict[str, set[int]]:
    """The seeds of which there are run folders, by the name of the configuration."""
    found = dict[str, set[int]]()
    for name in run_names(runs):
        if parts := split_run_name(name):
            found.setdefault(parts[0], set()).add(parts[1])
    return found


# --- estimates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What runs will take, from the scale's measured speed and from the number of parameters."""

    seconds: float  # of one run after another, on the device that the scale's speed was measured on
    bytes: int  # on disk


def estimate(settings: Settings, scale: Scale) -> Estimate:
    """One run. Other networks than the scale's own are taken to be as fast as it."""
    num_train = settings.data.num_train or scale.num_train
    num_evaluations = settings.epochs // settings.evaluation.every_epochs + 1
    evaluated = (settings.evaluation.bank_size or num_train) + (settings.evaluation.query_size or num_train // 6)
    # An evaluation is one forward; a scale's speed is that of the baseline's step.
    passes = settings.epochs * num_train * num_passes(settings) + num_evaluations * evaluated
    weights = num_parameters(settings)
    copies = 2 + (settings.target.encoder == "momentum") + (settings.target.cache_steps > 1)  # with SGD's momentum
    kept = copies * weights + settings.target.queue_size * settings.projector.output_dim
    # float32, in the newest checkpoint and the one before
    return Estimate(
        passes / num_passes(Settings()) / scale.speed.images_per_s, 2 * (4 * kept + average_bytes(settings, num_train))
    )


def num_passes(settings: Settings) -> int:
    """Forward passes of a step for each image; a backward counts as two. 6 for SimSiam: two views, both trained."""
    pairs = 2 if settings.loss.symmetry == "asymmetric-2x" else 1
    trained_views = 1 if settings.loss.symmetry != "symmetric" and settings.target.stop_gradient else 2
    # Keys are made of both views; so are cached targets, on top of the step's own forwards.
    of_targets = 2 * bool(
        settings.target.encoder == "momentum" or settings.target.cache_epoch or settings.target.cache_steps
    )
    return pairs * (2 + 2 * trained_views + of_targets)


def average_bytes(settings: Settings, num_train: int) -> int:
    """Of the moving averages of each image's z (Sec. 5.2), in memory and in a checkpoint; 0 without them."""
    return 4 * num_train * settings.projector.output_dim if settings.target.image_average else 0


def num_parameters(settings: Settings) -> int:
    """Trained numbers of backbone, projector, prototypes and predictor, biases left out."""
    backbone = settings.backbone
    known = {"resnet18": (11_176_512, 512), "resnet34": (21_284_672, 512), "resnet50": (23_508_032, 2048)}
    if backbone.name in known:
        total, features = known[backbone.name]
    else:
        widths = [backbone.width * 2**stage for stage in range(4)]
        features = widths[-1]
        total = sum(
            9 * into * out + 9 * out * out * (2 * backbone.depth - 1) + into * out
            for into, out in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
    projector, predictor = settings.projector, settings.predictor
    dims = [features, *[projector.hidden_dim] * (projector.num_layers - 1), projector.output_dim]
    total += sum(into * out for into, out in itertools.pairwise(dims))
    total += settings.target.num_prototypes * projector.output_dim
    dim = settings.target.num_prototypes or projector.output_dim  # that h works in
    of_predictor = {"none": 0, "bias": dim, "linear": dim**2}
    return total + of_predictor.get(predictor.kind, 2 * dim * predictor.hidden_dim)


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, for scripts."""
    statuses = plan.statuses()
    return {
        "studies": [study.name for study in plan.studies],
        "scale": plan.scale.name,
        "runs": str(plan.runs),
        "data_prepared": not plan.unprepared,
        "cells": [
            {
                "study": planned.study,
                "variant": planned.cell.variant,
                "seed": planned.cell.seed,
                "run": None if plan.unprepared else planned.run_id,
                "state": statuses[planned.run_id].state,
                **{
                    name: statuses[planned.run_id].detail.get(name)
                    for name in (
                        "attempt",
                        "epoch",
                        "epochs",
                        "step",
                        "num_steps",
                        "loss",
                        "z_std_relative",
                        "knn_top1",
                        "seconds",
                    )
                },
                "outcome": (statuses[planned.run_id].result or {}).get("outcome"),
            }
            for planned in plan.cells
        ],
    }
