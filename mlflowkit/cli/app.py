"""The typer application, the options that commands share, and how errors and JSON leave the process."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mlflowkit.errors import InterruptedRunError, MlkitError, RecipeError, UsageError, nearest
from mlflowkit.system.files import FULL, disk_error

COMMANDS = (
    "init",
    "validate",
    "plan",
    "run",
    "runs",
    "show",
    "diff",
    "report",
    "explain",
    "schema",
    "predict",
    "feedback",
    "key",
    "engines",
    "status",
    "rollout",
    "simulate",
    "replay",
    "bench",
    "up",
    "down",
)
"""Modules of this package, each with one command; they import late."""

INTERRUPTED = {
    "run": "run the same command again to resume",
    "simulate": "a rehearsal keeps nothing: the same command begins anew, fewer --rollouts end sooner",
    "replay": "a rehearsal keeps nothing: the same command begins anew, fewer --rollouts end sooner",
    "rollout": "what was said to the rollout may have been heard: mlkit rollout status",
}
"""What is true after Ctrl-C, by command; any other may be run again."""

app = typer.Typer(
    name="mlkit",
    help="One recipe, from data to a model that answers requests.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from mlflowkit import __version__

        echo(f"mlkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """One recipe, from data to a model that answers requests."""


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OVERRIDE]...", help="Hydra overrides, such as train.epochs=3.", show_default=False),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        envvar="MLKIT_STATE",
        metavar="DIR",
        help="Where state lives [default: .mlkit beside the recipe].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


def emit_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1, default=str) + "\n")
    sys.stdout.flush()


def echo(text: str = "") -> None:
    """Print a line for people on stdout."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line for people on stderr: progress, warnings."""
    typer.echo(text, err=True)


def state_folder(state: Path | None, recipe: Path | None = None) -> Path:
    """The state folder: the option or MLKIT_STATE, else .mlkit beside the recipe, else .mlkit here.

    Where there is none here and exactly one a folder below (``recipes/.mlkit``), it is that one.
    """
    if state is not None:
        return state.expanduser().resolve()
    file = None if recipe is None else Path(os.path.realpath(recipe.expanduser()))
    here = (Path.cwd() if file is None else file.parent) / ".mlkit"
    below = list(here.parent.glob("*/.mlkit")) if recipe is None and not here.is_dir() else []
    return below[0] if len(below) == 1 else here


def fail(error: MlkitError, as_json: bool) -> NoReturn:
    """Print an error for its reader and exit with its code."""
    if as_json:
        emit_json({"error": error.to_json()})
    elif isinstance(error, RecipeError):
        from mlflowkit.cli.error_format import render

        note(render(error))
        if error.hint:
            note(f"hint: {error.hint}")
    else:
        note(f"error: {error.message}")
        if error.hint:
            note(f"hint: {error.hint}")
    raise SystemExit(error.exit_code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; never shows a traceback for an error that we raise on purpose.

    Exits with what the command returns (an int, else 0), with 130 when interrupted, or with the error's code.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for command in _wanted(arguments):
        importlib.import_module(f"mlflowkit.cli.commands.{command}")
    as_json = "--json" in arguments
    try:
        code = app(args=arguments, prog_name="mlkit", standalone_mode=False)
    except MlkitError as error:
        fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = InterruptedRunError.exit_code
    except Exception as error:  # noqa: BLE001  (the last resort: printed whole)
        if isinstance(error, OSError) and error.errno in FULL:
            fail(disk_error(error, Path(error.filename or "stdout")), as_json=False)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            fail(UsageError(f"{error.filename}: {error.strerror}", hint="give a shorter path"), as_json)
        usage = _usage_error(error)
        if usage is None:
            _crash(error, as_json)
        fail(usage, as_json)
    if code == InterruptedRunError.exit_code:
        hint = INTERRUPTED.get(arguments[0], "run the same command again")
        fail(InterruptedRunError("interrupted", hint=hint), as_json)
    raise SystemExit(code if isinstance(code, int) else 0)


def _wanted(arguments: Sequence[str]) -> Sequence[str]:
    """The command modules that a command line needs: its own, or all of them for help and for a wrong name."""
    return (arguments[0],) if arguments[0] in COMMANDS else COMMANDS


def _usage_error(error: Exception) -> MlkitError | None:
    """Typer's own complaint about the command line, as ours."""
    import re

    from typer.exceptions import TyperException

    if not isinstance(error, TyperException):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mlkit"
    message = error.format_message()
    unknown = re.match(r"No such command '(.*)'", message)
    close = nearest(unknown[1], COMMANDS) if unknown else ""
    return UsageError(message, hint=f"did you mean mlkit {close}?" if close else f"{command} --help")


def _crash(error: Exception, as_json: bool) -> NoReturn:
    """An error that nobody raised on purpose: the traceback, and where to send it."""
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    crash = MlkitError(
        f"mlflowkit failed unexpectedly: {type(error).__name__}: {error}",
        hint="this is a bug in mlflowkit: report it with the traceback above",
    )
    fail(crash, as_json)
