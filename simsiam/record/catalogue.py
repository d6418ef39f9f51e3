"""Every measured quantity once: its name, words, unit, range, source and use. Imports no torch.

Training writes these names into the curves, claims and figures are checked against them, and tables, figures and pages
take their words from here. A new metric is a function that computes it (``simsiam.evaluation.diagnostics``) and an
entry here.

Here too is the rule by which z counts as collapsed, and which values of a spectrum are kept: training and reading share
both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Level:
    """A line to compare a curve with."""

    value: float
    label: str


@dataclass(frozen=True)
class Metric:
    """What is measured. Texts are plain; ``axis`` may hold matplotlib's mathematics."""

    name: str  # in metrics.jsonl, in claims and in figures
    title: str  # in a sentence
    axis: str  # beside an axis
    definition: str = ""  # what a value says, where the title does not
    source: str = ""  # of the definition
    short: str = ""  # in a table and in a verdict; by default the title
    unit: str = ""  # "%" or "nats"; "" for a pure number
    low: float = -math.inf  # the range of what it can be
    high: float = math.inf
    decimals: int = 3  # of a single value; of a mean at most one more
    most_decimals: int = 4  # of a mean
    is_curve: bool = True  # logged against epochs; otherwise derived from the curve of another
    always: bool = False  # every run logs it, whatever ``evaluation.diagnostics`` says
    in_claims: bool = True
    in_table: bool = False  # a column of a study's table
    level: Level | None = None  # drawn where it does not flatten the curve
    references: tuple[str, ...] = ()  # what a claim may divide it by, see REFERENCES
    log_axis: bool = False

    @property
    def name_in_table(self) -> str:
        return self.short or self.title

    @property
    def heading(self) -> str:
        """Of a table's column, with the unit."""
        return f"{self.name_in_table} ({self.unit})" if self.unit else self.name_in_table

    @property
    def unit_of_difference(self) -> str:
        """Of a difference of two values: percent become points."""
        return "points" if self.unit == "%" else self.unit


@dataclass(frozen=True)
class Reference:
    """What a metric can be divided by, or compared with, that needs no training."""

    columns: Mapping[str, str]  # of the frame of runs, by metric; none for a constant
    meaning: str


REFERENCES = {
    "raw pixels": Reference(
        {"knn_top1": "reference_raw_pixels", "linear_top1": "reference_raw_pixels_linear"},
        "The same classifier on the pixels themselves, a linear one on their averages over 8x8 places: what the images "
        "give away without any network.",
    ),
    "untrained": Reference(
        {"knn_top1": "untrained_knn_top1", "linear_top1": "untrained_linear_top1"},
        "The same classifier on the features of the networks before their first step, mean over the runs: what the "
        "architecture and random weights give. Only what is above it was learnt.",
    ),
    "chance": Reference(
        {"knn_top1": "reference_chance", "linear_top1": "reference_chance"},
        "The share of the most frequent class among the images that are classified.",
    ),
    "1/sqrt(d)": Reference({}, "The std of z/|z| of a zero-mean isotropic Gaussian z."),
}

CATALOGUE = (
    Metric(
        "linear_top1",
        "linear top-1 accuracy",
        "linear top-1 (%)",
        "percent",
        "linear classifier on frozen backbone features, App. A; logistic regression where training does it",
        short="linear top-1",
        unit="%",
        low=0,
        high=100,
        decimals=1,
        most_decimals=2,
        always=True,
        in_table=True,
        references=("chance", "untrained", "raw pixels"),
    ),
    Metric(
        "knn_top1",
        "kNN top-1 accuracy",
        "kNN top-1 (%)",
        "percent",
        "weighted kNN on backbone features, Wu et al. 2018",
        short="kNN top-1",
        unit="%",
        low=0,
        high=100,
        decimals=1,
        most_decimals=2,
        always=True,
        in_table=True,
        references=("chance", "untrained", "raw pixels"),
    ),
    Metric(
        "z_std_relative",
        "std of z/|z|",
        "std of z/|z| (units of 1/√d)",
        "mean over channels, in units of 1/√d",
        "Sec. 4.1",
        short="std × √d",  # noqa: RUF001
        low=0,
        high=1,
        decimals=2,
        always=True,
        in_table=True,
        level=Level(1.0, "1/√d"),
    ),
    Metric(
        "effective_rank",
        "effective rank of z",
        "effective rank of z",
        "RankMe, on held-out images",
        "Garrido et al. 2023",
        short="effective rank",
        low=1,
        decimals=1,
        most_decimals=1,
        always=True,
        in_table=True,
    ),
    Metric(
        "loss",
        "training loss",
        "training loss",
        source="eq. 4",
        short="loss",
        always=True,
        in_table=True,
        level=Level(-1.0, "minimum"),  # of the cosine
    ),
    Metric(
        "z_std",
        "std of z/|z|",
        "std of z/|z|",
        "mean over channels",
        "Sec. 4.1",
        low=0,
        high=1,
        decimals=4,
        always=True,
        references=("1/sqrt(d)",),
    ),
    Metric(
        "loss_roughness",
        "roughness of the loss",
        "roughness of the loss",
        "mean change of the loss from one logged point to the next, in the second half of training",
        low=0,
        decimals=4,
        is_curve=False,
    ),
    Metric(
        "positive_cosine",
        "cosine of the views",
        "cosine of $z_1$ and $z_2$",
        "mean over z₁ and z₂ of each image, 1 where they are equal",
        "alignment is 2 minus twice this, Wang and Isola 2020",
        low=-1,
        high=1,
        level=Level(1.0, "equal"),
    ),
    Metric(
        "uniformity",
        "uniformity",
        "uniformity of z/|z| (nats)",
        "log E exp(-2 |z - z'|²) over pairs of unit vectors of the batch, 0 for one point",
        "Wang and Isola 2020",
        unit="nats",
        low=-8,
        high=0,
        level=Level(0.0, "a point"),
    ),
    Metric(
        "centre",
        "centre",
        "centre, |E (z/|z|)|²",
        "|E (z/|z|)|², 1 where all z are one point",
        "Zhang et al. 2022",
        low=0,
        high=1,
        level=Level(1.0, "a point"),
    ),
    Metric(
        "explained_variance_area",
        "area under the explained variance of z",
        "area under explained\nvariance of z",
        "of held-out images, 1 where one direction carries all and near 1/2 where all carry the same",
        "Li, Efros, Pathak 2022",
        low=0.5,
        high=1,
    ),
    Metric(
        "lidar",
        "LiDAR of z",
        "LiDAR of z",
        "effective rank of what tells images apart from their own views, of held-out images",
        "Thilak et al. 2024",
        short="LiDAR",
        low=1,
        decimals=1,
        most_decimals=1,
    ),
    Metric(
        "alpha_req",
        "decay of the features' spectrum",
        r"$\alpha$ of the features' spectrum",
        "power with which the eigenvalues of the features' covariance fall",
        "alpha-ReQ, Agrawal et al. 2022",
        short="alpha-ReQ",
        decimals=2,
        level=Level(1.0, "best, say its authors"),
    ),
    Metric(
        "nesum",
        "NESum of the features",
        "NESum of the features",
        "sum of the eigenvalues of the features' covariance over the largest",
        "He and Ozay 2022",
        short="NESum",
        low=1,
        decimals=2,
    ),
    Metric(
        "stable_rank",
        "stable rank of the features",
        "stable rank of the features",
        "squared Frobenius over squared spectral norm of the features, uncentred",
        "Tsitsulin et al. 2023",
        short="stable rank",
        low=1,
        decimals=2,
    ),
    Metric("lr", "learning rate", "learning rate", "the encoder's", low=0, always=True, in_claims=False),
    Metric(
        "grad_norm",
        "norm of the gradient",
        "|gradient|",
        "over all weights",
        low=0,
        always=True,
        in_claims=False,
        log_axis=True,
    ),
    Metric(
        "grad_norm_backbone",
        "norm of the backbone's gradient",
        "|gradient|, backbone",
        low=0,
        in_claims=False,
        log_axis=True,
    ),
    Metric(
        "grad_norm_projector",
        "norm of the projector's gradient",
        "|gradient|, projector",
        low=0,
        in_claims=False,
        log_axis=True,
    ),
    Metric(
        "grad_norm_predictor",
        "norm of the predictor's gradient",
        "|gradient|, predictor h",
        low=0,
        in_claims=False,
        log_axis=True,
    ),
    Metric(
        "predictor_alignment",
        "alignment of predictor and features",
        "|WC - CW| / (|W| |C|)",
        "how far the weight W of a linear h commutes with the correlation C of z, 0 where they share eigenvectors",
        "Tian et al. 2021",
        low=0,
        high=math.sqrt(2),
    ),
)
METRICS = {metric.name: metric for metric in CATALOGUE}
CURVES = tuple(metric.name for metric in CATALOGUE if metric.is_curve)
TABLE = tuple(metric.name for metric in CATALOGUE if metric.in_table)  # unless a study names others
ACCURACY = "linear_top1"  # the paper's measure: what claims and tables compare unless they say otherwise
FIG_2 = ("loss", "z_std_relative", "knn_top1")  # the three panels of the paper's Figure 2


# --- collapse ----------------------------------------------------------------------------------------------------

# A run counts as collapsed when its std is below this share of what an isotropic Gaussian z would give.
COLLAPSED_BELOW = 0.2
# Effective rank below which all of z lies on one line: halfway between one direction and two.
ONE_LINE_BELOW = 1.5


OUTPUT_BN = {  # the BN on z, in a word, and the settings that say the same
    "affine": {"projector.bn_output": True, "projector.bn_output_affine": True},
    "plain": {"projector.bn_output": True, "projector.bn_output_affine": False},
    "none": {"projector.bn_output": False, "projector.bn_output_affine": True},
}


def collapse_threshold(batch_size: int, *, bn_output: bool, bn_output_affine: bool) -> float:
    """The z_std_relative (std x sqrt(d)) below which z counts as collapsed.

    An output BN without scale and shift gives every channel unit variance whatever happened before it: even if all
    images but one agree, std x sqrt(d) stays near 2/sqrt(B), so there the threshold is relative to that.
    """
    if bn_output and not bn_output_affine:
        return COLLAPSED_BELOW + 2 / math.sqrt(batch_size)
    return COLLAPSED_BELOW


# --- the spectrum ------------------------------------------------------------------------------------------------

SPECTRUM_POINTS = 64  # of the spectrum that is kept with each evaluation


def spectrum_ranks(dim: int) -> NDArray[np.int64]:
    """Which of ``dim`` sorted singular values are kept, counted from 1: all of a few, else evenly by logarithm."""
    import numpy as np  # here, since commands that only list studies read the names above

    return np.unique(np.geomspace(1, dim, min(dim, SPECTRUM_POINTS)).round().astype(np.int64))
