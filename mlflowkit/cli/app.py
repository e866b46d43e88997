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

from mlflowkit.errors import InterruptedRunError, MlkitError, RecipeError, UsageError, closest_match
from mlflowkit.system.files import FULL, disk_error
from mlflowkit.system.text import printable, printable_json, printable_line

COMMANDS = (
    "init", "validate", "plan", "run", "runs", "show", "deliveries", "diff", "drift", "report", "explain", "schema",
    "predict", "feedback", "key", "engines", "status", "rollout", "monitor", "retrain", "simulate", "replay", "bench",
    "up", "serve", "down", "deploy", "gc", "export", "ci", "gitops", "trigger", "image", "bless", "lineage",
)  # fmt: skip
"""Modules of `cli.commands`, one a command; imported on demand."""

INTERRUPTED = {
    "run": "run the same command again to resume",
    "simulate": "nothing was saved: run the same command again, with fewer --rollouts to finish sooner",
    "replay": "nothing was saved: run the same command again, with fewer --rollouts to finish sooner",
    "rollout": "the command may have reached the controller: mlkit rollout status",
}
"""Hint after Ctrl-C, by command; any other may be run again."""

app = typer.Typer(
    name="mlkit",
    help="One recipe, from data to a model that serves requests.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from mlflowkit import __version__

        echo(f"mlkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """One recipe, from data to a model that serves requests."""


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OVERRIDE]...", help="Hydra overrides, such as train.epochs=3.", show_default=False),
]
StateOption = Annotated[
    Path | None,
    typer.Option(envvar="MLKIT_STATE", metavar="DIR", help="Where state lives [default: .mlkit beside the recipe]."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


def emit_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1, default=str)
    sys.stdout.write(printable_json(text) + "\n")
    sys.stdout.flush()


def echo(text: str = "") -> None:
    """Print a text for people on stdout, without terminal escapes."""
    typer.echo(printable(text))


def print_result(value: Any, text: str, as_json: bool) -> None:
    """Print a result on stdout, as one JSON document or as text for people."""
    if as_json:
        emit_json(value)
    else:
        echo(text)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns: the first two left-aligned, the others right-aligned."""
    rows = [[printable_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in pairs]
        echo("  ".join(cells).rstrip())


def note(text: str) -> None:
    """Print a text for people on stderr, without terminal escapes: progress, warnings."""
    typer.echo(printable(text), err=True)


def state_folder(state: Path | None, recipe: Path | None = None) -> Path:
    """Return the state folder: the option or MLKIT_STATE, else .mlkit beside the recipe, else .mlkit here.

    If there is none here and exactly one in a subfolder (``recipes/.mlkit``), that one.
    """
    if state is not None:
        return state.expanduser().resolve()
    file = None if recipe is None else Path(os.path.realpath(recipe.expanduser()))
    here = (Path.cwd() if file is None else file.parent) / ".mlkit"
    below = list(here.parent.glob("*/.mlkit")) if recipe is None and not here.is_dir() else []
    return below[0] if len(below) == 1 else here


def fail(error: MlkitError, as_json: bool) -> NoReturn:
    """Print an error as JSON or text and exit with its code."""
    from mlflowkit.cli.error_format import render

    if as_json:
        emit_json({"error": error.to_json()})
    else:
        if isinstance(error, RecipeError):
            typer.echo(render(error), err=True)  # with its own colours; what it quotes is printable
        else:
            note(f"error: {error.message}")
        if error.hint:
            note(f"hint: {error.hint}")
    raise SystemExit(error.exit_code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line without tracebacks for expected errors.

    Exits with the command's return value (an int, else 0), 130 if interrupted, or the error's code.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # All modules for help and for an unknown command.
    for command in (arguments[0],) if arguments[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"mlflowkit.cli.commands.{command}")
    as_json = "--json" in arguments
    _escape_vendors_output()
    try:
        code = app(args=arguments, prog_name="mlkit", standalone_mode=False)
    except MlkitError as error:
        fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = InterruptedRunError.exit_code
    except Exception as error:  # noqa: BLE001  (the last resort)
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


def _escape_vendors_output() -> None:
    """Keep terminal escapes out of what libraries warn of and log: they quote columns and values too."""
    import logging
    import warnings

    from mlflowkit.system.logs import PrintableFormatter

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    if not hasattr(warnings.formatwarning, "escapes"):
        formatted = warnings.formatwarning

        def escaped(*arguments: Any, **options: Any) -> str:
            return printable(formatted(*arguments, **options))

        escaped.escapes = True  # type: ignore[attr-defined]
        warnings.formatwarning = escaped


def _usage_error(error: Exception) -> MlkitError | None:
    """Convert typer's usage error to a UsageError; None for any other error."""
    import re

    from typer.exceptions import TyperException

    if not isinstance(error, TyperException):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mlkit"
    message = error.format_message()
    unknown = re.match(r"No such command '(.*)'", message)
    close = closest_match(unknown[1], COMMANDS) if unknown else ""
    return UsageError(message, hint=f"did you mean mlkit {close}?" if close else f"{command} --help")


def _crash(error: Exception, as_json: bool) -> NoReturn:
    """Print the traceback of an unexpected error and exit."""
    import traceback

    note("".join(traceback.format_exception(error)).rstrip())
    crash = MlkitError(
        f"mlflowkit failed unexpectedly: {type(error).__name__}: {error}",
        hint="this is a bug in mlflowkit: report it with the traceback above",
    )
    fail(crash, as_json)
