"""What `mlkit export` generated for this project's own recipes is what it generates now."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.delivery.regeneration.export_lock import read_lock

ROOT = Path(__file__).parents[2]
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "\ndelivery:" in path.read_text()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_generated_files_are_those_of_the_recipe(recipe: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: mlkit export writes from a repository's root")
    result = export_recipe(recipe, write=False)
    changed = {change.path: change.action for change in result.changes if change.action != "unchanged"}
    assert not changed, f"mlkit export {recipe.relative_to(ROOT)}"
    assert not result.stale


def test_there_are_some() -> None:
    assert RECIPES
    assert {entry.recipe for entry in read_lock(ROOT).values()} == {str(path.relative_to(ROOT)) for path in RECIPES}
