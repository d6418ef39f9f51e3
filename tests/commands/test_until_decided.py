"""Seeds where they decide something: what is trained next, on studies of known truth whose runs are made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from commands.until_decided import Campaign, Limits, limits_of
from experiments.plan import Plan
from experiments.studies.study import load_scale, load_study
from simsiam.data.sets import fingerprint
from simsiam.errors import SettingsError
from tests.conftest import Command
from tests.run_folders import write_run

STUDY = {
    "title": "Of my own",
    "variants": {
        "base": {},
        "worse": {"settings": {"target.stop_gradient": False}},
        "alike": {"settings": {"predictor.hidden_dim": 8}},
        "on the edge": {"settings": {"predictor.hidden_dim": 4}},
    },
    "claims": {
        "large": {"says": "x.", "checks": [{"kind": "order", "higher": "base", "lower": "worse", "by": 1}]},
        "same": {"says": "x.", "checks": [{"kind": "same", "of": ["base", "alike"], "within": 1}]},
        "edge": {"says": "x.", "checks": [{"kind": "order", "higher": "base", "lower": "on the edge", "by": 1}]},
    },
}
LOSS = {"base": 0.0, "worse": 20.0, "alike": 0.0, "on the edge": 1.0}  # of accuracy, in points


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def campaign(study: Path, limits: Limits | None = None) -> Campaign:
    folder = study.parent
    return Campaign(
        [load_study(str(study))], load_scale("smoke"), [], folder / "runs", folder / "data", limits or Limits()
    )


def train(made: Plan) -> list[tuple[str, int]]:
    """Make up the runs of a plan; which cells they are."""
    cells = []
    for planned in made.unique():
        seed, variant = planned.cell.seed, planned.cell.variant
        noise = np.random.default_rng([seed, len(variant)]).normal(0, 0.4)
        data = fingerprint(planned.cell.settings.data, made.data) or ""
        write_run(
            made.runs, planned.cell.settings, seed, knn=80 - LOSS[variant] + noise, seconds=1800, fingerprint=data
        )
        cells.append((variant, seed))
    return cells


def test_only_open_claims_get_more_seeds_and_it_ends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = []
    going_on = campaign(study)
    while (made := going_on.next_cells()) is not None:
        looks.append(train(made))
        assert len(looks) <= 5
    of_variant = {name: {seed for look in looks for variant, seed in look if variant == name} for name in LOSS}
    assert sorted(looks[0]) == sorted((name, seed) for name in LOSS for seed in range(3)), "the first look: 3 seeds"
    assert of_variant["worse"] == set(range(3)), "what is decided gets no more"
    assert set(range(5)) <= of_variant["alike"] < set(range(16))
    assert of_variant["base"] >= of_variant["on the edge"] | of_variant["alike"], "the baseline is shared"
    cells = [cell for look in looks for cell in look]
    assert len(set(cells)) == len(cells), "nothing is trained twice"
    said = capsys.readouterr().out
    assert "own: same: next look at 5 seeds" in said
    assert "own: edge: " in said.rpartition("undecided")[2], "what stays open is named with the reason"


def test_the_budget_and_the_most_seeds_are_kept(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(campaign(study).next_cells() or pytest.fail("nothing to train"))
    capsys.readouterr()
    # A run takes half an hour on two cores: an hour. The next look of two claims needs six runs, two of them shared.
    going_on = campaign(study, Limits(hours=4.5))
    made = going_on.next_cells()
    assert made is not None
    assert len(train(made)) == 4
    assert going_on.next_cells() is None
    assert "takes more than the 0.5 h left" in capsys.readouterr().out
    assert campaign(study, Limits(seeds=4)).next_cells() is None
    assert "needs more than the 4 seeds of --max-seeds" in capsys.readouterr().out


def test_what_lies_beyond_the_limit_has_no_price(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cells up to the limit are not those that decide it, so their hours are not its price."""
    limited = campaign(study, Limits(seeds=3))
    first = limited.next_cells()
    assert first is not None
    lines = [line for line in capsys.readouterr().out.split("\n\n")[0].split(". ") if "edge" in line]
    assert "about 8 seeds, more than the 3 of --max-seeds" in " ".join(" ".join(lines).split())


def test_plan_until_decided(command: Command, study: Path) -> None:
    done = command("plan", str(study), "--scale", "smoke", "--until-decided", "--json")
    assert done.returncode == 0, done.stderr
    open_ones = json.loads(done.stdout)["open"]
    assert [(each["next_look"], len(each["runs"]), each["chance"]) for each in open_ones] == [(3, 6, None)] * 3
    assert not (study.parent / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "6h"), "--until-decided"),
        (("--until-decided", "--budget", "6"), "6h or 90min"),
        (("--until-decided", "--budget", "0h"), "6h or 90min"),
        (("--until-decided", "--seeds", "3"), "do not go together"),
    ],
)
def test_options_that_do_not_go_together(command: Command, study: Path, options: tuple[str, ...], words: str) -> None:
    done = command("run", str(study), "--scale", "smoke", *options)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (study.parent / "runs").exists()


def test_times_of_a_budget() -> None:
    assert limits_of(True, "90min", None, None) == Limits(1.5, 1000)
    assert limits_of(True, "6h", 8, None) == Limits(6, 8)
    with pytest.raises(SettingsError, match="max-seeds"):
        limits_of(False, None, 8, None)
