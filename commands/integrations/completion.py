"""Completion in bash, zsh and fish: the command that prints a shell's script, and what can stand where.

Each function gives the names that begin with what was typed, with a word on each where there is one. They run at every
press of Tab, so they import no more than they need, and say nothing when a file cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from simsiam.errors import SettingsError, UserError, nearest

PROGRAM = "run-ablation"
VARIABLE = "_RUN_ABLATION_COMPLETE"  # by which a shell asks the program
SHELLS = {  # where its script goes
    "bash": f'eval "$({PROGRAM} completion bash)"  in ~/.bashrc',
    "zsh": f'eval "$({PROGRAM} completion zsh)"  in ~/.zshrc, after compinit',
    "fish": f"{PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
}
# After Typer's own function has filled COMPREPLY: names with spaces are one word, and a value follows a = at once.
BASH = """    local i
    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=$(printf %q "${COMPREPLY[i]}"); done
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0"""


def one_of(*names: str) -> Callable[[str], list[str]]:
    """The names that an option or argument may be."""

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return completed


def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=one_of(*SHELLS)),
    ],
) -> None:
    """Print the script by which a shell completes run-ablation: commands, studies, variants, settings.

    bash: eval "$(run-ablation completion bash)" in ~/.bashrc

    zsh: eval "$(run-ablation completion zsh)" in ~/.zshrc, after compinit

    fish: run-ablation completion fish > ~/.config/fish/completions/run-ablation.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise SettingsError(f"shell: {shell!r} is not one of {', '.join(SHELLS)}{nearest(shell, list(SHELLS))}")
    script = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell)
    print(script.replace("    return 0", BASH) if shell == "bash" else script)


def studies(incomplete: str) -> Iterator[str]:
    """The studies that ship, and all; a file of one's own is for the shell itself to complete."""
    from experiments.studies.study import study_names

    return (name for name in ("all", *study_names()) if name.startswith(incomplete))


def scales(incomplete: str) -> Iterator[str]:
    """The scales."""
    from experiments.studies.claims import SCALES

    return (name for name in SCALES if name.startswith(incomplete))


def clusters(incomplete: str) -> Iterator[str]:
    """The example profiles that ship."""
    from experiments.slurm.profile import cluster_names

    return (name for name in cluster_names() if name.startswith(incomplete))


def settings(incomplete: str) -> Iterator[tuple[str, str]]:
    """The dotted path of each setting, up to the ``=``, with its meaning."""
    from simsiam.settings.fields import description, dotted_paths

    return (
        (f"{path}=", description(path)) for path in dotted_paths() if path != "seed" and path.startswith(incomplete)
    )


def losses(incomplete: str) -> Iterator[str]:
    """The losses by name, and BYOL's form of the cosine."""
    from commands.foreign import loss_names

    return (name for name in loss_names() if name.startswith(incomplete))


def variants(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The variants of the study that stands before."""
    from experiments.studies.study import load_study

    given = [ctx.params.get("study"), *ctx.args]  # what stands before an option without its value is not parsed yet
    try:
        names = [variant.name for variant in load_study(next(name for name in given if name)).variants]
    except (UserError, OSError, StopIteration):
        return iter(())
    return (name for name in names if name.startswith(incomplete))


data_sets = one_of("fashion-mnist", "cifar10", "cifar100", "stl10", "svhn", "folder")  # that can be prepared
