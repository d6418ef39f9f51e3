"""Which images the demo takes, and that it says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import demo
from simsiam.errors import DataError


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


@pytest.mark.parametrize(
    ("known", "computes"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_bfloat16_is_chosen_where_the_processor_has_it(
    known: dict[str, bool], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known, raising=False)
    assert demo.computes_in_bfloat16() is computes
    asked: list[list[str]] = []
    monkeypatch.setattr(demo, "images", lambda data: ("smoke", ["epochs=1"], ""))
    monkeypatch.setattr(demo, "run", lambda study, runs, data, scale, settings, seeds, jobs: asked.append(settings))
    monkeypatch.setattr(demo, "report", lambda study, runs, data, scale, settings, seeds: asked.append(settings))
    demo.demo()
    assert asked == [["epochs=1", *(["precision=bfloat16"] if computes else [])]] * 2
