"""Reading run folders: whatever is in them, what is damaged is named; and the cache is always right."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from analysis import load_runs
from analysis.diagnosis.rules import diagnose_runs
from analysis.frames import cache
from analysis.frames.load import RUN_COLUMNS, came_to, describe_state
from analysis.report.in_words import in_numbers
from analysis.report.study_table import outcome_entry
from tests.conftest import ROOT
from tests.run_folders import settings, write_run

DAMAGES: list[Any] = ["a text", "", [1, 2], {"a": 1}, [], {}, 10**400, -(10**400), math.inf, math.nan, True, "1.5"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("good")
    write_run(runs, settings(), 0)
    write_run(runs, settings(), 1, state="running", until=3.2)
    attempt = next(runs.glob("*-s1")) / "metrics.1.jsonl"
    attempt.write_text(attempt.read_text().rpartition("\n")[0] + "\n")  # no half-written line: nothing to be named
    return runs


def equal(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """The same values in the columns that both must have; what else was logged may differ."""
    try:
        pd.testing.assert_frame_equal(first[list(second.columns)], second)
    except (AssertionError, KeyError):
        return False
    return True


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in nested objects and lists, the containers themselves included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [place, *(leaf for key, inner in items for leaf in leaves(inner, (*place, key)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def unlike(content: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A text in place of a text, or true in place of false, is no damage that any reader could see."""
    for key in place:
        content = content[key]
    return [1, 2] if type(content) is type(new) and isinstance(new, str | bool) else new


def damage(folder: Path, draw: random.Random) -> str:
    """Change one file of a run in one way; says which."""
    path = draw.choice(sorted(folder.iterdir()))
    how = draw.choice(["value", "value", "value", "value", "cut", "binary", "remove", "loop", "folder", "twice"])
    raw = path.read_bytes()
    if how == "value":
        new = draw.choice(DAMAGES)
        if path.suffix == ".jsonl":
            lines = raw.decode().splitlines()
            number = draw.randrange(len(lines))
            content = json.loads(lines[number])
            place = draw.choice(leaves(content))
            new = unlike(content, place, new)
            lines[number] = json.dumps(replaced(content, place, new))
            path.write_text("\n".join(lines) + "\n")
        else:
            content = yaml.safe_load(raw) if path.suffix == ".yaml" else json.loads(raw)
            place = draw.choice(leaves(content))
            new = unlike(content, place, new)
            content = replaced(content, place, new)
            path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))
        return f"{path.name} {place} = {str(new)[:20]!r}"
    path.unlink()
    if how == "cut":
        path.write_bytes(raw[: draw.randrange(len(raw))])
    elif how == "binary":
        path.write_bytes(draw.randbytes(draw.randrange(1, 2000)))
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "folder":
        path.mkdir()
    elif how == "twice":
        path.write_bytes(raw + raw)
    return f"{path.name} {how}"


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
@example(2635)  # the final numbers are others
def test_any_damage_is_named_or_does_no_harm(good: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    runs = tmp_path_factory.mktemp("damaged") / "runs"
    shutil.copytree(good, runs)
    folder = draw.choice(sorted(runs.iterdir()))
    what = damage(folder, draw)
    good_points, good_runs = load_runs(good, use_cache=False)
    points, table = load_runs(runs)
    again_points, again_table = load_runs(runs)
    pd.testing.assert_frame_equal(points, again_points)
    pd.testing.assert_frame_equal(table, again_table)
    assert len(table) == 2
    note = table.loc[table["run"] == folder.name, "note"].item()
    other = table["run"] != folder.name
    assert (table.loc[other, "note"] == "").all(), what
    if not note:
        compared = [column for column in good_runs if column != "path"]
        assert equal(points, good_points), what
        for column in compared:
            assert equal(table[[column]], good_runs[[column]]), (what, column)
    numbers = ["epoch", "step", "seconds", *(name for name in RUN_COLUMNS if name.startswith("final_"))]
    assert all(pd.api.types.is_float_dtype(table[name]) for name in numbers), what


def test_an_older_schema_is_read_with_its_defaults_and_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, settings(), 0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["batch_norm"], config["loss"]["symmetry"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, runs = load_runs(tmp_path)
    assert runs.loc[0, "loss.symmetry"] == "symmetric"
    assert runs.loc[0, "note"] == (
        "settings of an older version: 3 taken from the defaults (batch_norm.groups, batch_norm.one_forward, "
        "loss.symmetry)"
    )


def test_a_config_that_is_no_settings_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, settings(), 0)
    for text in ("x" * 2**21, "{a: [", "- 1", ""):
        (folder / "config.yaml").write_text(text)
        assert load_runs(tmp_path, use_cache=False)[1].loc[0, "note"] == "config.yaml cannot be read"


# --- the cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs in the cache."""
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    for seed in range(3):
        write_run(tmp_path, settings(), seed)
    time.sleep(0.02)  # a tick of the file system's clock
    load_runs(tmp_path)
    assert len(list((tmp_path / cache.FOLDER).iterdir())) == 3
    return tmp_path


def same(runs: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames, which must be those that no cache gives."""
    frames = load_runs(runs)
    for with_cache, without in zip(frames, load_runs(runs, use_cache=False), strict=True):
        pd.testing.assert_frame_equal(with_cache, without)
    return frames


def test_the_cache_gives_what_was_read_and_reads_nothing(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_runs(cached, use_cache=False)
    monkeypatch.setattr(cache, "read_contents", lambda folder: pytest.fail(f"{folder} was read again"))
    for with_cache, without in zip(load_runs(cached), expected, strict=True):
        pd.testing.assert_frame_equal(with_cache, without)


def test_a_change_that_keeps_size_and_mtime_is_seen(cached: Path) -> None:
    path = sorted(cached.glob("*-s0"))[0] / "metrics.jsonl"
    before, status = path.read_text(), path.stat()
    digits = str(json.loads(before.splitlines()[-1])["knn_top1"])
    changed = before.replace(digits, ("1" if digits[0] != "1" else "2") + digits[1:])
    with open(path, "r+") as file:  # in place: the same inode
        file.write(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(changed) == len(before)
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    points, _ = same(cached)
    assert points["knn_top1"].dropna().tolist().count(json.loads(changed.splitlines()[-1])["knn_top1"]) == 1


def test_a_deleted_run_disappears_and_a_new_one_appears(cached: Path) -> None:
    first, second, _ = sorted(path for path in cached.iterdir() if path.name != cache.FOLDER)
    shutil.rmtree(first)
    second.rename(second.with_name("renamed-s9"))
    _, runs = same(cached)
    assert "renamed-s9" in set(runs["run"])
    assert first.name not in set(runs["run"])
    assert {path.name for path in (cached / cache.FOLDER).iterdir()} == set(runs["run"])


def test_a_run_that_ends_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    folder = write_run(tmp_path, settings(), 0, state="running", until=3.2)
    assert load_runs(tmp_path)[1].loc[0, "epoch"] == 3
    shutil.rmtree(folder)
    write_run(tmp_path, settings(), 0)
    assert same(tmp_path)[1].loc[0, "epoch"] == 8


def test_a_file_of_this_moment_is_not_cached(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), 0)
    load_runs(tmp_path)
    assert not list((tmp_path / cache.FOLDER).iterdir())


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_cache_is_ignored(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    runs = tmp_path_factory.mktemp("cached")
    write_run(runs, settings(), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_SETTLED_NS", -(10**12))
        expected = load_runs(runs)
        (place,) = (runs / cache.FOLDER).iterdir()
        raw = place.read_bytes()
        at = draw.randrange(len(raw))
        cut = bytes([raw[at] ^ (1 << draw.randrange(8))])
        damaged = [raw[:at], raw[:at] + cut + raw[at + 1 :], draw.randbytes(at), raw + raw, b"0 null\n", b"\n"]
        place.write_bytes(draw.choice(damaged))
        for found, wanted in zip(load_runs(runs), expected, strict=True):
            pd.testing.assert_frame_equal(found, wanted)


def test_without_a_place_for_it_there_is_no_cache(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), 0)
    (tmp_path / cache.FOLDER).write_text("a file in its place")
    same(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_read(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), 0)
    tmp_path.chmod(0o500)
    same(tmp_path)
    tmp_path.chmod(0o700)


def test_processes_at_once_see_the_same(tmp_path: Path) -> None:
    for seed in range(20):
        write_run(tmp_path, settings(), seed)
    code = f"""
from analysis import load_runs
from analysis.frames import cache
cache._SETTLED_NS = -10**12
for _ in range(5):
    points, runs = load_runs({str(tmp_path)!r})
    cache.forget({type(tmp_path).__name__}({str(tmp_path)!r}), [])
print(len(points), round(points["loss"].sum(), 6), set(runs["note"]))
"""
    code = "from pathlib import Path, PosixPath\n" + code
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    points, _ = load_runs(tmp_path, use_cache=False)
    expected = f"{len(points)} {round(points['loss'].sum(), 6)} {{''}}"
    assert [process.communicate()[0].strip() for process in started] == [expected] * 3


def test_the_word_for_a_run_is_that_of_its_diagnosis_everywhere() -> None:
    """Real curves whose own record says healthy, at an effective rank of 3 of 512."""
    points, runs = load_runs(Path(__file__).parents[1] / "curves", ["no-predictor", "baseline"], use_cache=False)
    runs = runs.assign(state="done", outcome="healthy", stopped_early=False)
    runs["diagnosis"] = [each.verdict for each in diagnose_runs(points, runs)]
    assert list(came_to(runs)) == ["dimensional collapse", "healthy"]
    runs["variant"] = pd.Categorical(runs["run"])
    assert outcome_entry(runs.iloc[:1]).text == "dimensional collapse (1/1)"
    assert "dimensional collapse" in in_numbers(runs)
    assert [describe_state(run) for _, run in runs.iterrows()] == ["dimensional collapse", "healthy"]
    assert list(came_to(runs.drop(columns="diagnosis"))) == ["healthy", "healthy"]


def test_a_loss_of_ones_own_without_a_scale_is_judged_by_its_output(tmp_path: Path) -> None:
    chosen = settings(loss__name="mine:loss@0123456789ab", projector__output_dim=128)
    write_run(tmp_path, chosen, 0)
    write_run(tmp_path, chosen, 1, "collapsed")
    healthy, collapsed = diagnose_runs(*load_runs(tmp_path))
    assert healthy.verdict == "healthy"
    assert (
        "The loss (mine:loss) names no chance and no optimum, so that its output alone was judged." in healthy.evidence
    )
    assert collapsed.verdict == "complete collapse"
