"""`mlkit export`: from a recipe to the files of its delivery targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflowkit import __version__
from mlflowkit.ci.recipe_facts import recipe_facts, repository_root
from mlflowkit.delivery import targets as delivery_targets
from mlflowkit.delivery.delivery_plan import DeliveryPlan, delivery_plan
from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.pins import python_image
from mlflowkit.delivery.regeneration.export_result import ExportResult, export_files, relative_choices, render_files
from mlflowkit.errors import RecipeError, UsageError
from mlflowkit.recipe.check import examine, load
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.recipe.schema_errors import fault_at
from mlflowkit.recipe.yaml_tree import nearest_node
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
    check_support(recipe, plan, instances)
    root = repository_root(loaded.folder)
    if out is not None:
        if write:
            out.mkdir(parents=True, exist_ok=True)
        root = out.resolve()
        if not root.is_dir():
            raise UsageError(f"{out} is no directory", hint=f"mkdir {shell_word(out)}")
    rendered = render_files(plan, instances, __version__)
    choices = relative_choices(root, theirs, mine)
    return export_files(root, plan.recipe.path, rendered, set(names) if targets else None, choices, write=write)


def check_support(recipe: Path, plan: DeliveryPlan, targets: Sequence[DeliveryTarget]) -> None:
    """Raise RecipeError with a located fault for each thing that a target cannot express."""
    unsupported = [(target, item) for target in targets for item in target.unsupported(plan)]
    if not unsupported:
        return
    examined = examine(recipe)
    faults = []
    for target, item in unsupported:
        rooted = bool(item.key) and str(item.key[0]).startswith("/")
        path = (str(item.key[0])[1:], *item.key[1:]) if rooted else ("delivery", *item.key)
        node = nearest_node(examined.root, path)
        faults.append(fault_at(node, path, f"target {target.name}: {item.message}", item.hint))
    faults.sort(key=lambda fault: (fault.file, fault.line, fault.column))
    raise RecipeError(faults, sources=examined.texts)
