"""Every mistake gives one clear message that names the culprit, exit code 2 or 1, and leaves nothing half-made."""

from __future__ import annotations

import errno
import json
import multiprocessing
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from commands.app import _clear_errors
from experiments.local.train_cell import advice
from simsiam.data.sets import _StaleError
from simsiam.errors import SettingsError
from simsiam.settings.checks import validate
from simsiam.settings.fields import dotted_paths, flatten
from tests.conftest import ROOT, SMALL, Command
from tests.ordinary_user import call as as_ordinary_user
from tests.ordinary_user import open_to_all

SMOKE = ("--scale", "smoke")


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str, where: Path | None = None) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    told = re.sub(r"\s+", " ", done.stderr)
    for word in words:
        assert word in told, told
    if where is not None:
        assert not (where / "runs").exists(), "nothing is made before the mistake is found"
        assert not (where / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # settings on the command line: path, value, what is allowed, origin, nearest name
        (["--set", "optimizer.lrr=1"], ["optimizer.lrr", "no such setting", "'optimizer.lr'", "--set optimizer.lrr=1"]),
        (["--set", "learning_rate=1"], ["learning_rate", "no such setting"]),
        (["--set", "hidden_dim=1"], ["hidden_dim", "no such setting", "hidden_dim'?"]),
        (["--set", "optimizer=1"], ["optimizer", "section", "momentum"]),
        (["--set", "epochs"], ["'epochs'", "dotted.path=value"]),
        (["--set", "=3"], ["'=3'", "dotted.path=value"]),
        (["--set", "epochs=[1, 2"], ["'[1, 2'", "YAML", "--set"]),
        (["--set", "epochs=three"], ["epochs", "'three'", "a whole number", "--set epochs=three"]),
        (["--set", "epochs=1.5"], ["epochs", "1.5", "a whole number"]),
        (["--set", "epochs=0"], ["epochs", "0", "at least 1"]),
        (["--set", "epochs=-3"], ["epochs", "-3", "at least 1"]),
        (["--set", "epochs=true"], ["epochs", "True", "a whole number"]),
        (["--set", "epochs=null"], ["epochs", "None", "a whole number"]),
        (["--set", "epochs="], ["epochs", "a whole number"]),
        (["--set", "optimizer.lr=.nan"], ["optimizer.lr", "nan"]),
        (["--set", "optimizer.lr=.inf"], ["optimizer.lr", "inf", "a finite number"]),
        (["--set", "optimizer.lr=-0.1"], ["optimizer.lr", "-0.1", "at least 0"]),
        (["--set", "optimizer.lr=fast"], ["optimizer.lr", "'fast'", "a number"]),
        (["--set", "optimizer.momentum=1"], ["optimizer.momentum", "1", "less than 1"]),
        (["--set", "projector.bn_output=no"], ["projector.bn_output", "'no'", "true or false"]),
        (["--set", "projector.bn_output=1"], ["projector.bn_output", "1", "true or false"]),
        (["--set", "predictor.kind=mpl"], ["predictor.kind", "'mpl'", "mlp, none, fixed", "did you mean 'mlp'"]),
        (["--set", "augment.crop_scale=0.5"], ["augment.crop_scale", "0.5", "list of two numbers"]),
        (["--set", "augment.crop_scale=[0.5]"], ["augment.crop_scale", "list of two numbers"]),
        (["--set", "augment.crop_scale=[0.5, x]"], ["augment.crop_scale", "'x'", "a number"]),
        (["--set", "augment.crop_scale=[0.9, 0.5]"], ["augment.crop_scale", "[0.9, 0.5]", "not be larger"]),
        (["--set", "augment.crop_scale=[0.9, 1.5]"], ["augment.crop_scale", "1.5", "at most 1"]),
        (["--set", "augment.hue=0.7"], ["augment.hue", "0.7", "at most 0.5"]),
        (["--set", "seed=3"], ["seed", "--seeds"]),
        (["--set", "batch_size=5000", "--set", "data.num_train=100"], ["batch_size", "5000", "100 training images"]),
        (["--set", "batch_size=5000"], ["batch_size", "5000", "2000 training images"]),
        (["--set", "data.num_train=5000"], ["data.num_train=5000", "2000 training images"]),
        (["--set", "optimizer.warmup_epochs=9"], ["optimizer.warmup_epochs", "9", "2 epochs"]),
        (["--set", "data.storage=files"], ["data.storage", "files", "data.name=folder"]),
        (["--set", "backbone.name=resnet18"], ["backbone.width", "no effect", "resnet18"]),
        (["--set", "projector.bn_output=false"], []),  # is allowed, as the study sets the affine flag
        # YAML's odder corners
        (["--set", "epochs=!!int foo"], ["'!!int foo'", "YAML"]),
        (["--set", "epochs=!!bool x"], ["'!!bool x'", "YAML"]),
        (["--set", "epochs=!!timestamp foo"], ["YAML"]),
        (["--set", "epochs=" + "[" * 3000], ["YAML"]),
        (["--set", "epochs=&a [*a]"], ["YAML"]),
        (["--set", "epochs=" + "9" * 30], ["epochs", "at most 1e+09"]),
        (["--set", "epochs=1:30"], ["epochs", "'1:30'", "a whole number"]),
        (["--set", "epochs=2020-01-01"], ["epochs", "'2020-01-01'", "a whole number"]),
        # other options
        (["--seeds", "1000000"], ["seeds", "from 1 to 1000"]),
        (["--seeds", "0"], ["seeds", "'0'", "from 1 to 1000", "range"]),
        (["--seeds", "5-3"], ["seeds", "'5-3'"]),
        (["--seeds", "many"], ["seeds", "'many'"]),
        (["-j", "0"], ["--jobs", "greater than or equal to 1"]),
        (["--device", "tpu"], ["device", "'tpu'", "cuda"]),
        (["--scale", "cup"], ["scale", "'cup'", "did you mean 'cpu'"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)  # fmt: skip
def test_command_line(command: Command, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    if not words:
        assert command("plan", "stop-gradient", *SMOKE, *arguments).returncode == 0
        return
    code = 1 if "data.num_train=5000" in arguments else 2
    refused(command("run", "stop-gradient", *SMOKE, *arguments), code, *words, where=tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file", "mine.yaml"]),
        ("", ["is empty", "mine.yaml"]),
        ("- a\n- b\n", ["mine.yaml:1", "mapping"]),
        ("title: [1\n", ["mine.yaml:2"]),
        ("title: x\nvariants:\n  a: {}\n  a: {}\n", ["mine.yaml:4", "variants.a", "second time", "line 3"]),
        ("variants: {a: {}}\n", ["title", "missing"]),
        ("title: x\n", ["variants", "at least one variant"]),
        ("title: x\nvariants: {}\n", ["variants", "at least one variant"]),
        ("title: x\nvarients: {a: {}}\n", ["mine.yaml:2", "varients", "did you mean 'variants'"]),
        ("title: x\nvariants:\n  a: {setings: {}}\n", ["mine.yaml:3", "setings", "did you mean 'settings'"]),
        ("title: x\nseeds: 0\nvariants: {a: {}}\n", ["mine.yaml:2", "seeds", "greater than or equal to 1"]),
        ("title: x\nseeds: {gpu: 1}\nvariants: {a: {}}\n", ["mine.yaml:2", "seeds", "'gpu'", "smoke, fashion, cpu"]),
        ("title: x\nscales: {gpu: {}}\nvariants: {a: {}}\n", ["mine.yaml:2", "'gpu'", "smoke, fashion, cpu"]),
        (
            "title: x\nvariants:\n  a:\n    settings: {optimizer: {lr: -1}}\n",
            ["variant 'a'", "optimizer.lr", "-1", "at least 0", "mine.yaml:4"],
        ),
        (
            "title: x\nvariants:\n  a:\n    settings:\n      optimizer.lr: 1\n      optimizer: {lr: 2}\n",
            ["optimizer.lr", "written twice", "mine.yaml:5", "mine.yaml:6"],
        ),
        (
            "title: x\nscales:\n  imagenet:\n    settings: {epoch: 5}\nvariants: {a: {}}\n",
            ["epoch", "no such setting", "'epochs'", "mine.yaml:4"],
        ),
        ("title: x\nvariants: {a: {}, b: {}}\n", ["'a' and 'b'", "compute the same"]),
        ("title: x\ngrid: {optimizer.lr: []}\n", ["optimizer.lr", "no values", "mine.yaml:2"]),
        ("title: x\ngrid: {optimizer.lr: [1, 1]}\n", ["optimizer.lr", "twice", "mine.yaml:2"]),
        ("title: x\ngrid: {optimizer.lr: 1}\n", ["mine.yaml:2", "optimizer.lr"]),
        ("title: x\ninclude: other.yaml\nvariants: {a: {}}\n", ["other.yaml", "no such file", "mine.yaml:2"]),
        ("title: x\ninclude: mine.yaml\nvariants: {a: {}}\n", ["circle", "mine.yaml -> mine.yaml"]),
        ("title: x\nvariants: {a: {paper: {top: 67}}}\n", ["mine.yaml:2", "top", "did you mean 'top1'"]),
        ("title: x\nvariants: {a: 5}\n", ["mine.yaml:2", "variants.a", "5"]),
        ("a: &a [*a]\n", ["mine.yaml"]),
        ("title: !!bool x\nvariants: {a: {}}\n", ["mine.yaml", "not YAML that can be read"]),
        ('title: x\nvariants: {"\\e[31mred": {}}\n', ["mine.yaml:2", "no control characters"]),
        ('title: x\nvariants: {"a\\u202Eb": {}}\n', ["mine.yaml:2", "no control characters"]),
        ("title: !!timestamp x\nvariants: {a: {}}\n", ["mine.yaml", "not YAML that can be read"]),
        ("title: " + "[" * 2000 + "\n", ["mine.yaml"]),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
                for old, new in zip("abcdefg", "bcdefgh", strict=True)
            ),
            ["mine.yaml", "more than 100,000 values"],
        ),
        ("title: x\nsettings: {seed: 3}\nvariants: {a: {}}\n", ["seed", "--seeds", "mine.yaml:2"]),
        (b"\xff\xfe\x00bad", ["mine.yaml", "UTF-8"]),
    ],
)
def test_study_files(command: Command, tmp_path: Path, content: str | bytes | None, words: list[str]) -> None:
    if isinstance(content, str):
        (tmp_path / "mine.yaml").write_text(content)
    elif content is not None:
        (tmp_path / "mine.yaml").write_bytes(content)
    refused(command("run", "mine.yaml", *SMOKE), 2, *words, where=tmp_path)


def test_a_circle_of_includes_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: x\nvariants:\n  a: {include: one.yaml}\n")
    (tmp_path / "one.yaml").write_text("include: two.yaml\n")
    (tmp_path / "two.yaml").write_text("include: [one.yaml]\n")
    refused(command("run", "mine.yaml", *SMOKE), 2, "one.yaml -> two.yaml -> one.yaml", where=tmp_path)


def test_an_included_file_holds_settings_only(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: x\ninclude: one.yaml\nvariants: {a: {}}\n")
    (tmp_path / "one.yaml").write_text("settings: {epochs: 1}\nvariants: {b: {}}\n")
    refused(command("run", "mine.yaml", *SMOKE), 2, "variants", "one.yaml:2", where=tmp_path)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["optimizer.lr"], ["'optimizer.lr'", "dotted.path=value,value"]),
        (["optimizer.lr="], ["optimizer.lr", "no values"]),
        (["optimizer.lr=0.1,0.1"], ["optimizer.lr", "0.1", "twice"]),
        (["optimizer.lr=0.1", "optimizer.lr=0.2"], ["optimizer.lr", "axis", "twice"]),
        (["optimizr.lr=0.1"], ["optimizr.lr", "did you mean 'optimizer.lr'"]),
        (["optimizer.lr=0.1,-2"], ["optimizer.lr", "-2", "at least 0"]),
        (["seed=0,1"], ["seed", "--seeds"]),
        (["data.path=a,b"], ["data.path", "no effect", "folder"]),
        (["optimizer.lr=0.05,5e-2"], ["optimizer.lr", "0.05", "twice"]),
        ([], ["PATH=VALUE"]),
    ],
)
def test_grids(command: Command, tmp_path: Path, axes: list[str], words: list[str]) -> None:
    refused(command("grid", *axes, *SMOKE), 2, *words, where=tmp_path)


def test_setting_what_the_variants_vary(command: Command, tmp_path: Path) -> None:
    done = command("run", "stop-gradient", *SMOKE, "--set", "target.stop_gradient=true")
    refused(done, 2, "target.stop_gradient", "with stop-gradient", "--set", where=tmp_path)


def test_unknown_names(command: Command, tmp_path: Path) -> None:
    refused(command("run", "stop-gradent", *SMOKE), 2, "'stop-gradent'", "did you mean 'stop-gradient'", where=tmp_path)
    refused(command("rum", "stop-gradient"), 2, "rum", where=tmp_path)
    refused(command("show-config", "stop-gradient", "--variant", "x"), 2, "variant", "'x'", "with stop-gradient")
    refused(command("data", "prepare", "cifar11"), 2, "data.name", "'cifar11'", "did you mean 'cifar10'")


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", ":smile:", "a & b", "中文"])
def test_a_user_s_names_are_shown_as_they_are(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"title: x\nvariants: {{{json.dumps(name)}: {{}}}}\n", encoding="utf-8")
    done = command("plan", "mine.yaml", *SMOKE)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


def test_a_locale_without_the_paper_s_symbols(command: Command, tmp_path: Path) -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "mine.yaml").write_text("title: x\nvariants: {√d: {}}\n", encoding="utf-8")
    done = command("plan", "mine.yaml", *SMOKE, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", '{"state": "stopped", "attempt": "x", "seconds": "long", "epoch": []}'),
        ("state.json", "[" * 3000),
        ("result.json", '{"outcome": "healthy", "final": 3}'),
        ("result.json", '{"outcome": "healthy", "final": {"loss": "low", "epoch": 1e999}}'),
        ("lease.1", '{"machine": "here"}'),
        ("lease.1", "nonsense"),
    ],
)
def test_damaged_files_of_a_run_folder_do_not_stop_a_command(
    command: Command, tmp_path: Path, file: str, content: str
) -> None:
    plan = json.loads(command("plan", "stop-gradient", *SMOKE, "--json").stdout)
    folder = tmp_path / "runs" / plan["cells"][0]["run"]
    folder.mkdir(parents=True)
    (folder / "lease.1").write_text("{}")
    (folder / file).write_text(content)
    for name in ("status", "plan"):
        done = command(name, "stop-gradient", *SMOKE)
        assert done.returncode == 0, done.stderr


# --- the world outside ---------------------------------------------------------------------------------------------


def test_no_data(command: Command, tmp_path: Path) -> None:
    done = command("run", "stop-gradient", *SMOKE, "--set", "data.name=folder", "--set", "data.path=photos")
    refused(done, 1, "photos", where=tmp_path)
    refused(command("data", "check", "cifar10"), 1, "cifar10", "data prepare")
    assert not list(tmp_path.rglob("*.npy"))


def test_an_image_folder_that_changed_is_one_line(command: Command, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (16, 16)).save(tmp_path / "photos" / split / "cat" / f"{name}.bmp")
    chosen = ("folder", "--set", f"data.path={tmp_path / 'photos'}")
    assert command("data", "prepare", *chosen).returncode == 0
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "photos" / "test" / "cat" / "a.bmp")
    refused(command("data", "check", *chosen), 1, "the contents of the files", "have changed", "data prepare folder")
    (tmp_path / "photos" / "test" / "cat" / "a.bmp").unlink()
    refused(command("data", "check", *chosen), 1, "the names of the files", "have changed", "data prepare folder")


def test_what_is_full_is_named(tmp_path: Path) -> None:
    """Locks and shared tensors are in /dev/shm, whose files `gc` does not free."""
    no_lock, no_room = (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    )
    full = mock.patch("multiprocessing.synchronize._multiprocessing.SemLock", side_effect=no_lock)
    with full, pytest.raises(OSError, match="No space left") as caught:
        multiprocessing.get_context("spawn").Lock()
    for error in (
        caught.value,
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
    ):
        assert advice(error, tmp_path).startswith("no room in /dev/shm")
        assert "gc" not in advice(error, tmp_path)
    assert "`gc` frees" in advice(no_room, tmp_path)
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/proc/file")
    assert "/proc is full" in advice(elsewhere, tmp_path)


def test_folders_that_an_ordinary_user_may_not_use(tmp_path: Path) -> None:
    free, locked = open_to_all(tmp_path), tmp_path / "locked"
    locked.mkdir()
    (locked / "mine.yaml").write_text("title: x\nvariants: {a: {}}\n")
    locked.chmod(0)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return as_ordinary_user(free, *arguments, *SMOKE)

    refused(call("run", "stop-gradient", "--runs", str(locked / "runs")), 1, str(locked), "Permission denied", "--runs")
    refused(call("status", "stop-gradient", "--runs", str(locked)), 2, str(locked), "not readable", "--runs")
    refused(call("run", str(locked / "mine.yaml")), 2, "mine.yaml", "Permission denied", where=free)
    locked.chmod(0o700)


def test_a_runs_folder_that_is_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(command("run", "stop-gradient", *SMOKE, "--runs", "file"), 2, "file", "--runs")
    refused(command("report", "stop-gradient", *SMOKE, "--runs", "file"), 1, "file", "no archive of runs")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_fails_the_cell_and_leaves_nothing_half_made(command: Command, tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk: the checkpoint does not fit, small files do."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = command("run", "stop-gradient", *SMOKE, "--set", "epochs=1", "-j", "1", preexec_fn=limited)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "File too large" in done.stderr
    for folder in (tmp_path / "runs").glob("*-s0"):
        assert not list(folder.glob("checkpoint*"))
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert json.loads((folder / "state.json").read_text())["state"] == "failed"
    assert command("run", "stop-gradient", *SMOKE, "--set", "epochs=1", "--retry-failed").returncode == 0


def test_a_moved_checkout_still_answers(tmp_path: Path) -> None:
    """Nothing depends on where the command is called from or lies."""
    for part in ("run_ablation.py", "simsiam", "experiments", "analysis"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run_ablation.py"), "list", *SMOKE], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- any settings at all -------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**6),
    st.floats(),
    st.text(max_size=5),
    st.just((0.2, 1.0)),
    st.just({}),
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(dotted_paths()), VALUES, max_size=4))
def test_any_values_are_accepted_or_refused_by_name(changes: dict[str, object]) -> None:
    """Settings validate, or the message names a setting that was given; nothing else is raised."""
    problem = ""
    try:
        accepted = flatten(validate({**SMALL, **changes}, lambda path: f"origin of {path}"))
    except SettingsError as error:
        problem = str(error)
    if problem:
        assert any(path in problem for path in changes)
        for line in problem.splitlines():
            assert line.split(":")[0].split(" ")[0] in dotted_paths(), line
            assert "origin of " in line
    else:
        assert {path: accepted[path] for path in changes} == changes


def test_a_prepared_folder_that_has_changed_is_one_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are told by what they are, not by the name of their class."""
    with pytest.raises(SystemExit) as ended, _clear_errors():
        raise _StaleError("the names of the files have changed", "Run: data prepare")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the names of the files have changed. Run: data prepare\n"


def test_plan_says_that_a_folder_of_images_is_not_there(command: Command, tmp_path: Path) -> None:
    options = ("plan", "stop-gradient", "--scale", "smoke", "--set", "data.name=folder", "--set", "data.path=mine")
    assert "There is no folder data/mine/ (data.path is relative to --data)." in command(*options).stdout
    (tmp_path / "data" / "mine").mkdir(parents=True)
    assert "There are no prepared images of data/mine/ yet." in command(*options).stdout
