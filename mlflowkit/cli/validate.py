"""mlkit validate: every fault of a recipe, located."""

from __future__ import annotations

from dataclasses import asdict

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json
from mlflowkit.errors import RecipeError


@app.command()
def validate(recipe: RecipeArgument, overrides: OverridesArgument = None, json: JsonOption = False) -> int:
    """Print all the faults of a recipe, each with its line.

    Exits with 2 when there are any.
    """
    from mlflowkit.recipe.check import load

    try:
        loaded = load(recipe, overrides or ())
    except RecipeError as error:
        if not json:
            raise
        emit_json({"ok": False, "errors": [asdict(fault) for fault in error.faults]})
        return error.exit_code
    if json:
        emit_json({"ok": True, "errors": [], "recipe": loaded.recipe.name})
        return 0
    found = loaded.recipe
    gates = f"{len(found.gates)} gate{'s' if len(found.gates) != 1 else ''}"
    serve = f", served as {found.serve.service}" if found.serve else ""
    echo(f"{recipe}: ok: {found.name}, {found.task} by {found.model.module}, {gates}{serve}")
    echo(f"next: mlkit run {' '.join([str(recipe), *(overrides or ())])}")
    return 0
