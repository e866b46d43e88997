"""mlkit plan: what a run would do, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    print_result,
    state_folder,
)

UntilOption = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
ForceOption = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage again.")]


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: UntilOption = None,
    force: ForceOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Print each step with run or reuse, and the reason. Changes nothing."""
    from mlflowkit.pipeline.plan import plan_steps
    from mlflowkit.recipe.check import load
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    loaded = load(recipe, overrides or ())
    wiring = Wiring(folder)
    steps = plan_steps(loaded, wiring, until=until, force=force or (), services=lambda: wiring.platform.status())
    rows = [{name: getattr(step, name) for name in ("stage", "action", "reason", "fingerprint")} for step in steps]
    lines = [f"{step.stage:<9} {step.action:<6} {step.fingerprint[:12]}  {step.reason}" for step in steps]
    running = sum(step.action == "run" for step in steps)
    lines.append(f"{running} to run, {len(steps) - running} to reuse" if running else "nothing to do")
    print_result({"recipe": str(loaded.path), "name": loaded.recipe.name, "steps": rows}, "\n".join(lines), json)
