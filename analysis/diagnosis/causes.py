"""Which settings usually cause what was diagnosed, and the study of the paper that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

PULL_ONLY = ("cosine", "squared-distance", "cross-entropy")  # losses
Test = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Cause:
    """A setting that is known to lead to a verdict."""

    verdicts: tuple[str, ...]
    setting: str  # as a sentence begins: "target.stop_gradient = false"
    why: str
    study: str  # id, as in `list`; "" where no study of the paper shows it
    where: str  # in the paper, or another source
    holds: Test  # of a run's settings by dotted path; KeyError where they do not tell
    with_pull_only: bool = False  # only of a loss that has nothing that pushes images apart: no negatives, no codes

    @property
    def sentence(self) -> str:
        study = f"; study {self.study}" if self.study else ""
        return f"{self.setting}: {self.why} ({self.where}{study})"


def _has_fixed_std(s: Mapping[str, Any]) -> bool:
    """A number. No number is PyTorch's default, or not known, which the setting beside it tells."""
    return isinstance(s.get("initialisation.fc_std"), float) or s["initialisation.zero_last_bn"] is None


def _rate(s: Mapping[str, Any]) -> float:
    return float(s["optimizer.lr"]) * float(s["batch_size"]) / 256


CAUSES = (
    Cause(
        ("complete collapse", "dimensional collapse"), "target.stop_gradient = false",
        "both branches move towards each other, and a constant output is the optimum",
        "stop-gradient", "Fig. 2", lambda s: s["target.stop_gradient"] is False, with_pull_only=True,
    ),
    Cause(
        ("complete collapse", "dimensional collapse"), "predictor.kind = none",
        "without the predictor the gradient is half of that without stop-gradient, in the same direction",
        "predictor", "Table 1a, Sec. 4.2",
        lambda s: s["predictor.kind"] == "none" and not s["target.image_average"] > 0
        and s["loss.symmetry"] == "symmetric", with_pull_only=True,
    ),
    Cause(
        ("complete collapse", "dimensional collapse"), "predictor.kind = none with an asymmetric loss",
        "it fails as the symmetric one does",
        "asymmetric-no-predictor", "Sec. 4.2",
        lambda s: s["predictor.kind"] == "none" and not s["target.image_average"] > 0
        and s["loss.symmetry"] != "symmetric", with_pull_only=True,
    ),
    Cause(
        ("dimensional collapse", "no convergence", "slow optimisation"), "predictor.kind = none, target.image_average",
        "the average stands in for the predictor only to a part, and needs many epochs to average over views",
        "expectation", "Sec. 5.2", lambda s: s["predictor.kind"] == "none" and s["target.image_average"] > 0,
    ),
    Cause(
        ("no convergence",), "predictor.kind = fixed",
        "a predictor that stays at its random start cannot follow z; the loss stays high, nothing collapses",
        "predictor", "Table 1b", lambda s: s["predictor.kind"] == "fixed",
    ),
    Cause(
        ("no convergence", "slow optimisation"), "initialisation.fc_std",
        "layers that start with a fixed small std may not converge",
        "initialisation", "App. A",
        _has_fixed_std,
    ),
    Cause(
        ("slow optimisation", "dimensional collapse", "no convergence"), "no BN in the MLPs",
        "optimisation is slow without it (34.6 against 68.1 %)",
        "batch-norm", "Table 3a",
        lambda s: not (s["projector.bn_output"] or s["projector.bn_hidden"] or s["predictor.bn_hidden"])
        and s["predictor.kind"] == "mlp",
    ),
    Cause(
        ("oscillation", "divergence"), "predictor.bn_output = true",
        "BN on the predictor's output makes the loss oscillate",
        "batch-norm", "Table 3d", lambda s: s["predictor.bn_output"] is True and s["predictor.kind"] != "none",
    ),
    Cause(
        ("oscillation", "no convergence", "complete collapse", "dimensional collapse"),
        "predictor.hidden_dim as wide as its output",
        "without the bottleneck d/4 training is less stable, or fails",
        "bottleneck", "App. B",
        lambda s: s["predictor.kind"] in ("mlp", "fixed")
        and s["predictor.hidden_dim"] >= s["projector.output_dim"] and s["target.transform"] == "none",
    ),
    Cause(
        ("divergence", "oscillation", "dimensional collapse"), "target.stop_gradient = false on Sinkhorn codes",
        "the gradient through the codes makes training unstable; the paper's run turned NaN",
        "swav-parts", "Sec. 6.2",
        lambda s: s["target.transform"] == "sinkhorn" and s["target.stop_gradient"] is False,
    ),
    Cause(
        ("slow optimisation", "no convergence"), "a batch that is large for SGD",
        "eight times the paper's batch is clearly worse with plain SGD (64.0 against 68.1 %)",
        "batch-size", "Table 2", lambda s: s["batch_size"] >= 4096 and s["optimizer.name"] == "sgd",
    ),
    Cause(
        ("oscillation", "divergence"), "predictor.lr_multiplier above 1",
        "a predictor that learns faster than its encoder follows every move of z",
        "predictor-rate", "footnote 2", lambda s: s["predictor.lr_multiplier"] > 1,
    ),
    Cause(
        ("divergence", "oscillation"), "a learning rate far above the paper's",
        "a rate (lr x batch_size / 256) of more than ten times the baseline's, 0.1, can make training diverge",
        "", "Sec. 3", lambda s: s["optimizer.name"] == "sgd" and _rate(s) > 1,
    ),
    Cause(
        ("dimensional collapse",), "epochs, backbone",
        "a small network that is trained for long on its data comes to use ever fewer directions",
        "", "Li, Efros and Pathak 2022", lambda s: s["backbone.name"] == "small", with_pull_only=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Known(Mapping[str, Any]):
    """The settings that are known: a frame of runs has NaN for one that is not."""

    settings: Mapping[Any, Any]

    def __getitem__(self, path: str) -> Any:
        value = self.settings[path]
        if value != value:
            raise KeyError(path)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


def causes_of(verdict: str, settings: Mapping[Any, Any]) -> tuple[tuple[Cause, ...], ...]:
    """The causes that are known for a verdict: those that a run's settings show, exclude, and do not tell of."""
    known = _Known(settings)
    found: dict[bool | None, list[Cause]] = {True: [], False: [], None: []}
    for cause in CAUSES:
        if verdict not in cause.verdicts:
            continue
        holds, loss = _holds(cause, known), str(known.get("loss.name", ""))
        if holds is not False and cause.with_pull_only and ":" in loss:
            why = "known with the cosine loss, not known with a loss of one's own"
            holds, cause = None, replace(cause, why=why)
        elif cause.with_pull_only and loss not in PULL_ONLY:
            holds = False if loss or holds is False else None
        elif holds is None and loss not in ("", *PULL_ONLY) and ":" not in loss and "predictor" in cause.setting:
            holds = False  # methods with such a loss have no predictor, unless their settings say so
        found[holds].append(cause)
    return tuple(found[True]), tuple(found[False]), tuple(found[None])


def _holds(cause: Cause, settings: Mapping[str, Any]) -> bool | None:
    """None where the settings do not tell."""
    try:
        return bool(cause.holds(settings))
    except (KeyError, TypeError, ValueError):  # missing or damaged
        return None
