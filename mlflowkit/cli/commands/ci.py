"""mlkit ci: what a pipeline runs for a recipe: checks of its code, verdicts on its model, a comment on the change.

``judge --json`` prints the report (`mlflowkit.ci.judge_report.JudgeReport`), as it is in report.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    echo,
    emit_json,
    fail,
    note,
    state_folder,
)
from mlflowkit.cli.commands.plan import ForceOption
from mlflowkit.errors import UsageError

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


@group.command()
def judge(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    *,
    out: OutOption,
    environment: Annotated[str, typer.Option(metavar="ENV", help="Judge against this environment's champion.")] = "",
    champion: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Folder of the blessed bundle to compare with.")
    ] = None,
    first_version: Annotated[
        bool, typer.Option("--first-version", help="There is no champion yet: nothing can be worse than it.")
    ] = False,
    force: ForceOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Run a recipe up to its bundle and judge it; write report.json, JUnit, SARIF, the page and the bundle.

    Exits with 0 where it is blessed, 1 where a gate FAILED, 2 for a wrong recipe, 3 where the world failed, 4 where a
    gate stays INCONCLUSIVE, as one against a champion does when there is none.
    """
    from mlflowkit.ci import job_summary
    from mlflowkit.ci.judgement import JudgeRequest
    from mlflowkit.ci.judgement import judge as judge_recipe
    from mlflowkit.cli.progress import run_progress, stdout_to_stderr

    request = JudgeRequest(
        recipe, out, state_folder(state, recipe), tuple(overrides or ()), environment, champion,
        "" if champion is None else str(champion), first_version, tuple(force or ()),
    )  # fmt: skip
    with stdout_to_stderr(), run_progress() as progress:
        judgement = judge_recipe(request, progress)
    for line in job_summary.publish(judgement.report, judgement.faults, os.environ):
        note(line)
    if json:
        emit_json(judgement.report.to_json())
    else:
        echo(job_summary.as_text(judgement.report))
        note(f"outputs: {out}")
    if judgement.error is not None and not json:
        fail(judgement.error, as_json=False)
    return judgement.report.exit_code


@group.command()
def comment(
    report: Annotated[Path, typer.Option("--from", metavar="FILE", help="The report.json that the step before wrote.")],
    forge: Annotated[
        str,
        typer.Option(metavar="NAME", help="github, gitlab, bitbucket, azure, jenkins or stdout [default: this job's]."),
    ] = "",
    page: Annotated[str, typer.Option(metavar="URL", help="Address of the run's page, linked at the end.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the comment; write nothing.")] = False,
    json: JsonOption = False,
) -> int:
    """Write the judgement on the pull request that this job runs for: one comment, however often it is pushed.

    A forge that does not answer, or a fork's token that may not comment, is a warning: the verdict is the job's that
    judged. Exits with 2 for a file that is no report and for a token that is not set.
    """
    from mlflowkit.ci import forge_formats
    from mlflowkit.ci.comments.commenting import comment as write_comment
    from mlflowkit.ci.judge_report import read_report

    if page and not page.startswith(("https://", "http://")):
        raise UsageError(f"--page {page} is no address", hint="--page https://HOST/PATH")
    result = write_comment(read_report(report), forge, os.environ, dry_run=dry_run, page=page)
    if json:
        emit_json(result.to_json())
    elif result.action in ("none", "dry-run"):
        echo(result.text)
    else:
        echo(f"{result.forge}: comment {result.action}")
    if result.warning:
        in_github = os.environ.get("GITHUB_ACTIONS") == "true"
        note(forge_formats.warning(result.warning) if in_github else f"warning: {result.warning}")
    return 0


def _print_checks(report: CodeCheckReport) -> None:
    for item in report.results:
        echo(f"{item.outcome:<8} {item.name:<9} {item.seconds:6.1f} s  {item.message.splitlines()[0]}")
        if item.outcome in ("failed", "error"):
            for line in (item.output or item.message).splitlines()[-OUTPUT_SHOWN:]:
                echo(f"  {line}")
            if item.command:
                note(f"hint: {item.command}")
