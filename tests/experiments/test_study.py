"""From files and options to cells: which value wins, where it came from, which run it names."""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from commands.console import Table, make_console
from experiments.plan import average_bytes, estimate, make_plan, num_parameters
from experiments.studies.layers import layer_from_command_line
from experiments.studies.study import (
    SCALES,
    grid_study,
    load_scale,
    load_study,
    make_cells,
    save_grid,
    seeds_from_text,
    study_names,
)
from experiments.studies.yaml_files import dump, read
from simsiam.errors import SettingsError
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.settings.identity import run_id
from tests.conftest import SMALL, Command


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_is_valid_at_every_scale(name: str, scale: str) -> None:
    study = load_study(name)
    cells = make_cells(study, load_scale(scale), range(study.num_seeds(scale)))
    variants = [variant for variant in study.variants if not variant.only or scale in variant.only]
    assert len(cells) == len(variants) * study.num_seeds(scale)
    assert cells or (name, scale) in {("small-models", "cifar"), ("small-models", "imagenet")}  # its network is small


@pytest.mark.parametrize("name", study_names())
def test_a_study_file_opens_with_what_it_reproduces(name: str) -> None:
    path = load_study(name).path
    assert path is not None
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Reproduces:", "Expected:", "Takes:", "Command:"):
        assert any(word in line for line in head), word


def test_fig_2_is_what_the_paper_compares() -> None:
    """Affine output BN, decayed predictor rate, and stop-gradient as the only difference."""
    with_stop, without = make_cells(load_study("stop-gradient"), load_scale("imagenet"), [0])
    one, other = flatten(with_stop.settings), flatten(without.settings)
    assert {path for path in one if one[path] != other[path]} == {"target.stop_gradient"}
    assert one["projector.bn_output_affine"] is True
    assert one["predictor.lr_schedule"] == "cosine"
    paper = {variant.name: variant.paper for variant in load_study("stop-gradient").variants}
    assert (paper["with stop-gradient"].top1, paper["with stop-gradient"].spread) == (67.7, 0.1)
    assert paper["without stop-gradient"].top1 == 0.1


def test_defaults_are_the_paper_s_imagenet_baseline() -> None:
    """Sec. 3, App. A, and the table of baseline settings."""
    s = Settings()
    assert (s.epochs, s.batch_size, s.optimizer.lr, s.optimizer.momentum, s.optimizer.weight_decay) == (
        100,
        512,
        0.05,
        0.9,
        1e-4,
    )
    assert (s.projector.num_layers, s.projector.hidden_dim, s.projector.output_dim, s.predictor.hidden_dim) == (
        3,
        2048,
        2048,
        512,
    )
    assert (s.backbone.name, s.data.image_size, s.augment.crop_scale) == ("resnet50", 224, (0.2, 1.0))
    a = s.augment
    assert (a.brightness, a.contrast, a.saturation, a.hue, a.jitter_probability, a.grey_probability) == (
        0.4,
        0.4,
        0.4,
        0.1,
        0.8,
        0.2,
    )


STUDY = """\
title: Mine
include: base.yaml
settings:
  optimizer: {lr: 0.2}
  augment.hue: 0.2
scales:
  smoke:
    settings: {optimizer.lr: 0.3}
variants:
  first: {}
  second:
    include: block.yaml
    settings: {predictor.hidden_dim: 32}
"""


def test_later_layers_win_and_origins_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    (tmp_path / "base.yaml").write_text("settings: {augment: {hue: 0.1, contrast: 0.1}, epochs: 7}\n")
    (tmp_path / "block.yaml").write_text("settings:\n  target.stop_gradient: false\n  predictor.hidden_dim: 64\n")
    study = load_study(str(tmp_path / "mine.yaml"))
    first, second = make_cells(study, load_scale("smoke"), [4], ["epochs=9"])
    assert (first.settings.optimizer.lr, first.settings.augment.hue, first.settings.augment.contrast) == (0.3, 0.2, 0.1)
    assert (first.settings.epochs, first.settings.seed) == (9, 4)
    assert (second.settings.target.stop_gradient, second.settings.predictor.hidden_dim) == (False, 32)
    assert first.origins["epochs"] == "--set epochs=9"
    assert first.origins["optimizer.lr"] == f"study at smoke, {tmp_path}/mine.yaml:8"
    assert first.origins["augment.contrast"] == f"study, {tmp_path}/base.yaml:1"
    assert second.origins["target.stop_gradient"] == f"variant, {tmp_path}/block.yaml:2"
    assert second.origins["predictor.hidden_dim"] == f"variant, {tmp_path}/mine.yaml:13"
    assert "smoke.yaml" in first.origins["batch_size"]
    at_cpu, _ = make_cells(study, load_scale("cpu"), [0])
    assert at_cpu.settings.optimizer.lr == 0.2


def test_yaml_reads_as_a_person_would(tmp_path: Path) -> None:
    """1e-4 is a number, `no` is a name and not false, lists become tuples."""
    (tmp_path / "mine.yaml").write_text(
        "title: x\nvariants:\n  no: {settings: {optimizer.weight_decay: 1e-4, augment.crop_scale: [0.5, 1]}}\n"
    )
    (cell,) = make_cells(load_study(str(tmp_path / "mine.yaml")), load_scale("smoke"), [0])
    assert cell.variant == "no"
    assert cell.settings.optimizer.weight_decay == 1e-4
    assert cell.settings.augment.crop_scale == (0.5, 1)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    study = grid_study(
        ["optimizer.lr=0.02,0.05", "augment.crop_scale=[0.2,1],[0.5,1.0]", "target.stop_gradient=true,false"]
    )
    cells = make_cells(study, load_scale("smoke"), range(2))
    points = {
        (cell.settings.optimizer.lr, cell.settings.augment.crop_scale, cell.settings.target.stop_gradient)
        for cell in cells
    }
    assert len(points) == 8
    assert len(cells) == 16
    assert cells[0].variant == "optimizer.lr=0.02, augment.crop_scale=[0.2,1], target.stop_gradient=true"
    again = load_study(str(save_grid(study, tmp_path)))
    assert [cell.settings for cell in make_cells(again, load_scale("smoke"), range(2))] == [
        cell.settings for cell in cells
    ]


def test_a_grid_in_a_file_crosses_the_variants(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "title: x\nvariants: {a: {}, b: {settings: {predictor.kind: none}}}\ngrid: {epochs: [1, 2, 3]}\n"
    )
    study = load_study(str(tmp_path / "mine.yaml"))
    assert [variant.name for variant in study.variants][:4] == [
        "a, epochs=1",
        "a, epochs=2",
        "a, epochs=3",
        "b, epochs=1",
    ]


@pytest.mark.parametrize(("text", "seeds"), [("1", [0]), ("3", [0, 1, 2]), ("4-6", [4, 5, 6]), ("7-7", [7])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert seeds_from_text(text) == seeds


def test_a_shared_configuration_has_one_run(tmp_path: Path) -> None:
    """Two studies that share a baseline name the same run for it."""
    plan = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], tmp_path, tmp_path)
    (tmp_path / "mine.yaml").write_text("title: x\nvariants: {base: {settings: {predictor.lr_schedule: cosine}}}\n")
    mine = make_plan(load_study(str(tmp_path / "mine.yaml")), load_scale("smoke"), [0], [], tmp_path, tmp_path)
    assert mine.cells[0].run_id == plan.cells[0].run_id != plan.cells[1].run_id


def test_seeds_that_were_run_belong_to_the_study(tmp_path: Path) -> None:
    arguments = (load_study("stop-gradient"), load_scale("smoke"))
    plan = make_plan(*arguments, [5], [], tmp_path, tmp_path)
    (tmp_path / plan.cells[0].run_id).mkdir()
    assert {planned.cell.seed for planned in make_plan(*arguments, None, [], tmp_path, tmp_path).cells} == {0, 5}
    assert {planned.cell.seed for planned in make_plan(*arguments, [0], [], tmp_path, tmp_path).cells} == {0}


@pytest.mark.parametrize("name", ["small", "resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("predictor", [{}, {"kind": "none"}, {"kind": "linear"}, {"kind": "bias"}])
def test_the_estimate_counts_the_parameters(name: str, predictor: dict[str, str]) -> None:
    heads = {f"predictor.{key}": value for key, value in predictor.items()}
    settings = validate({**SMALL, "backbone.name": name, "backbone.width": 16, **heads})
    real = sum(weight.numel() for weight in Siamese(settings, 3).parameters() if weight.dim() > 1)
    assert num_parameters(settings) == pytest.approx(real, rel=0.01)


def test_the_estimate_knows_prototypes_and_the_averages_of_imagenet() -> None:
    swav = load_study("swav-parts")
    for cell in make_cells(swav, load_scale("smoke"), [0]):
        real = sum(weight.numel() for weight in Siamese(cell.settings, 3).parameters() if weight.dim() > 1)
        assert num_parameters(cell.settings) == pytest.approx(real, rel=0.01)
    averages = validate({"target.image_average": 0.8, "predictor.kind": "none", "predictor.lr_schedule": "cosine"})
    assert average_bytes(averages, 1_281_167) == pytest.approx(10.5e9, rel=0.01)


def test_estimates_grow_with_the_work() -> None:
    scale = load_scale("imagenet")
    short, long = (estimate(validate({"epochs": epochs}), scale).seconds for epochs in (100, 800))
    assert long == pytest.approx(8 * short, rel=0.1)


def test_the_time_of_a_plan_grows_with_its_cells_and_not_with_their_square(tmp_path: Path) -> None:
    def seconds(cells: int) -> float:
        rates = ",".join(f"{1e-3 * i:.6f}" for i in range(1, cells // 100 + 1))
        decays = ",".join(f"{1e-5 * i:.6f}" for i in range(1, 101))
        started = time.process_time()
        study = grid_study([f"optimizer.lr={rates}", f"optimizer.weight_decay={decays}"])
        plan = make_plan(study, load_scale("smoke"), [0], [], tmp_path, tmp_path)
        plan.statuses()
        assert len({planned.run_id for planned in plan.cells}) == cells
        return time.process_time() - started

    seconds(100)  # what is loaded at the first call is not the plan's
    # Four times the cells take four times as long, not sixteen. `make bench` measures the seconds.
    assert seconds(8_000) < 8 * seconds(2_000)


# --- the command ---------------------------------------------------------------------------------------------------


def test_json_for_scripts(command: Command) -> None:
    for arguments in (
        ["list"],
        ["plan", "stop-gradient"],
        ["status", "stop-gradient"],
        ["show-config", "stop-gradient"],
    ):
        done = command(*arguments, "--scale", "smoke", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_show_config_names_origins(command: Command) -> None:
    arguments = [
        "show-config",
        "stop-gradient",
        "--scale",
        "smoke",
        "--set",
        "epochs=3",
        "--variant",
        "without stop-gradient",
    ]
    shown = json.loads(command(*arguments, "--json").stdout)
    assert shown["epochs"] == {"value": 3, "origin": "--set epochs=3"}
    assert shown["optimizer.momentum"] == {"value": 0.9, "origin": "default"}
    assert shown["target.stop_gradient"]["value"] is False
    assert "stop-gradient.yaml:" in shown["target.stop_gradient"]["origin"]
    assert "linear warm-up" in command(*arguments).stdout.replace("\n", " ")


def test_environment_variables_stand_for_the_folders(command: Command, tmp_path: Path) -> None:
    done = command("plan", "stop-gradient", "--scale", "smoke", "--json", env={"ABLATION_RUNS": str(tmp_path / "mine")})
    assert json.loads(done.stdout)["runs"] == str(tmp_path / "mine")


def test_a_user_s_own_study_runs_from_any_folder(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: Mine\nvariants:\n  a: {settings: {epochs: 1, data.num_train: 128}}\n")
    assert command("run", "mine.yaml", "--scale", "smoke").returncode == 0
    status = json.loads(command("status", "mine.yaml", "--scale", "smoke", "--json").stdout)
    assert [cell["state"] for cell in status["cells"]] == ["done"]
    (diagnosis,) = json.loads(command("diagnose", "mine.yaml", "--scale", "smoke", "--json").stdout)
    assert status["cells"][0]["diagnosis"] == diagnosis["verdict"]


def test_unknown_scale_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'imagenet'"):
        load_scale("imagnet")


def test_cells_begin_by_seed_and_long_ones_first(tmp_path: Path) -> None:
    """Table 4's methods by epochs: with two workers nobody waits at the end for the longest, begun last."""
    made = make_plan(load_study("comparison"), load_scale("imagenet"), [1, 0], [], tmp_path, tmp_path)
    begun = [(planned.cell.seed, planned.cell.settings.epochs, planned.cell.variant) for planned in made.unique()]
    assert [seed for seed, _, _ in begun] == sorted(seed for seed, _, _ in begun)
    for seed in (0, 1):
        seconds = [
            estimate(planned.cell.settings, made.scale).seconds
            for planned in made.unique()
            if planned.cell.seed == seed
        ]
        assert seconds == sorted(seconds, reverse=True)
    assert {planned.run_id for planned in made.unique()} == {planned.run_id for planned in made.cells}
    assert begun[0][1] == 800


NAMES = [
    "0.1",
    "0.10",
    "1e3",
    "1000",
    "0x10",
    "010",
    "yes",
    "on",
    "no",
    "off",
    "null",
    "~",
    "true",
    "True",
    "2020-01-01",
    "1:30",
]


def test_names_are_texts_as_they_were_written(tmp_path: Path) -> None:
    """Variants, what refers to them, claims: none is read as a number, so none takes another's name."""
    variants = [f"  {name}: {{settings: {{optimizer.lr: {0.01 * (i + 1)}}}}}" for i, name in enumerate(NAMES)]
    listed = [name for name in NAMES if name not in ("null", "~")]
    (tmp_path / "mine.yaml").write_text(
        "\n".join(
            [
                "title: 2020",
                "baseline: 0.10",
                "seeds: {smoke: 2}",
                "variants:",
                *variants,
                "  last: {against: 010, only: smoke, settings: {epochs: 3}}".replace("smoke", "[smoke]"),
                "figures:",
                "  - {kind: sweep, setting: optimizer.lr, base: 0.10}",
                "claims:",
                "  1.50:",
                "    says: 007",
                "    scales: [smoke]",
                "    checks:",
                f"      - {{kind: same, of: [{', '.join(listed)}], within: 1}}",
                "      - {kind: order, higher: 0.10, lower: 0.1, by: 1}",
                "      - {kind: order, higher: [0.10, 1e3], lower: [0.1, 010], by: 1}",
                "      - {kind: trend, across: [0.10, yes, true], direction: rises, by: 1}",
                "      - {kind: event, of: 0x10, event: healthy}",
            ]
        )
    )
    study = load_study(str(tmp_path / "mine.yaml"))
    assert [variant.name for variant in study.variants] == [*NAMES, "last"]
    assert study.title == "2020"
    assert [variant.against for variant in study.variants] == ["0.10", None, *["0.10"] * (len(NAMES) - 2), "010"]
    cells = make_cells(study, load_scale("smoke"), [0])
    rates = {cell.variant: cell.settings.optimizer.lr for cell in cells}
    assert [rates[name] for name in NAMES] == pytest.approx([0.01 * (i + 1) for i in range(len(NAMES))])
    (claim,) = study.claims
    assert (claim.name, claim.says) == ("1.50", "007")
    same, order, pairs, trend, event = claim.checks
    assert same.variants() == listed
    assert order.variants() == ["0.10", "0.1"]
    assert pairs.variants() == ["0.10", "1e3", "0.1", "010"]
    assert trend.variants() == ["0.10", "yes", "true"]
    assert event.variants() == ["0x10"]


def test_a_value_that_merges_in_is_a_text_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nvariants:\n  a: &a {against: 0.10, settings: {epochs: 2}}\n"
        "  b: {<<: *a, settings: {epochs: 3}}\n  0.1: {}\n  0.10: {settings: {epochs: 4}}\n"
    )
    variants = load_study(str(tmp_path / "mine.yaml")).variants
    assert [(v.name, v.against) for v in variants] == [("a", "0.10"), ("b", "0.10"), ("0.1", "a"), ("0.10", "a")]


def test_points_of_a_grid_that_are_almost_the_same_have_names_of_their_own() -> None:
    names = [variant.name for variant in grid_study(["optimizer.lr=0.05000001,0.05,0.1,1e-4"]).variants]
    assert names == ["optimizer.lr=0.05000001", "optimizer.lr=0.05", "optimizer.lr=0.1", "optimizer.lr=0.0001"]


def test_a_setting_that_is_a_text_keeps_it_as_written(tmp_path: Path) -> None:
    for name in ("010", "1e3", "null"):
        (tmp_path / "mine.yaml").write_text(
            f"title: Mine\nvariants: {{a: {{settings: {{data: {{name: folder, storage: memory, path: {name}}}}}}}}}\n"
        )
        (cell,) = make_cells(load_study(str(tmp_path / "mine.yaml")), load_scale("smoke"), [0])
        assert cell.settings.data.path == name
        assert layer_from_command_line([f"data.path={name}"])["data.path"].value == name
    study = grid_study(["data.path=010,1e3,08,x"])
    again = load_study(str(save_grid(study, tmp_path)))
    assert [v.point["data.path"].value for v in again.variants] == ["010", "1e3", "08", "x"]
    assert [v.name for v in again.variants] == [v.name for v in study.variants]


@hypothesis.settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        min_size=1,
    )
)
def test_what_is_written_is_read_back_the_same(content: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.yaml"
        path.write_text(dump(content), encoding="utf-8")
        assert read(path).content == content
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == content  # run folders are read by other programs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-4", 1e-4), ("1E3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-.inf", -float("inf")), ("010", 10), ("-3", -3)],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
        *[
            (text, text)
            for text in ("yes", "no", "on", "Off", "y", "0x10", "0b1", "1_000", "1:30:00", "2020-01-01", "1e")
        ],
    ],
)
def test_what_a_scalar_without_quotes_is(text: str, value: object, tmp_path: Path) -> None:
    """YAML 1.2's core schema, of its whole numbers the decimal ones."""
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    found = read(tmp_path / "a.yaml").content["a"]
    assert (found, type(found)) == (value, type(value))


ROWS = [
    ("1", "with stop-gradient", "done (healthy)", "84.1", "f428dcf71bb9-s0"),
    ("2", "without stop-gradient", "done (collapsed)", "10.0", "87547083b55b-s0"),
]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 50, 40, 30, 20])
def test_a_table_breaks_no_word_on_a_narrow_terminal(width: int) -> None:
    """Columns go by importance; where the last ones do not fit either, a row is a record."""
    table = Table("#>", "variant", "state", "kNN %>", "run", optional=("run", "#"))
    for row in ROWS:
        table.add_row(*row)
    console = Console(width=width, force_terminal=True, no_color=True, color_system=None, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    words = text.split()
    for row in ROWS:
        for cell in row[1:4]:
            for word in cell.split():
                assert word in words, text
    assert ("f428dcf71bb9-s0" in words) == (width >= 60 or width < 40)  # a record has everything
    assert ("variant:" in words) == (width < 40)


def test_a_pipe_gets_each_row_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("variant", "state", optional=("state",))
    table.add_row("a long name " * 60, "done")
    make_console().print(table)
    assert re.search(r"(a long name +){60}.*done", capsys.readouterr().out)


def test_runs_are_found_without_their_images_by_the_fingerprint_on_record(tmp_path: Path) -> None:
    arguments = (load_study("stop-gradient"), load_scale("cpu"))
    data = tmp_path / "data"
    made = make_plan(*arguments, [0], [], tmp_path, data)
    assert made.unprepared
    for cell in (planned.cell for planned in made.cells):
        folder = tmp_path / run_id(cell.settings, "f00d")
        folder.mkdir()
        config = cell.settings.model_dump(mode="json")
        del config["data"]["arguments"]  # a folder from before there was this setting
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "provenance.json").write_text(json.dumps({"attempts": [{"data_fingerprint": "f00d"}]}))
    found = make_plan(*arguments, [0], [], tmp_path, data)
    assert [planned.run_id for planned in found.cells] == [
        run_id(planned.cell.settings, "f00d") for planned in made.cells
    ]
    assert not found.unprepared
    assert make_plan(*arguments, [0], [], tmp_path, data, to_train=True).unprepared  # these images may be others


def test_a_plan_to_train_has_the_seeds_that_the_study_asks_for(tmp_path: Path) -> None:
    arguments = (load_study("stop-gradient"), load_scale("smoke"))
    asked = {planned.cell.seed for planned in make_plan(*arguments, None, [], tmp_path, tmp_path).cells}
    (tmp_path / make_plan(*arguments, [7], [], tmp_path, tmp_path).cells[0].run_id).mkdir()
    for to_train, expected in ((True, asked), (False, asked | {7})):
        plan = make_plan(*arguments, None, [], tmp_path, tmp_path, to_train=to_train)
        assert {planned.cell.seed for planned in plan.cells} == expected


@pytest.mark.parametrize(
    ("axes", "swept"),
    [
        ("{optimizer.lr: [0.1, 0.2, 0.3], batch_size: [32, 64]}", "optimizer.lr"),
        ("{loss.name: [cosine, cross-entropy], projector.output_dim: [32, 64]}", "projector.output_dim"),
        ("{loss.name: [cosine, cross-entropy]}", None),
        ("{target.stop_gradient: [true, false]}", None),
    ],
)
def test_a_grid_is_drawn_along_its_longest_axis_of_numbers(axes: str, swept: str | None, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"title: x\ngrid: {axes}\n")
    figures = load_study(str(tmp_path / "mine.yaml")).figures
    assert [getattr(figure, "setting", None) for figure in figures] == [None] + [swept] * (swept is not None)
