"""Which settings usually cause what was diagnosed, and the study of the paper that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Test = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Cause:
    """A setting that is known to lead to a verdict."""

    verdicts: tuple[str, ...]
    setting: str  # as a sentence begins: "target.stop_gradient = false"
    why: str
    study: str  # id, as in `list`; "" where no study of the paper shows it
    where: str  # in the paper, or another source
    holds: Test  # of a run's settings by dotted path

    @property
    def sentence(self) -> str:
        study = f"; study {self.study}" if self.study else ""
        return f"{self.setting}: {self.why} ({self.where}{study})"


def _pulls_only(s: Mapping[str, Any]) -> bool:
    """Whether the loss has nothing that pushes images apart: no negatives, no codes."""
    return s["loss.name"] in ("cosine", "squared-distance", "cross-entropy")


def _rate(s: Mapping[str, Any]) -> float:
    return float(s["optimizer.lr"]) * float(s["batch_size"]) / 256


CAUSES = (
    Cause(
        ("complete collapse", "dimensional collapse"), "target.stop_gradient = false",
        "both branches move towards each other, and a constant output is the optimum",
        "stop-gradient", "Fig. 2", lambda s: s["target.stop_gradient"] is False and _pulls_only(s),
    ),
    Cause(
        ("complete collapse", "dimensional collapse"), "predictor.kind = none",
        "without the predictor the gradient is half of that without stop-gradient, in the same direction",
        "predictor", "Table 1a, Sec. 4.2",
        lambda s: s["predictor.kind"] == "none" and _pulls_only(s) and not s["target.image_average"] > 0
        and s["loss.symmetry"] == "symmetric",
    ),
    Cause(
        ("complete collapse", "dimensional collapse"), "predictor.kind = none with an asymmetric loss",
        "it fails as the symmetric one does",
        "asymmetric-no-predictor", "Sec. 4.2",
        lambda s: s["predictor.kind"] == "none" and _pulls_only(s) and not s["target.image_average"] > 0
        and s["loss.symmetry"] != "symmetric",
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
        lambda s: isinstance(s["initialisation.fc_std"], float) and not math.isnan(s["initialisation.fc_std"]),
    ),
    Cause(
        ("slow optimisation", "dimensional collapse", "no convergence"), "no BN in the MLPs",
        "optimisation is slow without it (34.6 against 68.1 %)",
        "batch-norm", "Table 3a",
        lambda s: not (s["projector.bn_hidden"] or s["projector.bn_output"] or s["predictor.bn_hidden"])
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
        "the rate in use, lr x batch_size / 256, is more than ten times that of the baseline, 0.1",
        "", "Sec. 3", lambda s: s["optimizer.name"] == "sgd" and _rate(s) > 1,
    ),
    Cause(
        ("dimensional collapse",), "epochs, backbone",
        "a small network that is trained for long on its data comes to use ever fewer directions",
        "", "Li, Efros and Pathak 2022", lambda s: s["backbone.name"] == "small" and _pulls_only(s),
    ),
)  # fmt: skip


def causes_of(verdict: str, settings: Mapping[str, Any]) -> tuple[tuple[Cause, ...], tuple[Cause, ...]]:
    """The causes that are known for a verdict: those that a run's settings show, and the others."""
    known = [cause for cause in CAUSES if verdict in cause.verdicts]
    shown = [cause for cause in known if _holds(cause, settings)]
    return tuple(shown), tuple(cause for cause in known if cause not in shown)


def _holds(cause: Cause, settings: Mapping[str, Any]) -> bool:
    try:
        return bool(cause.holds(settings))
    except (KeyError, TypeError, ValueError):  # settings that are missing or damaged show nothing
        return False
