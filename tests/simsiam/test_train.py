"""The loop: resuming is bit-exact, divergence is a result, and a run learns."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simsiam.data.batches import make_source, shuffled
from simsiam.data.dataset import Dataset, Split
from simsiam.data.sets import load
from simsiam.evaluation.linear import whiten
from simsiam.evaluation.logistic import PENALTY
from simsiam.model.siamese import Siamese
from simsiam.record import checkpoint
from simsiam.record import curves as metrics
from simsiam.record.catalogue import spectrum_ranks
from simsiam.settings.fields import Settings
from simsiam.settings.identity import config_id
from simsiam.training.loop import Hooks, train
from tests.command_process import forked

Small = Callable[..., Settings]
CPU = torch.device("cpu")
TIMING = {"images_per_s"}


def run(settings: Settings, folder: Path, attempt: int = 1, **hooks: Any) -> str | None:
    folder.mkdir(exist_ok=True)
    dataset = load(settings.data, folder)
    return train(settings, dataset, folder, attempt=attempt, device=CPU, hooks=Hooks(**hooks))


def curves(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in point.items() if key not in TIMING} for point in metrics.merge(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(folder)
    assert state is not None
    return state["model"]


def assert_same_run(one: Path, other: Path) -> None:
    assert curves(one) == curves(other)
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name


def test_points_have_the_documented_names(small: Small, tmp_path: Path) -> None:
    assert run(small(), tmp_path) in ("healthy", "collapsed")
    points = metrics.merge(tmp_path)
    assert {key: points[0][key] for key in ("epoch", "step")} == {"epoch": 0.0, "step": 0}
    measured = {"epoch", "step", "num_queries", "knn_top1", "knn_correct", "effective_rank"}
    linear = {"linear_top1", "linear_correct"}  # before the first step, and at the end
    of_more = {"explained_variance_area", "spectrum", "lidar", "alpha_req", "nesum", "stable_rank"}
    evaluations = [point for point in points if "knn_top1" in point]
    assert [set(point) for point in evaluations] == [
        measured | of_more | linear,
        measured | of_more,
        measured | of_more | linear,
    ]
    names = {"epoch", "step", "loss", "lr", "z_std", "z_std_relative", "grad_norm", "images_per_s"}
    parts = {f"grad_norm_{part}" for part in ("backbone", "projector", "predictor")}
    assert set(points[1]) == names | parts | {"positive_cosine", "uniformity", "centre"}
    assert [point["step"] for point in points if "loss" in point] == [1, 3, 6, 9, 10, 12, 15, 18, 20]
    assert [point["epoch"] for point in points if "knn_top1" in point] == [0, 1, 2]
    for point in points[1:]:
        if "z_std" in point:
            assert point["z_std_relative"] == pytest.approx(point["z_std"] * 4)  # sqrt(d), d = 16


def test_diagnostics_can_be_switched_off_and_change_nothing(small: Small, tmp_path: Path) -> None:
    run(small(), tmp_path / "on")
    run(small(evaluation__diagnostics=False), tmp_path / "off")
    on, off = metrics.merge(tmp_path / "on"), metrics.merge(tmp_path / "off")
    for with_more, point in zip(on, off, strict=True):
        assert {name: with_more[name] for name in point if name != "images_per_s"} == {
            name: value for name, value in point.items() if name != "images_per_s"
        }
    measured = {"epoch", "step", "num_queries", "knn_top1", "knn_correct", "effective_rank"}
    assert set(off[0]) == measured | {"linear_top1", "linear_correct"}
    assert not (tmp_path / "off" / "embeddings.npz").exists()
    assert config_id(small(), "x") == config_id(small(evaluation__diagnostics=False), "x")


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"predictor__kind": "none"}, {"predictor__lr_schedule": "cosine", "predictor__hidden_dim": 4}),
        ({"predictor__kind": "linear"}, {"predictor__hidden_dim": 4}),
        ({"predictor__kind": "fixed"}, {"predictor__lr_schedule": "cosine"}),
        ({"predictor__lr_multiplier": 0.0}, {"predictor__lr_schedule": "cosine"}),
        ({"projector__num_layers": 1}, {"projector__hidden_dim": 4, "projector__bn_hidden": False}),
        ({"projector__bn_hidden": False, "projector__bn_output": False}, {"projector__bias": "always"}),
        ({"optimizer__weight_decay": 0.0}, {"optimizer__exclude_bn_and_bias": True}),
        (
            {"augment__jitter_probability": 0.0},
            {"augment__brightness": 0.1, "augment__contrast": 0.1, "augment__saturation": 0.1, "augment__hue": 0.2},
        ),
        ({"augment__blur_probability": 0.0}, {"augment__blur_sigma": (0.1, 1.0)}),
        ({"optimizer__schedule": "constant"}, {"optimizer__schedule_by": "epoch"}),
        ({"augment__blur_probability": 0.5}, {"second_view__blur_probability": 0.5}),
        ({"augment__solarise_probability": 0.2}, {"second_view__solarise_probability": 0.2}),
    ],
)
def test_what_has_no_effect_names_no_run(
    small: Small, tmp_path: Path, given: dict[str, Any], changes: dict[str, Any]
) -> None:
    """One id for one computation, bit for bit; and without ``given``, where it has an effect, another."""
    short = {"epochs": 1, "data__num_train": 96}
    run(small(**short, **given), tmp_path / "one")
    run(small(**short, **given, **changes), tmp_path / "other")
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert config_id(small(**given), "x") == config_id(small(**given, **changes), "x")
    for name, value in changes.items():
        effective = {"augment__blur_probability": 0.3} if "blur" in name else {}
        assert config_id(small(**effective), "x") != config_id(small(**effective, **{name: value}), "x"), name


def test_logged_diagnostics_are_those_of_numpy(small: Small, tmp_path: Path) -> None:
    """The kept z gives the logged spectrum; the parts' gradients add up to the whole; a linear predictor has more."""
    run(small(predictor__kind="linear"), tmp_path)
    points = metrics.merge(tmp_path)
    with np.load(tmp_path / "embeddings.npz") as kept:
        z, labels, step = kept["z"].astype(float), kept["labels"], int(kept["step"])
    last = next(point for point in reversed(points) if "spectrum" in point)
    assert step == last["step"]
    assert len(z) == 4 * z.shape[1]
    assert len(labels) == last["num_queries"]
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    singular = np.linalg.svd(unit - unit.mean(0), compute_uv=False) / np.sqrt(len(z))
    np.testing.assert_allclose(last["spectrum"], singular[spectrum_ranks(z.shape[1]) - 1], atol=2e-3)  # float16
    for point in points:
        if "grad_norm" in point:
            parts = [value for name, value in point.items() if name.startswith("grad_norm_")]
            assert np.linalg.norm(parts) == pytest.approx(point["grad_norm"], rel=1e-5)
            assert 0 <= point["predictor_alignment"] <= 1.4143
            # The identity between two measures: the variances of unit vectors sum to 1 - |mean|^2.
            assert point["z_std_relative"] ** 2 <= 1 - point["centre"] + 1e-5


def test_which_images_were_right_is_recorded_and_adds_up(small: Small, tmp_path: Path) -> None:
    run(small(), tmp_path)
    evaluations = [point for point in metrics.merge(tmp_path) if "knn_top1" in point]
    for point in evaluations:
        for kind in ("knn", "linear"):
            if f"{kind}_top1" in point:
                right = metrics.unpack(point[f"{kind}_correct"], point["num_queries"])
                assert 100 * right.mean() == pytest.approx(point[f"{kind}_top1"])
    with np.load(tmp_path / "embeddings.npz") as kept:
        for kind in ("knn", "linear"):
            right = metrics.unpack(evaluations[-1][f"{kind}_correct"], evaluations[-1]["num_queries"])
            np.testing.assert_array_equal(kept[f"{kind}_classes"] == kept["labels"], right)
        assert len(kept["features"]) == len(kept["places"]) == len(kept["z"]) <= 1000
        assert len(set(kept["places"].tolist())) == len(kept["places"])
        assert len(kept["class_names"]) == kept["labels"].max() + 1


def test_the_sample_of_z_is_of_all_classes_where_images_come_class_by_class() -> None:
    labels = np.repeat(np.arange(10), 1000)  # as in a folder
    for limit in (1000, 2048):
        counts = np.bincount(labels[shuffled(10_000, limit, "z")], minlength=10)
        assert counts.sum() == limit
        assert counts.min() > limit / 20
    assert shuffled(10_000, 2048, "z")[:1000].tolist() == shuffled(10_000, 1000, "z").tolist()


def test_the_linear_top1_of_a_run_is_that_of_its_checkpoint(small: Small, tmp_path: Path) -> None:
    """Extracted anew from the weights that were kept, and solved by scikit-learn."""
    settings = small()
    run(settings, tmp_path)
    data = load(settings.data, tmp_path)
    model = Siamese(settings, data.num_channels, len(data.train))
    state = checkpoint.load(tmp_path)
    assert state is not None
    model.load_state_dict(state["model"])
    model.eval()
    source = make_source(settings, data, torch.device("cpu"))
    with torch.no_grad():
        parts = [[(model.backbone(x), y) for x, y in source.plain(split)] for split in ("bank", "query")]
    (bank, truth), (queries, labels) = ([torch.cat(column) for column in zip(*part, strict=True)] for part in parts)
    whitened, test_whitened = whiten(bank, queries)
    theirs = LogisticRegression(C=1 / (len(bank) * PENALTY), tol=1e-9, max_iter=10_000)
    theirs.fit(whitened.double().numpy(), truth.numpy())
    right = theirs.predict(test_whitened.double().numpy()) == labels.numpy()
    last = [point for point in metrics.merge(tmp_path) if "linear_top1" in point][-1]
    assert last["step"] == state["step"]
    assert last["linear_top1"] == pytest.approx(100 * right.mean(), abs=100 / len(labels))  # one image on the border


@pytest.mark.parametrize("stop_at", [1, 7, 10, 13])
def test_a_stopped_run_goes_on_bit_for_bit(small: Small, tmp_path: Path, stop_at: int) -> None:
    settings = small()
    run(settings, tmp_path / "whole")
    steps = 0

    def count(step: int) -> None:
        nonlocal steps
        steps = step

    assert run(settings, tmp_path / "parts", 1, on_step=count, should_stop=lambda: steps >= stop_at) is None
    assert steps == stop_at
    assert run(settings, tmp_path / "parts", 2) is not None
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def tell_each_step(told: Connection, folder: Path, attempt: int, settings: Settings) -> None:
    """Train in a process of its own, and tell of each step and of the end."""
    torch.set_num_threads(1)
    hooks = Hooks(checkpoint_seconds=0.02, on_step=told.send)
    train(settings, load(settings.data, folder), folder, attempt=attempt, device=CPU, hooks=hooks)
    told.send("end")


def heard(told: Connection) -> list[int | str]:
    """All that a process has said until it was gone."""
    words: list[int | str] = []
    with contextlib.suppress(EOFError, OSError):  # gone, in the middle of a word perhaps
        while True:
            words.append(told.recv())
    return words


def test_killed_at_12_random_moments_a_run_ends_bit_for_bit_as_undisturbed(small: Small, tmp_path: Path) -> None:
    """kill -9 between and in the middle of steps, evaluations and checkpoints; then on from what is on disk."""
    settings = small(epochs=6)
    run(settings, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    moments = random.Random(0)
    attempt, kills, ended = 0, 0, False
    while not ended:
        attempt += 1
        told, theirs = multiprocessing.Pipe(duplex=False)
        process = forked(tell_each_step, theirs, folder, attempt, settings)
        process.start()
        theirs.close()
        if kills < 12:
            # Some steps further, then somewhere within the next: time it by the run itself, not by the clock.
            for _ in range(moments.randint(1, 6)):
                if told.recv() == "end":
                    ended = True
                    break
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
            kills += 1
        ended = "end" in heard(told) or ended
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), "it fails by itself"
        if ended and kills < 12:  # it was faster than the kills: begin again, the count goes on
            assert_same_run(tmp_path / "whole", folder)
            for path in folder.iterdir():
                path.unlink()
            attempt, ended = 0, False
        for path in folder.glob("*.json*"):
            for line in path.read_text().splitlines(keepends=True):
                assert not line.endswith("\n") or json.loads(line)
    assert kills == 12
    assert_same_run(tmp_path / "whole", folder)


def test_a_run_that_stops_before_its_first_step_evaluates_the_untrained_network_once(
    small: Small, tmp_path: Path
) -> None:
    """Killed right after the first checkpoint, which is of step 0."""

    class KilledError(Exception):
        pass

    def kill(point: dict[str, Any]) -> None:
        if "loss" in point:
            raise KilledError

    settings = small()
    run(settings, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings, tmp_path / "parts", 1, on_point=kill)
    with pytest.raises(KilledError):
        run(settings, tmp_path / "parts", 2, on_point=kill)
    run(settings, tmp_path / "parts", 3)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(small: Small, tmp_path: Path) -> None:
    settings = small()
    run(settings, tmp_path / "whole")
    steps = 0

    def count(step: int) -> None:
        nonlocal steps
        steps = step

    run(settings, tmp_path / "parts", 1, on_step=count, should_stop=lambda: steps >= 14)
    newest = tmp_path / "parts" / checkpoint.NEWEST
    content = bytearray(newest.read_bytes())
    for damage in ("cut", "flipped", "empty", "gone"):
        if damage == "cut":
            newest.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 0xFF
            newest.write_bytes(flipped)
        elif damage == "empty":
            newest.write_bytes(b"")
        else:
            newest.unlink()
        state = checkpoint.load(tmp_path / "parts")
        assert state is not None, damage
        assert state["step"] == 10, damage
    run(settings, tmp_path / "parts", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_holds_nothing_that_runs_code(small: Small, tmp_path: Path) -> None:
    run(small(epochs=1), tmp_path)
    torch.save({"format": 1, "step": os.system}, tmp_path / checkpoint.NEWEST)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] != os.system


def test_a_diverged_loss_ends_the_run_with_its_step(small: Small, tmp_path: Path) -> None:
    """Plain squared distance at a huge rate overflows: a result, not an error."""
    settings = small(
        loss__name="squared-distance", optimizer__lr=1e12, projector__bn_output=False, target__stop_gradient=False
    )
    assert run(settings, tmp_path) == "diverged"
    last = metrics.merge(tmp_path)[-1]
    assert last["diverged"] is True
    assert 1 <= last["step"] <= 20
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] < last["step"], "no checkpoint of a diverged network is published"


def test_stop_after_collapse(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.training.loop.is_collapsed", lambda *_: True)
    assert run(small(epochs=5, evaluation__stop_after_collapsed=2), tmp_path / "stops") == "collapsed"
    assert metrics.merge(tmp_path / "stops")[-1]["epoch"] == 2
    assert run(small(epochs=3), tmp_path / "goes on") == "collapsed"
    assert metrics.merge(tmp_path / "goes on")[-1]["epoch"] == 3


def test_variants_with_one_seed_see_the_same_images(small: Small, tmp_path: Path) -> None:
    """Pairing: order and views depend on the seed, not on the variant."""
    from simsiam.data.batches import make_source

    one, other = small(), small(target__stop_gradient=False, predictor__kind="none")
    dataset = load(one.data, tmp_path)
    for a, b in zip(
        make_source(one, dataset, CPU).epoch(1, 0), make_source(other, dataset, CPU).epoch(1, 0), strict=True
    ):
        assert torch.equal(a.places, b.places)
        for views in zip(a.pairs[0], b.pairs[0], strict=True):
            assert torch.equal(*views)
        assert not torch.equal(*a.pairs[0])
    first = next(iter(make_source(small(seed=1), dataset, CPU).epoch(1, 0)))
    again = next(iter(make_source(one, dataset, CPU).epoch(1, 0)))
    assert not torch.equal(first.pairs[0][0], again.pairs[0][0])


def stripes(num: int, seed: int) -> Split:
    """Horizontal against vertical stripes, of random phase: easy to tell apart, but not by a mean or a single pixel."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, num)
    phase = draws.uniform(0, 2 * np.pi, num)[:, None]
    waves = np.sin(np.arange(16) * 1.6 + phase)  # (N, 16)
    images = np.where(labels[:, None, None] == 0, waves[:, None, :], waves[:, :, None])
    images = images + draws.normal(0, 0.5, (num, 16, 16))
    return Split(np.clip(images[:, None] * 50 + 128, 0, 255).astype(np.uint8).repeat(3, 1), labels)


def test_it_learns_and_collapses_as_the_paper_says(small: Small, tmp_path: Path) -> None:
    """Fig. 2 in small: without stop-gradient the loss runs to -1 and the std to 0; with it the kNN rises."""
    train_split, test_split = stripes(640, 0), stripes(200, 1)
    dataset = Dataset("stripes", train_split, test_split, ("h", "v"), (0.5,) * 3, (0.2,) * 3, "stripes", 3, 16)
    final = {}
    for stop_gradient in (True, False):
        settings = small(
            epochs=15,
            batch_size=64,
            data__num_train=None,
            target__stop_gradient=stop_gradient,
            predictor__lr_schedule="cosine",
            optimizer__lr=1.0,
            backbone__width=8,
            evaluation__every_epochs=5,
        )
        folder = tmp_path / str(stop_gradient)
        folder.mkdir()
        train(settings, dataset, folder, attempt=1, device=CPU)
        final[stop_gradient] = {key: value for point in metrics.merge(folder) for key, value in point.items()}
    assert final[True]["knn_top1"] > 90 > 80 > final[False]["knn_top1"]
    assert final[True]["z_std_relative"] > 0.9
    assert final[False]["loss"] < -0.95
    assert final[False]["z_std_relative"] < 0.3
