"""What the docs say of the campaign's runs, against the runs that ship in an archive."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.diagnosis.rules import diagnose_runs
from analysis.frames.load import load_runs
from experiments.runs.archive import unpack
from tests.conftest import ROOT, Command

CHOSEN = ["--scale", "cpu", "--set", "data.name=folder", "--set", "data.path=cifar10", "--set", "precision=bfloat16"]


@pytest.mark.parametrize("study", ["stop-gradient", "predictor", "batch-norm", "small-models"])
def test_the_shipped_runs_give_the_tables_of_the_docs(study: str, command: Command, tmp_path: Path) -> None:
    made = command("report", study, "--runs", str(ROOT / "docs" / "campaign.tar.xz"), *CHOSEN, "--out", "out")
    assert made.returncode == 0, made.stderr
    rows = [line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert "\n".join(rows) in (ROOT / "docs" / "results-cpu.md").read_text()


@pytest.mark.parametrize(
    ("labeller", "expected"),
    [
        (
            1,
            {
                "complete collapse": {"complete collapse": 6},
                "dimensional collapse": {"healthy": 1},
                "healthy": {"healthy": 8},
                "no convergence": {"no convergence": 3},
            },
        ),
        (
            2,
            {
                "complete collapse": {"complete collapse": 3},
                "dimensional collapse": {"dimensional collapse": 1, "no convergence": 2},
                "healthy": {"healthy": 16, "slow optimisation": 1},
            },
        ),
        (
            3,
            {
                "complete collapse": {"complete collapse": 1, "oscillation": 1},
                "dimensional collapse": {"dimensional collapse": 1},
                "healthy": {"healthy": 19, "slow optimisation": 2},
                "no convergence": {"no convergence": 1, "healthy": 1},
            },
        ),
        (
            4,
            {
                "complete collapse": {"complete collapse": 3, "dimensional collapse": 1},
                "dimensional collapse": {"dimensional collapse": 1, "healthy": 1, "no convergence": 1},
                "healthy": {"healthy": 31, "oscillation": 1, "slow optimisation": 3},
                "no convergence": {"healthy": 6},
            },
        ),
    ],
)
def test_verdicts_beside_labels_that_were_given_blind(
    labeller: int, expected: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    """As the docs have them, the disagreements too. None that collapsed to a point is called healthy."""
    table = pd.read_csv(ROOT / "docs" / "campaign-labels.csv").set_index("run")
    labels = table.loc[table["labeller"] == labeller, "label"]
    unpack(ROOT / "docs" / "campaign.tar.xz", tmp_path)
    points, runs = load_runs(tmp_path, list(labels.index))
    verdicts = pd.Series([each.verdict for each in diagnose_runs(points, runs)], index=runs["run"])[labels.index]
    found = pd.crosstab(labels, verdicts).to_dict("index")
    assert {label: {name: n for name, n in row.items() if n} for label, row in found.items()} == expected
    assert not ((verdicts == "healthy") & (labels == "complete collapse")).any()
