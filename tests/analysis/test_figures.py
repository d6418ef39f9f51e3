"""The figures that a study's file lists: what is drawn, read back from the axes, against numpy; what is refused."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import shutil
import string
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from sklearn.decomposition import PCA

from analysis import load_runs, plot_linear, plot_map, plot_spectra, plot_training
from analysis.figures import style
from analysis.figures.drawing import drawings
from analysis.figures.fonts import wrap
from analysis.figures.groups import make_groups
from analysis.figures.linear import linear_numbers
from analysis.figures.map import load_embeddings, project
from analysis.figures.spectrum import LOWEST, geometric_mean, load_spectra
from analysis.figures.sweep import plot_sweep
from analysis.formats import DASH
from analysis.report import in_words
from analysis.report.one_study import ReportFiles, ReportVariant, gather, report
from analysis.report.page import run_lines
from analysis.report.study_table import estimate_entry
from analysis.verdicts.quantities import StudyRuns
from experiments.studies.figures import KINDS, Curves, Linear, Map, Spectrum, StudyFigure, Sweep
from experiments.studies.study import PaperResult, Study, load_study, study_names
from simsiam.errors import SettingsError
from simsiam.record.catalogue import CURVES, FIG_2, METRICS, spectrum_ranks
from simsiam.settings.identity import config_id
from tests.analysis.test_pages import Page
from tests.run_folders import FINGERPRINT, settings, write_run

DIM = 256
WITH = settings(projector__output_dim=DIM, predictor__hidden_dim=64)
WITHOUT = settings(projector__output_dim=DIM, predictor__hidden_dim=64, target__stop_gradient=False)
VARIANTS = {True: "with", False: "without"}
EPOCHS = (0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 8.0)


def write_geometry(folder: Path, seed: int, *, rank: int, epochs: tuple[float, ...] = EPOCHS) -> None:
    """Spectra that fall at ``rank``, the cosine of the views, and embeddings of that rank, in a run folder."""
    draws = np.random.default_rng(seed)
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key != "spectrum"} for line in lines]
    for line in lines:
        if "loss" in line:
            line["positive_cosine"] = 0.9 - 0.1 / (1 + line["step"]) + 0.01 * seed
    for epoch in epochs:
        values = np.where(spectrum_ranks(DIM) <= rank, 0.3, 0.002) * draws.uniform(0.8, 1.2) * (1 + epoch)
        lines.append({"epoch": epoch, "step": int(20 * epoch), "effective_rank": rank, "spectrum": values.tolist()})
    lines.sort(key=lambda line: line["step"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = np.arange(200) % 4
    z = draws.normal(size=(4, DIM))[labels] + 0.1 * draws.normal(size=(200, DIM))
    np.savez(folder / "embeddings.npz", z=z.astype(np.float16), labels=labels, step=np.array(160))


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three healthy seeds with all that is logged, two collapsed ones, of which one logged nothing more."""
    runs = tmp_path_factory.mktemp("geometry")
    for seed in range(3):
        write_geometry(write_run(runs, WITH, seed), seed, rank=100)
    write_geometry(write_run(runs, WITHOUT, 0, "collapsed", knn=61), 0, rank=2)
    write_run(runs, WITHOUT, 1, "collapsed", knn=61)
    return runs


def load(runs_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    points, runs = load_runs(runs_dir)
    runs["variant"] = pd.Categorical(runs["target.stop_gradient"].map(VARIANTS), ["with", "without"])
    return points, runs


def spectra_in(folder: Path) -> dict[float, np.ndarray]:
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {point["epoch"]: np.array(point["spectrum"]) for point in points if "spectrum" in point}


# --- what is drawn -----------------------------------------------------------------------------------------------


def test_other_metrics_have_panels_of_their_own(geometry: Path) -> None:
    points, runs = load(geometry)
    figure = plot_training(points, runs, metrics=["positive_cosine", "effective_rank"])
    cosine, rank = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["cosine of $z_1$ and $z_2$", "effective rank of z"]
    of_variant = points[points["run"].isin(runs.loc[runs["variant"] == "with", "run"])]
    mean = of_variant.dropna(subset="positive_cosine").groupby("epoch")["positive_cosine"].mean()
    drawn = next(line for line in cosine.lines if line.get_color() == style.COLOURS[0])
    np.testing.assert_allclose(drawn.get_xydata(), np.column_stack([mean.index, mean]))
    assert {text.get_text(): text.xy[1] for text in cosine.texts} == {"equal": 1.0}
    assert not rank.texts
    with pytest.raises(ValueError, match="'positive_cosin' is not a column of the points"):
        plot_training(points, runs, metrics=["positive_cosin"])


def test_spectra_are_means_over_seeds_at_their_ranks(geometry: Path) -> None:
    _, runs = load(geometry)
    figure = plot_spectra(runs)
    with_panel, without_panel, legend = figure.axes
    assert [ax.get_title() for ax in (with_panel, without_panel)] == ["with", "without"]
    folders = [Path(path) for path in runs.loc[runs["variant"] == "with", "path"]]
    expected = [scipy.stats.gmean([spectra_in(folder)[epoch] for folder in folders], 0) for epoch in (0, 2, 3, 5, 8)]
    drawn = [line for line in with_panel.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == 5, "seven evaluations, thinned out; the first and the last stay"
    for line, values in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), spectrum_ranks(DIM))
        np.testing.assert_allclose(line.get_ydata(), values)
    assert len(with_panel.collections) == 1, "a band for the last"
    assert not without_panel.collections, "one run alone has none"
    level = next(line for line in with_panel.lines if len(line.get_xdata()) == 2)
    assert level.get_ydata()[0] == pytest.approx(1 / np.sqrt(DIM))
    assert with_panel.get_ylim() == (LOWEST, 1)
    assert list(legend.yaxis.get_major_locator()()) == [0, 2, 3, 5, 8]
    lightness = [np.array(line.get_color()[:3]) @ [0.2126, 0.7152, 0.0722] for line in drawn]
    assert all(early > late for early, late in itertools.pairwise(lightness)), "legible in grey"


def test_a_shorter_run_or_a_damaged_spectrum_is_not_averaged(tmp_path: Path) -> None:
    write_geometry(write_run(tmp_path, WITH, 0), 0, rank=100)
    write_geometry(write_run(tmp_path, WITH, 1), 1, rank=100, epochs=(0.0, 1.0))
    damaged = write_run(tmp_path, WITH, 2)
    write_geometry(damaged, 2, rank=100)
    text = (damaged / "metrics.jsonl").read_text()
    values = [json.loads(line)["spectrum"] for line in text.splitlines() if "spectrum" in line]
    (damaged / "metrics.jsonl").write_text(text.replace(json.dumps(values[2]), "[1, true, null]"))
    _, runs = load(tmp_path)
    spectra = [load_spectra(run) for _, run in runs.iterrows()]
    assert [len(one.epochs) for one in spectra if one is not None] == [7, 2, 6]
    panel = plot_spectra(runs).axes[0]
    drawn = [line for line in panel.lines if len(line.get_xdata()) > 2]
    both = [spectra_in(tmp_path / runs.loc[i, "run"])[8.0] for i in (0, 2)]
    np.testing.assert_allclose(drawn[-1].get_ydata(), scipy.stats.gmean(both, 0))
    (tmp_path / runs.loc[0, "run"] / "config.yaml").unlink()
    assert load_spectra(load(tmp_path)[1].iloc[0]) is None, "no width is known"


def test_a_singular_value_of_0_does_not_win_the_mean() -> None:
    rows = np.array([[0.1, 0.1, 1e-9], [0.1, 0.0, 0.0]])
    np.testing.assert_allclose(geometric_mean(rows), [0.1, np.sqrt(0.1 * LOWEST), 1e-9])


def test_the_map_is_pca(geometry: Path) -> None:
    _, runs = load(geometry)
    figure = plot_map(runs)
    with_panel, without_panel = figure.axes
    assert with_panel.get_xlim() == without_panel.get_xlim() == with_panel.get_ylim(), "one scale"
    for panel, name in ((with_panel, "with"), (without_panel, "without")):
        path = Path(runs.loc[(runs["variant"] == name) & (runs["seed"] == 0), "path"].item())
        content = np.load(path / "embeddings.npz")
        z = content["z"].astype(float)
        pca = PCA(2, svd_solver="full")
        expected = pca.fit_transform(z / np.linalg.norm(z, axis=1, keepdims=True))
        signs = np.sign(expected[np.abs(expected).argmax(0), [0, 1]])
        for label, dots in enumerate(panel.collections):
            np.testing.assert_allclose(dots.get_offsets(), (expected * signs)[content["labels"] == label], atol=1e-9)
        assert f"{100 * pca.explained_variance_ratio_[0]:.0f} %" in panel.get_xlabel()
        assert f"{100 * pca.explained_variance_ratio_[1]:.0f} %" in panel.get_ylabel()
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        assert [text.get_text() for text in panel.texts] == [f"variance {unit.var(0).sum():.2f}"]
        assert panel.get_title() == name
    assert len({dots.get_paths()[0].vertices.tobytes() for dots in with_panel.collections}) == 4, "told apart in grey"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2", "3"]


def test_a_collapsed_z_is_a_dot_and_many_classes_are_grey(tmp_path: Path) -> None:
    constant = project(np.ones((50, 8)))
    assert (constant.variance, constant.shares) == (0, (0, 0))
    assert not constant.points.any()
    folder = write_run(tmp_path, WITH, 0)
    labels = np.arange(60) % 15
    np.savez(folder / "embeddings.npz", z=np.random.default_rng(0).normal(size=(60, 8)), labels=labels, step=1)
    dots = plot_map(load(tmp_path)[1]).axes[0].collections
    assert sorted(len(one.get_offsets()) for one in dots) == [4] * 10 + [20]


def test_the_map_names_classes_and_shares_out_no_variance_of_a_point(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for seed, (config, centre) in enumerate([(WITH, 0.0), (WITHOUT, 20.0)]):  # z about the origin, and far from it
        z, labels = centre + draws.normal(size=(90, 8)), np.arange(90) % 3
        arrays: dict[str, Any] = {"z": z, "labels": labels, "class_names": np.array(["cat", "dog", "$ship"])}
        np.savez(write_run(tmp_path, config, seed) / "embeddings.npz", **arrays)
    figure = plot_map(load(tmp_path)[1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog", r"\$ship"]
    spread, point = figure.axes
    assert "%" in spread.get_xlabel() + spread.get_ylabel()
    assert (point.get_xlabel(), point.get_ylabel()) == ("axis 1", "axis 2")


def test_a_method_has_one_colour_in_all_figures_of_a_study() -> None:
    names = ["SimCLR, 1x", "SimCLR, 2x", "BYOL, 1x", "BYOL, 2x"]
    runs = pd.DataFrame(
        {
            "run": [f"{name}-s0" for name in names], "config": names, "epochs": [4, 8, 4, 8], "state": "done",
            "variant": pd.Categorical(names, names), "outcome": "healthy", "final_knn_top1": [50.0, 52.0, 48.0, 53.0],
        }
    )  # fmt: skip
    groups = {group.label: group.colour for group in make_groups(runs)}
    lines = dict(zip(["SimCLR", "BYOL"], plot_sweep(runs, "epochs").axes[0].lines, strict=False))
    for method, line in lines.items():
        once, twice = rgb_to_hsv(to_rgb(groups[f"{method}, 1x"])), rgb_to_hsv(to_rgb(groups[f"{method}, 2x"]))
        assert line.get_color() == groups[f"{method}, 2x"]
        assert abs(once[0] - twice[0]) < 0.01, "one hue"
        assert once[1] < twice[1], "paler"
    without_the_first = make_groups(runs[runs["variant"] != names[0]])
    assert {group.label: group.colour for group in without_the_first}.items() <= groups.items()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", None])
def test_embeddings_that_cannot_be_read_are_none(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        np.savez(tmp_path / "embeddings.npz", z=np.array([object()]), labels=np.zeros(1))  # would be unpickled
    else:
        (tmp_path / "embeddings.npz").write_bytes(content)
    assert load_embeddings(tmp_path) is None


def test_linear_numbers_stand_beside_the_curve(tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(tmp_path, WITH, seed)
        (folder / "linear-features.json").write_text(json.dumps({"top1": 85.0 + seed, "protocol": {}}))
    (write_run(tmp_path, WITHOUT, 0) / "linear-features.json").write_text("{")
    points, runs = load(tmp_path)
    runs["final_linear_top1"] = [70.0, 72.0, 60.0]  # as the runs say themselves
    curve, numbers = plot_linear(points, runs, paper={"with": 91.8, "without": 91.1}).axes
    assert curve.get_ylabel() == "kNN top-1 (%)"
    assert [tick.get_text() for tick in numbers.get_xticklabels()] == ["ours,\nlogistic", "ours,\nfeatures", "paper"]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in numbers.lines if line.get_marker() in list("os")]
    by_run = runs.set_index(["variant", "seed"])["final_linear_top1"]
    own = [(0, by_run["with"].mean()), (0, by_run["without"].mean())]
    assert marks == [*own, (1, 85.5), (2, 91.8), (2, 91.1)]
    bar = next(line for line in numbers.lines if list(line.get_xdata()) == [1, 1])
    assert list(bar.get_ydata()) == [85.0, 86.0]
    assert {text.get_text() for text in numbers.texts} >= {"85.5", "91.8", "91.1"}
    assert len(plot_linear(points, runs[runs["seed"] == 5]).axes) == 1, "nothing to put beside it"


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts in the panels, their titles and axes included, that are drawn over each other."""
    figure.draw_without_rendering()
    boxes = []
    for ax in figure.axes:
        texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            shown = (tick for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1])
            texts += [tick.label1 for tick in shown if tick.label1.get_visible()]
        boxes += [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts if text.get_text().strip()]
    inside = [(text, box) for text, box in boxes if box.width > 0 and box.height > 0]
    return [(a, b) for i, (a, one) in enumerate(inside) for b, other in inside[i + 1 :] if one.overlaps(other)]


@pytest.mark.parametrize("width", [style.ONE_COLUMN, style.TWO_COLUMNS])
def test_texts_do_not_overlap_and_stay_inside(geometry: Path, width: float) -> None:
    points, runs = load(geometry)
    figures = [
        plot_training(points, runs, metrics=["positive_cosine"], width=width),
        plot_spectra(runs, width=width),
        plot_map(runs, width=width),
        plot_linear(points, runs, paper={"with": 91.8, "without": 91.1}, width=width),
    ]
    for figure in figures:
        assert figure.get_figwidth() == width
        with matplotlib.rc_context(style.RC):  # its type, as when it is saved
            assert not overlaps(figure)
            boxes = [ax.get_tightbbox() for ax in figure.axes]
        assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)


@pytest.mark.parametrize("width", [style.ONE_COLUMN, style.TWO_COLUMNS])
def test_a_map_of_four_panels_and_long_names_is_whole_when_it_is_saved(tmp_path: Path, width: float) -> None:
    names = np.array([f"{size} {angle} degrees" for size in ("coarse", "fine") for angle in (0, 22.5, 45, 67.5, 90)])
    draws = np.random.default_rng(0)
    for batch_size in (32, 64, 128, 256):
        folder = write_run(tmp_path / "runs", settings(batch_size=batch_size), 0)
        z, labels = draws.normal(size=(90, 8)), np.arange(90) % len(names)
        np.savez(folder / "embeddings.npz", z=z, labels=labels, class_names=names)
    figure = plot_map(load_runs(tmp_path / "runs")[1], "batch_size", width=width)
    style.save(figure, tmp_path / "map")
    with matplotlib.rc_context(style.RC):
        legend_inside(figure)
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        titles = [ax.title.get_window_extent() for ax in figure.axes]
        legend = figure.legends[0].get_window_extent()
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= 0 for box in boxes)
    assert legend.y0 >= max(title.y1 for title in titles)


@pytest.mark.parametrize("width", [style.ONE_COLUMN, style.TWO_COLUMNS])
def test_two_dozen_panels_fit_a_page_and_no_title_runs_into_the_next(geometry: Path, width: float) -> None:
    runs = load(geometry)[1]
    folder = runs[(runs["variant"] == "with") & (runs["seed"] == 0)]
    grid = itertools.product(("narrow", "wide"), (0.03, 0.1, 0.3, 1), (8, 16, 32))
    names = [f"{head}, optimizer.lr={lr}, batch_size={batch}" for head, lr, batch in grid]
    many = pd.concat([folder.assign(run=name, config=name, variant=name) for name in names], ignore_index=True)
    for figure in (plot_spectra(many, width=width), plot_map(many, width=width)):
        assert figure.get_figwidth() == width
        assert figure.get_figheight() <= style.PAGE_HEIGHT
        with matplotlib.rc_context(style.RC):
            assert not overlaps(figure)
            boxes = [ax.get_tightbbox() for ax in figure.axes]
        assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
    groups = make_groups(many)
    assert len({(group.colour, str(group.dashes)) for group in groups}) == len(names)


def test_runs_that_lack_the_setting_of_the_colour_are_left_out(geometry: Path) -> None:
    """And a grid that the tool wrote down among them is no run."""
    (geometry / "grids").mkdir(exist_ok=True)
    points, runs = load_runs(geometry)
    assert "grids" not in set(runs["run"])
    runs["loss.arguments.mine"] = [1.0, *[np.nan] * (len(runs) - 1)]
    for figure in (plot_spectra(runs, hue="loss.arguments.mine"), plot_map(runs, hue="loss.arguments.mine")):
        figure.draw_without_rendering()
    plot_training(points, runs, hue="loss.arguments.mine").draw_without_rendering()


def legend_inside(figure: Figure) -> None:
    """The legend is within the page, and over no panel."""
    with matplotlib.rc_context(style.RC):
        figure.draw_without_rendering()
        legend, page = figure.legends[0].get_window_extent(), figure.bbox
        panels = [ax.get_window_extent() for ax in figure.axes]
    assert legend.x0 >= page.x0 - 1
    assert legend.x1 <= page.x1 + 1
    assert legend.y1 <= page.y1 + 1
    assert legend.y0 >= max(panel.y1 for panel in panels)
    assert min(panel.height for panel in panels) > 0.25 * 100  # inches are of 100 pixels


@pytest.mark.parametrize("width", [style.ONE_COLUMN, style.TWO_COLUMNS])
def test_a_dozen_long_names_stay_on_the_page(geometry: Path, width: float) -> None:
    points, of_one = load(geometry)
    of_one = of_one[of_one["run"] == of_one["run"].iloc[0]]
    many, curves = [], []
    for rate in (0.01, 0.03, 0.1, 0.3):
        for decay in (1e-4, 5e-4, 1e-3):
            for momentum in (0.9, 0.99):
                name = f"r{rate}-{decay}-{momentum}"
                new = {"optimizer.lr": rate, "optimizer.weight_decay": decay, "target.momentum": momentum}
                long = f"a rate of {rate}, a weight decay of {decay} and the momentum encoder of MoCo, {momentum}"
                many.append(of_one.assign(run=name, config=name, variant=long, final_knn_top1=50 + rate, **new))
                curves.append(points[points["run"] == of_one["run"].iloc[0]].assign(run=name))
    runs, curve = pd.concat(many, ignore_index=True), pd.concat(curves, ignore_index=True)
    of_methods = runs.drop(columns="variant")
    (all_values, no_values) = (plot_linear(curve, runs[:count], width=width) for count in (12, 24))
    assert len(all_values.axes[1].texts) == 12
    assert not no_values.axes[1].texts
    legend_inside(no_values)
    for figure in (
        plot_sweep(of_methods, "target.momentum", width=width),
        plot_training(curve, runs[:12], width=width),
        plot_linear(curve, runs[:12], width=width),
    ):
        assert len(figure.legends[0].get_texts()) == 12
        legend_inside(figure)


@pytest.fixture
def diverged(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One seed that diverged, at 20 %, with all that is logged, and one that ended at 80 %: points, runs."""
    for seed, (kind, top1) in enumerate([("diverged", 20.0), ("healthy", 80.0)]):
        folder = write_run(tmp_path, WITH, seed, kind)
        write_geometry(folder, seed, rank=2 if kind == "diverged" else 100)
        result = json.loads((folder / "result.json").read_text())
        result["final"] |= {"knn_top1": top1, "linear_top1": top1}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "linear-features.json").write_text(json.dumps({"top1": top1, "protocol": {}}))
    return load(tmp_path)


def test_a_seed_that_diverged_counts_nowhere(diverged: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    points, runs = diverged
    (line,) = (line for line in plot_sweep(runs, "batch_size").axes[0].lines if line.get_marker() == "o")
    assert line.get_xydata().tolist() == [[256.0, 80.0]]
    assert linear_numbers(runs) == {"logistic": {"with": [80.0]}, "features": {"with": [80.0]}}
    drawn = {drawing.name: drawing for drawing in drawings(ALL, points, runs, {})}
    assert "with 80.0 %" in drawn["figure-sweep-batch-size"].alt
    assert "Runs that diverged are left out." in drawn["figure-sweep-batch-size"].caption
    assert "kNN 80.0 %" in drawn["figure"].alt
    assert "features, with 80.0 %" in drawn["figure-linear"].alt
    ended = points[points["run"] == runs.loc[runs["outcome"] == "healthy", "run"].item()]
    cosine = ended["positive_cosine"].dropna().iloc[-1]
    assert f"positive cosine {cosine:.3g}" in drawn["figure-positive-cosine-predictor-alignment"].alt
    assert "above 1 % of it up to rank 2," not in drawn["figure-spectrum"].alt + ","
    assert "with seed 1." in drawn["figure-map"].caption
    for drawing in drawn.values():
        assert drawing.draw is not None
        drawing.draw(style.ONE_COLUMN).draw_without_rendering()
    assert estimate_entry(runs, METRICS["linear_top1"], 1, say_how_many=True).text == "80.0 (1 of 2)"
    assert StudyRuns(points, runs).finals("with", "knn_top1") == {1: 80.0}
    assert "linear top-1 80.0 %" in in_words.in_numbers(runs)
    assert [line["accuracy"] for line in run_lines(runs, Path.cwd())] == [DASH, "80.0"]


def test_where_all_seeds_diverged_the_figures_say_so(diverged: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    points, runs = diverged
    runs = runs[runs["outcome"] == "diverged"]
    points = points[points["run"].isin(runs["run"])]
    drawn = {drawing.name: drawing for drawing in drawings(ALL, points, runs, {})}
    assert drawn["figure-sweep-batch-size"].absent == "no run has ended with a value"
    assert "with has no final values yet" in drawn["figure"].alt
    assert "with seed 0." in drawn["figure-map"].caption, "what there is"
    plot_sweep(runs, "batch_size").draw_without_rendering()


# --- fonts -------------------------------------------------------------------------------------------------------

CAT, CYRILLIC = "猫", "кот γάτα"


@contextlib.contextmanager
def fonts_of_the_machine(*paths: str) -> Iterator[None]:
    """As on a machine with these font files beside those that come with matplotlib."""
    own = [font for font in fontManager.ttflist if Path(font.fname).is_relative_to(matplotlib.get_data_path())]
    before, fontManager.ttflist = fontManager.ttflist, own
    try:
        for path in paths:
            fontManager.addfont(path)
        fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]
        yield
    finally:
        fontManager.ttflist = before
        fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]


def write_font(path: Path, family: str, characters: str) -> str:
    """A font in which each character is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in [(0, 800), (800, 800), (800, 0)]:
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): name for character, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_a_figure_is_the_same_whatever_fonts_the_machine_has(geometry: Path, tmp_path: Path) -> None:
    _, runs = load(geometry)
    arial, liberation = (
        write_font(tmp_path / f"{name}.ttf", name, string.printable) for name in ("Arial", "Liberation Sans")
    )
    fonts: dict[str, list[str]] = {"bare": [], "one": [liberation], "both": [arial, liberation]}
    for name, paths in fonts.items():
        with fonts_of_the_machine(*paths):
            style.save(plot_spectra(runs, width=style.ONE_COLUMN), tmp_path / name)
    for kind in style.FORMATS:
        assert len({(tmp_path / f"{name}.{kind}").read_bytes() for name in fonts}) == 1, kind


def test_a_name_in_other_characters_is_drawn_with_a_font_that_has_them(geometry: Path, tmp_path: Path) -> None:
    points, runs = load(Path(shutil.copytree(geometry, tmp_path / "copy")))
    runs["variant"] = runs["variant"].cat.rename_categories({"with": CAT, "without": CYRILLIC})
    sweep = runs.assign(variant=runs["variant"].astype(str) + runs["seed"].map(", {}".format))
    with fonts_of_the_machine(write_font(tmp_path / "cat.ttf", "A Cat", CAT)), warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of what an old matplotlib calls
        for figure in (plot_training(points, runs), plot_linear(points, runs), plot_sweep(sweep, "batch_size")):
            assert [text.get_text() for text in figure.legends[0].get_texts()] == [CAT, CYRILLIC]
            figure.draw_without_rendering()
        for figure in (plot_map(runs), plot_spectra(runs)):
            assert [ax.get_title() for ax in figure.axes[:2]] == [CAT, CYRILLIC]
            figure.draw_without_rendering()
        for folder in {path.parent for path in (tmp_path / "copy").rglob("embeddings.npz")}:
            with np.load(folder / "embeddings.npz") as file:
                arrays = dict(file)
            np.savez(folder / "embeddings.npz", **arrays | {"class_names": np.array([CAT] * 10)})
        figure = plot_map(runs)
        assert CAT in [text.get_text() for text in figure.legends[0].get_texts()]
        figure.draw_without_rendering()
        style.save(plot_linear(points, runs), tmp_path / "figure")


def test_a_name_that_no_font_has_is_a_number_and_a_warning(geometry: Path) -> None:
    points, runs = load(geometry)
    runs["variant"] = runs["variant"].cat.rename_categories({"without": CAT})
    with fonts_of_the_machine():
        for plot in (plot_training, plot_linear):
            with pytest.warns(UserWarning, match=f"'{CAT}' is drawn as 'no. 2'. Install one") as caught:
                figure = plot(points, runs)
            assert len(caught) == 1
            figure.draw_without_rendering()
            assert [text.get_text() for text in figure.legends[0].get_texts()] == ["with", "no. 2"]
        with pytest.warns(UserWarning, match="no font of this machine"):
            assert [ax.get_title() for ax in plot_map(runs).axes] == ["with", "no. 2"]


def test_lines_are_broken_by_what_they_measure() -> None:
    with matplotlib.rc_context(style.RC):
        for text in ("iiiii " * 20, "WWWWW " * 20, "W" * 100):
            lines = wrap(text, 1.0, 8)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
            figure = Figure()
            widths = [figure.text(0, 0, line, fontsize=8).get_window_extent().width / figure.dpi for line in lines]
            assert max(widths) <= 1.02
            assert min(widths[:-1]) > 0.4, "as many words as fit"
        path = "soft, loss.arguments.power=0.5, optimizer.lr=0.01"
        assert wrap(path, 1.0, 8) == ["soft,", "loss.arguments.", "power=0.5,", "optimizer.lr=0.01"]


# --- in a report -------------------------------------------------------------------------------------------------


ALL: tuple[StudyFigure, ...] = (
    Sweep(kind="sweep", setting="batch_size", base="with"),
    Curves(),
    Curves(metrics=("positive_cosine", "predictor_alignment")),
    Linear(kind="linear"),
    Spectrum(kind="spectrum"),
    Map(kind="map"),
)


def make(runs: Path, out: Path, figures: tuple[StudyFigure, ...] = ALL) -> ReportFiles:
    variants = [
        ReportVariant("with", config_id(WITH, FINGERPRINT), PaperResult(top1=67.7), WITH, (0, 1, 2)),
        ReportVariant("without", config_id(WITHOUT, FINGERPRINT), PaperResult(top1=0.1), WITHOUT, (0, 1)),
    ]
    study = Study("own", "Own", "", "", "", None, 3, {}, (), (), figures)
    return report(study, variants, runs, out, scale="cpu")


def test_the_page_shows_each_figure_with_its_words(geometry: Path, tmp_path: Path) -> None:
    files = make(geometry, tmp_path / "out")
    names = {figure.name for figure in ALL}
    endings = [f"{narrow}.{kind}" for narrow in ("", "-narrow") for kind in style.FORMATS]
    assert {path.name for path in files.figures} == {f"{name}{ending}" for name in names for ending in endings}
    parsed = Page(files.page)
    images = [each for tag, each in parsed.elements if tag == "img" and each["class"] == "wide"]
    assert [image["alt"] for image in images] == [drawing.alt for drawing in files.drawings]
    assert all(image["alt"] for image in images)
    narrow = [each["alt"] for tag, each in parsed.elements if tag == "img" and each["class"] == "narrow"]
    assert narrow == [image["alt"] for image in images], "a phone's figures; a page shows one of each pair"
    assert all((image["src"] or "").startswith("data:image/svg+xml") for image in images)
    for drawing in files.drawings:
        assert drawing.caption in parsed.text
    sweep, _, cosine, linear, spectrum, map_ = files.drawings
    assert "paper 67.7 %" in sweep.alt
    assert "Hollow circles are runs with a complete collapse." in sweep.caption
    assert "since no run logged it: predictor_alignment" in cosine.caption
    assert "ours by logistic regression at the end of training, the paper's" in linear.caption
    assert "up to rank 2" in spectrum.alt
    assert "with seed 0, without seed 0" in map_.caption


def test_a_figure_that_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    files = make(tmp_path / "none", tmp_path / "before")
    absent = {drawing.name: drawing.absent for drawing in files.drawings}
    assert absent.pop("figure") == ""
    assert set(absent.values()) == {"no run has started"}
    assert "Not drawn: no run has started." in Page(files.page).text

    write_run(tmp_path / "runs", WITH, 0, state="running", until=3.2)
    files = make(tmp_path / "runs", tmp_path / "during")
    absent = {drawing.name: drawing.absent for drawing in files.drawings}
    assert absent["figure-sweep-batch-size"] == "no run has ended yet"
    assert absent["figure-spectrum"].startswith("none of its runs logged a spectrum: evaluation.diagnostics is off")
    assert absent["figure-map"].startswith("none of its runs has embeddings.npz")
    assert absent["figure-positive-cosine-predictor-alignment"].startswith("none of its runs logged positive_cosine, ")
    assert absent["figure-linear"] == "", "there is a curve"
    page = Page(files.page)
    for reason in filter(None, absent.values()):
        assert f"Not drawn: {reason}." in page.text
    images = [each for tag, each in page.elements if tag == "img" and each["class"] == "wide"]
    assert len(images) == len([drawing for drawing in files.drawings if drawing.draw is not None]) == 2


def test_a_variant_without_the_data_is_named(geometry: Path, tmp_path: Path) -> None:
    for seed in range(2):
        write_geometry(write_run(tmp_path, WITH, seed), seed, rank=100)
    write_run(tmp_path, WITHOUT, 0)
    points, runs = load(tmp_path)
    spectrum, map_ = drawings((Spectrum(kind="spectrum"), Map(kind="map")), points, runs, {})
    for drawing in (spectrum, map_):
        assert drawing.caption.endswith("Not there (no such data of its runs): without.")
    assert "Geometric means over 2 seeds" in spectrum.caption


def test_the_base_of_a_sweep_may_be_run_at_other_scales_only(geometry: Path, tmp_path: Path) -> None:
    variant = ReportVariant("with", config_id(WITH, FINGERPRINT), PaperResult(), WITH, (0,))
    points, runs = gather([variant], geometry)
    sweep = Sweep(kind="sweep", setting="batch_size", base="8x")
    (drawing,) = drawings((sweep,), points, runs, {"8x": 64.0})
    assert drawing.draw is not None
    assert drawing.draw(style.TWO_COLUMNS).axes[0].get_xlabel() == "batch size"


def test_a_sweep_says_which_variants_have_no_place_on_its_axis(geometry: Path, tmp_path: Path) -> None:
    variants = [
        ReportVariant(name, config_id(settings, FINGERPRINT), PaperResult(), settings, (0,))
        for name, settings in (("with", WITH), ("without", WITHOUT))
    ]
    points, runs = gather(variants, geometry)
    runs["loss.arguments.margin"] = runs["variant"].astype(str).map({"with": 0.2})
    (drawing,) = drawings((Sweep(kind="sweep", setting="loss.arguments.margin", base="without"),), points, runs, {})
    assert drawing.caption.endswith("Not in the figure, for want of a value of loss.arguments.margin: without.")
    assert drawing.draw is not None
    assert drawing.draw(style.TWO_COLUMNS).axes[0].get_xlabel() == "loss arguments margin"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_figure_is_drawn_by_the_module_of_its_name(kind: str) -> None:
    """So that a new kind is its model, and one module that draws it."""
    drawing = getattr(import_module(f"analysis.figures.{kind}"), "drawing", None)
    assert list(inspect.signature(drawing).parameters) == ["figure", "points", "runs", "paper"]
    assert inspect.get_annotations(drawing)["figure"] == KINDS[kind].__name__


# --- in a study's file ---------------------------------------------------------------------------------------------

HEAD = "title: Own\nvariants:\n  a:\n    settings: {batch_size: 32}\n  b: {}\n"


def study_with(tmp_path: Path, figures: str) -> Study:
    (tmp_path / "own.yaml").write_text(f"{HEAD}{figures}")
    return load_study(str(tmp_path / "own.yaml"))


def test_figures_are_read_in_order(tmp_path: Path) -> None:
    text = "figures:\n  - {kind: sweep, setting: batch_size, base: b}\n  - kind: curves\n  - {kind: map}\n"
    study = study_with(tmp_path, text)
    assert study.figures == (Sweep(kind="sweep", setting="batch_size", base="b"), Curves(), Map(kind="map"))
    assert study_with(tmp_path, "").figures == (Curves(metrics=FIG_2),)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ("figures: []", r"figures: \(\) is not allowed: .* at least 1 item"),
        ("figures: map", "figures: 'map' is not allowed: a list is wanted  .*own.yaml:6"),
        ("figures: [map]", r"figures.0: 'map' is not allowed: a mapping is wanted  .*own.yaml:6"),
        (
            "figures:\n  - {setting: batch_size}",
            "figures.0.kind: is missing .known: curves, sweep, linear, spectrum, map",
        ),
        (
            "figures:\n  - {kind: curves}\n  - {kind: spectra}",
            "'spectra' is not a kind of figure.*spectrum.*own.yaml:8",
        ),
        ("figures:\n  - {kind: sweep}", "figures.0.setting: is missing"),
        ("figures:\n  - {kind: sweep, setting: batchsize}", "batchsize.*batch_size.*own.yaml:7"),
        (
            "figures:\n  - {kind: sweep, setting: loss.name}",
            "loss.name is 'cosine' by default, and only numbers can be",
        ),
        ("figures:\n  - {kind: sweep, setting: target.stop_gradient}", "only numbers can be an axis"),
        ("figures:\n  - {kind: sweep, setting: batch_size, base: c}", "figures.0.base: the study has no variant 'c'"),
        ("figures:\n  - {kind: map, setting: batch_size}", "figures.0.setting: no such key .known here: kind"),
        ("figures:\n  - {kind: curves, metrics: [los]}", "no such metric with a curve.*loss"),
        ("figures:\n  - {kind: curves, metrics: []}", "figures.0.metrics"),
        ("figures:\n  - {kind: map}\n  - {kind: map}", "figures.1: the same figure is listed twice  .*own.yaml:8"),
        ("figure:\n  - {kind: map}", "figure: no such key.*figures"),
    ],
)
def test_a_wrong_figure_is_refused_with_its_place(tmp_path: Path, figures: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        study_with(tmp_path, figures)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("setting: loss.arguments.marign", "no variant sets loss.arguments.marign.*loss.arguments.margin.*own.yaml:8"),
        (
            "setting: loss.arguments.margin, base: b",
            "base: variant 'b' does not set loss.arguments.margin  .*own.yaml:8",
        ),
    ],
)
def test_a_sweep_of_an_argument_wants_variants_that_set_it(tmp_path: Path, figure: str, message: str) -> None:
    head = HEAD.replace("batch_size: 32", "loss.arguments.margin: 0.2")
    (tmp_path / "own.yaml").write_text(f"{head}figures:\n  - kind: curves\n  - {{kind: sweep, {figure}}}\n")
    with pytest.raises(SettingsError, match=message):
        load_study(str(tmp_path / "own.yaml"))


def test_every_kind_and_metric_is_known_to_both_sides() -> None:
    assert set(FIG_2) <= set(CURVES) <= set(METRICS)
    listed = {figure.kind for name in study_names() for figure in load_study(name).figures}
    assert listed == set(KINDS), "the studies that ship use them all"
