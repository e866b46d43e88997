"""mlkit validate: every fault of a recipe, located."""

from __future__ import annotations

from dataclasses import asdict

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json
from mlflowkit.errors import RecipeError


@app.command()
def validate(recipe: RecipeArgument, overrides: OverridesArgument = None, json: JsonOption = False) -> int:
    """Check a recipe and print all its faults."""
    from mlflowkit.recipe.check import load

    try:
        load(recipe, overrides or ())
    except RecipeError as error:
        if not json:
            raise
        emit_json({"ok": False, "errors": [asdict(fault) for fault in error.faults]})
        return error.exit_code
    if json:
        emit_json({"ok": True, "errors": []})
    else:
        echo(f"{recipe}: ok")
    return 0
