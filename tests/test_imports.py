"""Imports go one way, and what must be quick or must read a stranger's disk loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("simsiam", "experiments", "analysis", "tests", "benchmarks")
MAY_IMPORT = {
    "simsiam": {"simsiam"},
    "experiments": {"experiments", "simsiam"},
    "analysis": {"analysis", "experiments", "simsiam"},
}
# These commands may call the analysis; it is imported when a report, verdicts or a diagnosis are asked for.
EXCEPTIONS = {(f"experiments/commands/{name}.py", "analysis") for name in ("results", "claims", "diagnosis")}


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
            for root in {name.partition(".")[0] for name in names} & set(PACKAGES):
                place = str(path.relative_to(ROOT))
                assert root in MAY_IMPORT[package] or (place, root) in EXCEPTIONS, f"{place} imports {root}"


def loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import simsiam.config, simsiam.data, simsiam.metrics",
        "import experiments.study, experiments.store, experiments.plan, experiments.local, experiments.view",
        "import experiments.cluster, experiments.launches, experiments.overview, experiments.slurm, experiments.job",
        "import experiments.registry, experiments.slurm_launcher, experiments.member, simsiam.machine",
        "import analysis, analysis.report; from analysis import load_runs",
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
from experiments.cli import app
app({arguments!r}, standalone_mode=False)
"""
    assert not loaded(code) & {"torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy"}
