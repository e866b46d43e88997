"""mlkit run: execute a recipe's plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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
    note,
    state_folder,
)
from mlflowkit.cli.commands.plan import BreakingOption, ForceOption, UntilOption, with_breaking
from mlflowkit.errors import MlkitError
from mlflowkit.values import Json

SWEEP_UNTIL = "package"
"""Default last stage of a sweep's runs: one of them is chosen before it serves."""


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: UntilOption = None,
    force: ForceOption = None,
    allow_breaking: BreakingOption = False,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Run once for each combination of swept overrides (a=1,2).")
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Run the stale stages of a recipe, reuse the rest, and leave the service up."""
    from mlflowkit.cli.fast_path import format_run

    folder = state_folder(state, recipe)
    overrides = with_breaking(overrides, allow_breaking)
    if multirun:
        return _sweep(recipe, overrides, folder, until or SWEEP_UNTIL, force or [], json)
    value, error = run_once(recipe, overrides, folder, until, force or [])
    if json:
        emit_json(value if error is None else {**value, "error": error.to_json()})
    else:
        echo(format_run(value))
        if error is not None:
            note(f"error: {error.message}\nhint: {error.hint}")
    return 0 if error is None else error.exit_code


def run_once(
    recipe: Path, overrides: Sequence[str], folder: Path, until: str | None, force: Sequence[str]
) -> tuple[Mapping[str, Json], MlkitError | None]:
    """Run a recipe; return its summary and the error of its outcome, if any."""
    from mlflowkit import api

    outcome = None if force else api.nothing_to_do(recipe, overrides, folder, until)
    if outcome is None:
        from mlflowkit.cli.progress import run_progress, stdout_to_stderr

        loaded = api.load(recipe, overrides)
        with stdout_to_stderr(), run_progress() as progress:
            outcome = api.run(loaded, until=until, force=force, state=folder, progress=progress)
    return outcome.answer, outcome.error


def _sweep(recipe: Path, overrides: Sequence[str], folder: Path, until: str, force: Sequence[str], json: bool) -> int:
    from mlflowkit.recipe.check import load_sweep

    jobs = [loaded.overrides for loaded in load_sweep(recipe, overrides)]
    values: list[Mapping[str, Json]] = []
    worst = 0
    for number, job in enumerate(jobs, 1):
        note(f"job {number} of {len(jobs)}: {' '.join(job)}")
        value, error = run_once(recipe, job, folder, until, force)
        values.append(value if error is None else {**value, "error": error.to_json()})
        worst = worst or (0 if error is None else error.exit_code)
    if json:
        emit_json({"runs": values})
        return worst
    for job, value in zip(jobs, values, strict=True):
        metrics = ", ".join(f"{name} {figure:.4g}" for name, figure in value["validation"].items())
        echo(f"{value['run']}  {value['status']:<12} {' '.join(job)}  {metrics}")
    note("figures are of the validation rows: the best of several on test rows would look better than it is")
    return worst
