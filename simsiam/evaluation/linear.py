"""Linear evaluation: a linear classifier on frozen, globally pooled backbone features (App. A).

It asks nothing of a run but its backbone, and its settings are no part of the run's id: a finished run can be evaluated
anew, or in another way, without being trained again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from simsiam.data.batches import PLAIN_BATCH, Source, make_source
from simsiam.data.dataset import Dataset
from simsiam.distributed.ranks import ONE_RANK, Gradients, Ranks
from simsiam.errors import UserError
from simsiam.evaluation.logistic import PENALTY, fit_logistic
from simsiam.randomness import derive, generator
from simsiam.settings.checks import check_ranks
from simsiam.settings.fields import (
    AugmentSettings,
    Count,
    LossSettings,
    NonNegative,
    SecondViewSettings,
    Section,
    Settings,
)

TRUST_COEFFICIENT = 0.001  # of LARS (You et al. 2017)
WEIGHT_STD = 0.01  # of the classifier's start; the biases start at 0
# What an ImageNet classifier is trained on: crops of 8 % of the image upwards, and flips; colours stay as they are.
CROP_AND_FLIP = AugmentSettings(
    crop_scale=(0.08, 1.0), flip_probability=0.5, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0
)

PIXEL_PLACES = 8  # along each axis, that the averages of raw pixels are taken over

Encode = Callable[[Tensor], Tensor]  # images (N, C, S, S) -> features (N, num_features)
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # an epoch -> features (B, num_features), labels (B,)


class LinearProtocol(Section):
    """A classifier trained on features of crops and flips that are new in each epoch.

    The rate follows half a cosine to 0, step by step, without warm-up.
    """

    name: str = Field(description="what the result is filed under")
    optimizer: Literal["lars", "sgd"] = Field(description="LARS (timm's; You et al. 2017) or plain SGD")
    batch_size: Count = Field(description="images in a step; all of them where there are fewer")
    epochs: Count = Field(description="passes over the training images, in whole batches")
    lr: NonNegative = Field(description="base rate; the rate in use starts at lr x (images in a step) / 256")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of either optimiser")
    weight_decay: NonNegative = Field(0.0, description="on the classifier's weights and biases")


class LogisticProtocol(Section):
    """Logistic regression on features of the plain images, computed once and whitened: nothing is drawn or tuned."""

    name: str = Field(description="what the result is filed under")
    penalty: NonNegative = Field(PENALTY, description="on half the squared weights, beside the mean cross-entropy")


Protocol = LinearProtocol | LogisticProtocol


# App. A. The released code has base lr 0.1 where the paper says 0.02, and keeps the best epoch, not the last. Made for
# ImageNet: LARS moves the weights by a share of their size in each step, so how far they come depends on the images
# seen. In 90 epochs of a small set they have hardly moved.
PAPER = LinearProtocol(name="paper", optimizer="lars", batch_size=4096, epochs=90, lr=0.02)
# App. A's alternative, about 1 point lower there.
SGD = LinearProtocol(name="sgd", optimizer="sgd", batch_size=256, epochs=90, lr=30.0)
# For the small scales, and what training records by itself: seconds on a CPU, since the backbone sees each image once.
FEATURES = LogisticProtocol(name="features")

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (PAPER, SGD, FEATURES)}


class NonFiniteError(UserError, RuntimeError):
    """The features are NaN or infinite (a diverged run), or the classifier's loss is (too high a rate)."""


def evaluate_linear(
    backbone: nn.Module,
    settings: Settings,
    dataset: Dataset,
    protocol: Protocol,
    *,
    device: torch.device,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    ranks: Ranks = ONE_RANK,
) -> dict[str, Any]:
    """Train a classifier on all training images of ``dataset``; its accuracy on all test images, after the last epoch.

    backbone: images (N, C, S, S) -> features (N, num_features), on ``device``; used in eval mode and left as it was.
    settings: the run's, of which the image size and the precision count here. seed: of the evaluation alone; it draws
    the classifier's start, the order of the images, and their crops. ``on_epoch(epochs done, mean loss)`` is told of
    the progress.

    Test images are centre crops, or whole where they are held in memory. Top-5 needs more than five classes to say
    anything; with fewer it is 100.

    With several ranks all call it with the same arguments, but for the device: each computes the features of its share
    of the images, and the gradient of its share of each batch. All return the same.

    Returns ``top1`` and ``top5`` (percent), ``train_loss`` (mean of the last epoch), ``protocol`` (its fields), what
    was used (``ranks``, ``num_train``, ``num_test``, ``num_features``; of a classifier that is trained by steps
    ``batch_size``, ``lr`` and ``seed``), ``seconds``.
    Raises :class:`NonFiniteError`; SettingsError for ranks that cannot share a batch equally.
    """
    started = time.monotonic()
    by_steps = protocol if isinstance(protocol, LinearProtocol) else None
    batch_size = min(by_steps.batch_size if by_steps else PLAIN_BATCH, len(dataset.train))
    own = _own_settings(settings, batch_size, seed)
    if by_steps:
        check_ranks(own, ranks.world_size, "--ranks")
    source = make_source(own, dataset, device, ranks)
    labels = torch.tensor(dataset.train.labels, device=device)
    steps_per_epoch = len(dataset.train) // batch_size

    def encode(images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return torch.cat([backbone(part).float() for part in torch.split(images, PLAIN_BATCH)])

    was_training = backbone.training
    backbone.eval()  # in train mode a BN would use and change statistics that belong to what is evaluated
    try:
        test, test_labels = _plain_features(source, encode, "query", len(dataset.test), ranks)
        if isinstance(protocol, LinearProtocol):
            batches = _crops(source, encode, labels, steps_per_epoch, num_parts=batch_size // own.batch_size)
            classifier = _untrained(test.shape[1], len(dataset.classes), seed).to(device)
            peak_rate = protocol.lr * batch_size / 256
            loss = fit(classifier, batches, protocol, peak_rate, steps_per_epoch, on_epoch, ranks)
            used = {"batch_size": batch_size, "lr": peak_rate, "seed": seed}
        else:
            train, labels = _plain_features(source, encode, "bank", len(dataset.train), ranks)
            train, test = whiten(train, test)
            classifier, used = fit_logistic(train, labels, len(dataset.classes), penalty=protocol.penalty), {}
            with torch.no_grad():
                loss = F.cross_entropy(classifier(train), labels).item()
        top1, top5 = accuracy(classifier, test, test_labels)
    finally:
        backbone.train(was_training)
    return {
        "top1": top1,
        "top5": top5,
        "train_loss": loss,
        "protocol": protocol.model_dump(),
        **used,
        "ranks": ranks.world_size,
        "num_train": len(dataset.train),
        "num_test": len(test),
        "num_features": test.shape[1],
        "seconds": time.monotonic() - started,
    }


def raw_pixel_linear_top1(
    train: NDArray[np.uint8], train_labels: NDArray[np.int64], test: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """Top-1 (percent) of a logistic regression on the pixels, averaged over 8x8 places: what needs no network.

    train: (N, C, H, W), test: (M, C, H, W). The averages are the strongest such features that were found, and quick:
    on CIFAR-10 (JPEG) they give 41.2 %, 16x16 averages 40.0, all pixels 34.8, or 40.4 without whitening.
    """
    both = [
        torch.cat(
            [
                F.adaptive_avg_pool2d(torch.from_numpy(images[start : start + 8192]).float(), PIXEL_PLACES).flatten(1)
                for start in range(0, len(images), 8192)
            ]
        )
        for images in (train, test)
    ]
    averages, test_averages = whiten(*both)
    classifier = fit_logistic(averages, torch.tensor(train_labels), int(train_labels.max()) + 1)
    return accuracy(classifier, test_averages, torch.tensor(labels))[0]


# --- features ----------------------------------------------------------------------------------------------------


def _own_settings(settings: Settings, batch_size: int, seed: int) -> Settings:
    """What the evaluation asks of its source of images: all of them, cropped and flipped, in an order of its own.

    A large batch is read in parts, which is what a loader process and a GPU can hold of ImageNet.
    """
    return settings.model_copy(
        update={
            "seed": derive(seed, "linear") % 2**31,
            "batch_size": PLAIN_BATCH if batch_size % PLAIN_BATCH == 0 else batch_size,
            "augment": CROP_AND_FLIP,
            "second_view": SecondViewSettings(),
            "loss": LossSettings(),
            "evaluation": settings.evaluation.model_copy(update={"bank_size": None, "query_size": None}),
        }
    )


def _plain_features(
    source: Source, encode: Encode, split: Literal["bank", "query"], num_images: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Features (N, num_features) and labels (N,) of all training images or all test images, not augmented."""
    parts, labels = zip(*((encode(images), truth) for images, truth in source.plain(split)), strict=True)
    features = ranks.gather(torch.cat(parts), num_images)
    if not features.isfinite().all():
        raise NonFiniteError("the backbone's features are not all finite: nothing can be learnt from a diverged run")
    return features, ranks.gather(torch.cat(labels), num_images)


def _crops(source: Source, encode: Encode, labels: Tensor, steps_per_epoch: int, *, num_parts: int) -> Batches:
    """Batches of features of random crops; each is read in ``num_parts`` parts."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        parts = itertools.islice(source.epoch(epoch, 0), steps_per_epoch * num_parts)
        while batch := list(itertools.islice(parts, num_parts)):
            index = torch.cat([part.places for part in batch])
            # The source makes two views; the second is a third of the crops' cost, and crops are cheap beside f.
            yield (
                torch.cat([encode(part.pairs[0][0]) for part in batch]),
                labels[index.to(labels.device, non_blocking=True)],
            )

    return batches


def whiten(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Training features with mean 0 and covariance 1; test features by the same map.

    train: (N, num_features), test: (M, num_features); float32, computed in float64. A linear classifier can do the
    same in any coordinates, but a penalty on its weights cannot: backbone features vary a thousand times more in some
    directions than in others, and one penalty that suits all runs, widths and states of collapse exists only when they
    do not. Directions that vary by less than a millionth of the features' length, which is what float32 rounds, are set
    to 0 and not blown up. The map is the symmetric one, in which no eigenvector's sign is arbitrary.
    """
    mean = train.mean(0, dtype=torch.float64)
    covariance = sum(centred.T @ centred for centred in _centred(train, mean)) / len(train)
    variances, directions = torch.linalg.eigh(covariance)
    length = variances.clamp(min=0).sum() + mean.square().sum()  # the mean squared length of a feature vector
    scale = torch.where(variances > 1e-12 * length, variances.clamp(min=torch.finfo(variances.dtype).tiny).rsqrt(), 0.0)
    change = directions * scale @ directions.T  # (num_features, num_features)
    whitened_train, whitened_test = (
        torch.cat([(centred @ change).float() for centred in _centred(features, mean)]) for features in (train, test)
    )
    return whitened_train, whitened_test


def _centred(features: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """In parts, so that no copy of all features in float64 is in memory."""
    return (part.double() - mean for part in torch.split(features, 8192))


# --- the classifier ----------------------------------------------------------------------------------------------


def _untrained(num_features: int, num_classes: int, seed: int) -> nn.Linear:
    """The classifier's start: weights normal, biases 0."""
    classifier = nn.Linear(num_features, num_classes)
    with torch.no_grad():
        classifier.weight.normal_(0, WEIGHT_STD, generator=generator(seed, "linear", "weights"))
        classifier.bias.zero_()
    return classifier


def classifier_optimizer(protocol: LinearProtocol, classifier: nn.Linear) -> torch.optim.Optimizer:
    """LARS or SGD over the classifier's weights and biases; the rate is set before each step."""
    options: dict[str, Any] = {"lr": 0.0, "momentum": protocol.momentum, "weight_decay": protocol.weight_decay}
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(classifier.parameters(), **options)
    from timm.optim.lars import Lars  # here, since importing timm takes a second

    # By default timm's Lars leaves the rate alone where weight decay is 0, which it is in the paper's protocol.
    return Lars(classifier.parameters(), trust_coeff=TRUST_COEFFICIENT, always_adapt=True, **options)


def fit(
    classifier: nn.Linear,
    batches: Batches,
    protocol: LinearProtocol,
    peak_rate: float,
    steps_per_epoch: int,
    on_epoch: Callable[[int, float], None],
    ranks: Ranks = ONE_RANK,
) -> float:
    """Train ``classifier`` in place by cross-entropy; the mean loss of the last epoch. Raises NonFiniteError.

    batches: each rank's own part of them.
    """
    optimizer = classifier_optimizer(protocol, classifier)
    gradients = Gradients(ranks, classifier.parameters())
    num_steps, step, mean_loss = protocol.epochs * steps_per_epoch, 0, math.nan
    for epoch in range(protocol.epochs):
        total = torch.zeros((), device=classifier.weight.device)
        for features, labels in batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = peak_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            loss = F.cross_entropy(classifier(features), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            gradients.finish()
            optimizer.step()
            total += loss.detach()
            step += 1
        mean_loss = ranks.mean(total).item() / steps_per_epoch
        if not math.isfinite(mean_loss):
            raise NonFiniteError(
                f"the linear classifier's loss is {mean_loss} in epoch {epoch + 1}: "
                f"the base rate {protocol.lr:g} of the protocol {protocol.name} is too high"
            )
        on_epoch(epoch + 1, mean_loss)
    return mean_loss


@torch.no_grad()
def accuracy(classifier: nn.Linear, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of images (percent) whose class has the highest score, and is among the five highest."""
    highest = classifier(features).topk(min(5, classifier.out_features), dim=1).indices  # (N, 5)
    hits = highest == labels[:, None]
    top1, top5 = (100 * hits[:, :k].any(1).double().mean().item() for k in (1, 5))
    return top1, top5
