"""Parts of one's own: named by module and function, in the run's id by their source, trained as the core's are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from analysis import load_runs
from simsiam.data.batches import make_source
from simsiam.data.sets import load, prepare
from simsiam.distributed.ranks import ONE_RANK, Ranks
from simsiam.errors import SettingsError
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from simsiam.settings.identity import config_id
from simsiam.settings.own import PLACES, pin
from simsiam.settings.own_code import OwnPartError, keep, load_own
from simsiam.training.trial import try_own_parts
from tests import rank_cases
from tests.conftest import ROOT, SMALL, Command
from tests.own_methods import everything, own
from tests.simsiam.test_distributed import CLOSE, start_rank
from tests.simsiam.test_train import assert_same_run, curves, run, weights

Small = Callable[..., Settings]
CPU = torch.device("cpu")


def written(folder: Path, **sources: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    return folder


# --- the same as the core's --------------------------------------------------------------------------------------


def test_an_own_loss_that_is_the_cores_trains_the_same_run(small: Small, tmp_path: Path) -> None:
    run(small(), tmp_path / "core")
    run(small(loss__name=own("loss.name", "cosine")), tmp_path / "own")
    for one, other in zip(curves(tmp_path / "core"), curves(tmp_path / "own"), strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "knn_top1", "z_std"} & one.keys():
            assert one[name] == pytest.approx(other[name], abs=2e-3), name


def test_an_own_data_set_gives_the_images_that_its_function_gave(small: Small, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "mine.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = small(data__name=own("data.name", "says_where"), data__num_train=None).data
    dataset = prepare(data, tmp_path)
    assert np.array_equal(dataset.train.images, images)  # type: ignore[union-attr]
    assert np.array_equal(dataset.test.labels, labels)
    assert dataset.mean == pytest.approx(images.mean((0, 2, 3)) / 255)
    assert load(data, tmp_path).fingerprint == dataset.fingerprint


# --- names and sources -------------------------------------------------------------------------------------------


def test_the_source_and_what_it_imports_from_beside_it_name_the_run(small: Small, tmp_path: Path) -> None:
    place = written(tmp_path / "a", mine="import torch, helper\ndef loss(p, t): ...\n", helper="x = 1\n", other="y = 1")

    def name(folder: Path = place) -> str:
        return config_id(small(loss__name=pin("loss.name", "mine:loss", [folder])), "")

    first = name()
    shutil.copytree(place, tmp_path / "b")
    assert name(tmp_path / "b") == first  # wherever it lies
    (place / "mine.py").write_bytes((place / "mine.py").read_bytes().replace(b"\n", b"\r\n"))
    assert name() == first  # and whatever its line ends
    written(place, other="y = 2")
    assert name() == first  # what it does not import
    written(place, helper="x = 2\n")
    assert name() != first


def test_relative_imports_in_a_package_count(tmp_path: Path) -> None:
    package = tmp_path / "methods"
    written(package, __init__="", losses="from .tools import square\nfrom . import more\ndef loss(p, t): ...\n")
    written(package, tools="def square(x): return x * x\n", more="")
    before = pin("loss.name", "methods.losses:loss", [tmp_path])
    for file in ("tools", "more", "__init__"):
        (package / f"{file}.py").write_text("def square(x): return x\n")
        after = pin("loss.name", "methods.losses:loss", [tmp_path])
        assert after != before, file
        before = after


def test_settings_without_own_parts_keep_their_names(small: Small) -> None:
    """The name of this run before there was a place for parts of one's own, in that version with revision 3 set."""
    assert config_id(Settings(), "") == "358a976eb2bf"
    assert config_id(small(), "abc") == "a2c214d4f212"


def test_two_versions_of_a_module_and_of_its_helper_in_one_process(tmp_path: Path) -> None:
    values = []
    for number in (1, 2):
        text = "from helper import value\ndef loss(p, t):\n    return value + p.sum() * 0\n"
        folder = written(tmp_path / str(number), mine=text, helper=f"value = {number}.0\n")
        values.append(pin("loss.name", "mine:loss", [folder]))
    zero = torch.zeros(2, 2)
    assert [load_own(value)(zero, zero).item() for value in values] == [1.0, 2.0]
    assert "mine" not in sys.modules
    assert "helper" not in sys.modules


def test_what_is_trained_is_what_was_planned_though_the_file_is_edited_or_gone(small: Small, tmp_path: Path) -> None:
    text = "def loss(p, t):\n    return -(p * t).sum(1).mean() * 0.01\n"
    place = written(tmp_path / "mine", mine=text)
    settings = small(epochs=1, loss__name=pin("loss.name", "mine:loss", [place]))
    keep([settings], tmp_path / "runs")
    written(place, mine="def loss(p, t):\n    raise SystemExit\n")
    script = (
        "import sys; from pathlib import Path; from tests.simsiam.test_train import run\n"
        "from simsiam.settings.fields import Settings\n"
        "print(run(Settings.model_validate_json(sys.argv[1]), Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, settings.model_dump_json(), str(tmp_path / "runs" / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("healthy", "collapsed")
    with pytest.raises(OwnPartError, match="no source with this hash"):
        keep([settings], tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("value", "arguments", "message"),
    [
        ("own_method:cosine", [], "there is no own_method.py in .*did you mean 'own_methods'"),
        ("own_methods:cosin", [], "defines no cosin at its top level; did you mean 'cosine'"),
        ("own_methods:cosine", ["scal"], "loss.arguments.scal: .*no such argument; it takes scale.*mean 'scale'"),
        ("own_methods:predictor", [], "must take p, target, by position"),
        ("random:random", [], "Python has a module random of its own"),
        ("own_methods:cosine@000000000000", [], "is not that of own_methods:cosine@000000000000 any more"),
    ],
)
def test_a_wrong_name_is_refused(value: str, arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        pin("loss.name", value, [ROOT / "tests"], arguments)


def test_a_lacking_argument_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    written(tmp_path, mine="def loss(p, t, *, weight): ...\n", broken="def loss(p, t)\n")
    with pytest.raises(SettingsError, match=r"mine:loss needs loss.arguments.weight"):
        pin("loss.name", "mine:loss", [tmp_path])
    with pytest.raises(SettingsError, match=r"broken.py, line 1"):
        pin("loss.name", "broken:loss", [tmp_path])
    written(tmp_path, constant="loss = 3\nscaled = loss_of(3)\n")
    with pytest.raises(SettingsError, match=r"constant:loss is 3, and no function or class"):
        pin("loss.name", "constant:loss", [tmp_path])
    assert pin("loss.name", "constant:scaled", [tmp_path]), "what a call gives may be a function"


def test_arguments_are_settings_and_only_of_own_parts(small: Small) -> None:
    loss = own("loss.name", "cosine")
    one, other = (validate({**SMALL, "loss.name": loss, "loss.arguments.scale": scale}) for scale in (1.0, 2.0))
    assert config_id(one, "") != config_id(other, "")
    assert hash(one.loss) != hash(other.loss)
    with pytest.raises(SettingsError, match=r"loss.arguments.scale: has no effect with loss.name=cosine"):
        validate({**SMALL, "loss.arguments.scale": 1.0})
    with pytest.raises(SettingsError, match=r"loss.arguments.scale: \[1\] is not allowed; it must be a number"):
        validate({**SMALL, "loss.name": loss, "loss.arguments.scale": [1]})
    with pytest.raises(SettingsError, match=r"'cosin' is not allowed.*or one's own \(module:name\); did you mean"):
        validate({**SMALL, "loss.name": "cosin"})


# --- tried before anything runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("loss.name", "def f(p, t):\n    return p - t", r"must give one number .*; it gives a tensor \(8, 16\)"),
        ("loss.name", "def f(p, t):\n    return (p - t).detach().sum()", "has no gradient"),
        ("loss.name", "def f(p, t):\n    return p.sum() / 0", "not a finite number"),
        ("loss.name", "def f(p, t):\n    x = 1\n    return p @ t", r"mine.py, line 3: RuntimeError"),
        ("loss.name", "import no_such_module\ndef f(p, t): ...", "cannot be imported .*no_such_module"),
        ("target.transform", "def f(t1, t2):\n    return t1", "must give the targets of both views"),
        ("backbone.name", "import torch\ndef f():\n    return torch.nn.Conv2d(3, 4, 3)", r"features \(2, F\)"),
        ("projector.kind", "import torch\ndef f():\n    return torch.nn.Linear(32, 3)", r"tensor \(2, 16\)"),
        ("predictor.kind", "def f(dim):\n    return dim", "gives a int, not an nn.Module"),
        (
            "predictor.kind",
            "import torch\nclass f(torch.nn.Linear):\n    def __init__(self, dim):\n"
            "        super().__init__(dim, dim)\n        self.unused = torch.nn.Parameter(torch.ones(1))",
            "does not reach its weight unused",
        ),
        ("augment.views", "def f(size):\n    return lambda image: image[:, 1:]", r"view 1 must be .*\(3, 16, 16\)"),
    ],
)
def test_a_part_that_does_something_else_is_found_before_training(
    path: str, body: str, message: str, small: Small, tmp_path: Path
) -> None:
    settings = small(**{path.replace(".", "__"): pin(path, "mine:f", [written(tmp_path, mine=body + "\n")])})
    with pytest.raises(OwnPartError, match=message):
        try_own_parts(settings, 3)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [5, 12])
def test_a_run_of_own_parts_resumes_to_the_last_bit(stop_at: int, tmp_path: Path) -> None:
    """The centre, the learnt temperature, what dropout and the views draw."""
    settings = validate({**SMALL, **everything(drop=0.5)})
    run(settings, tmp_path / "whole")
    seen = 0

    def count(step: int) -> None:
        nonlocal seen
        seen = step

    torch.manual_seed(1)
    assert run(settings, tmp_path / "parts", 1, on_step=count, should_stop=lambda: seen >= stop_at) is None
    torch.manual_seed(2)
    run(settings, tmp_path / "parts", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    state = weights(tmp_path / "whole")
    assert state["transform.own.centre"].abs().sum() > 0
    assert state["D.own.log_scale"] != 0


def test_more_views_are_compared_with_both_targets(small: Small) -> None:
    """SwAV's multi-crop: the mean over all pairs of a target and another view, written out."""
    views = own("augment.views", "views")
    settings = small(augment__views=views, augment__more_views=2, predictor__kind="none", projector__bn_output=False)
    model = Siamese(settings, 3)
    draws = torch.Generator().manual_seed(0)
    x = [torch.randn(8, 3, size, size, generator=draws) for size in (16, 16, 8, 8)]
    loss = model(x[0], x[1], more=x[2:]).loss
    z = [model.f(view) for view in x]
    pairs = [(view, target) for target in (0, 1) for view in range(4) if view != target]
    expected = -torch.stack([F.cosine_similarity(z[view], z[target]).mean() for view, target in pairs]).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_own_views_of_an_image_are_the_same_in_any_share_of_the_batch(small: Small) -> None:
    settings = small(augment__views=own("augment.views", "views"), augment__more_views=1)
    dataset = load(settings.data, Path())
    whole = next(iter(make_source(settings, dataset, CPU).epoch(1, 2)))
    shares = [next(iter(make_source(settings, dataset, CPU, Ranks(rank, 2)).epoch(1, 2))) for rank in (0, 1)]
    for part, together in ((lambda b: b.pairs[0][1], whole.pairs[0][1]), (lambda b: b.more[0], whole.more[0])):
        assert torch.equal(torch.cat([part(share) for share in shares]), together)
    assert whole.more[0].shape == (32, 3, 8, 8)
    assert not torch.equal(whole.pairs[0][0], whole.pairs[0][1])


@pytest.mark.parametrize("case", ["Barlow Twins, a loss of one's own", "all parts of one's own"])
def test_two_ranks_train_as_one(case: str, tmp_path: Path) -> None:
    """A loss over the batch, a centre, a learnt temperature and more views: as the methods of test_distributed.py."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    processes = [start_rank(rank, 2, tmp_path / "two", case) for rank in (0, 1)]
    one = rank_cases.steps(case, tmp_path / "one", ONE_RANK)
    for process in processes:
        assert process.wait(timeout=300) == 0, process.communicate()[0]
    for rank in (0, 1):
        two = torch.load(tmp_path / "two" / f"answers.{rank}.pt", weights_only=False)[f"steps {case}"]
        torch.testing.assert_close(two, one, **CLOSE)


def test_removing_an_own_predictor_leaves_the_encoders_start(small: Small) -> None:
    parts = everything()
    one = Siamese(validate({**SMALL, **parts}), 3).state_dict()
    other = Siamese(validate({**SMALL, **parts, "predictor.kind": "none"}), 3).state_dict()
    for name in other:
        assert torch.equal(one[name], other[name]), name


# --- from a study's file -----------------------------------------------------------------------------------------

STUDY = """
title: My loss
settings: {epochs: 1}
variants:
  mine:
    settings:
      loss: {name: "mine:loss", arguments: {weight: 0.5}}
"""
LOSS = "def loss(p, target, *, weight):\n    return weight * (p - target).square().sum(1).mean()\n"


def test_a_study_finds_its_module_beside_it_and_an_edit_makes_new_runs(command: Command, tmp_path: Path) -> None:
    place = written(tmp_path / "deep", mine=LOSS)
    (place / "study.yaml").write_text(STUDY)
    options = ("deep/study.yaml", "--scale", "smoke", "--seeds", "1")
    done = command("run", *options)
    assert done.returncode == 0, done.stderr
    assert "1 to do" not in command("plan", *options).stdout
    assert "0 to do" in command("plan", *options).stdout
    written(place, mine=LOSS.replace("sum(1)", "mean(1)"))
    assert "1 to do" in command("plan", *options).stdout
    refused = command("run", *options, "--set", "loss.arguments.wieght=1")
    assert refused.returncode == 2
    assert "loss.arguments.wieght: mine:loss has no such argument; it takes weight; did you mean" in refused.stderr
    assert "Traceback" not in refused.stderr
    written(place, mine="def loss(p, target, *, weight):\n    return p\n")
    refused = command("run", *options)
    assert refused.returncode == 1
    assert "must give one number" in refused.stderr
    assert len([name for name in os.listdir(tmp_path / "runs") if not name.startswith(".")]) == 1
    assert "Traceback" not in refused.stderr


def test_an_edited_part_leaves_its_earlier_runs_and_their_report(command: Command, tmp_path: Path) -> None:
    place = written(tmp_path / "deep", mine=LOSS)
    (place / "study.yaml").write_text(STUDY)
    options = ("deep/study.yaml", "--scale", "smoke", "--seeds", "2")

    def words(name: str, *more: str) -> str:
        done = command(name, *options, *more)
        return " ".join((done.stdout + done.stderr).split())

    def pages() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in (tmp_path / "reports").glob("*/index.html")}

    assert "another version" not in words("run") + words("report")
    (kept,) = (tmp_path / "runs" / ".modules").iterdir()
    before = pages()
    written(place, mine=LOSS.replace("sum(1)", "mean(1)"))
    said = f"2 runs of this study were made by another version of mine.py ({kept.name})."
    assert said in words("plan")
    assert said in words("status")
    refused = words("report")
    assert "holds no run of study at scale smoke" in refused
    assert said.rstrip(".") in refused
    assert said in words("run")
    assert said in words("report")
    assert len(pages()) == 2
    assert before.items() < pages().items(), "the earlier report is as it was"
    written(place, mine=LOSS)
    assert f"({kept.name})" not in words("status"), "the version in place is no other one"
    words("report")
    assert len(pages()) == 2


def test_diagnose_measures_an_own_loss_by_what_it_says_of_itself(command: Command, tmp_path: Path) -> None:
    ends = "loss.optimum = 0.0\nloss.chance = lambda dim, weight: 2 * weight * dim\n"
    written(tmp_path, mine=LOSS + ends)
    (tmp_path / "study.yaml").write_text(STUDY)
    options = ("study.yaml", "--scale", "smoke", "--seeds", "1")
    assert command("run", *options).returncode == 0
    (told,) = json.loads(command("diagnose", *options, "--json").stdout)
    assert re.search(r"The loss \(mine:loss\) is .* % of the way from chance", " ".join(told["evidence"]))
    _, runs = load_runs(tmp_path / "runs")
    assert runs.loc[0, "reference_loss_chance"] == 2 * 0.5 * 64
    assert runs.loc[0, "loss.arguments.weight"] == 0.5
    assert runs.loc[0, "note"] == ""
    report = command("report", *options)
    assert report.returncode == 0, report.stderr


def test_arguments_are_axes_of_a_grid(command: Command, tmp_path: Path) -> None:
    written(tmp_path, mine=LOSS)
    done = command("grid", "loss.arguments.weight=0.1,1", "--set", "loss.name=mine:loss", "--set", "epochs=1",
                   "--scale", "smoke")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "All 2 runs are done" in done.stdout


def documented() -> list[tuple[str, dict[str, Any]]]:
    """The examples of docs/own-parts.md: the settings of each, and its file, which it names in its first line."""
    text = (ROOT / "docs" / "own-parts.md").read_text()
    found = re.findall(r"`(\{[^`]+\})`\n\n((?:    .*\n|\n)+)", text[text.index("## Examples") :])
    return [(textwrap.dedent(code).lstrip(), yaml.safe_load(given)) for given, code in found]


@pytest.mark.parametrize(("code", "given"), documented(), ids=[code.splitlines()[0] for code, _ in documented()])
def test_a_documented_part_makes_a_step(code: str, given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "mine.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    pinned = {
        path: pin(path, value, [tmp_path]) if path in PLACES and ":" in value else value
        for path, value in given.items()
    }
    settings = validate({**SMALL, "data.num_train": None, **pinned})
    try_own_parts(settings, 3)
    if "data.name" in given:
        dataset = prepare(settings.data, tmp_path)
        assert dataset.classes == ("cats", "dogs")
        assert np.array_equal(dataset.train.images, images)  # type: ignore[union-attr]


def test_there_are_five_documented_parts() -> None:
    assert len(documented()) == 5


def test_a_part_that_ends_the_program_is_an_error(command: Command, tmp_path: Path) -> None:
    """Else a script would take a grid for done of which nothing was trained."""
    written(tmp_path, se="def f(p, target):\n    raise SystemExit(0)\n")
    (tmp_path / "se.yaml").write_text("title: t\nsettings: {loss.name: 'se:f'}\nvariants: {a: {}}\n")
    done = command("run", "se.yaml", "--scale", "smoke")
    assert done.returncode == 2
    assert re.search(r"error: a part of one's own ends the program \(exit code 0\): loss.name = .*se:f", done.stderr)
    assert not (tmp_path / "runs").exists()


def test_a_part_that_fails_is_told_with_the_variant_and_the_arguments(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def loss(p, target, *, weight=1.0):\n    return (weight * p * target).mean()\n")
    (tmp_path / "study.yaml").write_text(
        "title: Mine\nsettings: {loss.name: 'mine:loss'}\nvariants:\n"
        "  light: {settings: {loss.arguments.weight: 0.1}}\n  wrong: {settings: {loss.arguments.weight: a lot}}\n"
    )
    refused = command("run", "study.yaml", "--scale", "smoke", "--seeds", "1")
    assert refused.returncode != 0
    assert "mine.py, line 2" in refused.stderr
    assert "tried for study: wrong s0" in refused.stderr
    assert re.search(r"loss\.arguments\.weight='a lot' .*study\.yaml:5", refused.stderr)
    assert not list((tmp_path / "runs").glob("*-s0"))
