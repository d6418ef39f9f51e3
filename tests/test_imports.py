"""Imports go one way, and what must be quick or must read a stranger's disk loads nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("simsiam", "experiments", "analysis", "commands")  # each may import those before it
MOST_MODULES = 14  # a folder, __init__.py not counted
# Within a package, lowest first: a room may import itself and those before it.
ROOMS = {
    "simsiam": (
        ("errors", "machine", "randomness"),
        ("record",),
        ("settings",),
        ("distributed",),
        ("data", "model"),
        ("evaluation",),
        ("training",),
    ),
    "experiments": (
        ("studies",),
        ("runs",),
        ("plan",),
        ("beside",),
        ("launcher",),
        ("status",),
        ("weights", "local"),
        ("slurm",),
        ("registry",),
        ("garbage",),
        ("schema",),
    ),
    "analysis": (
        ("formats",),
        ("frames",),
        ("diagnosis",),
        ("monitor",),
        ("lightning_callback",),
        ("figures",),
        ("verdicts",),
        ("report",),
        ("notebook",),
        ("tracking",),
    ),
}


def modules() -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules of this project that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return {f"{name}.__init__" if f"{name}.__init__" in known else name for name in found}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, set(known)) for name, path in known.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    outside = {*PACKAGES, "tests", "benchmarks", "run_ablation"} - set(allowed)
    for name, imported in graph().items():
        if name.startswith(f"{package}."):
            assert not {other for other in imported if other.partition(".")[0] in outside}, name


@pytest.mark.parametrize("package", list(ROOMS))
def test_rooms_import_only_lower_rooms(package: str) -> None:
    floor = {room: level for level, rooms in enumerate(ROOMS[package]) for room in rooms}
    for name, imported in graph().items():
        if not name.startswith(f"{package}.") or name == f"{package}.__init__":
            continue
        room = name.split(".")[1]
        assert room in floor, f"{name} is in no room"
        for other in imported:
            if other.startswith(f"{package}.") and other.split(".")[1] not in (room, "__init__"):
                assert floor[other.split(".")[1]] < floor[room], f"{name} imports {other}"


def test_no_circles() -> None:
    known = graph()
    graphlib.TopologicalSorter({name: found & set(known) for name, found in known.items()}).prepare()


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_few_modules_a_folder(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    for folder in folders:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES, folder


def test_packages_import_nothing() -> None:
    for name, path in modules().items():
        if name.endswith(".__init__") and name != "analysis.__init__":  # that one is a notebook's way in
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert not [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], path


def loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import simsiam.settings.fields, simsiam.settings.checks, simsiam.settings.identity, simsiam.errors",
        "import simsiam.machine, simsiam.data.sets, simsiam.record.curves, simsiam.record.catalogue",
        "import experiments.studies.study, experiments.runs.folder, experiments.plan, experiments.local.grid",
        "import experiments.slurm.profile, experiments.slurm.launch, experiments.status, experiments.registry",
        "import experiments.slurm.submit, experiments.slurm.job.first_task, experiments.slurm.launcher",
        "import commands.live_grid",
        "import analysis, analysis.report.one_study; from analysis import load_runs",
    ],
)
def test_planning_and_reading_import_no_torch(code: str) -> None:
    assert not loaded(code) & {"torch", "torchvision"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--scale", "smoke"], ["status", "stop-gradient", "--scale", "smoke"]]
)
def test_quick_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
import os; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r})
from commands.app import app
app({arguments!r}, standalone_mode=False)
"""
    assert not loaded(code) & {"torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy"}
