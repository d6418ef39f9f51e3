"""The command line: what commands there are, and how their errors reach the user."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import typer

from commands import cluster, data, demo, diagnose, folders, report, studies, weights
from commands.integrations import completion, schema, track
from commands.options import FAILURE, STOPPED, USAGE
from simsiam.errors import SettingsError, UserError

app = typer.Typer(
    name="run-ablation",
    help="Ablation studies of SimSiam: run them, see how they stand, report on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(help="Get and check the images.", no_args_is_help=True, rich_markup_mode=None)
cluster_app = typer.Typer(help="See what a SLURM cluster does.", no_args_is_help=True, rich_markup_mode=None)
app.command()(demo.demo)
app.command("list")(studies.list_studies)
app.command()(studies.plan)
app.command()(studies.run)
app.command()(studies.grid)
app.command()(studies.status)
app.command()(cluster.launch)
app.command()(cluster.cancel)
app.command()(cluster.launches)
app.command()(cluster.logs)
app.command()(report.report)
app.command()(report.verify)
app.command()(diagnose.diagnose)
app.command()(diagnose.compare)
app.command()(diagnose.predictors)
app.command("show-config")(studies.show_config)
app.command()(weights.evaluate)
app.command("import")(weights.import_)
app.command()(weights.export)
app.command()(folders.gc)
app.command()(folders.archive)
app.command()(folders.unpack)
app.command()(track.track)
app.command()(schema.schema)
app.command()(completion.completion)
app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")
cluster_app.command("check")(cluster.check)
cluster_app.command("selftest")(cluster.selftest)
cluster_app.command("usage")(cluster.usage)
data_app.command("prepare")(data.data_prepare)
data_app.command("check")(data.data_check)
data_app.command("resize")(data.data_resize)


def main() -> None:
    """The entry point: errors that are the user's become one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without the paper's symbols shows a question mark for them
            stream.reconfigure(errors="replace")
    if completion.VARIABLE in os.environ:  # a shell asks, at a press of Tab
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    with _clear_errors():
        app()


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt as error:
        _fail(_interrupted(error), STOPPED)
    except SystemExit as error:
        cause = error.__context__ and error.__context__.__cause__
        if isinstance(cause, KeyboardInterrupt):  # typer has made an exit of it
            _fail(_interrupted(cause), STOPPED)
        raise
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", FAILURE)
    except UserError as error:  # any other is a mistake of ours, and is shown whole
        _fail(str(error), FAILURE)


def _interrupted(error: KeyboardInterrupt) -> str:
    return f"interrupted: {error}" if str(error) else "interrupted"


def _fail(message: str, code: int) -> None:
    lines = message.splitlines() or [""]
    print(f"error: {lines[0]}", *(f"       {line}" for line in lines[1:]), sep="\n", file=sys.stderr)
    sys.exit(code)
