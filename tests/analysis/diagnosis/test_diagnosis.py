"""The diagnosis on runs whose outcome is known: simulated from independent ranges, and real ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn import functional as F
from typer.testing import CliRunner

from analysis import load_runs
from analysis.diagnosis.causes import CAUSES, causes_of
from analysis.diagnosis.loss_range import loss_range
from analysis.diagnosis.rules import (
    BITS_PER_DIRECTION,
    BITS_WITH_ACCURACY,
    VERDICTS,
    diagnose,
    diagnose_runs,
    threshold_of,
)
from analysis.diagnosis.shape_of_curve import num_turns, residual, smooth
from analysis.figures.layout import outline
from analysis.frames.comparison import differences, load_chosen
from commands.app import app
from commands.foreign import lines_of_causes
from experiments.runs.folder import StoreError
from experiments.studies.study import study_names
from simsiam.evaluation.diagnostics import centre, output_std
from simsiam.model.losses import info_nce, negative_cosine, nt_xent, swapped_prediction
from simsiam.settings.fields import Settings, dotted_paths, flatten
from tests.conftest import ROOT
from tests.curve_catalogue import KINDS, simulate
from tests.run_folders import settings, write_run

CURVES = ROOT / "tests" / "curves"
SEEDS = 40  # simulated runs of each kind


def confusion(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Rows: what is true. Columns: what was diagnosed."""
    truth, found = (pd.Categorical(side, VERDICTS) for side in zip(*pairs, strict=True))
    return pd.crosstab(truth, found, rownames=["truth"], colnames=["diagnosed"], dropna=False)


def show(matrix: pd.DataFrame) -> str:
    short = [name.replace(" collapse", "").replace(" optimisation", "").replace(" to say", "") for name in matrix]
    return matrix.set_axis(short, axis=1).to_string()


def test_confusion_matrix_of_simulated_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(kind, diagnose(*simulate(kind, seed)).verdict) for kind in KINDS for seed in range(SEEDS)]
    matrix = confusion(pairs)
    with capsys.disabled():
        print(f"\n{show(matrix)}")
    assert set(KINDS) == set(VERDICTS) - {"cannot tell"}  # which is of a log that lacks what our runs have
    right = np.diag(matrix) / matrix.sum(axis=1)
    assert right.min() >= 0.8, right  # each kind; what is missed is printed, and in docs/diagnosis.md
    assert np.diag(matrix).sum() / matrix.to_numpy().sum() >= 0.9
    # The two errors that would mislead most: a collapse that is taken for health, and the other way round.
    assert matrix.loc["complete collapse", "healthy"] == matrix.loc["healthy", "complete collapse"] == 0
    assert matrix.loc["divergence", "healthy"] == 0


def test_confusion_matrix_of_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = yaml.safe_load((CURVES / "labels.yaml").read_text())
    points, runs = load_runs(CURVES, list(labels), use_cache=False)
    found = {diagnosis.run: diagnosis for diagnosis in diagnose_runs(points, runs)}
    matrix = confusion([(truth, found[name].verdict) for name, truth in labels.items()])
    wrong = {name for name, truth in labels.items() if found[name].verdict != truth}
    with capsys.disabled():
        print(f"\n{show(matrix[matrix.sum(axis=1) > 0])}\nwrong: {sorted(wrong)}")
    assert not wrong
    assert {cause.study for cause in found["no-stop-gradient"].causes} == {"stop-gradient"}
    assert "predictor" in {cause.study for cause in found["fixed-predictor"].causes}
    assert found["no-stop-gradient"].recorded == "collapsed"


# --- the two traps of the std ------------------------------------------------------------------------------------


def a_run(kind: str = "healthy", **values: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A simulated run of the cosine loss with these settings."""
    for seed in range(100):
        points, row = simulate(kind, seed)
        if row["loss.name"] == "cosine" and row["projector.bn_output_affine"] and row["batch_size"] >= 64:
            return points, row | {key.replace("__", "."): value for key, value in values.items()}
    raise AssertionError


def test_an_output_bn_without_affine_is_judged_relative_to_its_floor() -> None:
    points, row = a_run("healthy", batch_size=64, projector__bn_output=True)
    points.loc[points["z_std_relative"].notna(), "z_std_relative"] = (
        2 / math.sqrt(64) + 0.02
    )  # all images but one agree
    points["centre"] = (1 - 2 / 64) ** 2
    assert diagnose(points, row | {"projector.bn_output_affine": False}).verdict == "complete collapse"
    assert diagnose(points, row | {"projector.bn_output_affine": True}).verdict != "complete collapse"
    assert diagnose(points, row | {"projector.bn_output": False, "projector.bn_output_affine": False}).verdict != (
        "complete collapse"
    )
    assert threshold_of(row | {"projector.bn_output_affine": False}) == pytest.approx(0.2 + 0.25)


def test_a_z_of_rank_one_is_found_behind_a_healthy_std() -> None:
    points, row = a_run("healthy", projector__bn_output=True, projector__bn_output_affine=False)
    later = points["effective_rank"].notna() & (points["step"] > 0)
    points.loc[later, "effective_rank"] = 1.05
    found = diagnose(points, row)
    assert found.verdict == "dimensional collapse"
    assert any("hides a collapse" in sentence for sentence in found.evidence)


def test_accuracy_at_chance_is_no_collapse() -> None:
    points, row = a_run("healthy")
    points.loc[points["knn_top1"].notna(), "knn_top1"] = row["reference_chance"]
    found = diagnose(points, row)
    assert found.verdict == "healthy"
    assert any("not by itself a collapse" in sentence for sentence in found.evidence)


def test_a_dip_from_which_the_std_recovers_is_no_collapse() -> None:
    points, row = a_run("healthy")
    logged = points.index[points["z_std_relative"].notna()]
    points.loc[logged[5:30], "z_std_relative"] = 0.02
    assert diagnose(points, row).verdict == "healthy"


def test_the_centre_tells_one_point_from_variance_in_few_channels() -> None:
    """Both have the std of a collapse; the numbers are those of the measures on such a z."""
    random = np.random.default_rng(0)
    point = torch.from_numpy(np.ones(512) + 0.05 * random.normal(size=(256, 512)))
    few = torch.zeros(256, 512)
    few[:, :4] = torch.from_numpy(random.choice([-1.0, 1.0], size=(256, 4)))
    for z, verdict, words in (
        (point, "complete collapse", "near one point"),
        (few, "dimensional collapse", "no point"),
    ):
        points, row = a_run("healthy")
        logged = points["z_std_relative"].notna()
        std = (output_std(z) * math.sqrt(512)).item()
        assert std < threshold_of(row)
        points.loc[logged, "z_std_relative"] = std
        points.loc[logged, "centre"] = centre(z).item()
        found = diagnose(points, row)
        assert found.verdict == verdict
        assert any(words in sentence for sentence in found.evidence)


def test_the_cosine_of_views_tells_a_predictor_that_does_not_follow() -> None:
    points, row = a_run("no convergence")
    for cosine, words in ((0.9, "p does not follow"), (0.1, "views are not alike")):
        found = diagnose(points.assign(positive_cosine=cosine), row)
        assert found.verdict == "no convergence"
        assert any(words in sentence for sentence in found.evidence)
    assert not any("two views" in sentence for sentence in diagnose(points, row).evidence)


def test_a_shortcut_is_named_where_nothing_was_learnt_though_images_are_told_apart() -> None:
    points, row = a_run("healthy")
    points.loc[points["knn_top1"].notna(), "knn_top1"] = row["untrained_knn_top1"] = 60.0
    apart, alike = points.assign(positive_cosine=0.9, centre=0.1), points.assign(positive_cosine=0.9, centre=0.85)
    assert any("shortcut" in sentence for sentence in diagnose(apart, row).evidence)
    assert not any("shortcut" in sentence for sentence in diagnose(alike, row).evidence)


# --- when it set in ----------------------------------------------------------------------------------------------


def test_the_onset_of_a_collapse_is_the_first_step_below_the_limit() -> None:
    points, row = a_run("healthy")
    logged = points.index[points["z_std_relative"].notna()]
    points.loc[logged[40:], "z_std_relative"] = 0.05
    points.loc[logged[40:], "centre"] = 1 - 0.05**2
    found = diagnose(points, row)
    assert (found.verdict, found.step) == ("complete collapse", points.loc[logged[40], "step"])
    assert found.epoch == points.loc[logged[40], "epoch"]


def test_divergence_names_its_step_without_any_point_before_it() -> None:
    points = pd.DataFrame([{"step": 3, "epoch": 0.1, "diverged": True}]).assign(run="one")
    found = diagnose(points, {"run": "one", "state": "done", "outcome": "diverged", "epochs": 4, "epoch": 0.1})
    assert (found.verdict, found.step) == ("divergence", 3)


@pytest.mark.parametrize("state", ["pending", "missing", "running", "failed"])
def test_without_points_it_is_too_early(state: str) -> None:
    points, _ = load_runs("nowhere", ["abc-s0"])
    assert diagnose(points, {"run": "abc-s0", "state": state, "epoch": math.nan}).verdict == "too early to say"


def with_evaluations(rank: list[float], knn: list[float], classes: int = 10) -> Any:
    """The diagnosis of a run whose loss and std are healthy, with these evaluations at equal distances."""
    points, row = a_run("healthy")
    points = points[points["effective_rank"].isna()]
    steps = np.linspace(0, points["step"].max(), len(rank))
    more = {"step": steps, "epoch": steps / 100, "effective_rank": rank, "knn_top1": knn, "run": row["run"]}
    points = pd.concat([points, pd.DataFrame(more).assign(diverged=False)], ignore_index=True)
    row |= {"reference_chance": 100 / classes, "untrained_knn_top1": knn[0]}
    return diagnose(points.sort_values("step", kind="stable", ignore_index=True), row)


def test_few_directions_are_a_fact_and_no_verdict_where_accuracy_rises() -> None:
    """It ends as the CIFAR-10 run of docs/recipe-cpu.md: far below the untrained rank, above raw pixels (41.3 %)."""
    found = with_evaluations([36, 30, 20, 14, 11.2], [25.3, 38.1, 39.2, 43.2, 45.2])
    assert found.verdict == "healthy"
    assert any("z uses about 11 of its" in sentence for sentence in found.evidence)
    assert any("more than halved since epoch" in sentence for sentence in found.evidence)


@pytest.mark.parametrize(
    ("rank", "knn"),
    [
        ([36, 30, 20, 14, 11.2], [25, 24, 23, 22, 21]),
        ([36, 60, 20, 15, 15], [25, 45, 44, 43, 40]),
        ([60, 30, 12, 11, 11], [25, 55, 40, 30, 26]),
    ],
)
def test_directions_that_are_lost_with_accuracy_are_a_dimensional_collapse(rank: list[float], knn: list[float]) -> None:
    found = with_evaluations(rank, knn)
    assert found.verdict == "dimensional collapse"
    assert any("and accuracy with them" in sentence for sentence in found.evidence)
    assert with_evaluations([36, 60, 40, 35, 35], knn).verdict == "healthy"  # not lost
    assert with_evaluations(rank, [*knn[:-1], max(knn) - 1]).verdict == "healthy"  # within the noise of an accuracy


def test_half_a_bit_is_what_a_direction_carries_at_equal_variances() -> None:
    """The mutual information of a and a + b, both of unit variance, from their correlation: -log2(1 - r^2) / 2."""
    signal, noise = np.random.default_rng(0).normal(size=(2, 200_000))
    r = np.corrcoef(signal, signal + noise)[0, 1]
    assert -math.log2(1 - r**2) / 2 == pytest.approx(BITS_PER_DIRECTION, abs=0.01)


@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize(
    ("knn", "least"),
    [([5.0, 20.0, 20.0, 19.0], 2), ([5.0, 20.0, 30.0, 40.0], 1 / BITS_WITH_ACCURACY), ([5.0, 6.0, 7.0, 8.0], 2)],
    ids=["below-its-best", "at-its-best", "hardly-learnt"],
)
def test_the_fewest_directions_grow_with_the_bits_of_the_classes(classes: int, knn: list[float], least: float) -> None:
    for factor, verdict in ((least - 0.1, "dimensional collapse"), (least + 0.1, "healthy")):
        end = factor * math.log2(classes)
        assert with_evaluations([2 * end, 1.5 * end, end, end], knn, classes).verdict == verdict


@pytest.mark.parametrize("rank", [6.58, 6.6, 6.6438, 3.0])
def test_a_comparison_is_true_as_it_is_printed(rank: float) -> None:
    """Ten classes need 2 log2(10) = 6.6439 directions: 6.6 is not fewer than 6.6."""
    found = with_evaluations([20.0, rank, rank], [20.0, 20.0, 20.0])
    text = " ".join(found.evidence)
    used = re.search(r"effective rank ([\d.]+)\)", text)
    needed = re.search(r"fewer than the ([\d.]+) that 10 classes", text)
    assert found.verdict == "dimensional collapse"
    assert used
    assert needed
    assert float(used[1]) < float(needed[1])
    assert float(needed[1]) == pytest.approx(2 * math.log2(10), abs=0.05)


def test_all_of_z_on_one_line_through_a_point_is_a_complete_collapse() -> None:
    """What training calls collapsed, with a std just above its limit: CIFAR-10 without predictor."""
    points, row = a_run("healthy")
    points.loc[points["z_std_relative"].notna(), ["z_std_relative", "centre"]] = (0.21, 0.95)
    points.loc[points["effective_rank"].notna() & (points["step"] > 0), "effective_rank"] = 1.2
    assert diagnose(points, row).verdict == "complete collapse"
    assert diagnose(points.assign(centre=0.1), row).verdict == "dimensional collapse"


# --- the scales of the losses ------------------------------------------------------------------------------------


def scale_of(**values: Any) -> Any:
    return loss_range(flatten(Settings()) | {key.replace("__", "."): value for key, value in values.items()}, 3.0)


def test_chance_and_optimum_are_what_the_losses_give() -> None:
    alike, apart = torch.ones(8, 64), torch.eye(8, 64)
    found = scale_of(loss__name="nt-xent", batch_size=8, loss__temperature=0.3)
    assert found.chance == pytest.approx(nt_xent(alike, alike, alike, alike, 0.3).item(), rel=1e-5)
    assert found.optimum == pytest.approx(nt_xent(apart, apart, apart, apart, 0.3).item(), rel=1e-5)
    found = scale_of(loss__name="info-nce", target__queue_size=16, loss__temperature=0.3)
    queue = torch.eye(64)[20:36]
    assert found.chance == pytest.approx(info_nce(alike, alike, F.normalize(alike).repeat(2, 1), 0.3).item(), rel=1e-5)
    assert found.optimum == pytest.approx(info_nce(apart, apart, queue, 0.3).item(), rel=1e-5)
    found = scale_of(loss__name="swapped-prediction", target__num_prototypes=64, loss__temperature=0.3)
    assert found.chance == pytest.approx(swapped_prediction(alike, F.one_hot(torch.arange(8), 64).float(), 0.3).item())
    assert found.optimum == pytest.approx(swapped_prediction(apart, apart, 0.3).item(), rel=1e-5)
    found = scale_of(loss__name="cosine")
    assert found.converged_from == 0.5
    assert found.optimum == pytest.approx(negative_cosine(apart, apart).item())
    assert found.chance == negative_cosine(apart, apart.roll(1, 0)).item()
    uniform = torch.zeros(8, 2048).softmax(1)
    found = scale_of(loss__name="cross-entropy")
    assert found.chance == pytest.approx(-(uniform * uniform.log()).sum(1).mean().item(), rel=1e-5)
    z = torch.randn(256, 2048, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert found.optimum == pytest.approx(-(z * z.log()).sum(1).mean().item(), abs=0.01)


def test_converged_is_half_of_the_way_to_a_network_that_knows_the_classes_alone() -> None:
    """The losses themselves, of embeddings that are one direction a class: all that ten classes ask of a network."""
    of_class = torch.eye(10, 64)
    images = of_class.repeat(20, 1)  # 20 of each class
    half = {"loss__temperature": 0.2, "reference_chance": 10.0}
    for found, loss in (
        (
            scale_of(loss__name="nt-xent", batch_size=200, **half),
            nt_xent(images, images, images, images, 0.2).item(),
        ),
        (
            scale_of(loss__name="info-nce", target__queue_size=200, **half),
            info_nce(images, images, images, 0.2).item(),
        ),
        (
            scale_of(loss__name="swapped-prediction", target__num_prototypes=200, **half),
            # Each image's code is one of the 20 prototypes of its class.
            swapped_prediction(images @ images.T, torch.eye(200), 0.2).item(),
        ),
    ):
        assert found.converged_from == pytest.approx(found.progress(loss) / 2, rel=0.02)
        assert 0 < found.converged_from < 0.5
    unknown = scale_of(loss__name="info-nce", target__queue_size=200, loss__temperature=0.2)
    assert unknown.converged_from == 0.5


def test_a_loss_with_negatives_that_has_told_the_classes_apart_has_converged() -> None:
    """MoCo v2 on CIFAR-10 for 4 epochs: 40 % of the way, and kNN accuracy from 29 to 46 %."""
    for reached, verdict in ((0.40, "healthy"), (0.05, "no convergence")):
        points, row = a_run("healthy")
        row |= {"loss.name": "info-nce", "target.queue_size": 4096, "loss.temperature": 0.2, "reference_chance": 10.0}
        scale = loss_range(row, 0.0)
        assert scale is not None
        way = -points["loss"].clip(upper=0)  # of a cosine loss
        points["loss"] = scale.chance - scale.span * reached * way / way.max()
        assert diagnose(points, row).verdict == verdict


def test_the_draw_of_batches_explains_no_more_than_the_bound() -> None:
    random = np.random.default_rng(0)
    scale = scale_of(loss__name="cosine", batch_size=64)
    for a, b in ((0.5, 0.5), (5, 1), (0.1, 0.05), (20, 2)):
        images = 1 - 2 * random.beta(a, b, size=(4000, 64))  # losses in [-1, 1]
        assert images.mean(1).std() <= scale.sampling_noise(images.mean()) * 1.05


@pytest.mark.parametrize("damage", [None, math.nan, "many", 10**400], ids=["none", "nan", "text", "huge"])
def test_damaged_settings_leave_a_loss_without_a_scale(damage: Any) -> None:
    assert scale_of(loss__name="nt-xent", batch_size=damage) is None
    points, row = a_run("no convergence", batch_size=damage)
    assert diagnose(points, row).verdict in VERDICTS


# --- curves ------------------------------------------------------------------------------------------------------


def test_a_curve_that_only_falls_or_only_rises_has_no_residual() -> None:
    falling = np.sort(np.random.default_rng(0).normal(size=100))[::-1]
    assert np.abs(residual(falling)).max() < 1e-12
    assert np.abs(residual(falling[::-1])).max() < 1e-12
    wave = np.sin(np.linspace(0, 20 * np.pi, 500))
    assert np.sqrt(np.mean(residual(wave) ** 2)) == pytest.approx(math.sqrt(0.5), rel=0.1)


@pytest.mark.parametrize(("cycles", "turns"), [(1, 2), (3, 6), (10, 20)])
def test_turns_of_a_sine(cycles: int, turns: int) -> None:
    wave = np.sin(np.linspace(0, 2 * np.pi * cycles, 1000))
    assert num_turns(wave, 0.5) in (turns - 1, turns, turns + 1)
    assert num_turns(wave, 2.5) == 0


@pytest.mark.parametrize("length", [1, 2, 50, 300, 301, 5000])
def test_an_outline_keeps_the_ends_and_every_extreme(length: int) -> None:
    values = np.random.default_rng(0).normal(size=length)
    values[length // 3] = 100  # a spike of one point must not get lost
    places = outline(values)
    assert len(places) <= 302
    assert (places[0], places[-1]) == (0, length - 1)
    assert (np.diff(places) > 0).all()
    for part in np.array_split(np.arange(length), min(length, 150)):
        kept = values[np.intersect1d(places, part)]
        assert (kept.min(), kept.max()) == (values[part].min(), values[part].max())


@pytest.mark.parametrize("length", [1, 2, 4, 5, 50])
def test_smoothing_keeps_a_constant(length: int) -> None:
    assert smooth(np.full(length, 2.0)) == pytest.approx(np.full(length, 2.0))


# --- causes ------------------------------------------------------------------------------------------------------


def test_causes_name_studies_that_ship_settings_that_exist_and_verdicts() -> None:
    assert {cause.study for cause in CAUSES} - {""} <= set(study_names())
    assert {verdict for cause in CAUSES for verdict in cause.verdicts} <= set(VERDICTS)
    names = {word.strip(",") for cause in CAUSES for word in cause.setting.split() if "." in word}
    assert names <= set(dotted_paths())
    defaults = flatten(Settings())
    for verdict in VERDICTS:
        assert causes_of(verdict, defaults)[0] == ()  # the paper's baseline shows no cause of anything


def causes_by_setting(verdict: str, **values: Any) -> list[list[str]]:
    known = flatten(Settings()) | {key.replace("__", "."): value for key, value in values.items()}
    return [[cause.setting for cause in causes] for causes in causes_of(verdict, known)]


BARLOW = {"loss__name": "losses:barlow_twins", "predictor__kind": "none", "target__stop_gradient": False}


def test_what_a_loss_of_ones_own_does_with_a_setting_is_not_denied() -> None:
    """Barlow Twins wants neither stop-gradient nor a predictor: they are in its settings, and no known cause."""
    shown, excluded, unknown = causes_by_setting("complete collapse", **BARLOW)
    assert shown == []
    assert unknown == ["target.stop_gradient = false", "predictor.kind = none"]
    assert not set(excluded) & set(unknown)
    (first, *_) = causes_of(
        "complete collapse", {**flatten(Settings()), "loss.name": "a:b", "target.stop_gradient": False}
    )[2]
    assert "not known with a loss of one's own" in first.sentence
    assert "optimum" not in first.sentence
    settings_of_cosine = {**BARLOW, "loss__name": "cosine"}
    assert causes_by_setting("complete collapse", **settings_of_cosine)[0] == unknown
    stopped = causes_by_setting("complete collapse", **{**BARLOW, "target__stop_gradient": True})
    assert "target.stop_gradient = false" in stopped[1], "what is not in its settings is none, whatever the loss"


def test_a_loss_with_negatives_excludes_what_only_pulling_makes_a_cause() -> None:
    settings_of_negatives = {"loss__name": "nt-xent", "predictor__kind": "none", "target__stop_gradient": False}
    shown, excluded, unknown = causes_by_setting("complete collapse", **settings_of_negatives)
    assert {"target.stop_gradient = false", "predictor.kind = none"} <= set(excluded)
    assert shown == unknown == []
    with_little = causes_of("complete collapse", {"loss.name": "a:b", "predictor.kind": "none"})[2]
    assert not [cause for cause in with_little if "optimum" in cause.why or "gradient is half" in cause.why]


def test_a_log_of_a_method_without_a_predictor_is_not_told_about_predictors() -> None:
    def of_predictors(known: dict[str, Any]) -> set[str]:
        unknown = {cause.setting for verdict in VERDICTS for cause in causes_of(verdict, known)[2]}
        return {setting for setting in unknown if setting.startswith("predictor")}

    assert not of_predictors({"loss.name": "info-nce"})
    assert of_predictors({"loss.name": "cosine"})
    assert of_predictors({"loss.name": "mine:loss"})
    assert causes_by_setting("oscillation", loss__name="info-nce", predictor__lr_multiplier=10.0)[0] == [
        "predictor.lr_multiplier above 1"
    ]


@pytest.mark.parametrize("nothing", [{}, dict.fromkeys(flatten(Settings()), math.nan)], ids=["none", "nan"])
def test_settings_that_are_not_known_exclude_no_cause(nothing: dict[str, Any]) -> None:
    for verdict in VERDICTS:
        shown, excluded, unknown = causes_of(verdict, nothing)
        assert shown == excluded == ()
        assert unknown == tuple(cause for cause in CAUSES if verdict in cause.verdicts)


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    write_run(tmp_path, settings(), 0)
    write_run(tmp_path, settings(target__stop_gradient=False), 0, "collapsed")
    write_run(tmp_path, settings(loss__name="nt-xent", predictor__kind="none", target__stop_gradient=False), 0)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--runs", str(tmp_path)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    return call


def name_of(runs: Path, **values: Any) -> str:
    _, table = load_runs(runs, use_cache=False)
    for path, value in values.items():
        table = table[table[path.replace("__", ".")] == value]
    return str(table["run"].iloc[0])


def test_diagnose_a_run_by_name_or_folder(run: Callable[..., str], tmp_path: Path) -> None:
    name = name_of(tmp_path, outcome="collapsed")
    by_name, by_folder = run("diagnose", name), run("diagnose", str(tmp_path / name))
    assert by_name == by_folder
    assert "complete collapse, from step" in by_name
    assert "study stop-gradient" in by_name
    (found,) = json.loads(run("diagnose", name, "--json"))
    assert found["verdict"] == "complete collapse"
    assert found["recorded_outcome"] == "collapsed"
    assert found["set_in"]["step"] > 0


def test_a_run_with_a_loss_of_its_own_is_not_denied_its_settings() -> None:
    values = {**BARLOW, "loss__name": "losses:barlow_twins@0123456789ab"}
    points, row = a_run("complete collapse")
    row |= flatten(Settings()) | {key.replace("__", "."): value for key, value in values.items()}
    found = diagnose(points, row)
    assert found.verdict == "complete collapse"
    text = "\n".join(lines_of_causes(found))
    known, _, excluded = text.partition("its settings or its loss exclude")
    assert "stop_gradient" in known
    assert "stop_gradient" not in excluded
    assert "predictor.kind = none:" in known
    assert "predictor.kind = none:" not in excluded


def test_diagnose_a_folder_of_runs_and_a_study(run: Callable[..., str], tmp_path: Path) -> None:
    found = json.loads(run("diagnose", str(tmp_path), "--json"))
    assert len(found) == 3
    with pytest.raises(StoreError, match="holds no run of stop-gradient at scale smoke"):
        run("diagnose", "stop-gradient", "--scale", "smoke")


def test_compare_names_only_what_differs(run: Callable[..., str], tmp_path: Path) -> None:
    first = name_of(tmp_path, outcome="healthy", loss__name="cosine")
    second = name_of(tmp_path, outcome="collapsed")
    third = name_of(tmp_path, loss__name="nt-xent")
    text = run("compare", first, second, "--out", str(tmp_path / "out" / "two"))
    assert "target.stop_gradient" in text
    assert "loss.name" not in text
    table = pd.read_csv(tmp_path / "out" / "two.csv").set_index("run")
    assert table["name"].nunique() == 2
    assert set(table.index) == {first, second}, "each folder can be found"
    assert table["target.stop_gradient"].nunique() == 2
    assert all(str(table.loc[run, "target.stop_gradient"]).lower() in table.loc[run, "name"] for run in table.index)
    assert all((tmp_path / "out" / f"two.{kind}").stat().st_size for kind in ("pdf", "svg", "png"))
    _, runs = load_chosen([tmp_path / first, tmp_path / third])
    assert list(differences(runs)) == ["predictor.kind", "target.stop_gradient", "loss.name"]


def test_compare_runs_of_the_same_name_in_two_places(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place, settings(), 0) for place in ("here", "there")]
    points, runs = load_chosen(folders)
    assert runs["variant"].tolist() == list(map(str, folders))
    assert set(points["run"]) == set(map(str, folders))
    assert differences(runs).empty


@pytest.mark.parametrize("arguments", [["one"], ["a", "b"]])
def test_compare_refuses_what_is_no_pair_of_runs(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", *arguments, "--runs", str(tmp_path)])
    assert result.exit_code != 0
    assert any(name in str(result.exception) for name in arguments)
