"""Every example of a notebook in the docs and in docstrings runs as it stands there."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import analysis
from tests.conftest import ROOT
from tests.run_folders import settings, write_run


def examples() -> Iterator[tuple[str, str]]:
    """Indented blocks that call load_runs or load_study: of the docs, and after ``::`` of the docstrings of modules."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "analysis").rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        for number, block in enumerate(re.findall(r"(?:^    .*\n?|^\n(?=    ))+", text, re.MULTILINE)):
            if re.search(r"load_(runs|study)\(", block):
                yield f"{path.relative_to(ROOT)}:{number}", textwrap.dedent(block)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with and without stop-gradient, at two rates, with what each kind of figure needs."""
    place = tmp_path_factory.mktemp("notebook")
    for stop in (True, False):
        for lr in (0.1, 0.2):
            images = {"data.name": "fashion-mnist", "data.storage": "memory", "projector.output_dim": 3}
            chosen = settings(
                **{"target.stop_gradient": stop, "optimizer.lr": lr}, **images
            )  # d: the length of the spectrum
            for seed in (0, 1):
                folder = write_run(place / "runs", chosen, seed)
                curves = folder / "metrics.jsonl"
                curves.write_text(curves.read_text().replace('"grad_norm"', '"positive_cosine": 0.9, "grad_norm"'))
                z = np.random.default_rng(seed).normal(size=(50, 3)).astype(np.float16)
                np.savez(folder / "embeddings.npz", z=z, labels=np.arange(50) % 5, step=np.array(8))
    return place


@pytest.mark.parametrize(("where", "code"), list(examples()), ids=[where for where, _ in examples()])
def test_an_example_runs(where: str, code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names = {name: getattr(analysis, name) for name in analysis.__all__}
    names["diagnose_runs"] = analysis.notebook.diagnose_runs
    exec(compile(code, where, "exec"), names)


def test_there_are_examples() -> None:
    assert len(list(examples())) >= 9
