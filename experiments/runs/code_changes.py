"""Whether done runs were made by other code than that at hand, and in which files. Imports no torch.

Only what can change a result counts: the files of training, and in them all but comments and docstrings. The source of
one's own parts is in a run's id already.
"""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import tarfile
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.runs.folder import read_json

ROOT = Path(__file__).absolute().parents[2]
# Of the core, what is not on the way from settings and images to curves and weights: it gets the originals, whose
# contents are in a run's id, refuses, or comes after training.
BESIDE_TRAINING = (
    "simsiam/errors.py",
    "simsiam/machine.py",
    "simsiam/data/originals.py",
    "simsiam/data/smaller_copy.py",
    "simsiam/distributed/rendezvous.py",
    "simsiam/model/exchange.py",
    "simsiam/settings/checks.py",
    "simsiam/settings/own.py",
    "simsiam/settings/own_code.py",
    "simsiam/training/trial.py",
)


@dataclass(frozen=True)
class OtherCode:
    """Done runs that other code made."""

    num_other: int
    num_done: int
    files: tuple[str, ...]  # that differ, as far as it is on record
    num_unknown: int  # of these runs: which files differ is not on record
    num_newer: int = 0  # runs of the same cells that the code at hand made beside them

    def __str__(self) -> str:
        shown = ", ".join(self.files[:4]) + (f" and {len(self.files) - 4} more" if len(self.files) > 4 else "")
        differ = f": {shown} changed since" if shown else ""
        unknown = f" (of {self.num_unknown}, which files is not on record)" if self.num_unknown else ""
        of_all = "All" if self.num_other == self.num_done > 1 else f"{self.num_other} of {self.num_done}"
        text = (
            f"{of_all} done runs were made by other training code than that at hand{differ}"
            f"{unknown}. They count as they are; "
        )
        if self.num_newer:
            newer = f"{self.num_newer} newer {'run' if self.num_newer == 1 else 'runs'} by the code at hand"
            return f"{text}{newer} {'is' if self.num_newer == 1 else 'are'} there: --set code={training_code()}"
        return f"{text}`run --retrain` makes new ones beside them, and --runs with another folder keeps the two apart."


def other_code(runs: Path, done: Iterable[str]) -> OtherCode | None:
    """What of the ``done`` runs (their names, in a folder of runs) other training code made; None: nothing of them.

    A run that says nothing of its code, or whose record cannot be read, counts as made by this.
    """
    names = list(dict.fromkeys(done))
    found = [_differing(runs / name) for name in names]
    other = [files for files in found if files is None or files]
    if not other:
        return None
    files = sorted({file for each in other for file in each or ()})
    return OtherCode(len(other), len(names), tuple(files), sum(each is None for each in other))


def training_code(root: Path = ROOT) -> str:
    """A hash of the training code in a checkout or a copy, 16 hexadecimal digits: by default of that at hand."""
    return hashlib.sha256(repr(sorted(training_files(root).items())).encode()).hexdigest()[:16]


@cache
def training_files(root: Path = ROOT) -> dict[str, str]:
    """A hash of each file of the training code, by its path in the project."""
    paths = (root / "simsiam").rglob("*.py")
    return _hashes({path.relative_to(root).as_posix(): path.read_bytes() for path in paths})


def _hashes(sources: dict[str, bytes]) -> dict[str, str]:
    return {
        path: hashlib.sha256(_without_words(content)).hexdigest()[:8]
        for path, content in sorted(sources.items())
        if path not in BESIDE_TRAINING
    }


def _without_words(content: bytes) -> bytes:
    """A source without comments, docstrings and blank lines: what does not run."""
    try:
        tree = ast.parse(content)
        tokens = list(tokenize.tokenize(io.BytesIO(content).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return content
    lines = content.decode("utf-8", errors="replace").splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [""] * ((first.end_lineno or 0) - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip()).encode()


def _differing(folder: Path) -> list[str] | None:
    """The files in which the code of a run's attempts differs from that at hand; None: it does, but not known where."""
    differing = set[str]()
    attempts = (read_json(folder / "provenance.json") or {}).get("attempts")
    listed = attempts if isinstance(attempts, list) else []
    for attempt in listed:
        if not isinstance(attempt, dict) or attempt.get("code") in (None, training_code()):
            continue
        theirs = attempt.get("files") or _files_of_commit(attempt.get("git_commit"), bool(attempt.get("git_dirty")))
        if not isinstance(theirs, dict):
            return None
        mine = training_files()
        differing |= {path for path in {*mine, *theirs} if mine.get(path) != theirs.get(path)}
    return sorted(differing)


@cache
def _files_of_commit(commit: object, dirty: bool) -> dict[str, str] | None:
    """The same of a commit of this checkout: for runs from before the files' hashes were recorded."""
    if not isinstance(commit, str) or dirty or not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "archive", commit, "simsiam"),
            capture_output=True,
            timeout=20,
            check=True,
        )
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            members = [member for member in archive if member.isfile() and member.name.endswith(".py")]
            contents = {member.name: archive.extractfile(member) for member in members}
            return _hashes({name: file.read() for name, file in contents.items() if file is not None})
    except (OSError, subprocess.SubprocessError, tarfile.TarError):
        return None
