"""What a pretended GPU cannot show (tests/experiments/test_pretended_gpu.py): numbers, kernels, NCCL."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from simsiam.data.sets import load
from simsiam.data.views import views
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.training.loop import Hooks, Training, train
from tests.conftest import Command
from tests.simsiam.test_captured import methods
from tests.simsiam.test_train import assert_same_run

CPU = torch.device("cpu")
BY_NAME = pytest.mark.parametrize("name", methods())
BFLOAT16_ROUNDS = 2.0**-8  # at most this share of a number


def short(name: str, **changes: Any) -> Settings:
    """Ten steps of a method."""
    flat = flatten(methods()[name])
    few = {"epochs": 2, "data.num_train": 5 * flat["batch_size"], "evaluation.every_epochs": 1}
    return validate(flat | few | {path.replace("__", "."): value for path, value in changes.items()})


def steps_in_float64(settings: Settings, device: torch.device, num: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of a few plain SGD steps on random views, and the weights after them; on the CPU."""
    draws = torch.Generator().manual_seed(0)
    shape = (num, 2, settings.batch_size, 3, 16, 16)
    given = torch.randn(shape, generator=draws, dtype=torch.float64).to(device)
    model = Siamese(settings, 3, settings.batch_size).double().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    index, losses = torch.arange(settings.batch_size, device=device), []
    for step in range(num):
        model.before_forward(step, num)
        output = model(*given[step], index=index, shuffle=model.shuffle(step, device))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step(output, index, step, num)
        losses.append(output.loss.detach())
    return torch.stack(losses).cpu(), {name: tensor.cpu() for name, tensor in model.state_dict().items()}


@BY_NAME
def test_the_gpu_computes_what_the_cpu_does(name: str, device: torch.device) -> None:
    """In float64, where only the order of sums differs."""
    losses, weights = steps_in_float64(short(name), CPU)
    found, others = steps_in_float64(short(name), device)
    assert torch.allclose(found, losses, rtol=1e-9, atol=1e-9)
    for weight, other in zip(weights.values(), others.values(), strict=True):
        assert torch.allclose(other, weight, rtol=1e-7, atol=1e-8)


def test_views_are_the_same(device: torch.device) -> None:
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"seed": 0, "epoch": 1, "size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    settings = validate({}).augment
    for mine, other in zip(
        views(images, torch.arange(64), settings, **given),
        views(images.to(device), torch.arange(64), settings, **given),
        strict=True,
    ):
        assert torch.allclose(other.cpu(), mine, atol=1e-4)


def test_bfloat16_is_as_far_from_float32_as_its_rounding(device: torch.device, tmp_path: Path) -> None:
    """Each of the L layers on the way rounds its inputs and its weights, by at most 2^-8 of them, at random: a relative
    error of sqrt(2 L) 2^-8 of z and p, and about twice that of their cosine, which is of order 1."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = short("SimSiam", precision=precision)
        training = Training(settings, load(settings.data, tmp_path), tmp_path, 1, device, Hooks())
        losses[precision] = training.update(next(training.source.epoch(0, 0))).loss.item()
        layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in training.model.modules())
    assert losses["bfloat16"] != losses["float32"], "autocast is on"
    assert abs(losses["bfloat16"] - losses["float32"]) < 2 * math.sqrt(2 * layers) * BFLOAT16_ROUNDS


def run(settings: Settings, folder: Path, device: torch.device, attempt: int = 1, **hooks: Any) -> str | None:
    folder.mkdir(exist_ok=True)
    return train(settings, load(settings.data, folder), folder, attempt=attempt, device=device, hooks=Hooks(**hooks))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("captured", [False, True])
@BY_NAME
def test_a_resume_is_exact(name: str, captured: bool, device: torch.device, tmp_path: Path) -> None:
    settings, made = short(name, execution__cuda_graph=captured), 0

    def count(step: int) -> None:
        nonlocal made
        made = step

    run(settings, tmp_path / "whole", device)
    assert run(settings, tmp_path / "parts", device, on_step=count, should_stop=lambda: made >= 7) is None
    run(settings, tmp_path / "parts", device, attempt=2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.usefixtures("deterministic")
@BY_NAME
def test_a_captured_step_gives_the_same_bits(name: str, device: torch.device, tmp_path: Path) -> None:
    run(short(name), tmp_path / "eager", device)
    run(short(name, execution__cuda_graph=True), tmp_path / "captured", device)
    assert_same_run(tmp_path / "eager", tmp_path / "captured")


@BY_NAME
def test_a_step_waits_for_nothing(name: str, cuda: torch.device, tmp_path: Path) -> None:
    """By torch's own watch, which raises at what it knows to make the host wait."""
    settings = short(name)
    training = Training(settings, load(settings.data, tmp_path), tmp_path, 1, cuda, Hooks())
    batches = training.source.epoch(0, 0)
    for _ in range(4):
        training.update(next(batches))
    try:
        torch.cuda.set_sync_debug_mode("error")
        training.update(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sync_batch_norm_with_one_rank_is_batch_norm(cuda: torch.device, tmp_path: Path) -> None:
    x = torch.randn(16, 8, 5, 5, device=cuda)
    plain = nn.BatchNorm2d(8).to(cuda)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(8)).to(cuda)
        assert torch.allclose(synchronised(x), plain(x), atol=1e-5)
        total = torch.ones(3, device=cuda)
        dist.all_reduce(total)
        assert total.tolist() == [1, 1, 1]
    finally:
        dist.destroy_process_group()
    assert torch.allclose(synchronised.running_var, plain.running_var, atol=1e-5)


def test_all_gpus_train_what_one_does(cuda: torch.device, command: Command, tmp_path: Path) -> None:
    """NCCL and nn.SyncBatchNorm, with as many ranks as there are GPUs, against one rank."""
    num = torch.cuda.device_count()
    if num == 1:
        pytest.skip("there is one GPU")
    finals = []
    for ranks in (1, num):
        where = ("--scale", "smoke", "--seeds", "1", "--runs", f"runs-{ranks}", "--set", f"batch_size={8 * num}")
        done = command("run", "stop-gradient", *where, "--ranks", str(ranks), "--device", "cuda", timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        results = sorted((tmp_path / f"runs-{ranks}").glob("*-s0/result.json"))
        finals.append([json.loads(path.read_text())["final"]["loss"] for path in results])
    assert finals[0] == pytest.approx(finals[1], abs=0.02)
