"""Archives of runs: reports of them are those of the folders, and what is damaged or hostile is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from analysis import load_runs
from experiments.runs.archive import MANIFEST, pack, unpack
from experiments.runs.folder import StoreError
from tests.conftest import Command
from tests.run_folders import settings, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for seed in range(3):
        write_run(folder, settings(), seed)
        write_run(folder, settings(target__stop_gradient=False), seed, "collapsed")
    return folder


def test_the_frames_of_an_archive_are_those_of_the_folder(runs: Path, tmp_path: Path) -> None:
    write_run(runs, settings(batch_size=64), 0, state="running", until=3.0)
    made = pack(runs, tmp_path / "a.tar.xz")
    assert (made.num_runs, made.left_out) == (6, 1)
    assert len(unpack(tmp_path / "a.tar.xz", tmp_path / "back").written) == 6
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    ours, theirs = load_runs(runs, names), load_runs(tmp_path / "back", names)
    pd.testing.assert_frame_equal(ours[0], theirs[0])
    pd.testing.assert_frame_equal(ours[1].drop(columns="path"), theirs[1].drop(columns="path"))


def test_nothing_is_overwritten(runs: Path, tmp_path: Path) -> None:
    pack(runs, tmp_path / "a.tar.xz")
    with pytest.raises(StoreError, match="is there already"):
        pack(runs, tmp_path / "a.tar.xz")
    mine = next(runs.iterdir()) / "result.json"
    mine.write_text("mine")
    unpack(tmp_path / "a.tar.xz", runs)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("cut", [0, 10, 1000, -200])
def test_a_part_of_an_archive_is_refused_and_leaves_nothing(runs: Path, tmp_path: Path, cut: int) -> None:
    pack(runs, tmp_path / "a.tar.xz")
    whole = (tmp_path / "a.tar.xz").read_bytes()
    (tmp_path / "part.tar.xz").write_bytes(whole[:cut])
    with pytest.raises(StoreError, match=r"part\.tar\.xz: "):
        unpack(tmp_path / "part.tar.xz", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def archive_of(path: Path, files: dict[str, bytes], listed: dict[str, str] | None = None) -> Path:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json.dumps({"format": 1, "files": listed or digests}).encode()
    with tarfile.open(path, "w:xz") as tar:
        for name, content in {MANIFEST: manifest, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out/config.yaml", "no file of a run"),
        ("/etc/config.yaml", "no file of a run"),
        ("run/../config.yaml", "no file of a run"),
        ("run/evil.py", "no file of a run"),
        (".hidden/config.yaml", "no file of a run"),
        ("\x1b[31mred/config.yaml", "no file of a run"),
        ("two\nlines/config.yaml", "no file of a run"),
    ],
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str, message: str) -> None:
    made = archive_of(tmp_path / "a.tar.xz", {name: b"x"})
    with pytest.raises(StoreError, match=message):
        unpack(made, tmp_path / "in" / "back")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("manifest", [b'{"format": 1}', b'{"format": 1, "files": []}', b"[" * 200_000 + b"]" * 200_000])
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, manifest: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as tar:
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(manifest)
        tar.addfile(member, io.BytesIO(manifest))
    with pytest.raises(StoreError, match=r"a\.tar\.xz: "):
        unpack(tmp_path / "a.tar.xz", tmp_path / "back")


def test_what_is_in_the_way_is_left_and_named(runs: Path, tmp_path: Path, command: Command) -> None:
    pack(runs, tmp_path / "a.tar.xz")
    done, file, empty, *_ = sorted(path.name for path in runs.iterdir())
    back = tmp_path / "back"
    shutil.copytree(runs / done, back / done)
    (back / file).write_text("mine")
    (back / empty).mkdir()
    said = command("unpack", "a.tar.xz", "--runs", "back").stdout
    assert "3 runs written of a.tar.xz; 1 were there already." in said
    assert said.count("is there without a result, and was left alone") == 2
    assert file in said
    assert empty in said
    assert (back / file).read_text() == "mine"
    assert not list((back / empty).iterdir())


def test_commands_lose_the_folders_of_the_machine(runs: Path, tmp_path: Path) -> None:
    file = next(runs.iterdir()) / "provenance.json"
    record = json.loads(file.read_text())
    record["attempts"][0]["command"] = "/home/me/code/run_ablation.py run all --runs /scratch/me/runs --set a=1/8 b/c"
    file.write_text(json.dumps(record))
    pack(runs, tmp_path / "a.tar.xz")
    unpack(tmp_path / "a.tar.xz", tmp_path / "back")
    found = json.loads((tmp_path / "back" / file.parent.name / file.name).read_text())
    assert found["attempts"][0].pop("command") == "run_ablation.py run all --runs runs --set a=1/8 b/c"
    record["attempts"][0].pop("command")
    assert found == record


def test_a_link_is_not_written_through(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar.xz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is there already"):
        pack(runs, tmp_path / "a.tar.xz")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    made = archive_of(tmp_path / "a.tar.xz", {"run/config.yaml": b"x"}, {"run/config.yaml": "0" * 64})
    with pytest.raises(StoreError, match="does not fit its checksum"):
        unpack(made, tmp_path / "back")
    link = tmp_path / "link.tar.xz"
    with tarfile.open(link, "w:xz") as tar:
        manifest = json.dumps({"format": 1, "files": {"run/config.yaml": "0" * 64}}).encode()
        first = tarfile.TarInfo(MANIFEST)
        first.size = len(manifest)
        tar.addfile(first, io.BytesIO(manifest))
        member = tarfile.TarInfo("run/config.yaml")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(StoreError, match="no plain file"):
        unpack(link, tmp_path / "back")


def test_a_report_of_an_archive_is_that_of_the_folder(command: Command, tmp_path: Path) -> None:
    smoke = ("--scale", "smoke", "--seeds", "2")
    assert command("run", "stop-gradient", *smoke).returncode == 0
    done = command("archive", "all.tar.xz")
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout or "4 runs" in done.stdout
    tables = []
    for runs in ("runs", "all.tar.xz"):
        made = command("report", "stop-gradient", *smoke, "--runs", runs, "--out", f"report-{runs}")
        assert made.returncode == 0, made.stderr
        tables.append((tmp_path / f"report-{runs}" / "table.csv").read_bytes())
    assert tables[0] == tables[1]
    refused = command("run", "stop-gradient", *smoke, "--runs", "all.tar.xz")
    assert refused.returncode == 2
    assert "is a file" in refused.stderr
