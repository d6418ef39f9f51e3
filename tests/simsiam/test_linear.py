"""Linear evaluation: the optimisers against their formulas, the protocols against a loop written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simsiam.data import batches
from simsiam.data.dataset import Dataset, Split
from simsiam.data.sets import load, prepare
from simsiam.evaluation import linear
from simsiam.evaluation.linear import (
    FEATURES,
    PAPER,
    PROTOCOLS,
    SGD,
    LinearProtocol,
    NonFiniteError,
    Protocol,
    accuracy,
    classifier_optimizer,
    evaluate_linear,
    whiten,
)
from simsiam.model.siamese import Siamese
from simsiam.settings.fields import Settings
from tests.simsiam.data.test_loading import files, folder

__all__ = ["folder"]  # a fixture

Small = Callable[..., Settings]
CPU = torch.device("cpu")


def patterns(num: int, seed: int, *, noise: int, classes: int = 7, random_labels: bool = False) -> Split:
    """Images (num, 1, 16, 16): the pattern of a class, and noise; without it, or with little, separable."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, num)
    base = np.random.default_rng(99).integers(60, 190, (classes, 1, 16, 16))
    images = base[labels] + draws.integers(-noise, noise + 1, (num, 1, 16, 16))
    if random_labels:
        labels = draws.integers(0, classes, num)
    return Split(np.clip(images, 0, 255).astype(np.uint8), labels)


def dataset(num: int = 420, *, num_test: int = 280, noise: int = 20, classes: int = 7, **options: Any) -> Dataset:
    train, test = (patterns(n, seed, noise=noise, classes=classes, **options) for n, seed in ((num, 1), (num_test, 2)))
    return Dataset("patterns", train, test, tuple("abcdefghij"[:classes]), (0.5,), (0.2,), "-", 1, 16)


class Pixels(nn.Module):
    """A backbone whose features are a fixed random map of the pixels; its BN would show if it were ever in training."""

    def __init__(self, num_features: int = 32) -> None:
        super().__init__()
        self.fc = nn.Linear(256, num_features)
        self.bn = nn.BatchNorm1d(num_features)
        with torch.no_grad():
            self.fc.weight.normal_(0, 1 / 16, generator=torch.Generator().manual_seed(0))
            self.fc.bias.zero_()
        self.num_images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_images += len(x)
        return self.bn(self.fc(x.flatten(1)))  # type: ignore[no-any-return]


def evaluate(
    small: Small, data: Dataset, protocol: Protocol, backbone: nn.Module | None = None, **options: Any
) -> dict[str, Any]:
    return evaluate_linear(backbone or Pixels(), small(), data, protocol, device=CPU, **options)


def protocol(base: LinearProtocol, **changes: Any) -> LinearProtocol:
    return LinearProtocol.model_validate({**base.model_dump(), **changes})


# --- the optimisers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_lars_is_its_formula(weight_decay: float) -> None:
    """You et al.: a layer's rate is eta |w| / (|g| + wd |w|), also at weight decay 0, where timm would not adapt."""
    classifier = nn.Linear(12, 5).double()
    lars = classifier_optimizer(protocol(PAPER, weight_decay=weight_decay), classifier)
    lr, momentum, eta = 0.32, 0.9, 0.001
    velocity = {name: torch.zeros_like(weight) for name, weight in classifier.named_parameters()}
    draws = torch.Generator().manual_seed(0)
    for _ in range(3):
        lars.param_groups[0]["lr"] = lr
        x, labels = torch.randn(16, 12, generator=draws).double(), torch.randint(0, 5, (16,), generator=draws)
        lars.zero_grad()
        F.cross_entropy(classifier(x), labels).backward()
        expected = {}
        for name, weight in classifier.named_parameters():
            assert weight.grad is not None
            norms = weight.detach().norm(), weight.grad.norm()
            local = eta * norms[0] / (norms[1] + weight_decay * norms[0])
            velocity[name] = momentum * velocity[name] + local * (weight.grad + weight_decay * weight.detach())
            expected[name] = weight.detach() - lr * velocity[name]
        lars.step()
        for name, weight in classifier.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-6, atol=1e-12)  # timm's eps is 1e-8


def test_the_named_protocols_are_the_paper_s() -> None:
    assert set(PROTOCOLS) == {"paper", "sgd", "features"}
    assert (PAPER.optimizer, PAPER.batch_size, PAPER.epochs, PAPER.lr) == ("lars", 4096, 90, 0.02)
    assert (SGD.optimizer, SGD.batch_size, SGD.epochs, SGD.lr) == ("sgd", 256, 90, 30.0)
    for named in (PAPER, SGD):
        assert (named.momentum, named.weight_decay) == (0.9, 0.0)


# --- whitened features -------------------------------------------------------------------------------------------


def test_whitened_features_have_covariance_one() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 24, generator=draws) @ torch.randn(24, 24, generator=draws).double().float() + 5
    train, test = whiten(x[:15000], x[15000:])
    torch.testing.assert_close(train.mean(0), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(train.T, correction=0), torch.eye(24), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(test.T), torch.eye(24), atol=0.1, rtol=0)
    scaled = whiten(1000 * x[:15000], 1000 * x[15000:])
    torch.testing.assert_close(scaled[1], test, atol=1e-2, rtol=0)


def test_rounding_is_not_blown_up() -> None:
    """A collapsed network's features, one vector and float32's rounding, are all zero; dead channels stay so."""
    draws = torch.Generator().manual_seed(0)
    constant = torch.randn(8, generator=draws).expand(1000, 8) * (1 + 5e-8 * torch.randn(1000, 1, generator=draws))
    train, test = whiten(constant, constant[:10])
    assert not train.any()
    assert not test.any()
    x = torch.randn(1000, 8, generator=draws)
    x[:, 3] = 2.0
    assert whiten(x, x)[0][:, 3].abs().max() < 1e-5
    zero = torch.zeros(10, 8)
    assert not whiten(zero, zero)[0].any()


# --- the evaluation ----------------------------------------------------------------------------------------------


@pytest.fixture
def whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops that are the images themselves, so that what is learnt from them can be told beforehand."""
    same = linear.CROP_AND_FLIP.model_copy(
        update={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip_probability": 0.0}
    )
    monkeypatch.setattr(linear, "CROP_AND_FLIP", same)


@pytest.mark.usefixtures("whole_images")
@pytest.mark.parametrize("name", ["features", "sgd", "paper"])
def test_separable_features_are_separated(small: Small, name: str) -> None:
    chosen = PROTOCOLS[name]
    if name == "paper":  # LARS moves a weight by 0.1 % of its size in a step: it is made for thousands of steps
        chosen = protocol(PAPER, batch_size=16, lr=20.0)
    found = evaluate(small, dataset(noise=10), chosen)
    assert found["top1"] > 99
    assert found["top5"] == 100


def test_random_labels_stay_at_chance(small: Small) -> None:
    found = evaluate(small, dataset(1000, num_test=2000, random_labels=True), FEATURES)
    assert found["top1"] == pytest.approx(100 / 7, abs=4)
    assert found["top5"] == pytest.approx(500 / 7, abs=4)


def written_out(data: Dataset, features: tuple[Tensor, Tensor], chosen: LinearProtocol, seed: int) -> list[float]:
    """The accuracy after each epoch: cross-entropy, SGD, a cosine, on features that are there already."""
    labels, truth = torch.from_numpy(data.train.labels), torch.from_numpy(data.test.labels)
    classifier = linear._untrained(features[0].shape[1], len(data.classes), seed)
    settings = Settings.model_construct(seed=linear.derive(seed, "linear") % 2**31, batch_size=chosen.batch_size)
    peak, steps = chosen.lr * chosen.batch_size / 256, chosen.epochs * (len(labels) // chosen.batch_size)
    velocity = [torch.zeros_like(weight) for weight in classifier.parameters()]
    step, accuracies = 0, []
    for epoch in range(chosen.epochs):
        for index in batches.batches_of(settings, epoch, len(labels), 0):
            loss = -classifier(features[0][index]).log_softmax(1)[torch.arange(len(index)), labels[index]].mean()
            gradients = torch.autograd.grad(loss, list(classifier.parameters()))
            with torch.no_grad():
                for weight, gradient, v in zip(classifier.parameters(), gradients, velocity, strict=True):
                    v.mul_(chosen.momentum).add_(gradient)
                    weight -= peak * (1 + math.cos(math.pi * step / steps)) / 2 * v
            step += 1
        accuracies.append(100 * (classifier(features[1]).argmax(1) == truth).double().mean().item())
    return accuracies


@pytest.mark.usefixtures("whole_images")
def test_the_last_epoch_counts_and_not_the_best(small: Small) -> None:
    data = dataset(300, num_test=1000, noise=120)
    chosen = protocol(SGD, lr=3.0, batch_size=64, epochs=30)
    plain = Pixels().eval()
    with torch.no_grad():
        train, test = (
            plain((torch.from_numpy(part.images) / 255 - 0.5) / 0.2)  # type: ignore[union-attr]
            for part in (data.train, data.test)
        )
    features = (train, test)
    accuracies = written_out(data, features, chosen, seed=3)
    assert max(accuracies) > accuracies[-1] + 0.2  # or the test would show nothing
    assert evaluate(small, data, chosen, seed=3)["top1"] == pytest.approx(accuracies[-1], abs=0.11)  # one image


def test_the_result_says_how_it_was_made(small: Small) -> None:
    told: list[tuple[int, float]] = []
    chosen = protocol(SGD, lr=0.1, epochs=10)
    found = evaluate(small, dataset(), chosen, seed=5, on_epoch=lambda epoch, loss: told.append((epoch, loss)))
    assert found["protocol"] == chosen.model_dump()
    assert {name: found[name] for name in ("batch_size", "lr", "seed", "num_train", "num_test", "num_features")} == {
        "batch_size": 256, "lr": 0.1, "seed": 5, "num_train": 420, "num_test": 280, "num_features": 32
    }  # fmt: skip
    assert found["seconds"] > 0
    assert [epoch for epoch, _ in told] == list(range(1, 11))
    assert told[-1][1] == found["train_loss"] < told[0][1]


def test_a_batch_is_cut_to_the_data_and_the_rate_follows(small: Small) -> None:
    found = evaluate(small, dataset(300), protocol(PAPER, epochs=2))
    assert found["batch_size"] == 300
    assert found["lr"] == pytest.approx(0.02 * 300 / 256)
    assert found["protocol"]["batch_size"] == 4096


def test_logistic_regression_is_the_same_whatever_the_seed(small: Small) -> None:
    first, other = (evaluate(small, dataset(noise=100), FEATURES, seed=seed) for seed in (0, 1))
    timing = {"seconds"}
    assert {k: v for k, v in first.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}


@pytest.mark.parametrize("named", [SGD, PAPER])
def test_it_is_deterministic(small: Small, named: LinearProtocol) -> None:
    chosen = protocol(named, epochs=3)
    data = dataset(noise=100)
    first, again, other = (
        evaluate(small, data, chosen, seed=seed, on_epoch=lambda epoch, loss: None) for seed in (0, 0, 1)
    )
    assert first["train_loss"] == again["train_loss"] != other["train_loss"]
    assert first["top1"] == again["top1"]


@pytest.mark.parametrize("chosen", [FEATURES, SGD.model_copy(update={"epochs": 2})])
def test_the_backbone_is_left_as_it_was(small: Small, chosen: Protocol) -> None:
    settings = small()
    model = Siamese(settings, 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = load(settings.data, Path())
    found = evaluate_linear(model.backbone, settings, data, chosen, device=CPU)
    assert found["num_test"] == len(data.test) == 500  # all of them, whatever the run's own evaluation.query_size
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(module.training for module in model.modules())


def test_features_of_plain_images_are_computed_once(small: Small) -> None:
    backbone, augmenting = Pixels(), Pixels()
    evaluate(small, dataset(), FEATURES, backbone)
    assert backbone.num_images == 420 + 280
    evaluate(small, dataset(), protocol(SGD, epochs=5, batch_size=100), augmenting)
    assert augmenting.num_images == 5 * 400 + 280


def test_a_large_batch_is_read_in_parts(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are the same batches: same crops, same order, same steps."""
    data = dataset(1100)  # 17 parts, of which the 5 whole batches are 15
    chosen = protocol(SGD, batch_size=192, lr=0.1, epochs=2)
    whole = evaluate(small, data, chosen)
    sizes: list[int] = []

    class Watched(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    monkeypatch.setattr(linear, "PLAIN_BATCH", 64)
    parts = evaluate(small, data, chosen, Watched())
    assert sizes.count(64) == 2 * 15 + 280 // 64  # the test images too
    assert parts["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    assert parts["top1"] == pytest.approx(whole["top1"], abs=0.5)


def test_crops_are_new_in_each_epoch_and_nothing_but_crops_and_flips(small: Small) -> None:
    """At lr 0 and a batch of all images, each epoch's loss shows its images: they differ, and colours are kept."""
    data = dataset(64)
    losses: list[float] = []
    seen: list[Tensor] = []

    class Watched(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    still = protocol(SGD, lr=0.0, epochs=3)
    evaluate(small, data, still, Watched(), on_epoch=lambda epoch, loss: losses.append(loss))
    assert len(set(losses)) == 3
    crops = torch.cat([x for x in seen if len(x) == 64])
    low, high = ((bound / 255 - 0.5) / 0.2 for bound in (60 - 20, 190 + 20))
    assert crops.min() > low - 1e-4
    assert crops.max() < high + 1e-4


def test_files_are_evaluated_too(small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures whose classes are colour casts, with a backbone that sees the mean colour.

    The last part that the loader reads of an epoch is left over: 3 of 4 make a batch.
    """
    monkeypatch.setattr(linear, "PLAIN_BATCH", 8)
    settings = files(small)
    data = prepare(settings.data, folder)

    class Colour(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    for chosen in (FEATURES, protocol(SGD, epochs=20, batch_size=24, lr=10.0)):
        found = evaluate_linear(Colour(), settings, data, chosen, device=CPU)
        assert found["top1"] == 100, chosen.name
        assert (found["num_train"], found["num_test"], found["num_features"]) == (36, 15, 3)


def test_features_that_are_not_finite_are_an_error(small: Small) -> None:
    broken = Pixels()
    nn.init.constant_(broken.fc.weight, math.nan)
    for chosen in (FEATURES, SGD):
        with pytest.raises(NonFiniteError, match="features are not all finite"):
            evaluate(small, dataset(), chosen, broken)
    assert broken.training
    with pytest.raises(NonFiniteError, match="the base rate 1e\\+38 of the protocol sgd is too high"):
        evaluate(small, dataset(), protocol(SGD, lr=1e38))


def test_accuracy_counts_by_hand() -> None:
    classifier = nn.Linear(6, 6, bias=False)
    classifier.weight = nn.Parameter(torch.eye(6))
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 4)
    assert accuracy(classifier, scores, torch.tensor([0, 1, 4, 5])) == (25, 75)
    few = nn.Linear(2, 3)
    assert accuracy(few, torch.randn(9, 2), torch.arange(9) % 3)[1] == 100
