"""What made the numbers: the code, its commit, the processor. This module imports no torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from experiments.runs.code_changes import ROOT as ROOT
from experiments.runs.code_changes import code_hash, training_files
from experiments.runs.folder import read_json

COMMIT = "commit.json"  # in a copy of the code, where it was copied from


@cache
def code() -> dict[str, Any]:
    """Which code makes the numbers: a hash of the core, one of each file that trains and, in a checkout, its commit."""
    hash_of_code = {"code": code_hash(), "files": training_files()}
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
