"""What made the numbers: the code, its commit, the processor. This module imports no torch."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from experiments.store import read_json

ROOT = Path(__file__).absolute().parent.parent
COMMIT = "commit.json"  # in a copy of the code, where it was copied from


@cache
def code() -> dict[str, Any]:
    """Which code makes the numbers: a hash of the core's sources and, in a checkout, its commit."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "simsiam").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    hash_of_code = {"code": digest.hexdigest()[:16]}
    if (ROOT / COMMIT).exists():  # a copy that `launch` made, which knows where from
        return {**hash_of_code, **(read_json(ROOT / COMMIT) or {})}
    return {**hash_of_code, **commit_of(ROOT)}


def commit_of(root: Path) -> dict[str, Any]:
    """The commit of a checkout and whether it was changed since; nothing known of any other folder."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    in_checkout = (root / ".git").exists()  # an installed copy may lie inside somebody else's repository
    changes = git("status", "--porcelain", "--untracked-files=no") if in_checkout else None
    return {
        "git_commit": git("rev-parse", "HEAD") if in_checkout else None,
        "git_dirty": None if changes is None else bool(changes),
    }


@cache
def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
