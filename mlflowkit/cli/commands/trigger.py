"""mlkit trigger: whether a pipeline has work, claimed once however many events ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, StateOption, app, print_result, state_folder
from mlflowkit.errors import UsageError


@app.command()
def trigger(
    recipe: RecipeArgument,
    because: Annotated[
        Literal["schedule", "data", "merge", "drift"] | None, typer.Option("--because", help="The event that asks.")
    ] = None,
    claim: Annotated[
        Literal["journal", "git"] | None,
        typer.Option("--claim", help="Where the claim is kept [default: git where there is a remote origin]."),
    ] = None,
    lease: Annotated[
        str | None, typer.Option("--lease", metavar="TIME", help="After this a claim that is not done is taken over.")
    ] = None,
    finish: Annotated[
        str | None, typer.Option("--finish", metavar="KEY", help="Note that the training of this key is done.")
    ] = None,
    finished: Annotated[
        Path | None,
        typer.Option("--finished", metavar="REPORT", help="Note that the training of this report.json is done."),
    ] = None,
    give_up: Annotated[
        str | None,
        typer.Option("--give-up", metavar="KEY", help="Take the claim of this key away: whoever asks next trains it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Answer without claiming.")] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Ask whether there is something to train; of many that ask at once, one is answered "started".

    Answers started, running, done, nothing-changed, cooldown or budget, and exits with 0. Nothing is trained here.
    """
    from mlflowkit.ci import pipeline_trigger
    from mlflowkit.monitoring.monitor_settings import seconds_of

    try:
        seconds = None if lease is None else seconds_of(lease)
    except ValueError as error:
        raise UsageError(f"--lease {error}", hint="--lease 2h") from error
    folder = state_folder(state, recipe)
    if finished is not None:
        from mlflowkit.ci.judge_report import read_report

        answer = pipeline_trigger.finish_judged(recipe, read_report(finished), folder, claim=claim, dry_run=dry_run)
    elif finish is not None:
        answer = pipeline_trigger.finish(recipe, finish, folder, claim=claim, dry_run=dry_run)
    elif give_up is not None:
        answer = pipeline_trigger.give_up(recipe, give_up, folder, claim=claim, dry_run=dry_run)
    elif because is None:
        raise UsageError(
            "name the event that asks, or the training that is done",
            hint="mlkit trigger RECIPE --because data; mlkit trigger RECIPE --finished REPORT",
        )
    else:
        answer = pipeline_trigger.trigger(recipe, because, folder, claim=claim, lease=seconds, dry_run=dry_run)
    run = f" ({answer.run})" if answer.run else ""
    key = f"\nkey {answer.key}" if answer.key else ""
    print_result(answer.to_json(), f"{answer.action}: {answer.reason}{run}{key}", json)
