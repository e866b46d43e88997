"""What a recipe's delivery targets refuse, as faults of the recipe: `mlkit validate` and `mlkit ci check` tell what
`mlkit export` would."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflowkit.ci.recipe_facts import recipe_facts, repository_root
from mlflowkit.delivery import targets as delivery_targets
from mlflowkit.delivery.delivery_plan import DeliveryPlan, delivery_plan
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.pins import python_image
from mlflowkit.delivery.regeneration.export_lock import read_lock
from mlflowkit.errors import RecipeError
from mlflowkit.recipe.check import examine
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.recipe.schema_errors import fault_at
from mlflowkit.recipe.yaml_tree import nearest_node
from mlflowkit.system.git.git_command import ask_git
from mlflowkit.system.text import format_count, shell_word

MAX_LOCK_BYTES = 8 << 20
_CONTINUED = re.compile(r"\\\r?\n")


def check_delivery(loaded: LoadedRecipe, shown: Path) -> list[str]:
    """Ask the targets that the recipe names; where it names none, those whose files were generated for it.

    Returns what is to be known besides. Raises RecipeError with every fault, located in the recipe (``shown`` as the
    user wrote it).
    """
    section = loaded.recipe.delivery
    if section is None:
        return []
    if ask_git(loaded.folder, "rev-parse", "--show-toplevel").outside:
        return [f"{loaded.folder} is not in a git repository: what its delivery targets refuse is not known"]
    root = repository_root(loaded.folder)
    plan = delivery_plan(section, recipe_facts(loaded), default_base=python_image())
    if "targets" in section.model_fields_set:
        names = list(section.targets)
    else:
        entries = read_lock(root).values()
        names = sorted({entry.target for entry in entries if entry.recipe == plan.recipe.path})
    check_support(shown, plan, [delivery_targets.target(name) for name in names], root, loaded.overrides)
    return list(_hash_warnings(root / section.requirements, section.requirements))


def check_support(
    recipe: Path, plan: DeliveryPlan, targets: Sequence[DeliveryTarget], root: Path, overrides: Sequence[str] = ()
) -> None:
    """Raise RecipeError with a located fault for each thing that a target cannot express, and for the lock of the
    packages where it cannot be installed."""
    unsupported = [("", item) for item in _lock_faults(root, plan.section.requirements)]
    unsupported += [(f"target {target.name}: ", item) for target in targets for item in target.unsupported(plan)]
    if not unsupported:
        return
    examined = examine(recipe, overrides)
    faults = []
    for who, item in unsupported:
        rooted = bool(item.key) and str(item.key[0]).startswith("/")
        path = (str(item.key[0])[1:], *item.key[1:]) if rooted else ("delivery", *item.key)
        node = nearest_node(examined.root, path)
        faults.append(fault_at(node, path, f"{who}{item.message}", item.hint))
    faults.sort(key=lambda fault: (fault.file, fault.line, fault.column))
    raise RecipeError(faults, sources=examined.texts)


def _lock_faults(root: Path, name: str) -> Iterator[Unsupported]:
    """What every pipeline and image would fail on, in the file of ``delivery.requirements``."""
    file, key = root / name, ("requirements",)
    if not file.is_file():
        message = f"there is no file {name} in {root}: pipelines and images install from it"
        yield Unsupported(key, message, f"pip-compile --generate-hashes --output-file={shell_word(name)} FILE.in")
        return
    hashed, plain = _requirements(file)
    if hashed and plain:
        message = f"{name} has hashes, and none for {_some(plain)}: pip installs all with hashes or nothing"
        yield Unsupported(key, message, f"pip-compile --generate-hashes --output-file={shell_word(name)} FILE.in")


def _hash_warnings(file: Path, name: str) -> Iterator[str]:
    hashed, plain = _requirements(file)
    if plain and not hashed:
        packages = format_count(len(plain), "package")
        yield (
            f"delivery.requirements: {name} names {packages} without a hash: whoever can replace one at the index runs "
            "code in the pipeline; pip-compile --generate-hashes writes them"
        )


def _requirements(file: Path) -> tuple[list[str], list[str]]:
    """The requirements of a file with a hash, and those without; options and comments are neither."""
    with file.open("rb") as stream:
        text = stream.read(MAX_LOCK_BYTES).decode("utf-8", "replace")
    lines = (line.strip() for line in _CONTINUED.sub(" ", text).splitlines())
    wanted = [line for line in lines if line and not line.startswith(("#", "-"))]
    return [line for line in wanted if "--hash=" in line], [line for line in wanted if "--hash=" not in line]


def _some(lines: Sequence[str]) -> str:
    names = [re.split(r"[ ;=<>!~\[@]", line, maxsplit=1)[0] for line in lines[:3]]
    return ", ".join(names) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
