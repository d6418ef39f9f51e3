"""Completion, asked for by the shells themselves."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.frames.foreign_files import KINDS as KINDS_OF_LOGS
from commands.integrations.schema import KINDS as KINDS_OF_FILES
from commands.integrations.track import KINDS as KINDS_OF_TRACKERS
from experiments.slurm.profile import cluster_names
from experiments.studies.study import study_names
from simsiam.evaluation.linear import PROTOCOLS
from simsiam.record.catalogue import OUTPUT_BN
from simsiam.settings.fields import dotted_paths
from tests.conftest import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with an executable ``run-ablation``, as pip installs it."""
    program = tmp_path / "run-ablation"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom commands.app import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    return tmp_path


def shell(home: Path, *command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    environment = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bash(home: Path, *words: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    lines = (
        'eval "$(run-ablation completion bash)"',
        f"COMP_WORDS=(run-ablation {quoted}); COMP_CWORD={len(words)}",
        "_run_ablation_completion run-ablation 2>/dev/null",  # compopt has something to say outside of a completion
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    return shell(home, "bash", "--norc", "-c", "\n".join(lines))


def zsh(home: Path, *words: str) -> list[str]:
    """What the script hands to zsh's own ``_arguments``."""
    lines = (
        "compdef() { :; }; _arguments() { print -r -- $1; }",
        'eval "$(run-ablation completion zsh)"',
        f"words=(run-ablation {' '.join(words)}); CURRENT={len(words) + 1}",
        "_run_ablation_completion",
    )
    answer = " ".join(shell(home, "zsh", "-f", "-c", "\n".join(lines)))
    return [word.partition(":")[0] for word in shlex.split(answer.removeprefix("*: :((").removesuffix("))"))]


def fish(home: Path, *words: str) -> list[str]:
    lines = ("run-ablation completion fish | source", f"complete -C 'run-ablation {' '.join(words)}'")
    return [line.partition("\t")[0] for line in shell(home, "fish", "--no-config", "-c", "\n".join(lines))]


@pytest.mark.parametrize("ask", [bash, zsh, fish])
def test_a_shell_completes_commands_studies_and_settings(home: Path, ask: object) -> None:
    assert callable(ask)
    assert set(ask(home, "sh")) == {"show-config"}
    assert set(ask(home, "report", "s")) == {name for name in study_names() if name.startswith("s")}
    assert set(ask(home, "run", "stop-gradient", "--scale", "c")) == {"cpu", "cifar"}
    wanted = {f"{path}=" for path in dotted_paths() if path.startswith("optimizer.")}
    assert set(ask(home, "run", "stop-gradient", "--set", "optimizer.")) == wanted
    assert set(ask(home, "cluster", "check", "p")) == {name for name in cluster_names() if name.startswith("p")}


def test_names_that_an_option_may_be(home: Path) -> None:
    for words, names in (
        (("schema", ""), KINDS_OF_FILES),
        (("track", "all", "--to", ""), KINDS_OF_TRACKERS),
        (("evaluate", "all", "--protocol", ""), PROTOCOLS),
        (("diagnose", "log.csv", "--kind", ""), KINDS_OF_LOGS),
        (("diagnose", "log.csv", "--output-bn", ""), OUTPUT_BN),
        (("diagnose", "log.csv", "--loss", "c"), ("cosine", "cross-entropy")),
        (("predictors", "all", "--accuracy", "k"), ("knn_top1",)),
        (("export", "run", "file", "--format", "d"), ("detectron2",)),
    ):
        assert set(bash(home, *words)) == set(names), words


def test_bash_quotes_a_variant_with_a_space(home: Path) -> None:
    assert bash(home, "show-config", "stop-gradient", "--variant", "without") == [r"without\ stop-gradient"]
    assert bash(home, "show-config", "no-such-study", "--variant", "wi") == [""], "nothing to say, and no traceback"


def test_another_shell_is_refused(home: Path) -> None:
    program = home / "run-ablation"
    done = subprocess.run([program, "completion", "tcsh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "'tcsh' is not one of bash, zsh, fish" in done.stderr
