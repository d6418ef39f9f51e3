"""What a loss is measured against: its own optimum and its own chance level, never those of another loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LossRange:
    """The two ends of a loss, in its own unit."""

    name: str
    chance: float  # what views that have nothing to do with each other give
    optimum: float  # the best that can be reached
    chance_text: str  # how the two follow from the settings
    optimum_text: str
    batch_size: int
    of_classes: float | None = None  # of a network that knows the classes alone; for losses that have others

    @property
    def converged_from(self) -> float:
        """The share of the way from chance from which on training has converged: half of the way.

        For the cosine it is 60 degrees between p and z. A loss that tells an image from n others goes on falling when
        the classes are told apart, by what tells images of one class apart, which no study here asks for; so for it
        it is half of the way to the loss of a network that knows the classes alone, where their number is known.
        """
        to = self.optimum if self.of_classes is None else self.of_classes
        return (self.chance - to) / self.span / 2

    @property
    def level_tells(self) -> bool:
        """Whether the level of the loss tells how far training came.

        A cross-entropy is at least the entropy of softmax(z), which is anything from 0 to log d, by the scale of z.
        """
        return self.name != "cross-entropy"

    @property
    def span(self) -> float:
        return self.chance - self.optimum

    def progress(self, loss: Any) -> Any:
        """Share of the way from chance (0) to the optimum (1) of a loss, or of an array of them."""
        return (self.chance - loss) / self.span

    def sampling_noise(self, mean: float) -> float:
        """The most by which the draw of a batch alone can make its mean loss vary: a standard deviation.

        Cosine: a mean over B values in [-1, 1] around ``mean``, whose variance is at most (1 - mean)(1 + mean)
        (Bhatia and Davis 2000). The others are -log of a probability: if that is spread evenly, 1 nat an image.
        """
        of_image = math.sqrt(max((1 - mean) * (1 + mean), 0.0)) if self.name == "cosine" else 1.0
        return of_image / math.sqrt(self.batch_size)


def loss_range(settings: Mapping[str, Any], first_loss: float) -> LossRange | None:
    """The scale of a run's loss, from its settings by dotted path; None if they are not known.

    ``first_loss`` is the loss of the first logged step: the only reference that an unnormalised distance has.
    """
    try:
        ends = _ends(settings, first_loss)
        batch_size = int(settings["batch_size"])
    except (KeyError, TypeError, ValueError, OverflowError):  # damaged settings
        return None
    if ends is None or not (math.isfinite(ends[0]) and ends[0] - ends[2] > 0 and 0 < batch_size <= 10**9):
        return None
    chance, chance_text, optimum, optimum_text = ends
    others = _num_others(settings)
    of_classes = None
    if others is not None and 0 < (share := _share_of_class(settings)) < 1:
        # Of n others n/C are of the image's class, and at cosine 1 as it is; the rest are at right angles.
        of_classes = math.log1p(others * (share + (1 - share) * math.exp(-1 / float(settings["loss.temperature"]))))
    name = str(settings.get("loss.name", "as logged")).partition("@")[0]  # of one's own without the hash of its source
    return LossRange(name, chance, optimum, chance_text, optimum_text, batch_size, of_classes)


# Of the losses that tell an image from others: the setting that says how many, their number by it, the loss at chance.
_OTHERS: dict[str, tuple[str, Callable[[int], int], str]] = {
    "nt-xent": ("batch_size", lambda n: 2 * n - 2, "log(2N - 1), of keys that are all alike"),
    "info-nce": ("target.queue_size", lambda k: k, "log(1 + K), of keys that are all alike"),
    "swapped-prediction": ("target.num_prototypes", lambda k: k - 1, "log of the number of prototypes"),
}


def needed_for(name: str) -> tuple[str, ...]:
    """The settings that the scale of a loss follows from, by dotted path."""
    if name in _OTHERS:
        return (*dict.fromkeys(("batch_size", _OTHERS[name][0])), "loss.temperature")
    return ("batch_size", "projector.output_dim") if name == "cross-entropy" else ()


def _share_of_class(settings: Mapping[str, Any]) -> float:
    """1/C; NaN where the number of classes is not known."""
    chance = settings.get("reference_chance")
    return chance / 100 if isinstance(chance, int | float) else math.nan


def _num_others(settings: Mapping[str, Any]) -> int | None:
    """How many others a loss tells an image from; None of a loss that has none."""
    found = _OTHERS.get(str(settings.get("loss.name")))
    return None if found is None else found[1](int(settings[found[0]]))


def _ends(settings: Mapping[str, Any], first_loss: float) -> tuple[float, str, float, str] | None:
    """Chance and how it comes about, optimum and how it comes about."""
    name = settings.get("loss.name")
    if name == "cosine":
        return 0.0, "independent directions", -1.0, "its minimum"
    if name == "squared-distance":
        return first_loss, "its value in the first step", 0.0, "its minimum"
    if name == "cross-entropy":
        # A z of unit variance, which the output BN starts with: the entropy of its softmax is log d - 1/2.
        uniform = math.log(int(settings["projector.output_dim"]))
        return uniform, "log d, of uniform distributions", uniform - 0.5, "log d - 1/2, of agreeing z of unit variance"
    num_others = _num_others(settings)
    if num_others is None:  # one's own, or that of a log
        chance, optimum = (float(settings[f"reference_loss_{end}"]) for end in ("chance", "optimum"))
        text = "as given" if name is None else "as it says of itself"
        return chance, text, optimum, "the optimum"
    if num_others < 1:
        return None
    text = _OTHERS[str(name)][2]
    # The positive at cosine 1 and all others at right angles to it: as good as many directions allow.
    temperature = float(settings["loss.temperature"])
    best = math.log1p(num_others * math.exp(-1 / temperature))
    return math.log1p(num_others), text, best, "the value with all negatives at right angles"
