"""mlkit runs: recorded runs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.cli.commands.show import RecipeOption


@app.command()
def runs(
    recipe: RecipeOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of runs.")] = 20,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    from mlflowkit.pipeline.outbox.delivery_schedule import troubled
    from mlflowkit.pipeline.run_summary import summarize
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    with Wiring(folder).open_journal(create=False) as journal:
        records = journal.runs(limit)
    if json:
        emit_json({"runs": [summarize(record, folder) for record in records]})
    elif not records:
        echo(f"no run is recorded in {folder}; `mlkit run RECIPE` makes one, --state DIR looks elsewhere")
    for record in records if not json else ():
        ran = sum(step.action == "run" and step.status == "done" for step in record.steps)
        reused = sum(step.action == "reuse" and step.status == "done" for step in record.steps)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
        bundle = f"  {record.bundle[:12]}{' blessed' if record.blessed else ''}" if record.bundle else ""
        overrides = f"  {' '.join(record.overrides)}" if record.overrides else ""
        steps = f"{ran} run {reused} reused"
        late = [delivery.target for delivery in troubled(record.deliveries)]
        undelivered = f"  not delivered to {', '.join(late)}: mlkit deliveries" if late else ""
        echo(f"{record.run}  {when}  {record.name:<12} {record.status:<12} {steps}{bundle}{overrides}{undelivered}")
