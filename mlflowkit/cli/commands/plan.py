"""mlkit plan: what a run would do now, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    echo,
    emit_json,
    state_folder,
)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage anew.")] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Print each step with run or reuse, and the reason. Changes nothing."""
    from mlflowkit.pipeline.plan import make_plan
    from mlflowkit.recipe.check import load
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    loaded = load(recipe, overrides or ())
    steps = make_plan(loaded, folder, until=until, force=force or (), services=lambda: Wiring(folder).platform.status())
    if json:
        shown = [{name: getattr(step, name) for name in ("stage", "action", "reason", "fingerprint")} for step in steps]
        emit_json({"recipe": str(loaded.path), "name": loaded.recipe.name, "steps": shown})
        return 0
    for step in steps:
        echo(f"{step.stage:<9} {step.action:<6} {step.fingerprint[:12]}  {step.reason}")
    running = sum(step.action == "run" for step in steps)
    echo(f"{running} to run, {len(steps) - running} to reuse" if running else "nothing to do")
    return 0
