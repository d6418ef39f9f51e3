"""`evaluate` and `export`, as a user calls them: on runs that have ended, which are never trained anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from experiments.local.pool import ENVIRONMENT
from experiments.runs.folder import Heartbeats, RunFolder
from experiments.studies.study import load_scale
from experiments.weights.exchange import export_backbone, import_checkpoint
from experiments.weights.load import load_model, settings_of
from simsiam.data.sets import load
from simsiam.evaluation.linear import PROTOCOLS, evaluate_linear
from simsiam.model.siamese import Siamese
from simsiam.record import checkpoint
from simsiam.settings.checks import validate
from tests.conftest import ROOT, SMALL, Command
from tests.simsiam.model.test_interchange import Release

SMOKE = ["stop-gradient", "--scale", "smoke", "--set", "epochs=1", "--set", "data.num_train=256"]


def test_evaluating_never_retrains(command: Command, tmp_path: Path) -> None:
    assert command("run", *SMOKE).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    first = command("evaluate", *SMOKE, "--json")
    assert first.returncode == 0, first.stderr
    results = json.loads(first.stdout)["runs"]
    assert len(results) == 2
    for run_id, result in results.items():
        assert 0 <= result["top1"] <= result["top5"] <= 100
        assert json.loads((tmp_path / "runs" / run_id / "linear-features.json").read_text()) == result
    assert {path: path.read_bytes() for path in before} == before, "nothing else of a run is touched"
    again = command("evaluate", *SMOKE, "--json")
    assert json.loads(again.stdout)["runs"] == results, "with its seconds: it was read, not computed anew"
    assert "linear-features.json" in command("evaluate", *SMOKE).stdout


def test_ranks_evaluate_together(command: Command, tmp_path: Path) -> None:
    assert command("run", *SMOKE).returncode == 0
    runs = json.loads(command("evaluate", *SMOKE, "--json").stdout)["runs"]
    for result in tmp_path.glob("runs/*/linear-features.json"):
        result.unlink()
    done = command("evaluate", *SMOKE, "--ranks", "2", "--json")
    assert done.returncode == 0, done.stderr
    for run_id, result in json.loads(done.stdout)["runs"].items():
        assert result["ranks"] == 2
        assert result["train_loss"] == pytest.approx(runs[run_id]["train_loss"], rel=1e-3)
        assert result["top1"] == pytest.approx(runs[run_id]["top1"], abs=1)
    for result in tmp_path.glob("runs/*/linear-features.json"):
        result.unlink()
    refused = command("evaluate", *SMOKE, "--ranks", "3", "--protocol", "sgd")
    assert refused.returncode == 2
    assert [line for line in refused.stderr.splitlines() if not line.startswith("[Gloo]")] == [
        "error: batch_size: 256 must be a multiple of the 3 ranks, which share it equally  [--ranks]"
    ]


def test_ranks_evaluate_a_run_with_a_loss_of_ones_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def flipped(p, z):\n    return -(p * z.detach()).sum(1).mean()\n")
    (tmp_path / "own.yaml").write_text("title: Own\nsettings: {loss.name: 'mine:flipped'}\nvariants: {a: {}}\n")
    chosen = ["own.yaml", *SMOKE[1:]]
    assert command("run", *chosen).returncode == 0
    (tmp_path / "mine.py").unlink()  # the copy beside the runs is what counts
    for result in tmp_path.glob("runs/*/linear-features.json"):
        result.unlink()
    (run,) = tmp_path.glob("runs/*-s0")
    done = command("evaluate", str(run), "--ranks", "2", "--json", "--protocol", "features")
    assert done.returncode == 0, done.stderr
    assert "ranks" in done.stdout


def test_unknown_protocol_and_nothing_to_evaluate(command: Command, tmp_path: Path) -> None:
    done = command("evaluate", *SMOKE, "--protocol", "featurs")
    assert done.returncode == 2
    assert "did you mean 'features'" in done.stderr
    nothing = command("evaluate", *SMOKE)
    assert nothing.returncode == 1
    assert "nothing was evaluated" in nothing.stderr


def run_folder(runs: Path, name: str) -> tuple[Path, Siamese]:
    settings = validate({**SMALL, "backbone.name": name, "backbone.width": 16})
    attempt = RunFolder(runs, "run-s0").claim(settings, Heartbeats(), retry_failed=False)
    assert attempt is not None
    model = Siamese(settings, 3)
    checkpoint.save(attempt.folder.path, {"model": model.state_dict(), "step": 1}, 1)
    return attempt.folder.path, model


def test_an_exported_backbone_gives_the_same_features_in_torchvision(tmp_path: Path) -> None:
    folder, model = run_folder(tmp_path, "resnet18")
    export_backbone(folder, tmp_path / "backbone.pt", "torchvision")
    network = torchvision.models.resnet18()
    missing = network.load_state_dict(torch.load(tmp_path / "backbone.pt", weights_only=True), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(x), model.backbone.eval()(x), rtol=0, atol=0)
    reloaded = load_model(folder, model.settings, 3, 0)
    assert torch.equal(reloaded.projector[0].weight, model.projector[0].weight)


@pytest.mark.parametrize("form", ["torchvision", "detectron2"])
def test_export_refuses_what_it_cannot_do(command: Command, tmp_path: Path, form: str) -> None:
    folder, _ = run_folder(tmp_path, "small")
    done = command("export", str(folder), "out", "--format", form)
    assert done.returncode == 2
    assert "backbone.name" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "mine").write_text("mine")
    assert command("export", str(folder), "mine").returncode == 1
    assert (tmp_path / "mine").read_text() == "mine"
    assert command("export", str(tmp_path), "out").returncode == 1
    assert command("export", str(folder), "out", "--format", "onnx").returncode == 2


def test_the_authors_weights_are_imported_evaluated_and_exported(command: Command, tmp_path: Path) -> None:
    release = Release("resnet18", dim=32, hidden_dim=8).eval()
    torch.save(release.checkpoint(), tmp_path / "checkpoint_0099.pth.tar")
    done = command("import", "checkpoint_0099.pth.tar", "theirs", "--scale", "smoke", "--set", "data.num_train=256")
    assert done.returncode == 0, done.stderr
    evaluated = command("evaluate", "theirs", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)["runs"]["theirs"]
    assert result == json.loads((tmp_path / "theirs" / "linear-features.json").read_text())
    assert command("export", "theirs", "backbone.pt").returncode == 0
    weights = torch.load(tmp_path / "backbone.pt", weights_only=True)
    theirs = release.encoder.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in theirs.items() if not name.startswith("fc."))


@pytest.mark.parametrize(("scale", "data"), [("cifar", "synthetic"), ("smoke", "synthetic")])
def test_imported_weights_are_evaluated_as_they_were_trained(tmp_path: Path, scale: str, data: str) -> None:
    """In float32, on images normalised by ImageNet's statistics, as the release's main_lincls.py does it."""
    release = Release("resnet18", dim=32, hidden_dim=8).eval()
    torch.save(release.checkpoint(), tmp_path / "theirs.pt")
    of_data = [f"data.name={data}", "data.image_size=32"]
    settings = import_checkpoint(tmp_path / "theirs.pt", tmp_path / "run", load_scale(scale), of_data)
    assert settings == settings_of(tmp_path / "run")
    seen: list[torch.Tensor] = []

    class Watched(torch.nn.Module):
        def __init__(self, backbone: torch.nn.Module) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.backbone(x)
            if not seen:
                seen.extend((x, features))
            return features

    dataset = load(settings.data.model_copy(update={"num_train": 64}), tmp_path)
    model = load_model(tmp_path / "run", settings, 3, 64)
    evaluate_linear(Watched(model.backbone), settings, dataset, PROTOCOLS["features"], device=torch.device("cpu"))
    raw = torch.from_numpy(dataset.test.images[: len(seen[0])].copy())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = torchvision.transforms.v2.functional.normalize(raw.float() / 255, mean, std)
    torch.testing.assert_close(seen[0], expected)
    assert seen[1].dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(seen[1], release.features(expected), rtol=1e-4, atol=1e-5)


def test_import_refuses_what_it_cannot_do(command: Command, tmp_path: Path) -> None:
    torch.save(Release("resnet18", dim=32, hidden_dim=8).checkpoint(), tmp_path / "theirs.pt")
    torch.save({"state_dict": {}}, tmp_path / "empty.pt")
    done = command("import", "theirs.pt", "out", "--scale", "smoke", "--set", "projector.output_dim=64")
    assert done.returncode == 2
    assert "projector.output_dim: is 32 in the checkpoint" in done.stderr
    assert command("import", "empty.pt", "out", "--scale", "smoke").returncode == 2
    assert command("import", "nowhere.pt", "out", "--scale", "smoke").returncode == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    assert "nothing is overwritten" in command("import", "theirs.pt", "mine", "--scale", "smoke").stderr
    refused = command("evaluate", "mine", "--scale", "smoke")
    assert refused.returncode == 2
    assert "neither a study" in refused.stderr


ASKED = """
import os, sys
class Look:
    def find_spec(self, name, *rest):
        if name == "torch":
            print("torch finds", os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"])
sys.meta_path.insert(0, Look())
sys.argv = ["run_ablation.py", "evaluate", "stop-gradient", "--scale", "smoke", "--device", "{device}"]
from commands.app import main
main()
"""


@pytest.mark.parametrize(("chosen", "found"), [({}, ("0", "2000")), ({"GOMP_SPINCOUNT": "7"}, ("7",))])
def test_torch_finds_how_to_wait_when_evaluate_loads_it(
    tmp_path: Path, chosen: dict[str, str], found: tuple[str, ...]
) -> None:
    """OpenMP reads it once. Without it the threads of `evaluate` spin for milliseconds, on cores that others use."""
    environment = {name: value for name, value in os.environ.items() if name not in {*ENVIRONMENT, "GOMP_SPINCOUNT"}}
    for device in ("cpu", "auto"):
        done = subprocess.run(
            [sys.executable, "-c", ASKED.replace("{device}", device)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**environment, **chosen, "PYTHONPATH": str(ROOT)},
        )
        *words, count = done.stdout.splitlines()[0].split()
        assert words == ["torch", "finds", "PASSIVE"], done.stderr
        assert count in found, "it depends on who else uses the cores, unless the user has said it"
