"""The paper's methods and studies: their numbers, and every variant trained for a few steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from experiments.plan import make_plan
from experiments.studies.methods import load_method, method_titles, table
from experiments.studies.study import SCALES, Cell, load_scale, load_study, make_cells, study_names
from simsiam.data.dataset import Dataset
from simsiam.data.sets import load
from simsiam.errors import SettingsError
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, dotted_paths, flatten
from simsiam.settings.identity import config_id
from simsiam.training.loop import Hooks, Training, train
from tests.conftest import ROOT, SMALL

CPU = torch.device("cpu")

# --- the paper's numbers -------------------------------------------------------------------------------------------

# Typed from the paper, not from the study files: top-1, or the word that stands in its place.
PAPER: dict[str, dict[str, float | str]] = {
    "stop-gradient": {"with stop-gradient": 67.7, "without stop-gradient": 0.1},
    "predictor": {
        "baseline, rate decayed": 67.7,
        "no predictor": 0.1,
        "fixed random initialisation": 1.5,
        "rate not decayed": 68.1,
    },
    "batch-size": {"1/8x": 66.1, "1/4x": 67.3, "1/2x": 68.1, "1x": 68.1, "2x": 68.0, "4x": 67.9, "8x": 64.0},
    "batch-norm": {"none": 34.6, "hidden only": 67.4, "default": 68.1, "all": "unstable"},
    "output-bn-affine": {"with scale and shift": 68.1, "without": 68.2},
    "similarity": {"cosine": 68.1, "cross-entropy": 63.2},
    "symmetrisation": {"symmetric": 68.1, "asymmetric": 64.8, "asymmetric 2x": 67.3},
    "multi-step": {"1 step": 68.1, "10 steps": 68.7, "100 steps": 68.9, "1 epoch": 67.0},
    "expectation": {
        "predictor": 68.1,
        "no predictor, moving average": 55.0,
        "no predictor, no moving average": 0.1,
    },
    "output-dimension": {"1/8x": 65.3, "1/4x": 67.2, "1/2x": 67.5, "1x": 68.1},
    "bottleneck": {"bottleneck (d/4)": 68.1, "no bottleneck (d)": "less stable, or fails"},
    "asymmetric-no-predictor": {
        "symmetric": 68.1,
        "asymmetric": 64.8,
        "symmetric, no predictor": 0.1,
        "asymmetric, no predictor": "fails",
    },
    "initialisation": {"PyTorch's default": 68.1, "std 0.01": "may not converge"},
    "predictor-rate": {"rate 1x": "no number", "rate 10x": 66.9},
    "comparison": {
        f"{method}, {factor}x": top1
        for method, row in {
            "SimCLR": (66.5, 68.3, 69.8, 70.4),
            "MoCo v2": (67.4, 69.9, 71.0, 72.2),
            "BYOL": (66.5, 70.6, 73.2, 74.3),
            "SwAV": (66.5, 69.1, 70.7, 71.8),
            "SimSiam": (68.1, 70.0, 70.8, 71.3),
        }.items()
        for factor, top1 in zip((1, 2, 4, 8), row, strict=True)
    },
    "siblings-projector-depth": {
        "SimCLR, 2 layers": 66.6,
        "SimCLR, 3 layers": 68.3,
        "SwAV, 2 layers": 70.1,
        "SwAV, 3 layers": 70.7,
    },
    "moco-symmetry": {"asymmetric": 67.5, "symmetric": 69.9},
    "transfer-recipe": {  # AP50 / AP / AP75 on VOC 07, VOC 07+12, COCO detection, COCO masks
        "SimCLR": "75.9 / 46.8 / 50.1 | 81.8 / 55.5 / 61.4 | 57.7 / 37.9 / 40.9 | 54.6 / 33.3 / 35.3",
        "MoCo v2": "77.1 / 48.5 / 52.5 | 82.3 / 57.0 / 63.3 | 58.8 / 39.2 / 42.5 | 55.5 / 34.3 / 36.6",
        "BYOL": "77.1 / 47.0 / 49.9 | 81.4 / 55.3 / 61.1 | 57.8 / 37.9 / 40.9 | 54.3 / 33.2 / 35.0",
        "SwAV": "75.5 / 46.5 / 49.6 | 81.5 / 55.4 / 61.4 | 57.6 / 37.6 / 40.3 | 54.2 / 33.1 / 35.1",
        "SimSiam, base": "75.5 / 47.0 / 50.2 | 82.0 / 56.4 / 62.8 | 57.5 / 37.9 / 40.9 | 54.2 / 33.2 / 35.2",
        "SimSiam, optimal": "77.3 / 48.5 / 52.5 | 82.4 / 57.0 / 63.7 | 59.3 / 39.2 / 42.1 | 56.0 / 34.4 / 36.7",
    },
    "simclr-parts": {"SimCLR": 66.5, "with predictor": 66.4, "with predictor and stop-gradient": 66.0},
    "swav-parts": {"SwAV": 66.5, "with predictor": 65.2, "without stop-gradient": "NaN"},
    "cifar10": {"SimSiam": 91.8, "SimCLR": 91.1},
}
# What a number belongs to, where that is not 100 epochs of ImageNet.
LENGTHS = {
    ("predictor-rate", "rate 10x"): "300 epochs",
    ("cifar10", "SimSiam"): "800 epochs",
    ("cifar10", "SimCLR"): "800 epochs",
    ("moco-symmetry", "asymmetric"): "200 epochs",
    ("moco-symmetry", "symmetric"): "200 epochs",
    ("siblings-projector-depth", "SimCLR, 2 layers"): "200 epochs",
    ("siblings-projector-depth", "SimCLR, 3 layers"): "200 epochs",
    ("siblings-projector-depth", "SwAV, 2 layers"): "400 epochs",
    ("siblings-projector-depth", "SwAV, 3 layers"): "400 epochs",
}


def cells(study: str, scale: str) -> dict[str, Cell]:
    return {cell.variant: cell for cell in make_cells(load_study(study), load_scale(scale), [0])}


def test_there_is_a_study_for_each_row_of_the_paper() -> None:
    assert set(study_names()) == {*PAPER, "small-models"}  # which is of a later paper


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_paper_s_numbers(name: str) -> None:
    found = {variant.name: variant.paper for variant in load_study(name).variants}
    assert list(found) == list(PAPER[name])
    for variant, expected in PAPER[name].items():
        if isinstance(expected, str):
            assert found[variant].top1 is None
            assert expected in found[variant].note
        else:
            assert found[variant].top1 == expected
        assert LENGTHS.get((name, variant), "") in found[variant].note


@pytest.mark.parametrize("name", study_names())
def test_every_study_has_as_many_seeds_at_cpu_scale_as_its_first_look_asks_for(name: str) -> None:
    study = load_study(name)
    assert study.num_seeds("cpu") == study.design.looks[0] == 3


# --- the settings behind the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_the_baseline_is_one_run(scale: str, tmp_path: Path) -> None:
    """The paper's default is in many studies; it is trained once. Fig. 2's baseline is Table 1's."""
    shared = {
        "predictor": "rate not decayed",
        "batch-size": "1x",
        "batch-norm": "default",
        "output-bn-affine": "with scale and shift",
        "similarity": "cosine",
        "symmetrisation": "symmetric",
        "multi-step": "1 step",
        "expectation": "predictor",
        "output-dimension": "1x",
        "bottleneck": "bottleneck (d/4)",
        "asymmetric-no-predictor": "symmetric",
        "initialisation": "PyTorch's default",
        "cifar10": "SimSiam",
    }
    if scale != "imagenet":  # where Table 4's batch is 256
        shared["comparison"] = "SimSiam, 1x"

    @cache
    def runs(study: str) -> dict[str, str]:
        plan = make_plan(load_study(study), load_scale(scale), [0], [], tmp_path, tmp_path)
        return {planned.cell.variant: planned.run_id for planned in plan.cells}

    def run(study: str, variant: str) -> str:
        return runs(study)[variant]

    assert len({run(study, variant) for study, variant in shared.items()}) == 1
    for one, other in (
        (("stop-gradient", "with stop-gradient"), ("predictor", "baseline, rate decayed")),
        (("predictor", "no predictor"), ("expectation", "no predictor, no moving average")),
        (("predictor", "no predictor"), ("asymmetric-no-predictor", "symmetric, no predictor")),
        (("symmetrisation", "asymmetric"), ("asymmetric-no-predictor", "asymmetric")),
        (("simclr-parts", "SimCLR"), ("comparison", "SimCLR, 1x")),
        (("swav-parts", "SwAV"), ("comparison", "SwAV, 1x")),
        (("transfer-recipe", "BYOL"), ("comparison", "BYOL, 2x")),
        (("transfer-recipe", "SimSiam, base"), ("comparison", "SimSiam, 2x")),
    ):
        assert run(*one) == run(*other), (one, other)


def test_tables_2_and_b_at_the_paper_s_scale() -> None:
    batches = [cell.settings for cell in cells("batch-size", "imagenet").values()]
    assert [s.batch_size for s in batches] == [64, 128, 256, 512, 1024, 2048, 4096]
    assert [s.optimizer.warmup_epochs for s in batches] == [0, 0, 0, 0, 10, 10, 10]
    assert {(s.optimizer.name, s.optimizer.lr) for s in batches} == {("sgd", 0.05)}
    widths = [cell.settings for cell in cells("output-dimension", "imagenet").values()]
    assert [s.projector.output_dim for s in widths] == [256, 512, 1024, 2048]
    assert all(s.predictor.hidden_dim * 4 == s.projector.output_dim for s in widths)
    assert {s.projector.hidden_dim for s in widths} == {2048}


def test_table_4_s_recipes() -> None:
    """Footnote 6 for BYOL; each length has a cosine of its own."""
    table_4 = {name: cell.settings for name, cell in cells("comparison", "imagenet").items()}
    for method, batch in {"SimCLR": 4096, "MoCo v2": 256, "BYOL": 4096, "SwAV": 4096, "SimSiam": 256}.items():
        of_method = [table_4[f"{method}, {factor}x"] for factor in (1, 2, 4, 8)]
        assert [s.epochs for s in of_method] == [100, 200, 400, 800]
        assert {s.batch_size for s in of_method} == {batch}
        assert {s.optimizer.name for s in of_method} == {"lars" if batch == 4096 else "sgd"}
        assert {s.optimizer.warmup_epochs for s in of_method} == {10 if batch == 4096 else 0}
    byol = [table_4[f"BYOL, {factor}x"] for factor in (1, 2, 4, 8)]
    assert [s.optimizer.lr for s in byol] == [0.45, 0.3, 0.3, 0.2]
    assert [s.optimizer.weight_decay for s in byol] == [1e-6, 1e-6, 1e-6, 1.5e-6]
    assert [s.target.momentum for s in byol] == [0.99, 0.99, 0.99, 0.996]
    assert (byol[0].augment.blur_probability, byol[0].second_view.blur_probability) == (1.0, 0.1)
    assert (byol[0].augment.solarise_probability, byol[0].second_view.solarise_probability) == (0.0, 0.2)
    assert table_4["SimCLR, 1x"].augment.crop_scale == (0.08, 1.0)
    moco = {name: cell.settings.loss for name, cell in cells("moco-symmetry", "imagenet").items()}
    assert (moco["asymmetric"].weight, moco["symmetric"].weight) == (1, 2)  # one direction, and the sum of two
    optimal = cells("transfer-recipe", "imagenet")["SimSiam, optimal"].settings
    assert (optimal.optimizer.lr, optimal.optimizer.weight_decay, optimal.epochs) == (0.5, 1e-5, 200)


@pytest.mark.parametrize(
    "name", ["predictor", "batch-norm", "symmetrisation", "similarity", "multi-step", "expectation"]
)
@pytest.mark.parametrize("scale", SCALES)
def test_variants_differ_in_what_they_name_alone(name: str, scale: str) -> None:
    allowed = {
        "predictor": {"predictor.kind", "predictor.lr_schedule"},
        "batch-norm": {
            *("projector.bn_hidden", "projector.bn_output", "predictor.bn_hidden", "predictor.bn_output"),
            "optimizer.warmup_epochs",
        },
        "symmetrisation": {"loss.symmetry"},
        "similarity": {"loss.name"},
        "multi-step": {"target.cache_steps", "target.cache_epoch"},
        "expectation": {"predictor.kind", "target.image_average"},
    }
    flat = [flatten(cell.settings) for cell in cells(name, scale).values()]
    assert {path for path in dotted_paths() if len({one[path] for one in flat}) > 1} == allowed[name]


# --- the methods ---------------------------------------------------------------------------------------------------

# The sibling table of the paper (Fig. 3, Sec. 6.2, App. C), typed from it: predictor, stop-gradient, target's encoder,
# target's transform, loss, temperature, momentum and queue at the paper's scale, projector's depth.
SIBLINGS: dict[str, tuple[Any, ...]] = {
    "simsiam": ("mlp", True, "shared", "none", "cosine", None, None, 0, 3),
    "byol": ("mlp", True, "momentum", "none", "cosine", None, 0.99, 0, 2),
    "simclr": ("none", False, "shared", "none", "nt-xent", 0.1, None, 0, 3),
    "swav": ("none", True, "shared", "sinkhorn", "swapped-prediction", 0.1, None, 0, 3),
    "moco-v2": ("none", True, "momentum", "none", "info-nce", 0.2, 0.999, 65536, 2),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", method_titles())
def test_the_methods_are_the_paper_s_points(name: str, scale: str) -> None:
    s = load_method(name, scale)
    *switches, temperature, momentum, queue, depth = SIBLINGS[name]
    assert [s.predictor.kind, s.target.stop_gradient, s.target.encoder, s.target.transform, s.loss.name] == switches
    assert s.loss.symmetry == "symmetric"
    assert temperature in (None, s.loss.temperature)
    assert bool(s.target.queue_size) == bool(queue)
    if name != "simsiam":  # whose depth is the scale's
        assert s.projector.num_layers == depth
    if scale == "imagenet":
        assert momentum in (None, s.target.momentum)
        assert (s.target.queue_size, s.projector.num_layers) == (queue, depth)
    else:
        assert s.target.queue_size <= min(4096, load_scale(scale).num_train // 10)
        assert s.target.num_prototypes <= s.batch_size // 2
        assert s.optimizer == load_method("simsiam", scale).optimizer
        assert (s.augment, s.second_view) == (load_method("simsiam", scale).augment, Settings().second_view)
    # The originals' code: SimCLR and BYOL start each residual block as the identity, MoCo and SwAV do not. BYOL sums
    # two terms 2 - 2 cos, SimCLR and MoCo (its CIFAR notebook) two directions; SwAV averages, as we do.
    assert s.initialisation.zero_last_bn == (name not in ("moco-v2", "swav"))
    assert s.loss.weight == ({"byol": 4, "simclr": 2, "moco-v2": 2}.get(name, 1) if scale == "imagenet" else 1)
    if name == "byol":
        assert (s.target.momentum_schedule, s.target.momentum_update) == ("cosine", "after-step")
    if name == "moco-v2":
        assert (s.target.momentum_schedule, s.target.momentum_update) == ("constant", "before-forward")
        assert s.batch_norm.groups == 8
    if name == "swav":
        assert (s.target.sinkhorn_iterations, s.target.sinkhorn_epsilon) == (3, 0.05)
    assert s.batch_norm.one_forward == (name in ("simclr", "swav"))


def test_simsiam_s_file_says_what_the_defaults_are() -> None:
    assert load_method("simsiam", "imagenet") == validate(
        {
            "batch_size": 256,
            "precision": "bfloat16",
            "evaluation.every_epochs": 5,
            "evaluation.bank_size": 100_000,
            "evaluation.linear": False,
        }
    )


@pytest.mark.parametrize("scale", SCALES)
def test_the_release_is_simsiam_but_for_what_its_file_names(scale: str) -> None:
    paper, release = (flatten(load_method(name, scale)) for name in ("simsiam", "simsiam-release"))
    named = {"precision", "data.normalisation", "projector.bn_output_affine", "optimizer.schedule_by", "batch_size"}
    differ = {path for path in paper if paper[path] != release[path]}
    assert differ - {"projector.num_layers", "projector.hidden_dim"} <= named
    assert {"projector.bn_output_affine", "optimizer.schedule_by"} <= differ
    assert release["precision"] == "float32"


def test_the_documented_table_is_made_from_the_files() -> None:
    written = (ROOT / "docs" / "methods.md").read_text()
    rows = "".join(line for line in written.splitlines(keepends=True) if line.startswith("|"))
    assert rows == table(), (
        "docs/methods.md is not up to date: put the output of experiments.studies.methods.table() there"
    )


# --- the matrix: every variant of every study, for real ------------------------------------------------------------


@cache
def dataset(settings: Any) -> Dataset:
    return load(settings, Path("unused"))


def matrix() -> list[Any]:
    """Each configuration at smoke scale, once, named after the first study that has it."""
    found: dict[str, Any] = {}
    for name in sorted(PAPER):
        for variant, cell in cells(name, "smoke").items():
            identity = config_id(cell.settings, "")
            found.setdefault(identity, pytest.param(cell.settings, PAPER[name][variant], id=f"{name}: {variant}"))
    return list(found.values())


@pytest.mark.parametrize(("settings", "paper"), matrix())
def test_every_variant_of_every_study_trains(settings: Settings, paper: float | str, tmp_path: Path) -> None:
    training = Training(settings, dataset(settings.data), tmp_path, 1, CPU, Hooks())
    model = training.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimised = {id(weight) for group in training.optimizer.param_groups for weight in group["params"]}
    batches = training.batches_from(0, 3)
    outputs = [training.update(next(batches)) for _ in range(3)]
    training.metrics.close()

    assert paper == "NaN" or all(output.loss.isfinite() for output in outputs)
    target = settings.target
    for output in outputs:  # a gradient into the target where the variant says so, and nowhere else
        assert (output.t1.requires_grad, output.t2.requires_grad) == (not target.stop_gradient,) * 2
        assert output.z1.requires_grad
    for name, weight in model.named_parameters():
        moved = not torch.equal(weight, before[name])
        if name.startswith("target_encoder."):
            assert moved, f"{name} should follow f"
            assert weight.grad is None
            assert id(weight) not in optimised
        elif name.startswith("predictor.") and settings.predictor.kind == "fixed":
            assert not moved, f"{name} should stay"
            assert weight.grad is None
            assert id(weight) not in optimised
        else:
            assert moved, f"{name} should move"
            assert weight.grad is not None
            assert weight.grad.any(), f"{name} has no gradient"
            assert id(weight) in optimised
    assert (model.target_encoder is not None) == (target.encoder == "momentum")
    assert (model.queue is not None) == (target.queue_size > 0)
    assert (model.averages is not None) == (target.image_average > 0)
    assert any(name.startswith("predictor.") for name in before) == (settings.predictor.kind != "none")


# --- any combination ------------------------------------------------------------------------------------------------

SWITCHES: dict[str, list[Any]] = {
    "precision": ["float32", "bfloat16"],
    "batch_size": [8, 16],
    "projector.num_layers": [1, 2, 3],
    "projector.output_dim": [8, 16],
    "projector.bn_hidden": [True, False],
    "projector.bn_output": [True, False],
    "projector.bn_output_affine": [True, False],
    "projector.bias": ["auto", "always"],
    "predictor.kind": ["mlp", "none", "fixed", "linear", "bias"],
    "predictor.bn_hidden": [True, False],
    "predictor.bn_output": [True, False],
    "predictor.lr_schedule": ["cosine", "constant"],
    "predictor.lr_multiplier": [0.0, 1.0, 10.0],
    "target.stop_gradient": [True, False],
    "target.encoder": ["shared", "momentum"],
    "target.momentum": [0.0, 0.99, 0.996],
    "target.momentum_schedule": ["constant", "cosine"],
    "target.momentum_update": ["after-step", "before-forward"],
    "target.transform": ["none", "sinkhorn"],
    "target.num_prototypes": [0, 4, 8, 64],
    "target.queue_size": [0, 32, 40],
    "target.cache_steps": [0, 1, 2, 5],
    "target.cache_epoch": [False, True],
    "target.image_average": [0.0, 0.8],
    "loss.name": ["cosine", "cross-entropy", "squared-distance", "nt-xent", "info-nce", "swapped-prediction"],
    "loss.temperature": [0.1, 0.5],
    "loss.weight": [1.0, 4.0],
    "loss.symmetry": ["symmetric", "asymmetric", "asymmetric-2x"],
    "batch_norm.one_forward": [False, True],
    "batch_norm.groups": [1, 2, 4, 8],
    "initialisation.fc_std": [None, 0.01],
    "initialisation.zero_last_bn": [True, False],
    "optimizer.name": ["sgd", "lars"],
    "optimizer.exclude_bn_and_bias": [False, True],
    "optimizer.weight_decay": [0.0, 1e-4],
    "optimizer.schedule": ["cosine", "constant"],
    "optimizer.schedule_by": ["step", "epoch"],
    "optimizer.warmup_epochs": [0.0, 0.5, 1.0, 2.0],
    "second_view.blur_probability": [None, 0.5],
    "second_view.solarise_probability": [None, 0.5],
    "augment.solarise_probability": [0.0, 0.5],
}
TINY = {**SMALL, "epochs": 1, "batch_size": 16, "data.num_train": 32, "evaluation.query_size": 20}
# What the methods and their parts set, so that more than the neighbourhood of SimSiam is reached.
STARTS: tuple[dict[str, Any], ...] = (
    {},
    {"target.encoder": "momentum", "target.momentum_schedule": "cosine"},
    {"predictor.kind": "none", "loss.name": "nt-xent", "target.stop_gradient": False},
    {"target.transform": "sinkhorn", "loss.name": "swapped-prediction", "target.num_prototypes": 8},
    {"predictor.kind": "none", "target.encoder": "momentum", "loss.name": "info-nce", "target.queue_size": 32},
    {"predictor.kind": "none", "target.image_average": 0.8},
    {"target.cache_steps": 2},
)


@st.composite
def combinations(draw: st.DrawFn) -> dict[str, Any]:
    """A method's switches, and up to six others set to anything."""
    paths = draw(st.lists(st.sampled_from(sorted(SWITCHES)), max_size=6, unique=True))
    return draw(st.sampled_from(STARTS)) | {path: draw(st.sampled_from(SWITCHES[path])) for path in paths}


@hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=combinations())
def test_any_combination_is_refused_with_a_reason_or_trains(
    changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two steps, with everything around them: evaluations, a stop after the first, a resume."""
    try:
        settings = validate({**TINY, **changes})
    except SettingsError as error:
        event("refused")
        for line in str(error).splitlines():
            path, _, reason = line.partition(": ")
            assert path in dotted_paths()
            assert len(reason) > 10
        return
    event("trained")
    folder = tmp_path_factory.mktemp("run")
    first = train(settings, dataset(settings.data), folder, attempt=1, device=CPU, hooks=Hooks(lambda: True))
    if first is None:
        first = train(settings, dataset(settings.data), folder, attempt=2, device=CPU)
    assert first in ("healthy", "collapsed", "diverged")


def test_the_combinations_cover_every_switch_of_the_method() -> None:
    """A switch that is added later is to be added here."""
    sections = ("projector", "predictor", "target", "loss", "batch_norm", "initialisation", "optimizer", "second_view")
    varied = {path for path in dotted_paths() if path.startswith(tuple(f"{section}." for section in sections))}
    numbers = {
        *("projector.hidden_dim", "predictor.hidden_dim", "target.sinkhorn_iterations", "target.sinkhorn_epsilon"),
        *("optimizer.lr", "optimizer.momentum"),
        "projector.kind",  # an mlp, or one's own
        *(path for path in varied if path.endswith(".arguments")),  # of parts of one's own
    }
    assert varied - numbers <= set(SWITCHES)
