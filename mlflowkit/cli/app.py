"""The typer application, the options that commands share, and how errors and JSON leave the process."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mlflowkit.errors import InterruptedRunError, MlkitError

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
    "status",
    "up",
    "down",
)
"""Modules of this package, each with one command; they import late."""

app = typer.Typer(
    name="mlkit",
    help="One recipe, from data to a model that answers requests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
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
    """The state folder: the option or MLKIT_STATE, else .mlkit beside the recipe, else .mlkit here."""
    if state is not None:
        return state.expanduser().resolve()
    base = recipe.expanduser().resolve().parent if recipe is not None else Path.cwd()
    return base / ".mlkit"


def fail(error: MlkitError, as_json: bool) -> NoReturn:
    """Print an error for its reader and exit with its code."""
    if as_json:
        emit_json({"error": error.to_json()})
    else:
        note(f"error: {error.message}")
        if error.hint:
            note(f"hint: {error.hint}")
    raise SystemExit(error.exit_code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; never shows a traceback for an error that we raise on purpose."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for command in COMMANDS:
        importlib.import_module(f"mlflowkit.cli.{command}")
    as_json = "--json" in arguments
    try:
        code = app(args=arguments, prog_name="mlkit", standalone_mode=False)
    except MlkitError as error:
        fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        fail(InterruptedRunError("interrupted", hint="run the same command again to resume"), as_json)
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        fail(usage, as_json)
    raise SystemExit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception) -> MlkitError | None:
    """Typer's own complaint about the command line, as ours."""
    from typer.exceptions import TyperException

    from mlflowkit.errors import UsageError

    if not isinstance(error, TyperException):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mlkit"
    return UsageError(error.format_message(), hint=f"{command} --help")
