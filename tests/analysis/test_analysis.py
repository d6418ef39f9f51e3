"""Run folders to frames, figures and tables, on generated runs whose truth is known."""

# ruff: noqa: RUF001

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analysis import load_runs, plot_linear, plot_training
from analysis.figures import style
from analysis.figures.groups import make_groups
from analysis.figures.layout import spread
from analysis.figures.training import mean_and_range, split_by_length
from analysis.formats import common_decimals, format_estimate, format_hours, format_seconds
from analysis.report.one_study import gather, report_variants
from analysis.report.study_table import study_table
from analysis.report.table import Column, Entry, Table
from experiments.plan import make_plan
from experiments.studies.study import PaperResult, load_scale, load_study, study_names
from simsiam.errors import SettingsError
from tests.conftest import ROOT
from tests.run_folders import settings, write_run
from tests.tools import missing, require

WITH, WITHOUT = settings(), settings(target__stop_gradient=False)
VARIANTS = {True: "with", False: "without"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("pair")
    for seed in range(3):
        write_run(runs, WITH, seed, "healthy", seconds=100 + 10 * seed)
        write_run(runs, WITHOUT, seed, "collapsed", knn=61)
    return runs


def load(runs_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    points, runs = load_runs(runs_dir)
    runs["variant"] = runs["target.stop_gradient"].map(VARIANTS)
    return points, runs.sort_values("variant")  # folders are in the order of their hashes


# --- reading -----------------------------------------------------------------------------------------------------


def test_importing_the_analysis_imports_no_torch() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "analysis").rglob("*.py")]
    assert len(paths) > 30
    of_training_loops = {"__init__", "monitor", "lightning_callback"}
    modules = ", ".join(".".join(path.parts) for path in paths if path.stem not in of_training_loops)
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_frames_hold_what_the_folders_hold(pair: Path) -> None:
    points, runs = load_runs(pair)
    assert len(runs) == 6
    assert set(runs["state"]) == {"done"}
    assert (runs["note"] == "").all()
    assert runs.groupby("outcome").size().to_dict() == {"healthy": 3, "collapsed": 3}
    for _, run in runs.iterrows():
        folder = Path(run["path"])
        final = json.loads((folder / "result.json").read_text())["final"]
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        of_run = points[points["run"] == run["run"]]
        assert run["final_knn_top1"] == final["knn_top1"]
        assert run["untrained_knn_top1"] == 52 + run["seed"]
        assert (run["reference_raw_pixels"], run["reference_chance"], run["threads"]) == (82.1, 10, 2)
        assert len(of_run) == len(logged)
        assert of_run["loss"].dropna().tolist() == [point["loss"] for point in logged if "loss" in point]
        assert of_run["step"].is_monotonic_increasing
    by_switch = runs.groupby("target.stop_gradient")["config"].unique()
    assert {len(configs) for configs in by_switch} == {1}
    assert runs["augment.crop_scale"].iloc[0] == (0.2, 1.0)


def test_a_run_in_progress_ends_at_its_last_whole_line(tmp_path: Path) -> None:
    write_run(tmp_path, WITH, 0, state="running", until=3.2)
    points, runs = load_runs(tmp_path)
    assert runs.loc[0, "state"] == "running"
    assert points["epoch"].max() == runs.loc[0, "epoch"] == pytest.approx(3.0)
    assert math.isnan(runs.loc[0, "final_knn_top1"])
    assert runs.loc[0, "outcome"] is None


def test_null_is_nan_and_divergence_is_marked(tmp_path: Path) -> None:
    folder = write_run(tmp_path, WITH, 0, "diverged")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines.insert(-1, json.dumps({"epoch": 2.5, "step": 50, "loss": None, "lr": 0.06}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    points, runs = load_runs(tmp_path)
    assert points["diverged"].tolist() == [False] * (len(points) - 1) + [True]
    assert math.isnan(points["loss"].iloc[-2])
    assert runs.loc[0, "outcome"] == "diverged"


@pytest.mark.parametrize("size", [0, 70, 500])
def test_a_damaged_curve_is_read_from_the_attempts_that_it_was_merged_from(tmp_path: Path, size: int) -> None:
    folder = write_run(tmp_path, WITH, 0)
    whole = (folder / "metrics.jsonl").read_text()
    before, _ = load_runs(tmp_path)
    header = json.dumps({"attempt": 1, "resumed_at_step": None})
    (folder / "metrics.1.jsonl").write_text(f"{header}\n{whole}")
    (folder / "metrics.jsonl").write_text(whole[:size])
    points, runs = load_runs(tmp_path)
    pd.testing.assert_frame_equal(points, before)
    assert runs.loc[0, "note"].endswith("its points are read from its attempts")


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("config.yaml", None, "no config.yaml"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "just a text", "config.yaml cannot be read"),
        (
            "config.yaml",
            yaml.safe_dump({**settings().model_dump(mode="json"), "novelty": {"knob": 3}}),
            "settings unknown to this version: novelty.knob",
        ),
        ("provenance.json", None, "no provenance.json"),
        ("provenance.json", "{", "provenance.json cannot be read"),
        ("result.json", "{", "result.json cannot be read"),
        ("metrics.jsonl", "", "no points logged"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "step": 1}\n{"epoch": 2, \n{"epoch": 8, "step": 160}\n',
            "metrics.jsonl: 1 line is no point with epoch and step",
        ),
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl: 1 line is no point with epoch and step; no points logged"),
        ("metrics.jsonl", "[1]\n[2]\n", "metrics.jsonl: 2 lines are no point with epoch and step; no points logged"),
        ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl cannot be read; no points logged"),
    ],
)
def test_what_is_odd_is_named_and_the_rest_is_read(
    tmp_path: Path, name: str, content: str | bytes | None, note: str
) -> None:
    write_run(tmp_path, WITH, 1)
    folder = write_run(tmp_path, WITH, 0)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    points, runs = load_runs(tmp_path)
    assert runs["note"].tolist() == [note, ""]
    assert (points["run"] == runs.loc[1, "run"]).any()
    plot_training(points, runs)


def test_a_file_that_is_not_about_a_run_and_curves_alone_are_read(tmp_path: Path) -> None:
    (tmp_path / ".references").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "metrics.1.jsonl").write_text(
        '{"attempt": 1, "resumed_at_step": null}\n{"epoch": 0.1, "step": 1, "loss": -0.2}\n'
    )
    (tmp_path / "empty").mkdir()
    points, runs = load_runs(tmp_path)
    assert runs["run"].tolist() == ["empty", "trial"]
    assert runs["state"].tolist() == ["pending", "unknown"]
    assert points["loss"].tolist() == [-0.2]
    plot_training(points, runs)


def test_named_folders_that_do_not_exist_are_missing(tmp_path: Path) -> None:
    points, runs = load_runs(tmp_path / "nowhere", ["abc-s3"])
    assert (len(points), runs.loc[0, "state"], runs.loc[0, "config"], runs.loc[0, "seed"]) == (0, "missing", "abc", 3)
    with pytest.raises(FileNotFoundError):
        load_runs(tmp_path / "nowhere")


def test_a_resumed_run_with_other_code_is_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, WITH, 0)
    content = json.loads((folder / "provenance.json").read_text())
    content["attempts"].append({**content["attempts"][0], "attempt": 2, "code": "other"})
    (folder / "provenance.json").write_text(json.dumps(content))
    _, runs = load_runs(tmp_path)
    assert runs.loc[0, "note"] == "its attempts ran different code"
    assert runs.loc[0, "code"] == "other"


# --- figures -----------------------------------------------------------------------------------------------------


def test_mean_and_range_against_numpy() -> None:
    random = np.random.default_rng(0)
    epochs = np.linspace(0, 8, 33)
    values = random.normal(size=(3, 33))
    at, mean, (low, high) = mean_and_range([np.stack([epochs, row], axis=1) for row in values])
    np.testing.assert_allclose(at, epochs)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(low, values.min(0))
    np.testing.assert_allclose(high, values.max(0))


def test_curves_that_are_logged_elsewhere_are_interpolated() -> None:
    at, mean, _ = mean_and_range([np.array([[0.0, 0], [2, 2]]), np.array([[0.0, 0], [1, 3], [2, 2]])])
    assert at.tolist() == [0, 1, 2]
    assert mean.tolist() == [0, 2, 2]


def test_shorter_curves_are_not_averaged() -> None:
    long, other, short = (np.array([[0.0, 1], [end, 2]]) for end in (8.0, 8.0, 3.0))
    whole, single = split_by_length([long, short, other])
    assert [curve[-1, 0] for curve in whole] == [8, 8]
    assert [curve[-1, 0] for curve in single] == [3]
    assert split_by_length([]) == ([], [])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_labels_never_overlap_and_keep_their_order(heights: list[float]) -> None:
    placed = spread(heights, 0.1)
    order = sorted(range(len(heights)), key=lambda i: (heights[i], i))
    gaps = [placed[above] - placed[below] for below, above in itertools.pairwise(order)]
    assert all(gap > 0.1 - 1e-9 for gap in gaps)
    if all(b - a >= 0.1 for a, b in itertools.pairwise(sorted(heights))):
        assert placed == pytest.approx(heights)


def test_the_three_panels(pair: Path) -> None:
    points, runs = load(pair)
    figure = plot_training(points, runs, hue="variant")
    loss, std, knn = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "std of z/|z| (units of 1/√d)", "kNN top-1 (%)"]
    with_points = points[points["run"].isin(runs.loc[runs["variant"] == "with", "run"])]
    mean = with_points.dropna(subset="knn_top1").groupby("epoch")["knn_top1"].mean()
    drawn = next(line for line in knn.lines if line.get_color() == style.COLOURS[0])
    np.testing.assert_allclose(drawn.get_xdata(), mean.index)
    np.testing.assert_allclose(drawn.get_ydata(), mean)

    def levels(ax: matplotlib.axes.Axes) -> dict[str, float]:
        return {text.get_text(): text.xy[1] for text in ax.texts}

    assert levels(loss) == {"minimum": -1}
    assert levels(std) == {"1/√d": 1}
    assert levels(knn) == pytest.approx({"raw pixels": 82.1, "untrained": 53, "chance 10 ↓": 10})
    assert 10 < knn.get_ylim()[0] < 53, "what is far off does not flatten the curves"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["with", "without"]


def test_different_losses_never_share_a_panel(tmp_path: Path) -> None:
    write_run(tmp_path, WITH, 0)
    write_run(tmp_path, settings(loss__name="squared-distance"), 0)
    points, runs = load_runs(tmp_path)
    for hue in ("config", "loss.name", "epochs"):  # the last has one value for both
        figure = plot_training(points, runs, hue=hue)
        cosine, squared, _, _ = sorted(
            figure.axes, key=lambda ax: ("loss" not in ax.get_ylabel(), "sq" in ax.get_ylabel())
        )
        assert "negative cosine" in cosine.get_ylabel()
        assert "squared distance" in squared.get_ylabel()
        assert [text.get_text() for text in cosine.texts] == ["minimum"]
        assert not squared.texts
        assert len(squared.lines) == 1


def test_seeds_with_different_outcomes_are_not_averaged(tmp_path: Path) -> None:
    for seed, kind in enumerate(("healthy", "collapsed", "healthy")):
        write_run(tmp_path, WITH, seed, kind)
    figure = plot_training(*load_runs(tmp_path))
    assert len(figure.axes[1].lines) == 3 + 1  # and the line at 1/sqrt(d)
    assert not figure.axes[1].collections


def test_different_settings_are_not_averaged(tmp_path: Path) -> None:
    """A mean is over seeds alone, whatever column curves are told apart by."""
    for config in (WITH, settings(optimizer__lr=0.1)):
        for seed in range(2):
            write_run(tmp_path, config, seed)
    points, runs = load_runs(tmp_path)
    for hue, bands in (("batch_size", 0), ("optimizer.lr", 2)):
        std = plot_training(points, runs, hue=hue).axes[1]
        assert len(std.lines) == (2 if bands else 4) + 1
        assert len(std.collections) == bands
    numbers = plot_linear(points, runs.assign(final_linear_top1=[80.0, 81.0, 60.0, 61.0]), hue="batch_size").axes[1]
    assert [list(line.get_ydata()) for line in numbers.lines] == [[80.0, 81.0, 60.0, 61.0]]
    assert not numbers.texts, "of which a mean would say nothing"


def test_groups_that_share_a_value_have_looks_of_their_own(tmp_path: Path) -> None:
    for config in (WITH, settings(loss__name="squared-distance"), settings(batch_size=32)):
        write_run(tmp_path, config, 0)
    groups = make_groups(load_runs(tmp_path)[1], "batch_size")
    assert [group.label for group in groups] == ["32", "256, cosine", "256, squared-distance"]
    assert len({(group.colour, str(group.dashes)) for group in groups}) == 3


def test_what_blows_up_does_not_flatten_the_rest(tmp_path: Path) -> None:
    write_run(tmp_path, WITH, 0, "diverged")
    write_run(tmp_path, WITHOUT, 0)
    figure = plot_training(*load_runs(tmp_path))
    low, high = figure.axes[0].get_ylim()
    assert low < -1
    assert high <= 1.1
    assert "diverged" in [text.get_text() for text in figure.axes[0].texts]


def test_an_archive_is_no_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "runs.tar.xz").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"runs\.tar\.xz is a file.*unpack"):
        load_runs(tmp_path / "runs.tar.xz")


def test_a_run_that_diverged_between_two_points_is_not_called_damaged(tmp_path: Path) -> None:
    """It finds out at the next logged step, whose values are not finite, and says of which step it was."""
    folder = write_run(tmp_path, WITH, 0, "diverged")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    marked = next(line for line in lines if line.get("diverged"))
    lines = [line for line in lines if line["step"] < marked["step"]]
    lines += [{"epoch": marked["epoch"], "step": marked["step"] + 4, "loss": None}, marked]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, runs = load_runs(tmp_path)
    assert runs.loc[0, "note"] == ""
    assert runs.loc[0, "outcome"] == "diverged"


def test_twelve_variants_are_told_apart_and_in_order(tmp_path: Path) -> None:
    for i in range(12):
        write_run(tmp_path, settings(batch_size=2 ** (i + 1)), 0, until=1.5, state="running")
    points, runs = load_runs(tmp_path)
    groups = make_groups(runs, "batch_size")
    assert [group.label for group in groups] == [str(2 ** (i + 1)) for i in range(12)]
    assert len({(group.colour, str(group.dashes)) for group in groups}) == 12
    for width in (style.ONE_COLUMN, style.TWO_COLUMNS):
        figure = plot_training(points, runs, hue="batch_size", width=width)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == width
        panels = [ax.get_window_extent() for ax in figure.axes]
        legend = figure.legends[0].get_window_extent()
        assert all(legend.y0 >= panel.y1 for panel in panels)
        assert all(panel.width > 40 and panel.height > 40 for panel in panels)
        assert legend.x1 <= figure.bbox.x1 + 1
    with pytest.raises(ValueError, match="'batchsize' is not a column"):
        plot_training(points, runs, hue="batchsize")


def test_neighbouring_colours_differ_in_grey() -> None:
    def lightness(colour: str) -> float:
        return float(np.array(matplotlib.colors.to_rgb(colour)) @ [0.2126, 0.7152, 0.0722])

    assert all(lightness(colour) < 0.7 for colour in style.COLOURS), "visible on white"
    looks = [look for look, _ in zip(style.line_styles(), range(28), strict=False)]
    assert len({(colour, str(dashes)) for colour, dashes in looks}) == 28
    assert all(a[1] != b[1] for a, b in itertools.pairwise(looks))


def test_files_are_whole_and_the_same_each_time(pair: Path, tmp_path: Path) -> None:
    points, runs = load(pair)
    first = style.save(plot_training(points, runs), tmp_path / "a")
    second = style.save(plot_training(points, runs), tmp_path / "b")
    heads = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    for one, two in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content.startswith(heads[one.suffix[1:]])
        assert len(content) > 8000
        assert content == two.read_bytes()
    pdf = first[0].read_bytes()
    assert b"/FontFile2" in pdf, "TrueType is embedded"
    assert b"CreationDate" not in pdf


# --- tables ------------------------------------------------------------------------------------------------------


def table_of(runs: pd.DataFrame, paper: dict[str, PaperResult]) -> Table:
    return study_table(runs, paper, "Stop-gradient", "cpu")


def test_numbers_in_the_table_are_those_of_numpy(pair: Path) -> None:
    _, runs = load(pair)
    table = table_of(runs, {"with": PaperResult(top1=67.7, spread=0.1, trials=5), "without": PaperResult(top1=0.1)})
    finals = {
        name: [json.loads((Path(path) / "result.json").read_text())["final"] for path in of_name["path"]]
        for name, of_name in runs.groupby("variant")
    }
    exact = list(csv.DictReader(io.StringIO(table.csv())))
    for row in exact:
        for key in ("linear_top1", "knn_top1", "z_std_relative", "effective_rank", "loss"):
            values = np.array([final[key] for final in finals[row["variant"]]])
            assert float(row[f"{key}_mean"]) == pytest.approx(values.mean())
            assert float(row[f"{key}_sd"]) == pytest.approx(values.std(ddof=1))
            assert int(row[f"{key}_runs"]) == 3
    assert float(exact[0]["cost_seconds_per_run"]) == pytest.approx(110)
    assert float(exact[0]["cost_device_hours_per_run"]) == pytest.approx(110 * 2 / 3600)
    first, second = table.lines()
    values, others = (np.array([final["linear_top1"] for final in finals[name]]) for name in ("with", "without"))
    decimals = common_decimals([values.std(ddof=1), others.std(ddof=1)], 1, 2)
    own = format_estimate(values.mean(), values.std(ddof=1), decimals)
    assert first[:3] == ["with", "67.7 ± 0.1 (5 trials)", own]
    assert first[7:] == ["healthy (3/3)", "1.8 min, 0.061 core-h"]
    assert second[1] == "0.1"
    assert second[7] == "collapsed (3/3)"
    assert "ImageNet linear" in table.headings()[1]
    assert "different quantities" in table.notes[0]


def test_differences_are_paired_and_their_interval_is_scipy_s(pair: Path) -> None:
    _, runs = load(pair)
    knn = {"with": np.array([84.1, 83.2, 84.9]), "without": np.array([61.0, 63.5, 60.2])}
    for name, values in knn.items():
        of_variant = runs["variant"] == name
        runs.loc[of_variant, "final_linear_top1"] = values[runs.loc[of_variant, "seed"].astype(int)]
    paper = {"with": PaperResult(top1=67.7), "without": PaperResult(top1=0.1)}
    table = study_table(runs, paper, "x", "cpu", {"with": None, "without": "with"})
    baseline, row = csv.DictReader(io.StringIO(table.csv()))
    test = scipy.stats.ttest_rel(knn["without"], knn["with"])
    low, high = test.confidence_interval(0.95)
    assert float(row["difference_mean"]) == pytest.approx((knn["without"] - knn["with"]).mean())
    assert (float(row["difference_low"]), float(row["difference_high"])) == pytest.approx((low, high))
    assert row["difference_seeds"] == "3"
    assert (baseline["direction"], row["direction"]) == ("baseline", "agrees in sign, not in size (paper: −67.6)")
    assert "'with'" in " ".join(note for note in table.notes if note.startswith("Difference"))
    of_knn = study_table(runs, paper, "x", "cpu", {"with": None, "without": "with"}, metrics=["knn_top1"])
    headings = {column.key: column.heading for column in of_knn.columns}
    assert headings["difference"] == "difference, linear top-1 (points)", "its accuracy has no column"
    one_seed = study_table(runs[runs["seed"] == 0], paper, "x", "cpu", {"with": None, "without": "with"}).lines()[1]
    assert one_seed[3].endswith("(1 seed)")
    assert one_seed[4] == "agrees in sign, not in size (paper: −67.6); direction only (1 seed)"


def test_what_was_not_run_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    names = ["running", "failed", "stopped", "missing", "diverged", "mixed"]
    configs = {name: settings(batch_size=2 ** (i + 1)) for i, name in enumerate(names)}
    for name in ("running", "failed", "stopped"):
        write_run(tmp_path, configs[name], 0, state=name, until=3.2)
    write_run(tmp_path, configs["diverged"], 0, "diverged", device="NVIDIA H100")
    for seed, kind in enumerate(("healthy", "collapsed", "diverged")):
        write_run(tmp_path, configs["mixed"], seed, kind)
    _, runs = load_runs(tmp_path)
    runs["variant"] = runs["batch_size"].map({config.batch_size: name for name, config in configs.items()})
    table = table_of(runs, dict.fromkeys(names, PaperResult()) | {"mixed": PaperResult(top1=50.0)})
    lines = {line[0]: line[1:] for line in table.lines()}
    assert lines["running"][1:3] == ["– (running, epoch 3/8)", "–"]
    assert lines["failed"][1] == "– (failed: see failure.txt)"
    assert lines["stopped"][1] == "– (stopped, epoch 3/8)"
    assert lines["missing"] == ["– (not reported)", "– (not run)", *"––––", "– (not run)", "– (not run)"]
    assert lines["diverged"][1] == "– (diverged)"
    assert lines["diverged"][-1] == "2.0 min, 0.033 GPU-h"
    assert lines["mixed"][1].endswith("(2 of 3)")
    assert lines["mixed"][6] == "healthy (1/3); collapsed (1/3); diverged (1/3)"
    for text in (table.markdown(), table.latex(), table.csv()):
        assert "nan" not in text.replace(",nan", "") or text == table.csv()
    for row in csv.reader(io.StringIO(table.csv())):
        assert all(row), "never a blank"
    assert all(all(cell.strip() for cell in line) for line in table.lines())


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (84.13, 0.31, "84.1 ± 0.3"),
        (84.13, 0.151, "84.13 ± 0.15"),
        (84.13, 0.0996, "84.13 ± 0.10"),
        (61.2, 12.34, "61 ± 12"),
        (61.2, 4.4, "61 ± 4"),
        (9.98, 0.0041, "9.98 ± 0.00"),
        (10.0, 0.0, "10.0 ± 0.0"),
        (10.04, math.nan, "10.0"),
        (-0.876, 0.02, "−0.88 ± 0.02"),
        (50.0, 0.96, "50.0 ± 1.0"),
    ],
)
def test_numbers_round_by_their_uncertainty(mean: float, sd: float, text: str) -> None:
    assert format_estimate(mean, sd, common_decimals([sd], 1, 2)) == text


def test_a_column_has_as_many_decimals_as_its_best_known_number_needs() -> None:
    spreads = [3.4, 0.14, math.nan, 0.0]
    decimals = common_decimals(spreads, 1, 2)
    shown = [format_estimate(mean, sd, decimals) for mean, sd in zip([10.2, 12.3, 13.24, 13.2], spreads, strict=True)]
    assert shown == ["10.20 ± 3.40", "12.30 ± 0.14", "13.24", "13.20 ± 0.00"]
    assert common_decimals([], 1, 2) == 1


def test_times() -> None:
    assert [format_seconds(s) for s in (0.4, 45, 59.6, 138, 1560, 7200, 360000)] == [
        "0 s", "45 s", "1.0 min", "2.3 min", "26 min", "2.0 h", "100 h",
    ]  # fmt: skip
    assert [format_hours(h) for h in (0, 0.0667, 1.234, 15.4, 480)] == ["0", "0.067", "1.2", "15", "480"]


ODD = "a & b_50 % $x$ #1 {~^\\} <script>|\"é'"


def odd_table(tmp_path: Path) -> Table:
    write_run(tmp_path / "runs", WITH, 0)
    _, runs = load_runs(tmp_path / "runs")
    runs["variant"] = ODD
    return table_of(runs, {ODD: PaperResult(top1=1.0, note=f"note on {ODD}"), "other": PaperResult()})


def test_special_characters_are_escaped(tmp_path: Path) -> None:
    table = odd_table(tmp_path)
    assert r"a \& b\_50 \% \$x\$ \#1 \{\textasciitilde{}\textasciicircum{}\textbackslash{}\}" in table.latex()
    assert next(csv.DictReader(io.StringIO(table.csv())))["variant"] == ODD
    rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {len(table.columns) + 1}
    assert "<script>" not in table.markdown().replace("\\<script\\>", "")


def test_a_study_chooses_the_metrics_of_its_table(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "runs", WITH, seed)
    (tmp_path / "own.yaml").write_text("title: Own\ntable: [effective_rank, linear_top1, lidar]\nvariants: {a: {}}\n")
    _, runs = load_runs(tmp_path / "runs")
    runs["variant"] = "with"
    names = load_study(str(tmp_path / "own.yaml")).table
    table = study_table(runs, {"with": PaperResult()}, "Own", "cpu", {"with": "with"}, metrics=names)
    keys = [column.key for column in table.columns]
    assert keys == ["variant", "effective_rank", "linear_top1", "difference", "lidar", "outcome", "cost"]
    (row,) = table.rows
    assert float(row[1].exact["_mean"]) == pytest.approx(runs["final_effective_rank"].mean())
    assert row[4].full == "– (not logged)"
    (tmp_path / "own.yaml").write_text("title: Own\ntable: [linear_top1, lidr]\nvariants: {with: {}}\n")
    with pytest.raises(SettingsError, match=r"(?s)lidr.*did you mean 'lidar'.*own.yaml:2"):
        load_study(str(tmp_path / "own.yaml"))


def compile_latex(folder: Path, *tables: str, options: str = "") -> str:
    """The log of a paper with these tables and no package but booktabs."""
    for place, table in enumerate(tables):
        (folder / f"table{place}.tex").write_text(table, encoding="utf-8")
    inputs = "".join(rf"\input{{table{place}}}\clearpage" for place in range(len(tables)))
    begin = rf"\documentclass[{options}]{{article}}\usepackage{{booktabs}}\begin{{document}}"
    (folder / "paper.tex").write_text(rf"{begin}{inputs}\end{{document}}")
    command = [require("latex"), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if "booktabs.sty' not found" in done.stdout:
        missing("latex", "LaTeX has no booktabs package (apt-get install texlive-latex-recommended)")
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_latex_compiles_with_odd_names(tmp_path: Path) -> None:
    compile_latex(tmp_path, odd_table(tmp_path).latex())


def test_latex_is_no_wider_than_the_text(tmp_path: Path) -> None:
    """Of a paper with two columns, 410 pt wide; with all columns that a table has, and with none of the paper's."""
    for seed in range(3):
        write_run(tmp_path / "runs", WITH, seed)
        write_run(tmp_path / "runs", WITHOUT, seed, "collapsed", knn=61)
    _, runs = load_runs(tmp_path / "runs")
    runs["variant"] = runs["target.stop_gradient"].map({True: "with stop-gradient", False: "without stop-gradient"})
    papers = {
        "with stop-gradient": PaperResult(top1=67.7, spread=0.1, trials=5),
        "without stop-gradient": PaperResult(top1=0.1),
    }
    against = dict.fromkeys(papers, "with stop-gradient")
    tables = [
        study_table(runs, results, "Study", "cpu", against)
        for results in (papers, dict.fromkeys(papers, PaperResult()))
    ]
    log = compile_latex(tmp_path, *(table.latex() for table in tables), options="twocolumn")
    assert "Overfull" not in log


def test_a_latex_table_that_fits_has_plain_cells_and_no_number_breaks() -> None:
    columns = (Column("v", "variant", is_number=False), Column("a", "top-1 (%)", "Ours"))
    fits = Table("A", columns, ((Entry("one"), Entry("11.3 ± 0.4 (1 of 2)")), (Entry("[two]"), Entry("9.0"))), ())
    assert r"one & 11.3~$\pm$~0.4 (1~of~2) \\" in fits.latex()
    assert "p{" not in fits.latex().partition("tabular")[2].partition(r"\bottomrule")[0]
    assert r"{}[two] & 9.0 \\" in fits.latex(), "else it would be an option of the row above"
    flat = replace(fits, columns=tuple(replace(column, group="") for column in columns))
    assert flat.latex().split(r"\toprule")[1].split()[0] == "variant", "no empty row above headings without groups"
    wide = Table("A", columns, ((Entry("a long text " * 20), Entry("11.3 ± 0.4")),), ())
    assert r"{@{}p{" in wide.latex()
    names = [f"c{at}" for at in range(30)]
    many = Table("A", tuple(Column(name, name) for name in names), (tuple(Entry("123.45 ± 0.12") for _ in names),), ())
    parts = many.latex().split(r"\begin{tabular}")[1:]
    assert len(parts) > 1
    assert all(re.search(r"\bc0\b", part) for part in parts), "each has the names of the rows"
    assert all(sum(len(re.findall(rf"\b{name}\b", part)) for part in parts) == 1 for name in names[1:])


def test_latex_of_every_study_compiles(tmp_path: Path) -> None:
    """As they ship, with one variant of each run: their names, notes and dashes."""
    tables = []
    for name in study_names():
        study, scale = load_study(name), load_scale("cpu")
        made = make_plan(study, scale, [0], [], tmp_path / "runs", tmp_path / "data")
        planned = made.cells[0]
        if not (tmp_path / "runs" / planned.run_id).exists():
            write_run(tmp_path / "runs", planned.cell.settings, 0, fingerprint="unprepared")
        variants = report_variants(study, made, [0])
        _, runs = gather(variants, tmp_path / "runs")
        paper = {variant.name: variant.paper for variant in variants}
        tables.append(
            study_table(runs, paper, study.title, "cpu", {each.name: each.against for each in variants}).latex()
        )
    log = compile_latex(tmp_path, *tables)
    assert "Missing character" not in log
