"""mlkit deliveries: what finished runs have yet to deliver to other systems."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.cli.commands.show import RecipeOption
from mlflowkit.errors import UsageError, WorldError


@app.command()
def deliveries(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id, the start of one, or last [default: all runs].")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Make them now, also those that were given up.")] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="Try the pending ones no more.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List those that were made, too.")] = False,
    recipe: RecipeOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """List what runs have yet to deliver to MLflow, registries and data stores; retry it, or give it up."""
    from mlflowkit.pipeline.outbox import run_deliveries
    from mlflowkit.pipeline.run_summary import delivery_json, delivery_line
    from mlflowkit.wiring import Wiring

    if retry and give_up:
        raise UsageError("--retry and --give-up do not go together", hint="mlkit deliveries --retry")
    folder = state_folder(state, recipe)
    wiring = Wiring(folder)
    problem = ""
    with wiring.open_journal(create=False) as journal:
        only = None if run is None else journal.run(run).run
        if retry:
            problem = run_deliveries.retry_now(wiring, journal, only)
        elif give_up:
            run_deliveries.give_up(journal, only)
        statuses = () if every else ("pending", "failed")
        listed = [item for item in journal.deliveries(*statuses) if only in (None, item.run)]
    values = [delivery_json(item) for item in listed]
    if json and not problem:
        emit_json({"deliveries": values})
    elif not json:
        for value in values:
            echo(f"{value['run']}  {delivery_line(value)}{_next(value['next'])}")
        if not values:
            echo(f"nothing is undelivered in {folder}")
    if problem:
        raise WorldError(problem, hint="mlkit deliveries --retry tries again, mlkit deliveries --give-up no more")


def _next(when: float | None) -> str:
    """From when a run tries a delivery again, where that is not at once."""
    if when is None or when <= time.time():
        return ""
    return f"; next by a run after {time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}"
