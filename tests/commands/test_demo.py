"""Which images the demo takes, and that it says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import demo, options
from simsiam.errors import DataError
from simsiam.settings.checks import validate


def no_download(*_: object, **__: object) -> None:
    raise DataError("cifar10: the download failed: no network")


def test_an_image_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.data.sets.prepare", no_download)
    place = tmp_path / "cifar10" / "train" / "cat"
    place.mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(place / "0.png")
    scale, settings, why = demo.images(tmp_path)
    assert (scale, settings) == ("cpu", ["data.name=folder", "data.path=cifar10"])
    assert str(tmp_path / "cifar10") in why


def test_without_cifar10_fashion_mnist_takes_its_place_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.data.sets.prepare", no_download)
    scale, settings, why = demo.images(tmp_path)
    assert (scale, settings) == ("fashion", [])
    assert "no network" in why
    assert "Fashion-MNIST" in why
    assert str(tmp_path / "cifar10") in why  # where to put the images for the other


def test_prepared_cifar10_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.data.sets.prepare", lambda *_, **__: None)
    scale, settings, why = demo.images(tmp_path)
    assert (scale, settings) == ("cpu", [])
    assert "CIFAR-10" in why


@pytest.mark.skipif(
    not (Path("/proc/cpuinfo").exists() and hasattr(torch.cpu, "get_capabilities")),
    reason="the system or this torch does not say what the processor has",
)
def test_torch_and_the_kernel_agree_on_what_the_processor_has() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert options.computes_in_bfloat16() is ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(
    ("precision", "device", "computes", "is_told"),
    [("bfloat16", "cpu", False, True), ("bfloat16", "cpu", True, False), ("bfloat16", "cuda", False, False),
     ("float32", "cpu", False, False)],
)  # fmt: skip
def test_bfloat16_on_a_processor_without_it_is_told(
    precision: str, device: str, computes: bool, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "computes_in_bfloat16", lambda: computes)
    said = options.said_of_precision([validate({}), validate({"precision": precision})], device)
    assert bool(said) is is_told


@pytest.mark.parametrize(
    ("known", "computes"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_bfloat16_is_chosen_where_the_processor_has_it(
    known: dict[str, bool], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known, raising=False)
    assert options.computes_in_bfloat16() is computes
    asked: list[list[str]] = []
    monkeypatch.setattr(demo, "images", lambda data: ("smoke", ["epochs=1"], ""))
    monkeypatch.setattr(demo, "run", lambda study, runs, data, scale, settings, seeds, jobs: asked.append(settings))
    monkeypatch.setattr(demo, "report", lambda study, runs, data, scale, settings, seeds: asked.append(settings))
    demo.demo()
    assert asked == [["epochs=1", *(["precision=bfloat16"] if computes else [])]] * 2
