"""The command as called by an ordinary user, also where the tests run as root, who may read and write everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOBODY, CANNOT_START = 65534, 77
AS_NOBODY = f"""
import os, sys
# Imported before the rights are dropped: an ordinary user need not be able to read this interpreter's files.
import rich.console, rich.table, rich.live, encodings.idna
import commands.app, experiments.local.grid, experiments.status, experiments.plan, experiments.registry
import commands.live_grid
import simsiam.data.sets, simsiam.data.originals, analysis.frames.cache
import analysis.diagnosis.rules, analysis.report.one_study
import contextlib, io, tempfile
arguments = list(sys.argv)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    sys.argv = [*arguments[:2], "--help"]  # the command line imports more as it goes
    commands.app.main()
sys.argv = list(arguments)
if sys.argv[1] == "report":  # and so does this: once to nowhere, as root
    analysis.frames.cache._store = lambda *_: None  # what root can read must not be found there
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sys.argv += ["--out", folder]
        with contextlib.suppress(SystemExit):
            commands.app.main()
    sys.argv = arguments
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
needed = (analysis.report.one_study, rich.console)  # beside them are its templates and the fonts
if sys.argv[1] == "report" and not all(os.access(each.__file__, os.R_OK) for each in needed):
    sys.exit({CANNOT_START})
commands.app.main()
"""


def let_in(tmp_path: Path) -> None:
    """Let anybody read ``tmp_path``, which pytest keeps to its own user."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder in (tmp_path, tmp_path.parent) or folder.name.startswith("pytest-"):
            folder.chmod(0o755)


def open_to_all(tmp_path: Path) -> Path:
    """A folder in ``tmp_path`` where anybody may write."""
    let_in(tmp_path)
    free = tmp_path / "open"
    free.mkdir()
    free.chmod(0o777)
    return free


def call(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``run_ablation.py`` with ``arguments``, called in ``where`` by somebody who is not root."""
    start = ["-c", AS_NOBODY] if os.geteuid() == 0 else [str(ROOT / "run_ablation.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(where / ".matplotlib")}
    done = subprocess.run(
        [sys.executable, *start, *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode == CANNOT_START:
        pytest.skip("an ordinary user may not read this checkout or its Python: run the tests as one")
    return done
