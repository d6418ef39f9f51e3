"""Files of other programs: what is read of them, and how often the diagnosis is right."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from analysis.diagnosis.foreign import Given, diagnose_log
from analysis.diagnosis.rules import VERDICTS
from analysis.figures.embeddings import plot_embeddings
from analysis.figures.spectrum import LOWEST
from analysis.frames.foreign_columns import MOST_POINTS, as_log, cannot_be, choose_columns, measure_of
from analysis.frames.foreign_files import KINDS, read_tables
from commands.app import app
from experiments.weights.embeddings import ENDINGS, measure, read_embeddings
from simsiam.errors import SettingsError
from simsiam.evaluation.diagnostics import output_std
from simsiam.record.catalogue import METRICS
from tests.analysis.diagnosis.test_diagnosis import confusion, show
from tests.conftest import ROOT
from tests.foreign_logs.edge_cases import million_rows

CATALOGUE = ROOT / "tests" / "foreign_logs"
LABELS = yaml.safe_load((CATALOGUE / "labels.yaml").read_text())
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


def found(*arguments: object) -> list[dict[str, Any]]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    made: list[dict[str, Any]] = json.loads(result.stdout)
    return made


def options(given: dict[str, Any]) -> list[str]:
    """What the owner of a log says of it, as it would be typed."""
    words = []
    for name, value in given.items():
        if name == "columns":
            words += [word for measure, column in value.items() for word in ("--column", f"{measure}={column}")]
        elif name == "temperature":
            words += ["--set", f"loss.temperature={value}"]
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


@pytest.mark.parametrize("half", ["make", "test"])
def test_confusion_matrix_of_foreign_files(half: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, wrong = [], []
    for name, entry in LABELS.items():
        if entry["half"] != half or (name.endswith("tfevents") and not HAS_TENSORBOARD):
            continue
        (one,) = found(CATALOGUE / "logs" / name, *options(entry["given"]))
        pairs.append((entry["truth"], one["verdict"]))
        wrong += [f"{name}: {entry['truth']}, diagnosed {one['verdict']}"] if len(set(pairs[-1])) > 1 else []
    matrix = confusion(pairs)
    with capsys.disabled():
        print(f"\n{half}\n{show(matrix[matrix.sum(axis=1) > 0])}\n{len(pairs) - len(wrong)} of {len(pairs)}; {wrong}")
    assert len(wrong) <= 0.1 * len(pairs)
    for truth in ("divergence", "complete collapse", "dimensional collapse"):
        assert matrix.loc[truth, "healthy"] == 0


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("train_loss", "loss"), ("loss", "loss"), ("train/neg_cos", "loss"), ("Loss/train", "loss"), ("val_loss", None),
        ("trainLoss", "loss"), ("representation_std", "z_std"), ("z_std", "z_std"), ("std of z", "z_std"),
        ("grad_std", None), ("knn_acc", "knn_top1"), ("kNN_accuracy", "knn_top1"), ("knn top-5", None),
        ("RankMe", "effective_rank"), ("rank", None), ("global_step", "step"), ("step_time", None), ("iter", "step"),
        ("train_loss_step", "loss"), ("train_loss_epoch", "loss"), ("epoch", "epoch"), ("lr", None), ("time", None),
        ("Collapse Level", "collapse_level"), ("train/uniformity", None), ("uniformity", "uniformity"),
    ],
)  # fmt: skip
def test_names_of_columns(name: str, measure: str | None) -> None:
    assert measure_of(name) == measure


def log_of(path: Path, columns: dict[str, str] | None = None, kind: str | None = None) -> Any:
    (table,) = read_tables(path, lambda names: choose_columns(names, columns or {}), kind)
    return as_log(table, columns or {})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separators_and_decimals(separator: str, decimal: str, tmp_path: Path) -> None:
    if separator == decimal:
        return
    path = tmp_path / "log.txt"
    frame = pd.DataFrame({"epoch": [0, 1, 2], "loss": [-0.25, -0.5, -0.75], "phase": ["a", "b", "c"]})
    frame.to_csv(path, sep=separator, decimal=decimal, index=False)
    log = log_of(path)
    assert log.points["loss"].tolist() == [-0.25, -0.5, -0.75]
    assert log.matched == {"epoch": "epoch", "loss": "loss"}


def test_the_same_log_in_every_form_gives_the_same_points(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"epoch": np.arange(50) // 5, "step": np.arange(50) * 10, "loss": -random.random(50)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "c.json", orient="records")
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    of_run = frame.rename(columns={"step": "Step", "loss": "my - run - loss", "epoch": "my - run - epoch"})
    of_run["my - run - loss__MIN"] = of_run["my - run - loss__MAX"] = 0.0
    of_run[["Step", *(name for name in of_run if name != "Step")]].to_csv(tmp_path / "w.csv", index=False)
    names = ["a.csv", "b.jsonl", "c.json", "metrics.csv", "w.csv"]
    if HAS_TENSORBOARD:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path / "events") as writer:
            for row in frame.itertuples():
                writer.add_scalar("loss", row.loss, row.step)
                writer.add_scalar("epoch", row.epoch, row.step)
        names.append("events")
    logs = [log_of(tmp_path / name) for name in names]
    for log in logs:
        np.testing.assert_allclose(log.points["loss"], frame["loss"], atol=1e-6)
        np.testing.assert_allclose(log.points["step"], frame["step"])
        assert log.points["epoch"].is_monotonic_increasing
        assert log.points["epoch"].iloc[-1] == pytest.approx(10)  # the tenth epoch is over


def test_a_restart_keeps_what_the_later_attempt_wrote(tmp_path: Path) -> None:
    steps, loss = [*range(10), *range(6, 15), *range(12, 20)], iter(range(100))
    values = [-next(loss) / 100 for _ in steps]
    pd.DataFrame({"step": steps, "loss": values}).to_csv(tmp_path / "a.csv", index=False)
    points = log_of(tmp_path / "a.csv").points
    assert points["step"].tolist() == list(range(20))
    expected = dict(zip(steps, values, strict=True))  # of each step the last
    assert points["loss"].tolist() == [expected[step] for step in range(20)]


def test_steps_that_begin_anew_in_each_epoch_are_no_restarts(tmp_path: Path) -> None:
    frame = pd.DataFrame({"epoch": np.arange(40) // 10, "iter": np.arange(40) % 10, "loss": np.linspace(0, -1, 40)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    points = log_of(tmp_path / "a.csv").points
    assert len(points) == 40
    assert points["step"].is_monotonic_increasing


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-inf"])
def test_a_loss_that_stays_nan_diverged_and_one_that_comes_back_did_not(word: str, tmp_path: Path) -> None:
    loss = [f"{-0.8 * (1 - 0.9**i):.4f}" for i in range(100)]
    for end, verdict in ((True, "divergence"), (False, "healthy")):
        bad = range(70, 100) if end else (20, 50, 51)
        rows = [f"{i},{word if i in bad else loss[i]},0.06" for i in range(100)]
        (tmp_path / "a.csv").write_text("\n".join(["step,loss,z_std", *rows]))
        (one,) = found(tmp_path / "a.csv", "--dim", 256, "--loss", "cosine", "--batch", 64)
        assert one["verdict"] == verdict
        assert (one["set_in"]["step"] == 70) == end
        assert any("came back" in text for text in one["rests_on"]) != end


def test_long_logs_are_thinned_and_keep_their_evaluations(tmp_path: Path) -> None:
    n = 3 * MOST_POINTS
    frame = pd.DataFrame({"step": np.arange(n), "loss": np.linspace(0, -0.9, n)})
    frame["knn_acc"] = [0.5 if i % 1000 == 7 else np.nan for i in range(n)]
    frame.to_csv(tmp_path / "a.csv", index=False)
    points = log_of(tmp_path / "a.csv").points
    assert len(points) < 1.1 * MOST_POINTS
    assert points["knn_top1"].notna().sum() == n // 1000
    assert points["knn_top1"].dropna().eq(50).all()


SCRIPT = """
import resource, sys
from commands.app import app
try:
    app(["diagnose", sys.argv[1], "--dim", "256"])
except SystemExit:
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(used.ru_utime + used.ru_stime, int(peak.split()[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_million_rows_take_less_than_5_s_and_500_mb(tmp_path: Path) -> None:
    million_rows(tmp_path / "edge.csv")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "edge.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ": complete collapse" in done.stdout
    seconds, mib = map(float, done.stdout.splitlines()[-1].split())
    assert seconds < 5  # of CPU time, which other work on the machine does not lengthen
    assert mib < 500


# --- what is asked for -------------------------------------------------------------------------------------------


def test_what_would_change_the_verdict_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    n = 200
    frame = pd.DataFrame({"step": range(n), "loss": -0.95 * (1 - np.exp(-np.arange(n) / 20))})
    low = frame.assign(z_std=0.31 / 16, rankme=50)  # 0.31 of 1/sqrt(256): a collapse, if the output BN hides it
    low.to_csv(tmp_path / "low.csv", index=False)
    (asked,) = found(tmp_path / "low.csv", "--dim", 256, "--batch", 128)
    assert any(text.startswith("--output-bn: with plain") for text in asked["asks"])
    assert asked["verdict"] != "healthy"
    frame.assign(z_std=0.98 / 16).to_csv(tmp_path / "fine.csv", index=False)
    (fine,) = found(tmp_path / "fine.csv")
    assert (fine["verdict"], fine["asks"]) == ("healthy", [])
    assert any("d is taken for 256" in text for text in fine["rests_on"])


def test_a_std_of_unknown_width_is_said_as_a_share_of_its_highest(tmp_path: Path) -> None:
    """0.07 is 1/sqrt(d) of no usual width, so that nothing is known in units of 1/sqrt(d)."""
    std = 0.07 + 0.01 * np.linspace(0, 1, 40)
    frame = pd.DataFrame({"loss": -0.95 * (1 - np.exp(-np.arange(40) / 5)), "std": std, "rankme": 30.0})
    frame.to_csv(tmp_path / "a.csv", index=False)
    (one,) = found(tmp_path / "a.csv")
    text = " ".join(one["evidence"])
    assert "The std of z/|z| is 0.99 of its highest at the end" in text or "is 1.00 of its highest" in text
    assert "sqrt(d)" not in text
    assert "of its many directions" in text
    (known,) = found(tmp_path / "a.csv", "--dim", 144)
    assert "/ sqrt(d) at the end" in " ".join(known["evidence"])
    assert "of its 144 directions" in " ".join(known["evidence"])


def test_a_loss_of_any_other_kind_gets_its_scale_from_its_ends(tmp_path: Path) -> None:
    """Barlow Twins at d = 512: 512 for views that have nothing to do with each other, 0 at best."""
    log = tmp_path / "barlow.csv"
    steps = np.arange(100)
    pd.DataFrame({"loss": 40 + 472 * np.exp(-steps / 5), "z_std": 1 / np.sqrt(512)}).to_csv(log, index=False)
    (without,) = found(log)
    assert without["verdict"] == "cannot tell"
    assert any("--chance and --optimum" in ask for ask in without["asks"])
    (scaled,) = found(log, "--chance", 512, "--optimum", 0)
    assert scaled["verdict"] == "healthy"
    assert "92 % of the way from chance (512: as given)" in " ".join(scaled["evidence"])
    assert not any("--loss" in ask for ask in scaled["asks"])
    assert found(log, "--chance", 60, "--optimum", 0)[0]["verdict"] == "no convergence"  # it ends at 40


def test_what_is_lacking_for_a_verdict_is_said(tmp_path: Path) -> None:
    (tmp_path / "row.csv").write_text("loss\n3.1\n")
    (one,) = found(tmp_path / "row.csv")
    assert one["evidence"] == ["1 loss is logged, 8 are needed: log more often."]
    assert one["asks"] == [], "nothing that is said of one row makes it eight"
    (tmp_path / "early.csv").write_text("epoch,loss\n" + "".join(f"{epoch},-0.5\n" for epoch in range(1, 11)))
    (one,) = found(tmp_path / "early.csv", "--epochs", 100)
    assert one["evidence"] == ["10 losses are logged; 10.00 of 100 epochs are over, and 25 are needed."]


def test_no_health_without_evidence(tmp_path: Path) -> None:
    """A collapsed and a healthy network have the same loss; an accuracy that rises tells them apart."""
    frame = pd.DataFrame({"epoch": range(100), "loss": -0.9 * (1 - np.exp(-np.arange(100) / 10))})
    frame.to_csv(tmp_path / "a.csv", index=False)
    (one,) = found(tmp_path / "a.csv")
    assert one["verdict"] == "cannot tell"
    assert "Log the std" in " ".join(one["evidence"])
    frame["knn"] = np.linspace(20, 60, 100)
    frame.to_csv(tmp_path / "b.csv", index=False)
    (one,) = found(tmp_path / "b.csv")
    assert one["verdict"] == "healthy"


def test_a_constant_p_has_the_cosine_that_the_rule_says() -> None:
    """z whose channels vary alike around a mean: the best constant p has the root of the centre as mean cosine."""
    random = torch.Generator().manual_seed(0)
    for spread in (0.3, 0.6, 1.0):
        z = torch.nn.functional.normalize(1 + spread * torch.randn(5000, 256, generator=random), dim=1)
        best = torch.nn.functional.normalize(z.mean(0), dim=0)
        std = output_std(z).item() * 16
        assert (z @ best).mean().item() == pytest.approx((1 - std**2) ** 0.5, abs=0.01)


def test_the_settings_that_are_given_name_their_causes(tmp_path: Path) -> None:
    (one,) = found(
        CATALOGUE / "logs" / "plain-n.csv", "--set", "target.stop_gradient=false", "--set", "predictor.kind=mlp"
    )
    assert one["verdict"] == "complete collapse"
    assert [cause["setting"] for cause in one["causes"]] == ["target.stop_gradient = false"]


def test_causes_are_possibilities_where_no_settings_are_known(tmp_path: Path) -> None:
    loss = ["-0.5"] * 10 + ["nan"] * 10
    (tmp_path / "nan.csv").write_text("\n".join(["loss", *loss]))
    text = " ".join(call(tmp_path / "nan.csv").output.split())
    assert "divergence" in text
    assert "Possible causes, of which its settings do not tell" in text
    assert "the rate in use" not in text, "no rate was read"
    given = " ".join(
        call(tmp_path / "nan.csv", "--set", "optimizer.lr=5", "--set", "optimizer.name=sgd").output.split()
    )
    assert "Usual causes that its settings show: a learning rate far above the paper's" in given


# --- embeddings --------------------------------------------------------------------------------------------------


def test_every_form_of_embeddings_is_measured_alike(tmp_path: Path) -> None:
    z = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 3
    np.save(tmp_path / "a.npy", z.numpy())
    np.savez(tmp_path / "b.npz", embeddings=z.numpy(), labels=labels.numpy())
    torch.save(z, tmp_path / "c.pt")
    torch.save({"z": z, "targets": labels}, tmp_path / "d.pth")
    files = ["a.npy", "b.npz", "c.pt", "d.pth"]
    if importlib.util.find_spec("safetensors"):
        from safetensors.torch import save_file

        save_file({"features": z}, tmp_path / "e.safetensors")
        files.append("e.safetensors")
    if importlib.util.find_spec("pyarrow"):
        pd.DataFrame({"embedding": list(z.numpy()), "label": labels.numpy()}).to_parquet(tmp_path / "f.parquet")
        pd.DataFrame(z.numpy()).add_prefix("x").to_parquet(tmp_path / "g.parquet")
        files += ["f.parquet", "g.parquet"]
    points = [measure(read_embeddings(tmp_path / name)) for name in files]
    for point in points:
        assert point["z_std"] == pytest.approx(output_std(z).item(), rel=1e-5)
        assert point["effective_rank"] == pytest.approx(points[0]["effective_rank"])
        assert set(point) - {"spectrum"} <= set(METRICS)
    assert {"knn_top1" in point for point in points[1:2]} == {True}
    with_views = np.stack([z.numpy(), z.numpy() + 0.1], 1)
    np.save(tmp_path / "h.npy", with_views)
    of_views = measure(read_embeddings(tmp_path / "h.npy"))
    assert of_views["positive_cosine"] > 0.9
    assert 1 <= of_views["lidar"] <= 32


def test_a_series_is_one_training_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for epoch in (2, 10, 1):
        spread = {1: 1.0, 2: 0.3, 10: 0.01}[epoch]
        np.save(tmp_path / f"z-{epoch}.npy", 1 + spread * random.normal(size=(200, 32)))
    files = [tmp_path / f"z-{epoch}.npy" for epoch in (10, 1, 2)]
    (one,) = found(*files, "--series")
    assert one["verdict"] == "complete collapse"
    assert one["set_in"]["epoch"] == 10
    assert [each["verdict"] for each in found(*files)][1] != "complete collapse"


def test_vectors_of_nothing_but_zeros_are_one_point(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.zeros((500, 32)))
    (one,) = found(tmp_path / "z.npy")
    assert one["verdict"] == "complete collapse"


@pytest.mark.parametrize("scale", [1e-30, 1e300])
def test_the_scale_of_vectors_changes_nothing(scale: float, tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(500, 32))
    np.save(tmp_path / "a.npy", z)
    np.save(tmp_path / "b.npy", scale * z)
    same = [{key: value for key, value in one.items() if key != "run"} for one in found(*tmp_path.glob("*.npy"))]
    assert same[0]["verdict"] == same[1]["verdict"]
    assert "not finite" not in call(tmp_path / "b.npy").output


def test_vectors_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(1000, 16))
    np.save(tmp_path / "good.npy", z)
    z[3, 2] = np.nan
    np.save(tmp_path / "bad.npy", z)
    assert "divergence, 1 of 1,000 vectors not finite" in call(tmp_path / "bad.npy").output
    both = " ".join(call(tmp_path / "good.npy", tmp_path / "bad.npy").output.split())
    assert "1 of 1,000 vectors is not finite" in both


def test_labels_that_are_not_finite_are_no_class(tmp_path: Path) -> None:
    labels = np.arange(300.0) % 3
    labels[5] = np.nan
    np.savez(tmp_path / "a.npz", z=np.random.default_rng(0).normal(size=(300, 16)), labels=labels)
    assert "1 of 300 labels are not finite, the first at 5" in str(call(tmp_path / "a.npz").exception)


def test_a_column_of_what_a_measure_cannot_be_is_not_taken_for_it(tmp_path: Path) -> None:
    loss = -0.9 * (1 - np.exp(-np.arange(100) / 9))
    pd.DataFrame({"loss": loss, "std": -0.04, "knn": 4321.0, "rankme": 0.0}).to_csv(tmp_path / "a.csv", index=False)
    said = " ".join(call(tmp_path / "a.csv").output.split())
    assert "std is not taken for z_std" in said
    assert "from 0 to 1, and 100 of its values are not, -0.04 the first" in said
    assert "knn is not taken for knn_top1" in said
    assert "rankme" in said
    assert "rankme is not taken" not in said, "some write 0 for the rank of a point"
    refused = call(tmp_path / "a.csv", "--column", "z_std=std")
    assert "'std' is not z_std" in str(refused.exception)
    pd.DataFrame({"knn": [4321.0, 4321.0]}).to_csv(tmp_path / "b.csv", index=False)
    assert "knn is not taken" in str(call(tmp_path / "b.csv").exception)


def test_the_array_of_embeddings_can_be_chosen(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    spread, point = random.normal(size=(200, 16)), 1 + 1e-6 * random.normal(size=(200, 16))
    np.savez(tmp_path / "two.npz", a=spread, b=point)
    assert "--column z=a" in str(call(tmp_path / "two.npz").exception)
    assert found(tmp_path / "two.npz", "--column", "z=a")[0]["verdict"] == "healthy"
    assert found(tmp_path / "two.npz", "--column", "z=b")[0]["verdict"] == "complete collapse"
    assert "no array 'c'; it has 'a', 'b'" in str(call(tmp_path / "two.npz", "--column", "z=c").exception)
    assert "z=NAME" in str(call(tmp_path / "two.npz", "--column", "loss=a").exception)
    np.save(tmp_path / "one.npy", spread[:, 0])
    message = str(call(tmp_path / "one.npy").exception)
    assert "has the shape (200,); embeddings are (N, d) or (N, views, d)" in message
    assert "names that are known" not in message


def test_a_spectrum_below_the_axis_is_drawn_at_its_edge(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "good.npy", random.normal(size=(200, 16)))
    np.save(tmp_path / "point.npy", 1 + 1e-7 * random.normal(size=(200, 16)))
    result = call(tmp_path / "good.npy", tmp_path / "point.npy", "--out", tmp_path / "figure")
    assert "point.npy: all its singular values are below 1e-05" in result.stderr
    spectra = {name: (16, measure(read_embeddings(tmp_path / name))["spectrum"]) for name in ("good.npy", "point.npy")}
    assert max(spectra["point.npy"][1]) < LOWEST < min(spectra["good.npy"][1])
    figure = plot_embeddings(spectra)
    (ax,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["good.npy", "point.npy (below 1e-05)"]
    (of_point,) = [line for line in ax.lines if str(line.get_label()).startswith("point.npy (below")]
    assert set(np.asarray(of_point.get_ydata())) == {LOWEST}
    assert not of_point.get_clip_on()


def test_figures_of_logs_and_of_embeddings(tmp_path: Path) -> None:
    for names in (("plain-a.csv", "plain-b.csv"), ("ends-a.npz", "ends-c.npy")):
        out = tmp_path / names[0]
        assert call(*(CATALOGUE / "logs" / name for name in names), "--out", out).exit_code == 0
        assert all(out.with_name(f"{out.name}.{kind}").stat().st_size for kind in ("pdf", "svg", "png"))


def test_a_figure_takes_the_place_of_its_own_kind_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CATALOGUE / "logs" / "plain-a.csv"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.svg").write_text("precious")
    for name in ("theirs", "theirs.pdf"):
        assert "theirs.svg is there, and not by this command" in str(call(log, "--out", name).exception)
    for name in (".", "..", "a/.."):
        assert "is a folder; a name for the figure is wanted" in str(call(log, "--out", name).exception)
    for name in ("ours", "ours.pdf"):
        assert call(log, "--out", name).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.svg", "ours.pdf", "ours.svg", "ours.png"}
    assert (tmp_path / "theirs.svg").read_text() == "precious"


def test_texts_are_no_losses(tmp_path: Path) -> None:
    """Unlike "nan", which Python's json writes as NaN and others as a text."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": "x"}) + "\n" for step in range(40)))
    assert "there is no number in 'loss'" in str(call(path).exception)
    path.write_text("".join(json.dumps({"step": step, "loss": ["-0.5", "nan"][step > 9]}) + "\n" for step in range(40)))
    assert found(path)[0]["verdict"] == "divergence"


def test_a_folder_without_runs_is_none_of_runs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert f"{tmp_path}: holds no runs" in str(call(tmp_path).exception)
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_what_is_cut_off_says_so(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save(torch.randn(300, 8), tmp_path / "z.pt")
    content = (tmp_path / "z.pt").read_bytes()
    for length in (3, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        assert "cut off or damaged" in str(call(tmp_path / "cut.pt").exception), length
    torch.save(torch.eye(8).to_sparse(), tmp_path / "sparse.pt")
    call(tmp_path / "sparse.pt")
    assert not [warning for warning in recwarn if "torch" in warning.filename]


def test_a_log_is_drawn_with_what_it_has(tmp_path: Path) -> None:
    """Most logs have no kNN, and some not even a loss."""
    (tmp_path / "a.csv").write_text("step,loss,std\n" + "".join(f"{n},-0.{n + 10},0.02\n" for n in range(1, 50)))
    (tmp_path / "b.csv").write_text("step,effective_rank\n" + "".join(f"{n},{60 - n}\n" for n in range(1, 50)))
    for name in ("a", "b"):
        assert call(tmp_path / f"{name}.csv", "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / f"{name}.png").stat().st_size


# --- what cannot be read -----------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.csv", "a.jsonl"])
def test_nothing_is_unpickled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    trap = np.array([Trap(), Trap()], object)
    if name == "a.npy":
        np.save(path, trap)
    elif name == "a.npz":
        np.savez(path, z=trap)
    elif name == "a.pt":
        torch.save(Trap(), path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    result = call(path)
    assert result.exit_code != 0
    assert len(str(result.exception).splitlines()) == 1
    assert str(path) in str(result.exception)
    assert not (tmp_path / "unpickled").exists()


BAD: dict[str, bytes] = {
    "empty.csv": b"", "header.csv": b"epoch,loss\n", "numbers.csv": b"1,2\n3,4\n", "strange.csv": b"a,b\n1,2\n",
    "empty.jsonl": b"", "broken.jsonl": b"{{{{\n{{\n", "list.json": b"[1, 2]", "binary.csv": bytes(range(256)) * 50,
    "deep.jsonl": b'{"a":' * 100_000, "empty.npy": b"", "cut.npy": b"\x93NUMPY\x01\x00v\x00", "text.npz": b"hello",
    "text.pt": b"hello", "text.safetensors": b"hello", "x.tfevents": b"hello there, this is no event file at all",
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_file_gets_one_clear_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    result = call(path)
    assert result.exit_code != 0
    message = str(result.exception)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert isinstance(result.exception, SettingsError), "one exit code for every bad file"
    assert not isinstance(result.exception, KeyError | IndexError | AttributeError)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loss", "cosin"], "did you mean 'cosine'"), (["--output-bn", "no"], "affine, plain, none"),
        (["--column", "loss"], "MEASURE=COLUMN"), (["--column", "los=loss"], "did you mean 'loss'"),
        (["--column", "loss=lss"], "has no column 'lss'"), (["--kind", "xml"], "csv, lightning"),
        (["--set", "optimizer.lr=fast"], "optimizer.lr"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(arguments: list[str], words: str) -> None:
    result = call(CATALOGUE / "logs" / "plain-a.csv", *arguments)
    assert result.exit_code != 0
    assert words in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chance", "1"], "one without the other"), (["--optimum", "0"], "one without the other"),
        (["--chance", "0", "--optimum", "1"], "not below chance"),
        (["--chance", "nan", "--optimum", "0"], "chance: nan is not finite"),
        (["--chance", "1", "--optimum", "-inf"], "optimum: -inf is not finite"),
        (["--chance", "1", "--optimum", "0", "--loss", "cosine"], "of its own"),
    ],
)  # fmt: skip
def test_the_ends_of_a_loss_are_checked(arguments: list[str], words: str) -> None:
    result = call(CATALOGUE / "logs" / "plain-a.csv", *arguments)
    assert isinstance(result.exception, SettingsError)
    assert words in str(result.exception)


@pytest.mark.parametrize("name", ["nothere.csv", "logs/nothere", "logs/nothere.npy"])
def test_a_file_that_is_not_there_is_said_to_be_none(name: str) -> None:
    for arguments in ([name], [CATALOGUE / "logs" / "plain-a.csv", name], ["--kind", "csv", name]):
        result = call(*arguments)
        assert isinstance(result.exception, SettingsError)
        assert name in str(result.exception)
        assert len(str(result.exception).splitlines()) == 1
        assert "no such file" in str(result.exception).lower()


def test_a_folder_of_logs_says_how_they_are_passed(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("loss\n1\n")
    result = call(tmp_path)
    assert isinstance(result.exception, SettingsError)
    assert f"holds no runs, but 2 files (a.csv, b.csv); name the files: diagnose {tmp_path / 'a.csv'} " in str(
        result.exception
    )


def test_options_of_files_are_refused_for_runs(tmp_path: Path) -> None:
    result = call("stop-gradient", "--dim", 64)
    assert "--dim" in str(result.exception)


def test_any_table_of_numbers_gets_a_verdict_or_one_line() -> None:
    """Fuzz: columns of any values, missing and not finite ones among them, in any order of steps."""
    random = np.random.default_rng(0)
    from analysis.frames.foreign_files import Table

    judged = 0
    for _ in range(200):
        n = int(random.integers(1, 60))
        columns = {
            name: random.normal(size=n)
            for name in ("step", "epoch", "loss", "z_std", "rankme", "knn")
            if random.random() < 0.7
        }
        for values in columns.values():
            values[random.random(n) < random.choice([0, 0.3, 1])] = random.choice([np.nan, np.inf])
        if not set(columns) - {"step", "epoch"}:
            continue
        table = Table("any", "csv", list(columns), columns)
        if all(np.isnan(values).all() for name, values in columns.items() if name not in ("step", "epoch")):
            with pytest.raises(SettingsError, match="no number"):
                as_log(table, {})
            continue
        logged = [name for name in set(columns) - {"step", "epoch"} if not np.isnan(columns[name]).all()]
        if all(cannot_be(measure_of(name) or "", columns[name]) for name in logged):
            with pytest.raises(SettingsError, match=r"^any: \w+ is not taken for [^\n]*$"):
                as_log(table, {})
            continue
        log = as_log(table, {})
        assert diagnose_log(log, Given()).diagnosis.verdict in VERDICTS
        judged += 1
    assert judged > 100


def test_the_last_of_a_series_of_embeddings_decides(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for epoch, directions in ((1, 64), (5, 40), (10, 2)):
        z = draws.normal(size=(600, directions)) @ draws.normal(size=(directions, 64))
        np.save(tmp_path / f"z-epoch{epoch}.npy", z)
    files = sorted(map(str, tmp_path.glob("*.npy")))
    (series,) = found(*files, "--series", "--classes", 10)
    (alone,) = found(tmp_path / "z-epoch10.npy", "--classes", 10)
    assert series["verdict"] == alone["verdict"] == "dimensional collapse"
    of_std = [next(text for text in each["evidence"] if "std of z/|z| is" in text) for each in (series, alone)]
    assert of_std[0] == of_std[1]


def test_what_the_scale_of_a_loss_lacks_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss,z_std\n" + "".join(f"{step},{7 - step / 100},0.08\n" for step in range(0, 100, 5)))
    text = " ".join(found(log, "--loss", "info-nce", "--dim", 128, "--batch", 64)[0]["evidence"])
    assert "target.queue_size and loss.temperature are not known" in text
    text = " ".join(found(log, "--loss", "info-nce", "--batch", 64, "--set", "target.queue_size=4096")[0]["evidence"])
    assert "loss.temperature is not known" in text


def test_the_help_names_every_kind_and_ending() -> None:
    text = call("--help").output
    assert all(kind in text for kind in KINDS)
    assert all(ending in text for ending in ENDINGS if ending != ".pth")
