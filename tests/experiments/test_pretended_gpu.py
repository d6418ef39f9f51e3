"""Every variant of every study on a GPU that is not there (tests/pretended_cuda.py), at the scales meant for one.

Variants that take the same paths through the code are one case, the largest batch of them; at imagenet scale, those
that share their data, views, network, optimiser and encoder of targets. What this leaves unproved:
numbers; collectives (NCCL, nn.SyncBatchNorm); the reading of image files and the pinning of memory by loader processes;
torch.save from the device; the time that anything takes. ``make test-gpu`` tests these where there is a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.studies.study import load_scale, load_study, make_cells, study_names
from simsiam.data import views
from simsiam.data.batches import Crops, FileSource, Wanted, _InLoaderProcess, _Loaded
from simsiam.data.dataset import Dataset, FileSplit, Split
from simsiam.evaluation.linear import PROTOCOLS, LinearProtocol, evaluate_linear
from simsiam.model import siamese
from simsiam.model.siamese import Siamese
from simsiam.settings.fields import Settings, flatten
from simsiam.training import loop
from simsiam.training.loop import Hooks, Training
from tests.pretended_cuda import CUDA, PretendedCuda, pretended_cuda

OF_AN_EVALUATION = ("_perplexity", "alpha_req", "nesum", "stable_rank", "lidar", "explained_variance_area")
# Where the host is meant to wait for the device, and what is read there.
MEANT: dict[str, float] = {
    # once a run, or a device
    "training/loop.py:__init__": 1,
    "data/batches.py:__init__": 1,
    "data/views.py:_all_resizings": 1,
    # of a logged point
    "training/loop.py:diverged": 2**40,  # the step at which it did
    "training/loop.py:log": 1,
    "training/logged.py:relative_std": 1,
    "training/logged.py:_gradient_norm": 1,
    "training/logged.py:of_step": 1,
    # of an evaluation
    "training/loop.py:evaluate": 1,  # which images z is taken of
    "data/batches.py:held_out_views": 1,
    "evaluation/knn.py:knn_classes": 1,
    **{f"evaluation/diagnostics.py:{name}": 1 for name in OF_AN_EVALUATION},
    "training/logged.py:of_evaluation": 1,
    "training/logged.py:correctness": 1,
    "training/loop.py:linear_classes": 1,
    "evaluation/linear.py:whiten": 1,
    "evaluation/logistic.py:fit_logistic": 1,
    "evaluation/logistic.py:loss_and_gradient": 1,  # scipy's L-BFGS is on the host
    # of a checkpoint
    "training/logged.py:save": 1,
    "training/loop.py:save": 1,
    "training/loop.py:load_state": 1,
    "training/cached_targets.py:resume": 1,
    # of `evaluate`: at its start and its end, and once an epoch
    "evaluation/linear.py:evaluate_linear": 1,
    "evaluation/linear.py:_plain_features": 1,
    "evaluation/linear.py:fit": 1,
    "evaluation/linear.py:accuracy": 1,
}
MEMORY = 80 * 2**30  # bytes of a GPU that the scales are meant for
# Settings that choose between numbers, not between paths.
NUMBERS = {
    "seed", "epochs", "batch_size", "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum",
    "optimizer.warmup_epochs", "optimizer.schedule", "optimizer.schedule_by", "predictor.lr_schedule",
    "predictor.lr_multiplier", "initialisation.fc_std", "initialisation.zero_last_bn", "evaluation.every_epochs",
    "loss.weight", "loss.temperature", "target.momentum", "target.momentum_schedule", "augment.crop_scale",
}  # fmt: skip


# What tells the ways at imagenet scale apart; they share the rest of the code with those at cifar scale.
OF_IMAGENET = (
    "data.", "augment.", "second_view.", "backbone.", "optimizer.", "batch_norm.", "target.encoder",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A way through the code: settings of one variant, and the name of a study and a variant that go it."""

    name: str
    settings: Settings


def kind(value: Any) -> Any:
    """Of a number, what a path through the code may depend on."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if value in (0, 1) else "more"
    return value


@cache
def cases(scale: str) -> list[Case]:
    """One for each way through the code that any variant of any study goes."""
    found: dict[tuple[Any, ...], Case] = {}
    for name in study_names():
        for cell in make_cells(load_study(name), load_scale(scale), [0]):
            flat = flatten(cell.settings)
            paths = [path for path in flat if path not in NUMBERS]
            if scale == "imagenet":
                paths = [path for path in paths if path.startswith(OF_IMAGENET)]
            way = tuple(kind(flat[path]) for path in paths)
            if way not in found or cell.settings.batch_size > found[way].settings.batch_size:
                found[way] = Case(f"{name}: {cell.variant}", cell.settings)
    return list(found.values())


@pytest.fixture
def gpu() -> Iterator[PretendedCuda]:
    views._all_resizings.cache_clear()  # it keeps tensors of a device
    with pretended_cuda(MEANT) as pretended:
        if not pretended.follows_convolutions():
            assert torch.__version__ < "2.15"
            pytest.skip(f"torch {torch.__version__}, built for CUDA, asks the driver how to convolve")
        yield pretended
    views._all_resizings.cache_clear()


def short(settings: Settings) -> Settings:
    """Two steps, one epoch; a bank and queries of more than one batch. At imagenet scale, one GPU's part of eight."""
    evaluation = settings.evaluation.model_copy(
        update={"every_epochs": 1, "log_every_steps": 1, "bank_size": 600, "query_size": 520, "linear": True}
    )
    batch_size = settings.batch_size // (8 if settings.data.storage == "files" else 1)
    return settings.model_copy(update={"epochs": 1, "batch_size": batch_size, "evaluation": evaluation})


def dataset(settings: Settings) -> Dataset:
    """Two batches of black images; in files that do not exist where the settings have them in files."""
    num, size = (max(2 * settings.batch_size, 640), 520), settings.data.image_size
    labels = [np.arange(n) % 10 for n in num]
    splits: list[Any]
    if settings.data.storage == "files":
        sizes = [np.full((n, 2), 256) for n in num]
        splits = [FileSplit(Path(), np.array([b"x"] * n), *each) for n, *each in zip(num, labels, sizes, strict=True)]
    else:
        black = np.zeros((1, 3, size, size), np.uint8)
        splits = [Split(np.broadcast_to(black, (n, *black.shape[1:])), own) for n, own in zip(num, labels, strict=True)]
    return Dataset("black", *splits, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3, "black", 3, size)


@pytest.fixture
def stand_ins(gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> dict[Path, Any]:
    """For what is slow or needs numbers: networks are made without them, images are not decoded, and checkpoints stay
    in memory, where they are read back from the device in full."""
    published: dict[Path, Any] = {}

    def make(*arguments: Any) -> Siamese:
        with gpu.everything():
            return Siamese(*arguments)

    def answers(self: FileSource, loader: Any) -> Iterator[_Loaded]:
        images: _InLoaderProcess = loader.dataset
        for wanted in loader.batch_sampler:
            assert isinstance(wanted, Wanted)
            drawn = images._draw(wanted) if isinstance(images, Crops) else ()
            size = self.settings.data.image_size
            with gpu.everything():
                pixels = torch.zeros(max(1, len(drawn)) * len(wanted.places), 3, size, size, dtype=torch.uint8)
            yield _Loaded(wanted.places, pixels, tuple(tuple(part.numpy() for part in view) for view in drawn), {})

    def save(folder: Path, state: Any, attempt: int) -> None:
        published[folder] = torch.utils._pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, state)

    monkeypatch.setattr(loop, "Siamese", make)
    monkeypatch.setattr(siamese, "initialise", lambda model, settings: None)  # there are no numbers to draw
    monkeypatch.setattr(FileSource, "_answers", answers)
    monkeypatch.setattr(loop.checkpoint, "save", save)
    monkeypatch.setattr(loop.checkpoint, "load", lambda folder: copy.copy(published.get(folder)))
    return published


def training(settings: Settings, folder: Path, attempt: int = 1, **hooks: Any) -> Training:
    return Training(settings, dataset(settings), folder, attempt, CUDA, Hooks(**hooks))


def check_state(made: Training) -> None:
    """All that a run's future depends on is on the device, in float32."""
    for tensor in torch.utils._pytree.tree_leaves((made.model.state_dict(), made.optimizer.state_dict()["state"])):
        if isinstance(tensor, Tensor):
            assert tensor.device == CUDA
            assert tensor.dtype in (torch.float32, torch.int64, torch.bool)
    for weight in made.model.parameters():
        assert weight.grad is None or weight.grad.dtype == torch.float32


def check_types(gpu: PretendedCuda, settings: Settings) -> None:
    """Networks compute in the run's precision; losses, and all that lasts, in float32; nothing in float64."""
    half = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    assert gpu.types["convolution"] == {half}
    assert not any(torch.float64 in types for types in gpu.types.values())
    for name in ("linalg_vector_norm", "_log_softmax", "_softmax", "exp"):  # of losses, codes and views
        assert gpu.types.get(name, {torch.float32}) == {torch.float32}, name


def each(scale: str) -> Any:
    return pytest.mark.parametrize("case", cases(scale), ids=lambda case: case.name)


def check_steps(case: Case, gpu: PretendedCuda, folder: Path) -> None:
    """Views, step and all that follows it wait for nothing; a logged point waits where it is meant to."""
    made = training(short(case.settings), folder)
    batches = made.source.epoch(0, 0)
    made.update(next(batches))  # the first makes tables and the optimiser's state
    with gpu.watching():
        output = made.update(next(batches))
        assert not gpu.waits
        check_types(gpu, case.settings)
    made.log(output)
    check_state(made)
    assert output.loss.dtype == torch.float32
    assert {place for place, _ in gpu.waits} <= MEANT.keys()
    assert gpu.peak < MEMORY


@each("cifar")
def test_steps_at_cifar_scale(case: Case, gpu: PretendedCuda, stand_ins: dict[Path, Any], tmp_path: Path) -> None:
    check_steps(case, gpu, tmp_path)


@each("imagenet")
def test_steps_at_imagenet_scale(case: Case, gpu: PretendedCuda, stand_ins: dict[Path, Any], tmp_path: Path) -> None:
    check_steps(case, gpu, tmp_path)


def whole_runs() -> list[Case]:
    """One case for each loss and each kind of target, and the baseline from files."""
    found: dict[Any, Case] = {}
    for case in cases("cifar"):
        target, loss = case.settings.target, case.settings.loss
        kinds = (target.encoder, target.image_average > 0, target.cache_steps > 0, target.cache_epoch)
        smaller = case.settings.model_copy(update={"batch_size": min(512, case.settings.batch_size)})
        found.setdefault((loss.name, *kinds), Case(case.name, smaller))
    return [*found.values(), next(case for case in cases("imagenet") if case.settings.predictor.kind == "mlp")]


@pytest.mark.parametrize("case", whole_runs(), ids=lambda case: f"{case.name}, {case.settings.data.storage}")
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_whole_runs(case: Case, gpu: PretendedCuda, stand_ins: dict[Path, Any], tmp_path: Path) -> None:
    """Evaluation, a stop, a checkpoint, a resume from it, the end, and linear evaluation by each protocol."""
    settings = short(case.settings)
    first = training(settings, tmp_path, should_stop=lambda: True)
    assert first.run() is None
    second = training(settings, tmp_path, attempt=2)
    assert second.step == 1
    check_state(second)
    assert second.run() == "healthy"
    check_state(second)
    for protocol in PROTOCOLS.values() if case.settings.loss.name == "cosine" else ():
        if isinstance(protocol, LinearProtocol):
            protocol = protocol.model_copy(update={"epochs": 1})
        evaluate_linear(second.model.backbone, settings, second.dataset, protocol, device=CUDA)
    assert {place for place, _ in gpu.waits} <= MEANT.keys()
