"""mlkit run: carry a recipe's plan out."""

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
from mlflowkit.errors import MlkitError
from mlflowkit.values import Json

SWEEP_UNTIL = "package"
"""Where the runs of a sweep stop unless told otherwise: one of them is to be chosen before it serves."""


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage anew.")] = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Run once for each combination of swept overrides (a=1,2).")
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Run what is stale of a recipe, reuse the rest, and leave the service up."""
    from mlflowkit.cli.fast_path import told

    folder = state_folder(state, recipe)
    if multirun:
        return _sweep(recipe, overrides or [], folder, until or SWEEP_UNTIL, force or [], json)
    value, error = run_once(recipe, overrides or [], folder, until, force or [])
    if json:
        emit_json(value if error is None else {**value, "error": error.to_json()})
    else:
        echo(told(value))
        if error is not None:
            note(f"error: {error.message}")
            note(f"hint: {error.hint}")
    return 0 if error is None else error.exit_code


def run_once(
    recipe: Path, overrides: Sequence[str], folder: Path, until: str | None, force: Sequence[str]
) -> tuple[Mapping[str, Json], MlkitError | None]:
    """Run a recipe; what the run says of itself, and the error that its end amounts to, if any."""
    from mlflowkit import api

    found = None if force else api.nothing_to_do(recipe, overrides, folder, until)
    if found is None:
        from mlflowkit.cli.progress import shown, stdout_to_stderr

        loaded = api.load(recipe, overrides)
        with stdout_to_stderr(), shown() as progress:
            found = api.run(loaded, until=until, force=force, state=folder, progress=progress)
    return found.answer, found.error


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
        figures = ", ".join(f"{name} {figure:.4g}" for name, figure in list(value["metrics"].items())[:4])
        echo(f"{value['run']}  {value['status']:<12} {' '.join(job)}  {figures}")
    return worst
