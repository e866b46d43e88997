"""Read a recipe, compose it, check it: all its faults at once, or a LoadedRecipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe.compose import compose
from mlflowkit.recipe.schema import LoadedRecipe, Recipe


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and check a recipe. Raises RecipeError with every fault."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise RecipeError([Fault(str(path), 1, 1, "", "", "no such file")], hint="mlkit init")
    values = compose(path, tuple(overrides))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults = [
            Fault(str(path), 1, 1, ".".join(map(str, item["loc"])), repr(item["input"])[:80], item["msg"])
            for item in error.errors()
        ]
        raise RecipeError(faults) from error
    return LoadedRecipe(recipe, path, tuple(overrides), recipe.model_dump(mode="json"))
