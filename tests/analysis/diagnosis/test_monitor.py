"""The monitor in loops that are none of ours: a plain one, and lightly's SimSiam in Lightning."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from analysis import load_runs, plot_training
from analysis.monitor import CollapseMonitor
from commands.app import app
from simsiam.errors import SettingsError
from simsiam.settings.fields import Settings, flatten
from tests.conftest import ROOT
from tests.run_folders import settings, write_run

EPOCHS, STEPS, BATCH, WIDTH = 20, 10, 64, 32


def train(
    monitor: CollapseMonitor, *, stop: bool, lr: float = 0.1, steps: int = EPOCHS * STEPS
) -> list[dict[str, float]]:
    """A plain loop on Gaussian clusters, without stop-gradient also without BN on z.

    Returns the loss and more of each step, computed without the monitor.
    """
    torch.manual_seed(0)
    centres = torch.randn(10, 24)
    f = nn.Sequential(nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, WIDTH))
    f.append(nn.BatchNorm1d(WIDTH) if stop else nn.Identity())
    h = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, WIDTH))
    optimizer = torch.optim.SGD([*f.parameters(), *h.parameters()], lr=lr, momentum=0.9)
    seen = []
    for _ in range(steps):
        x = centres[torch.randint(10, (BATCH,))] + 0.5 * torch.randn(BATCH, 24)
        z1, z2 = (f(x + 0.3 * torch.randn_like(x)) for _ in range(2))
        p1, p2 = h(z1), h(z2)
        t1, t2 = (z1.detach(), z2.detach()) if stop else (z1, z2)
        loss = -(F.cosine_similarity(p1, t2).mean() + F.cosine_similarity(p2, t1).mean()) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.update(z1, z2, p1, loss)
        unit = [(z / z.norm(dim=1, keepdim=True)).detach() for z in (z1, z2)]
        std = sum(one.var(0, correction=0).sqrt().mean().item() for one in unit) / 2
        seen.append({"loss": loss.item(), "z_std": std, "positive_cosine": (unit[0] * unit[1]).sum(1).mean().item()})
    return seen


def a_monitor(folder: Path | None = None, **options: Any) -> CollapseMonitor:
    given: dict[str, Any] = {"total_steps": EPOCHS * STEPS, "steps_per_epoch": STEPS, "every": 10, **options}
    return CollapseMonitor(folder, **given)


@pytest.mark.parametrize(("stop", "lr", "verdict"), [(True, 0.1, "healthy"), (False, 0.5, "complete collapse")])
def test_a_plain_loop_gets_its_verdict_and_curves(stop: bool, lr: float, verdict: str, tmp_path: Path) -> None:
    monitor = a_monitor(tmp_path / "mine", classes=10, settings={"target.stop_gradient": stop})
    seen = train(monitor, stop=stop, lr=lr)
    found = monitor.close()
    assert found.verdict == verdict
    assert [cause.setting for cause in found.causes] == ([] if stop else ["target.stop_gradient = false"])
    points, runs = load_runs(tmp_path)
    assert points["step"].tolist() == [1, *range(10, EPOCHS * STEPS + 1, 10)]
    for _, point in points.iterrows():
        for name, value in seen[int(point["step"]) - 1].items():
            assert point[name] == pytest.approx(value, abs=1e-5)
    (run,) = runs.to_dict("records")
    assert (run["state"], run["note"]) == ("done", "")
    assert run["batch_size"] == BATCH
    assert run["projector.output_dim"] == WIDTH
    assert math.isnan(run["optimizer.lr"])  # not given, and no default of ours
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path / "mine"), "--json"])
    assert json.loads(result.output)[0]["verdict"] == verdict


def test_compare_reads_two_of_them(tmp_path: Path) -> None:
    for stop in (True, False):
        with a_monitor(tmp_path / str(stop), settings={"target.stop_gradient": stop}) as monitor:
            train(monitor, stop=stop)
    folders = [str(tmp_path / name) for name in ("True", "False")]
    result = CliRunner().invoke(app, ["compare", *folders, "--out", str(tmp_path / "figure")])
    assert result.exit_code == 0
    assert "target.stop_gradient" in result.output
    assert "optimizer.lr" not in result.output


def test_compare_claims_nothing_of_what_is_not_recorded(tmp_path: Path) -> None:
    """Of a run of another program little is known: neither that it is the same, nor that it differs."""
    for name in ("one", "two"):
        with a_monitor(tmp_path / name) as monitor:
            train(monitor, stop=True)
    own = write_run(tmp_path / "own", settings(projector__bn_output_affine=False), 0)

    def compare(*folders: Path) -> str:
        result = CliRunner().invoke(app, ["compare", *map(str, folders), "--out", str(tmp_path / "figure")])
        assert result.exit_code == 0
        return " ".join(result.output.split())

    alike = compare(tmp_path / "one", tmp_path / "two")
    assert "The 2 runs have the same settings, as far as they are recorded." in alike
    mixed = compare(tmp_path / "one", own)
    table = pd.read_csv(tmp_path / "figure.csv", dtype=str)
    assert sorted(table["projector.bn_output_affine"]) == ["false", "true"]
    assert "optimizer.lr" not in table
    assert "optimizer.lr" not in mixed
    left_out = re.search(r"Left out: (\d+) settings, recorded of some of the runs only", mixed)
    assert left_out
    assert int(left_out[1]) == len(flatten(Settings())) - 6  # what the monitor knows


def test_a_panel_of_what_an_ended_run_did_not_log_says_so(tmp_path: Path) -> None:
    with a_monitor(tmp_path / "one") as monitor:
        train(monitor, stop=True)
    points, runs = load_runs(tmp_path)
    texts = {text.get_text() for ax in plot_training(points, runs).axes for text in ax.texts}
    assert "not logged" in texts
    running = plot_training(points, runs.assign(state="running"))
    assert "no data yet" in {text.get_text() for ax in running.axes for text in ax.texts}


def test_nothing_waits_for_the_device_between_logged_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = a_monitor(every=50)
    z, waits = torch.randn(8, 4), []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, real=real, **k: (waits.append(monitor.step), real(*a, **k))[1]
        )
    for _ in range(120):
        monitor.update(z, z, z, torch.tensor(0.5))
    assert set(waits) == {1, 50, 100}


def test_it_keeps_no_graph_alive() -> None:
    monitor = a_monitor(every=50)
    z = torch.randn(8, 4, requires_grad=True)
    for _ in range(3):
        monitor.update(z * 2, z * 2, None, (z * 2).sum())
    assert not any(loss.requires_grad for loss in monitor._losses if isinstance(loss, torch.Tensor))


@pytest.mark.parametrize(("bad", "verdict"), [(range(95, 201), "divergence"), ((40, 95, 96), "healthy")])
def test_nan_to_the_end_diverged_and_nan_that_comes_back_did_not(bad: Any, verdict: str, tmp_path: Path) -> None:
    monitor = a_monitor(tmp_path / "mine")
    for step in range(1, 201):
        z = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
        monitor.update(z, z, None, math.nan if step in bad else -0.9 * (1 - 0.9**step))
    assert monitor.verdict().verdict == verdict
    assert monitor.close().verdict == verdict
    points, _ = load_runs(tmp_path)
    assert points.loc[points["diverged"], "step"].tolist() == ([95] if verdict == "divergence" else [])


def test_early_on_it_says_so_and_in_the_middle_it_knows_how_far() -> None:
    monitor = a_monitor(total_steps=100_000)
    train(monitor, stop=True)
    assert monitor.verdict().verdict == "too early to say"
    assert "healthy" not in str(monitor.verdict())


def test_a_loop_that_is_measured_too_seldom_is_told_so() -> None:
    monitor = a_monitor(every=50)
    train(monitor, stop=True)
    assert monitor.verdict().verdict == "too early to say"
    assert "5 losses are logged, 8 are needed: log more often (every=50 now)." in monitor.verdict().evidence


def test_a_training_goes_on_where_it_was_and_nothing_is_overwritten(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with a_monitor(whole) as monitor:
        train(monitor, stop=True)
    train(a_monitor(parts), stop=True, steps=130)  # killed here; its checkpoint is of step 100
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        a_monitor(parts)
    again = a_monitor(parts, first_step=100)
    for _ in range(100):
        again.update(torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), None, -0.5)
    again.close()
    points, runs = load_runs(tmp_path)
    steps = {run: of["step"].tolist() for run, of in points.groupby("run")}
    assert steps["parts"] == [step for step in steps["whole"] if step <= 100] + [101, *range(110, 201, 10)]
    assert runs["note"].tolist() == ["", ""]


def test_what_a_killed_process_had_logged_is_there(tmp_path: Path) -> None:
    code = """
import sys, time, torch
from analysis.monitor import CollapseMonitor
monitor = CollapseMonitor(sys.argv[1], total_steps=1000, every=10)
for step in range(95):
    monitor.update(torch.randn(32, 8), torch.randn(32, 8), None, -0.1)
print("there", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "mine"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    points, runs = load_runs(tmp_path)
    assert points["step"].max() == 90
    assert runs["state"].tolist() == ["running"]


def test_it_loads_neither_pandas_nor_what_draws() -> None:
    code = "import sys, analysis.monitor; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"pandas", "scipy", "matplotlib", "seaborn", "torchvision", "timm", "typer"}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"total_steps": 0}, "total_steps: 0"), ({"every": 2.5}, "every: 2.5"), ({"output_bn": "yes"}, "affine, plain")],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        a_monitor(**options)


def test_shapes_are_checked_where_they_are_used() -> None:
    with pytest.raises(SettingsError, match="z2 of"):
        a_monitor().update(torch.zeros(4, 3), torch.zeros(4, 2), None, 0.0)


# --- lightly's SimSiam, in Lightning -----------------------------------------------------------------------------


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("lightly", "pytorch_lightning"))), reason="lightly is not installed"
)
@pytest.mark.parametrize("stop", [True, False])
def test_lightlys_simsiam_in_lightning(stop: bool, tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from torch.utils.data import DataLoader, TensorDataset

    from analysis.lightning_callback import MonitorCallback

    class SimSiam(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(
                nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), SimSiamProjectionHead(64, 64, WIDTH)
            )
            if not stop:
                self.f[-1].layers[-1] = nn.Identity()
            self.h, self.criterion = SimSiamPredictionHead(WIDTH, 8, WIDTH), NegativeCosineSimilarity()

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
            (x,) = batch
            z1, z2 = (self.f(x + 0.3 * torch.randn_like(x)) for _ in range(2))
            p1, p2 = self.h(z1), self.h(z2)
            t1, t2 = (z1.detach(), z2.detach()) if stop else (z1, z2)
            loss = 0.5 * (self.criterion(p1, t2) + self.criterion(p2, t1))
            return {"loss": loss, "z1": z1, "z2": z2, "p1": p1}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1 if stop else 0.5, momentum=0.9)

    pl.seed_everything(0, verbose=False)
    x = torch.randn(10, 24)[torch.randint(10, (640,))] + 0.5 * torch.randn(640, 24)
    callback = MonitorCallback(tmp_path / "theirs", every=10, output_bn="plain" if stop else "none", classes=10)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(SimSiam(), DataLoader(TensorDataset(x), batch_size=64, shuffle=True, drop_last=True))
    assert callback.verdict is not None
    assert callback.verdict.verdict == ("healthy" if stop else "complete collapse")
    points, _ = load_runs(tmp_path)
    assert points["epoch"].max() == EPOCHS


def test_time_is_not_measured_in_here() -> None:
    """The cost is: python -m benchmarks.monitor. Here only that a step without a measurement is nothing to speak of."""
    monitor = a_monitor(every=10_000, total_steps=10**6)
    z, loss = torch.zeros(64, 512), torch.tensor(0.1)
    monitor.update(z, z, z, loss)
    started = time.process_time()
    for _ in range(1000):
        monitor.update(z, z, z, loss)
    assert (time.process_time() - started) / 1000 < 1e-4
