"""What made the numbers: the code, its commit, the processor, and what was claimed of them before.

This module imports no torch.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from experiments.runs.code_changes import ROOT as ROOT
from experiments.runs.code_changes import training_code, training_files
from experiments.runs.folder import read_json, write_json

COMMIT = "commit.json"  # in a copy of the code, where it was copied from


@cache
def code() -> dict[str, Any]:
    """Which code makes the numbers: a hash of the core, one of each file that trains and, in a checkout, its commit."""
    hash_of_code = {"code": training_code(), "files": training_files()}
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


CLAIMS = ".claims*.json"  # in a folder of runs: one of each user, since those who share it may not replace each other's
Claims = dict[str, dict[str, dict[str, str]]]  # by study and claim: its hash, and since when it is so


def register_claims(runs: Path, hashes: Mapping[str, Mapping[str, str]]) -> None:
    """Put down what studies claim before their runs begin, by study and claim; what is as before keeps its date."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = registered_claims(runs)
    claims = {
        study: {
            name: known
            if (known := before.get(study, {}).get(name, {})).get("hash") == digest
            else {"hash": digest, "since": now}
            for name, digest in of_study.items()
        }
        for study, of_study in hashes.items()
    }
    if any(before.get(study) != of_study for study, of_study in claims.items()):
        mine = runs / CLAIMS.replace("*", f".{getattr(os, 'getuid', int)()}")  # Windows has no users in this sense
        write_json(mine, {**(read_json(mine) or {}), **claims}, str(os.getpid()))


def registered_claims(runs: Path) -> Claims:
    """What the studies whose runs are in a folder claim, as it was put down last; each run keeps it as it was then."""
    found: Claims = {}
    for path in sorted(runs.glob(CLAIMS)):
        for study, claims in (read_json(path) or {}).items():
            if isinstance(claims, dict) and _put_down(claims) >= _put_down(found.get(study, {})):
                found[study] = claims
    return found


def _put_down(claims: Mapping[str, Any]) -> str:
    """When the last of a study's claims was put down."""
    return max((str(claim.get("since")) for claim in claims.values() if isinstance(claim, dict)), default="")


@cache
def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
