"""The notebook runs, and the site is built without a warning, with every link leading somewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "figure-for-a-paper.ipynb"


def test_the_notebook_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("Agg")
    code = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    monkeypatch.setattr(Path, "cwd", classmethod(lambda _: ROOT / "docs"))  # as where a notebook is opened
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in code:
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert (tmp_path / "collapse.pdf").read_bytes().startswith(b"%PDF")
    accuracy = names["table"]["knn_top1"]
    assert accuracy["SimSiam"] > accuracy["without stop-gradient"]
    assert set(accuracy.index) == {"SimSiam", "without stop-gradient", "without predictor"}


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # its authors' announcement
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    settings = (tmp_path / "site" / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "optimizer" in settings
    assert "fully connected layers" in settings, "the meaning of projector.num_layers"
