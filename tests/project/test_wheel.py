"""The wheel holds every file of the packages, and its command works from any folder, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_imports import PACKAGES


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="69")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that nothing is left in the checkout, and nothing of it gets in
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*pip, "--wheel-dir", folder, ".", cwd=source)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".jinja", ".def")
    }
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_its_command_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    call(*pip, wheel, cwd=tmp_path)
    program = site / "bin" / "run-ablation"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: str) -> str:
        return call(sys.executable, program, *arguments, cwd=elsewhere, PYTHONPATH=str(site))

    code = "import commands.app, simsiam.errors; print(commands.app.__file__, simsiam.errors.__file__)"
    places = call(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(site)).split()
    assert all(Path(place).is_relative_to(site) for place in places), "it is the wheel that runs"
    assert "stop-gradient" in run("list", "--scale", "smoke")
    assert '"title"' in run("schema", "cluster")
    run("run", "stop-gradient", "--scale", "smoke", "--set", "epochs=1", "-j", "1")
    run("report", "stop-gradient", "--scale", "smoke", "--set", "epochs=1")
    assert next((elsewhere / "reports").glob("*/index.html")).stat().st_size > 10_000
