"""The command, called as a user would, without the seconds that Python takes to load PyTorch each time.

A server has loaded all modules, has run nothing yet, and forks a process for each call.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from experiments.local.pool import ENVIRONMENT

ROOT = Path(__file__).parent.parent
LOADED = ["torch", "torchvision", "pandas", "seaborn", "matplotlib.pyplot", "sklearn.linear_model", "scipy.stats"] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("simsiam", "experiments", "analysis", "commands")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.stem not in ("__init__", "lightning_callback")
]


def environment() -> dict[str, str]:
    """Of the command: this process's, without what it would read itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ABLATION_")}


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process of the server's that calls ``target``, not started yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with patch.dict(os.environ, ENVIRONMENT):  # as the command sets it before it loads torch
        forkserver.ensure_running()
    return context.Process(target=target, args=arguments)


def call(arguments: tuple[str, ...], folder: Path, scratch: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """What ``run_ablation.py`` with these ``arguments`` says from a ``folder``; its output goes through ``scratch``."""
    out, err = scratch / "stdout", scratch / "stderr"
    process = forked(_act, arguments, folder, environment(), out, err)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(list(arguments), seconds, out.read_bytes(), err.read_bytes())
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _act(arguments: tuple[str, ...], folder: Path, variables: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [str(ROOT / "run_ablation.py"), *arguments]
    from commands.app import main

    main()
