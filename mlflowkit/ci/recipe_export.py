"""`mlkit export`: from a recipe to the files of its delivery targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflowkit import __version__
from mlflowkit.ci.delivery_check import check_support
from mlflowkit.ci.recipe_facts import recipe_facts, repository_root
from mlflowkit.delivery import targets as delivery_targets
from mlflowkit.delivery.delivery_plan import DeliveryPlan, delivery_plan
from mlflowkit.delivery.pins import python_image
from mlflowkit.delivery.regeneration.export_result import ExportResult, export_files, relative_choices, render_files
from mlflowkit.errors import UsageError
from mlflowkit.recipe.check import load
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.text import shell_word


def load_delivery(recipe: Path) -> tuple[LoadedRecipe, DeliveryPlan]:
    """A recipe and its delivery plan. Raises RecipeError for a faulty recipe, UsageError for one without delivery."""
    loaded = load(recipe)
    section = loaded.recipe.delivery
    if section is None:
        raise UsageError(
            f"{recipe} has no delivery section: there is nothing to export",
            hint=f"mlkit explain {shell_word(recipe)} delivery shows what it may say",
        )
    return loaded, delivery_plan(section, recipe_facts(loaded), default_base=python_image())


def export_recipe(
    recipe: Path,
    targets: Sequence[str] = (),
    *,
    out: Path | None = None,
    theirs: Iterable[Path] = (),
    mine: Iterable[Path] = (),
    write: bool = True,
) -> ExportResult:
    """Generate the files of a recipe's delivery targets, all of them unless some are named.

    They are written below the repository's root, or ``out``. Raises RecipeError for what a target cannot express.
    """
    loaded, plan = load_delivery(recipe)
    names = tuple(dict.fromkeys(targets or plan.section.targets))
    instances = [delivery_targets.target(name) for name in names]
    root = repository_root(loaded.folder)
    check_support(recipe, plan, instances, root)
    if out is not None:
        if write:
            out.mkdir(parents=True, exist_ok=True)
        root = out.resolve()
        if not root.is_dir():
            raise UsageError(f"{out} is no directory", hint=f"mkdir {shell_word(out)}")
    rendered = render_files(plan, instances, __version__)
    choices = relative_choices(root, theirs, mine)
    return export_files(root, plan.recipe.path, rendered, set(names) if targets else None, choices, write=write)
