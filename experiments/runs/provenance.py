"""What made the numbers: the code, its commit, the processor. This module imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from experiments.runs.folder import read_json

ROOT = Path(__file__).absolute().parents[2]
COMMIT = "commit.json"  # in a copy of the code, where it was copied from


def hash_of(root: Path) -> str:
    """Of the core's sources, in a checkout or a copy."""
    digest = hashlib.sha256()
    for path in sorted((root / "simsiam").rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def other_codes(runs: Path, run_ids: Iterable[str]) -> dict[str, int]:
    """Codes but this one that have trained some of the runs, each with the number of runs."""
    found = Counter[str]()
    for run_id in run_ids:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # another user's, or damaged
            attempts = (read_json(runs / run_id / "provenance.json") or {}).get("attempts", [])
            found.update({str(attempt["code"]) for attempt in attempts if "code" in attempt} - {code()["code"]})
    return dict(found)


@cache
def code() -> dict[str, Any]:
    """Which code makes the numbers: a hash of the core's sources and, in a checkout, its commit."""
    hash_of_code = {"code": hash_of(ROOT)}
    if (ROOT / COMMIT).exists():  # a copy that `launch` made, which knows where from
        return {**hash_of_code, **(read_json(ROOT / COMMIT) or {})}
    return {**hash_of_code, **commit_of(ROOT)}


def commit_of(root: Path) -> dict[str, Any]:
    """The commit of a checkout and whether it was changed since; nothing known of any other folder.

    Says so where git does not tell.
    """
    if not (root / ".git").exists():  # an installed copy may lie inside somebody else's repository
        return {"git_commit": None, "git_dirty": None}
    # A checkout that is another user's is asked all the same: its code runs here anyhow.
    command = ("git", "-c", f"safe.directory={root}", "-c", "core.fsmonitor=false", "-C", str(root))

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run((*command, *arguments), capture_output=True, text=True, timeout=10)
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if done.returncode == 0:
                return done.stdout.strip()
        print(f"{root}: git does not tell its commit, so provenance goes without it: {reason}", file=sys.stderr)
        return None

    commit = git("rev-parse", "HEAD")
    changes = None if commit is None else git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


@cache
def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
