"""The sweep figures, read back from their axes, against means that pandas computes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.sweep import drawing, plot_sweep
from experiments.studies.figures import Sweep as SweepFigure

SIZES = (64, 128, 512)


def sweep(variants: dict[str, int], seeds: int = 3) -> pd.DataFrame:
    draws = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "run": f"{variant}-s{seed}",
            "variant": variant,
            "batch_size": size,
            "final_knn_top1": 80 + draws.normal(),
            "state": "done",
            "outcome": "collapsed" if size == 512 and seed == 0 else "healthy",
            "reference_raw_pixels": 82.0,
            "reference_chance": 10.0,
            "untrained_knn_top1": 50.0,
        }
        for variant, size in variants.items()
        for seed in range(seeds)
    )


def curves(figure: Figure, panel: int) -> list[np.ndarray]:
    lines = (
        line.get_xydata() for line in figure.axes[panel].lines if line.get_marker() == "o" and len(line.get_xdata())
    )
    return [np.asarray(line) for line in lines]


def test_points_are_means_over_seeds_and_factors_of_the_base() -> None:
    runs = sweep({"small": 64, "1/4x": 128, "1x": 512})
    paper = {"small": 66.1, "1x": 68.1}
    figure = plot_sweep(runs, "batch_size", paper=paper, base="1x")
    ours, hollow = curves(figure, 0)
    expected = runs.groupby("batch_size")["final_knn_top1"].mean()
    np.testing.assert_allclose(ours, np.column_stack([expected.index / 512, expected]))
    collapsed = runs[runs["outcome"] == "collapsed"]
    np.testing.assert_allclose(hollow, [[1.0, collapsed["final_knn_top1"].item()]])
    (theirs,) = curves(figure, 1)
    np.testing.assert_allclose(theirs, [[1 / 8, 66.1], [1, 68.1]])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1/8x", "1/4x", "1x"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_the_shape_of_a_hollow_point_says_how_its_run_collapsed() -> None:
    runs = sweep({"small": 64, "1x": 512}).assign(diagnosis="healthy")
    runs.loc[0, "diagnosis"], runs.loc[1, "diagnosis"] = "complete collapse", "dimensional collapse"
    figure = plot_sweep(runs, "batch_size")
    hollow = {
        line.get_marker(): line.get_xydata().tolist()
        for line in figure.axes[0].lines
        if line.get_markerfacecolor() == "white"
    }
    assert hollow == {marker: [[64, runs.loc[at, "final_knn_top1"]]] for at, marker in enumerate("oD")}


def test_names_before_the_comma_are_lines() -> None:
    runs = sweep({"BYOL, 1x": 64, "BYOL, 2x": 128, "SwAV, 1x": 64, "SwAV, 2x": 128}, seeds=1)
    figure = plot_sweep(runs, "batch_size")
    assert len(figure.axes) == 1, "no paper, no second panel"
    assert [len(curve) for curve in curves(figure, 0)] == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["BYOL", "SwAV"]


def test_names_of_places_are_no_lines_and_no_hash_of_code_names_one() -> None:
    """A width is on the axis; the images tell the lines apart, whichever code trained which run."""
    few = ", a quarter of the images"
    runs = sweep({"1/2x": 8, f"1/2x{few}": 8, "1x": 16, f"1x{few}": 16, "2x": 32}).rename(
        columns={"batch_size": "backbone.width"}
    )
    runs = runs.assign(
        config=runs["variant"],
        code=["b" if few in variant else "a" for variant in runs["variant"]],
        **{"data.num_train": [100 if few in variant else 400 for variant in runs["variant"]]},
    )
    figure = plot_sweep(runs, "backbone.width")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data num train 400", "data num train 100"]
    assert [curve[:, 0].tolist() for curve in curves(figure, 0)] == [[8, 16, 32], [8, 16]]


def test_a_value_of_0_is_a_place_and_no_unit() -> None:
    runs = sweep({"off": 0, "weak": 1, "strong": 10}, seeds=1)
    figure = plot_sweep(runs, "batch_size", base="weak")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0x", "1x", "10x"]
    with pytest.raises(ValueError, match="'off' has a batch_size of 0"):
        plot_sweep(runs, "batch_size", base="off")
    points = pd.DataFrame()
    made = drawing(SweepFigure(kind="sweep", setting="batch_size", base="off"), points, runs, {})
    assert made.draw is not None
    made.draw(style.TWO_COLUMNS)


def test_runs_without_a_value_are_no_line() -> None:
    runs = sweep({"a": 1, "b": 2, "of another loss": 3}, seeds=1)
    runs = runs.astype({"batch_size": float}).assign(config=runs["variant"])
    runs.loc[2, "batch_size"] = math.nan
    (curve,) = curves(plot_sweep(runs, "batch_size"), 0)
    assert curve[:, 0].tolist() == [1, 2]


def grid(seeds: int = 2, **changes: float) -> pd.DataFrame:
    """lr x batch size; the accuracy says which: 10 lr + batch size / 10, and the seed in hundredths."""
    return pd.DataFrame(
        {
            "variant": f"optimizer.lr={lr:g}, batch_size={size}",
            "config": f"{lr}{size}",
            "seed": seed,
            "optimizer.lr": lr,
            "batch_size": size,
            "evaluation.diagnostics": True,
            "final_knn_top1": 10 * lr + size / 10 + seed / 100,
            "state": "done",
            "outcome": "healthy",
            "reference_raw_pixels": math.nan,
            "reference_chance": math.nan,
            "untrained_knn_top1": math.nan,
        }
        | changes
        for lr in (0.03, 0.3)
        for size in (32, 64)
        for seed in range(seeds)
    )


@pytest.mark.parametrize("columns", [[], ["variant"]])
def test_lines_of_a_grid_are_told_apart_by_what_else_it_varies(columns: list[str]) -> None:
    """And so from a notebook, where no variants are known."""
    figure = plot_sweep(grid().drop(columns=columns), "optimizer.lr")
    lines = [line for line in curves(figure, 0) if len(line) > 1 and line[0, 0] != line[1, 0]]
    means = [[[lr, 10 * lr + size / 10 + 0.005] for lr in (0.03, 0.3)] for size in (32, 64)]
    np.testing.assert_allclose(lines, means)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["batch size 32", "batch size 64"]


def test_no_mean_is_taken_over_anything_but_seeds() -> None:
    with pytest.raises(ValueError, match="that no column tells apart; a mean is over seeds alone"):
        plot_sweep(grid().drop(columns=["batch_size"]), "optimizer.lr")


@pytest.mark.parametrize("width", [style.ONE_COLUMN, style.TWO_COLUMNS])
def test_a_legend_of_many_lines_stays_inside(width: float) -> None:
    names = ("SimCLR", "MoCo v2", "BYOL", "SwAV", "SimSiam", "a name that is longer")
    runs = sweep({f"{name}, {size}x": 64 * size for name in names for size in (1, 2)}, seeds=1)
    figure = plot_sweep(runs, "batch_size", paper={"BYOL, 1x": 66.5, "BYOL, 2x": 70.6}, width=width)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= -1
    assert legend.x1 <= figure.bbox.x1 + 1
    assert all(legend.y0 >= ax.get_window_extent().y1 for ax in figure.axes)


def test_references_that_would_flatten_the_curve_are_left_out() -> None:
    figure = plot_sweep(sweep({"a": 64, "b": 128}), "batch_size")
    low, high = figure.axes[0].get_ylim()
    assert low > 60
    assert low < 82 < high
    assert {text.get_text() for text in figure.axes[0].texts} == {"raw pixels", "untrained 50 ↓", "chance 10 ↓"}


def test_the_measure_is_linear_accuracy_where_a_run_has_it() -> None:
    runs = sweep({"a": 64, "b": 128}).assign(final_linear_top1=70.0, reference_raw_pixels_linear=71.0)
    figure = plot_sweep(runs, "batch_size")
    assert figure.axes[0].get_ylabel() == "linear top-1 (%), ours"
    np.testing.assert_allclose(curves(figure, 0)[0], [[64, 70], [128, 70]])
    assert 71.0 in [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def test_what_has_not_run_yet_leaves_a_gap_and_the_figure_can_be_saved() -> None:
    runs = sweep({"a": 64, "b": 128}, seeds=1).assign(final_knn_top1=math.nan)
    plot_sweep(runs, "batch_size", paper={"a": 60.0}, width=3.25).canvas.draw()


def test_unknown_columns_and_variants_are_refused() -> None:
    runs = sweep({"a": 64})
    with pytest.raises(ValueError, match="'batchsize' is not a column"):
        plot_sweep(runs, "batchsize")
    with pytest.raises(ValueError, match="only numbers can be an axis"):
        plot_sweep(runs.assign(**{"loss.name": "cosine"}), "loss.name")
    with pytest.raises(ValueError, match="'1x' is not a variant"):
        plot_sweep(runs, "batch_size", base="1x")
