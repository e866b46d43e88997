"""mlkit ci: what a pipeline runs for a recipe: checks of its code, verdicts on its model, a comment on the change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, app, echo, emit_json, note

if TYPE_CHECKING:
    from mlflowkit.ci.code_checks import CodeCheckReport

OUTPUT_SHOWN = 40
"""Lines of a failed check's output that are printed; checks.xml has more."""

group = typer.Typer(help="What a CI pipeline runs for a recipe.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(group, name="ci")

OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the outputs, outside of the checkout.")
]


@group.command()
def check(recipe: RecipeArgument, out: OutOption, json: JsonOption = False) -> int:
    """Check format, lint and tests of a recipe's code, the recipe itself, and train it on a few rows.

    Writes checks.xml (JUnit). Exits with 1 where a check failed, 3 where one could not be run.
    """
    from mlflowkit.ci.code_checks import run_checks
    from mlflowkit.cli.progress import run_progress, stdout_to_stderr

    with stdout_to_stderr(), run_progress() as progress:
        report = run_checks(recipe, out, progress=progress)
    if json:
        emit_json(report.to_json())
    else:
        _print_checks(report)
        note(f"written: {out / 'checks.xml'}")
    return report.exit_code


def _print_checks(report: CodeCheckReport) -> None:
    for item in report.results:
        echo(f"{item.outcome:<8} {item.name:<9} {item.seconds:6.1f} s  {item.message.splitlines()[0]}")
        if item.outcome in ("failed", "error"):
            for line in (item.output or item.message).splitlines()[-OUTPUT_SHOWN:]:
                echo(f"  {line}")
            if item.command:
                note(f"hint: {item.command}")
