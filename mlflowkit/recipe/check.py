"""Read a recipe, compose it, check it: a LoadedRecipe, or all its faults at once.

The order of judgement: the text (YAML), the composition (groups, overrides, interpolations), the schema (types,
bounds, unknown keys), the sense (keys that contradict each other), the world (files and code that it names). A fault
hides later faults of the same key and of keys inside it, no others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe import compose, reference_rules, rules, schema_errors, yaml_tree
from mlflowkit.recipe.schema import LoadedRecipe, Recipe
from mlflowkit.recipe.yaml_tree import OVERRIDE, KeyPath, Node
from mlflowkit.values import Json

ENVIRONMENT_KEYS: tuple[KeyPath, ...] = (("data", "source", "path"), ("model", "path"))
"""Keys whose value may come from the environment: paths."""
INSTANTIATING = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys by which Hydra would call code."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A recipe with everything that is known of it, faults included."""

    path: Path
    overrides: tuple[str, ...]
    root: Node
    values: Json
    faults: tuple[Fault, ...]
    recipe: Recipe | None
    texts: dict[str, str]
    files: tuple[Path, ...]


def load(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and check a recipe, with Hydra overrides.

    Raises RecipeError with every fault, each at file:line:column (an override is the file ``<override>``, and its
    line is its index from 1).
    """
    hint = f"mlkit explain {path} KEY says what set a value and what is allowed"
    try:
        examined = examine(path, overrides)
        if examined.faults or examined.recipe is None:
            raise RecipeError(examined.faults, hint=hint, sources=examined.texts)
    except RecipeError as error:
        error.sources[OVERRIDE] = "\n".join(text.replace("\n", " ") for text in overrides)
        raise
    composed = examined.recipe.model_dump(mode="json")
    files = tuple(dict.fromkeys((examined.path, *examined.files)))
    return LoadedRecipe(examined.recipe, examined.path, examined.overrides, composed, files)


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> tuple[LoadedRecipe, ...]:
    """Every recipe of a sweep, such as ``train.epochs=5,10``, in Hydra's order (the last one varies fastest).

    Raises RecipeError with the faults of all of them.
    """
    absolute = _absolute(path)
    loaded: list[LoadedRecipe] = []
    faults: list[Fault] = []
    sources: dict[str, str] = {}
    for job in compose.expand_sweep(absolute, overrides):
        try:
            loaded.append(load(path, job))
        except RecipeError as error:
            faults.extend(fault for fault in error.faults if fault not in faults)
            sources |= error.sources
    if faults:
        sources[OVERRIDE] = "\n".join(text.replace("\n", " ") for text in overrides)
        raise RecipeError(faults, sources=sources)
    return tuple(loaded)


def examine(path: Path | str, overrides: Sequence[str] = ()) -> Examined:
    """A recipe with all its faults; raises RecipeError only where there is nothing to examine."""
    absolute = _absolute(path)
    shown = str(path)
    if absolute.suffix != ".yaml" and absolute.is_file():
        hint = f"mv {shown} {Path(shown).with_suffix('.yaml')}"
        raise RecipeError([Fault(shown, 1, 1, "", absolute.name, "the name of a recipe ends in .yaml", hint)])
    composition = compose.compose(absolute, tuple(overrides), shown=shown)
    root = composition.root
    faults = _Faults(composition.faults)
    values = _resolve(root, faults)
    recipe = _validate(root, values, faults, complete=composition.complete)
    sense = rules.problems(values)
    world = reference_rules.problems(values, absolute.parent)
    for problem in [*sense, *world]:
        node = yaml_tree.nearest(root, problem.path)
        faults.add(schema_errors.fault_at(node, problem.path, problem.message, problem.hint, at_key=problem.at_key))
    order = {name: index for index, name in enumerate([shown, *composition.texts, OVERRIDE])}
    found = sorted(faults.found, key=lambda fault: (order.get(fault.file, len(order)), fault.line, fault.column))
    return Examined(
        absolute, tuple(overrides), root, values, tuple(found), recipe, composition.texts, composition.files
    )


class _Faults:
    """Faults so far. A later one of the same key, or of a key inside or around a faulty one, is not added."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.found: list[Fault] = list(faults)
        self.given = len(self.found)
        self.keys: list[str] = []

    def add(self, fault: Fault) -> None:
        if any(_within(fault.key, key) or _within(key, fault.key) for key in self.keys if key):
            return
        self.found.append(fault)

    def close(self) -> None:
        """End one order of judgement: what was found in it hides what follows."""
        self.keys = [fault.key for fault in self.found if fault.key and fault.file != OVERRIDE]
        self.keys += [fault.key for fault in self.found[self.given :] if fault.file == OVERRIDE]


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _absolute(path: Path | str) -> Path:
    """The file itself where the path is a link: its code and its config groups lie beside that one."""
    return Path(os.path.realpath(Path(path).expanduser()))


def _resolve(root: Node, faults: _Faults) -> Json:
    """The values of a tree, interpolations resolved, with what is forbidden in any value reported."""
    values = yaml_tree.plain(root)
    open_paths: list[KeyPath] = []
    for path, node in yaml_tree.walk(root):
        problem = _forbidden(path, node)
        if problem is not None:
            faults.add(problem)
        elif isinstance(node.value, str) and compose.interpolations(node.value):
            fault = _resolver_fault(path, node)
            if fault is None:
                open_paths.append(path)
            else:
                faults.add(fault)
    if open_paths:
        values, failed = compose.resolve(values, open_paths)
        for path, message in failed.items():
            node = yaml_tree.nearest(root, path)
            faults.add(
                schema_errors.fault_at(node, path, f"cannot be resolved: {message}", _interpolation_hint(message))
            )
    faults.close()
    return values


def _interpolation_hint(message: str) -> str:
    if "Environment variable" in message:
        name = message.split("'")[1] if "'" in message else "NAME"
        return f"export {name}=..."
    return "name a key of the recipe from its root, such as ${data.target}"


def _forbidden(path: KeyPath, node: Node) -> Fault | None:
    """What no value of a recipe may be."""
    if path and path[-1] in INSTANTIATING:
        message = f"{path[-1]} is not allowed: a recipe is data, nothing in it is called"
        hint = "name code by module:attr where the schema has a place for it"
        return schema_errors.fault_at(node, path, message, hint, at_key=True)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        return schema_errors.fault_at(
            node, path, f"expected a finite number, found {yaml_tree.show(node)}", "write a number"
        )
    if node.value == "???" and isinstance(node.value, str):
        return schema_errors.fault_at(
            node, path, "a value is required here", f"add {yaml_tree.dotted(path)}=VALUE to the command"
        )
    return None


def _resolver_fault(path: KeyPath, node: Node) -> Fault | None:
    """A resolver that may not be called at this key."""
    try:
        called = compose.resolvers(node.value)
    except ValueError as error:
        return schema_errors.fault_at(
            node, path, f"not an interpolation: {error}", "write ${key.path}, or \\${ for a plain ${"
        )
    for name in called:
        if name == "oc.env" and path in ENVIRONMENT_KEYS:
            continue
        allowed = ", ".join(yaml_tree.dotted(key) for key in ENVIRONMENT_KEYS)
        if name == "oc.env":
            message, hint = (
                f"the environment may only set paths ({allowed})",
                f"pass it: {yaml_tree.dotted(path)}=VALUE",
            )
        else:
            message, hint = f"the resolver {name} is not allowed", "only ${key.path} within the recipe is"
        return schema_errors.fault_at(node, path, message, hint)
    return None


def _validate(root: Node, values: Json, faults: _Faults, *, complete: bool) -> Recipe | None:
    """The recipe by the schema; of an incomplete composition, what it lacks is not held against it."""
    try:
        return Recipe.model_validate(values, strict=True)
    except ValidationError as error:
        errors = [
            item
            for item in error.errors(include_url=False, include_input=False)
            if complete or item["type"] not in ("missing", "union_tag_not_found")
        ]
        for fault in schema_errors.schema_faults(errors, root, values):
            faults.add(fault)
    finally:
        faults.close()
    return None
