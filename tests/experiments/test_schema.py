"""The JSON Schemas say what the loaders say: what these read is valid, what these refuse by name or type is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.schema import FILES, FOLDER, schema, schema_text
from experiments.slurm.profile import load_cluster
from experiments.studies.layers import read_included
from experiments.studies.study import load_study
from experiments.studies.yaml_files import read
from simsiam.errors import SettingsError
from tests.conftest import ROOT

jsonschema = pytest.importorskip("jsonschema")
FOLDERS = {"study": "studies", "scale": "scales", "method": "methods", "cluster": "clusters"}
SHIPPED = [
    (kind, path) for kind, name in FOLDERS.items() for path in sorted((ROOT / "experiments" / name).glob("*.yaml"))
]


def faults(kind: str, path: Path) -> list[str]:
    content = json.loads(json.dumps(read(path).content))  # an editor knows lists, not tuples
    return [error.message for error in jsonschema.Draft7Validator(schema(kind)).iter_errors(content)]


def loads(kind: str, path: Path) -> bool:
    try:
        {"study": lambda: load_study(str(path)), "cluster": lambda: load_cluster(str(path))}.get(
            kind, lambda: read_included(path)
        )()
    except SettingsError:
        return False
    return True


@pytest.mark.parametrize("kind", list(FILES))
def test_the_published_schemas_are_current(kind: str) -> None:
    text = (FOLDER / f"{kind}.json").read_text(encoding="utf-8")
    assert text == schema_text(kind), "`make schemas` renews them"
    jsonschema.Draft7Validator.check_schema(json.loads(text))


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_a_shipped_file_names_its_schema_first_and_is_valid(kind: str, path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    address = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / address).resolve() == (FOLDER / f"{kind}.json").resolve()
    assert faults(kind, path) == []


STUDY = "title: Mine\nvariants:\n  a: {}\n  0.10: {against: a}\n"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("study", STUDY),
        ("study", "title: 2026\ngrid: {optimizer.lr: [0.1, 1e-3], predictor.kind: [none, mlp]}\n"),
        ("study", STUDY + "settings: {optimizer: {lr: 1}, loss.name: nt-xent, augment.crop_scale: [0.2, 1]}\n"),
        ("study", STUDY + "settings: {data.path: 010, data.num_train: null}\nseeds: {cpu: 3}\nbaseline: 0.10\n"),
        ("study", STUDY + "scales: {cpu: {settings: {epochs: 2}}}\ninclude: []\n"),
        (
            "study",
            "title: M\nvariants: {a: {derived: {batch_size: 1/8 x epochs}, only: [cpu], paper: {top1: 1}}}\n",
        ),
        ("study", STUDY + "claims: {c: {says: x, checks: [{kind: event, of: a, event: collapsed}]}}\n"),
        ("study", STUDY + "claims: {c: {says: x, checks: [{kind: order, higher: 0.10, lower: [a], by: 1}]}}\n"),
        ("study", STUDY + "figures: [{kind: sweep, setting: optimizer.lr}, {kind: map}]\n"),
        ("study", STUDY + "looks: 6\n"),
        ("study", STUDY + "looks: [3, 6]\n"),
        ("cluster", "partition: 010\ntime_limit: 2-12:00:00\nmemory: 32G\noptions: {exclude: 010, exclusive: true}\n"),
        ("cluster", "time_limit: 90\nsetup: [module load cuda]\ndata: null\n"),
    ],
)
def test_what_is_read_is_valid(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    assert loads(kind, path)
    assert faults(kind, path) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("study", STUDY + "setings: {}\n"),
        ("study", STUDY + "settings: {optimiser.lr: 0.1}\n"),
        ("study", STUDY + "settings: {optimizer: {rate: 0.1}}\n"),
        ("study", STUDY + "settings: {seed: 3}\n"),
        ("study", STUDY + "scales: {gpu: {}}\n"),
        ("study", STUDY + "seeds: 0\n"),
        ("study", "title: M\nvariants: {a: {only: [gpu]}}\n"),
        ("study", "title: M\nvariants: {a: {derived: {batchsize: 2 x batch_size}}}\n"),
        ("study", "variants: {a: {}}\n"),
        ("study", STUDY + "claims: {c: {says: x, checks: [{kind: event, of: a, event: exploded}]}}\n"),
        ("study", STUDY + "claims: {c: {says: x, checks: [{kind: final, of: a, metric: knn, above: 1}]}}\n"),
        ("study", STUDY + "claims: {c: {says: x, checks: []}}\n"),
        ("study", STUDY + "figures: [{kind: spectra}]\n"),
        ("study", STUDY + "figures: [{metrics: [loss]}]\n"),
        ("study", STUDY + "figures: [{kind: sweep, setting: predictor.kind}]\n"),
        ("study", STUDY + "looks: 1\n"),
        ("study", STUDY + f"looks: {list(range(2, 44, 2))}\n"),
        ("cluster", "partitions: gpu\n"),
        ("cluster", "nodes: 0\n"),
        ("cluster", "memory: 32\n"),
        ("cluster", "device: gpu\n"),
        ("method", "settings: {}\nvariants: {}\n"),
    ],
)
def test_what_is_refused_is_not_valid(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    assert not loads(kind, path)
    assert faults(kind, path) != []


def test_every_setting_stands_in_the_schema_with_its_meaning() -> None:
    """Nested and dotted, with what ``show-config`` says of it."""
    from simsiam.settings.fields import description, dotted_paths

    settings = schema("study")["definitions"]["settings"]["properties"]
    for path in set(dotted_paths()) - {"seed"}:
        section, _, leaf = path.rpartition(".")
        assert (settings[section]["properties"] if section else settings)[leaf]["description"] == description(path)
        assert path in settings
    assert "seed" not in settings, "it is chosen by --seeds"
