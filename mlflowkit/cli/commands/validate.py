"""mlkit validate: all faults of a recipe, with locations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json, note
from mlflowkit.errors import RecipeError
from mlflowkit.system.text import format_count

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe

MultirunOption = Annotated[bool, typer.Option("--multirun", "-m", help="Overrides may be sweeps: seed=1,2,3.")]


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    multirun: MultirunOption = False,
    json: JsonOption = False,
) -> int:
    """Print all the faults of a recipe with their lines; exit code 2 if there are any."""
    from mlflowkit.recipe.check import load, load_sweep

    try:
        swept = load_sweep(recipe, overrides or ()) if multirun else (load(recipe, overrides or ()),)
        warnings = _delivery_warnings(recipe, swept)
    except RecipeError as error:
        if not json:
            raise
        emit_json({"ok": False, "errors": [asdict(fault) for fault in error.faults]})
        return error.exit_code
    if json:
        name = swept[0].recipe.name
        emit_json({"ok": True, "errors": [], "warnings": warnings, "recipe": name, "jobs": len(swept)})
        return 0
    for warning in warnings:
        note(f"warning: {warning}")
    _summary(recipe, overrides or [], swept, "--multirun " if multirun else "")
    return 0


def _delivery_warnings(path: Path, swept: Sequence[LoadedRecipe]) -> list[str]:
    """Raise RecipeError for what the delivery targets refuse; a sweep's first recipe speaks for all."""
    if swept[0].recipe.delivery is None:
        return []
    from mlflowkit.ci.delivery_check import check_delivery

    return check_delivery(swept[0], path)


def _summary(path: Path, overrides: list[str], swept: Sequence[LoadedRecipe], option: str) -> None:
    from mlflowkit.stages.train import model_label

    recipe = swept[0].recipe
    gates = format_count(len(recipe.gates), "gate")
    serve = f", served as {recipe.serve.service}" if recipe.serve else ""
    jobs = f", {len(swept)} jobs" if len(swept) > 1 else ""
    echo(f"{path}: ok: {recipe.name}, {recipe.task} by {model_label(recipe.model)}, {gates}{serve}{jobs}")
    echo(f"next: mlkit run {option}{shlex.join([str(path), *overrides])}")
