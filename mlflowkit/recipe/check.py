"""Loads a recipe: reads, composes and checks it, and reports all its faults at once.

Checks run in phases: text (YAML), composition (groups, overrides, interpolations), schema (types, bounds, unknown
keys), rules (contradicting keys), references (files and code). A fault hides those of later phases at the same key and
at keys inside or around it, no others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe import column_rules, compose, reference_rules, rules, schema_errors, yaml_tree
from mlflowkit.recipe.schema import LoadedRecipe, RecipeSchema
from mlflowkit.recipe.section_rules import check_file_rules, source_rules
from mlflowkit.recipe.yaml_tree import OVERRIDE_FILE, KeyPath, Node
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

ENVIRONMENT_KEYS: tuple[KeyPath, ...] = (("data", "source", "path"), ("model", "path"))
"""Keys whose value may come from the environment: paths."""
HIDDEN = "***"
"""What is shown in place of a secret that stands in a recipe."""
INSTANTIATING = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys by which Hydra instantiates objects."""


@dataclass(frozen=True, slots=True)
class ExaminedRecipe:
    """A recipe as far as it could be read, with its faults."""

    path: Path
    overrides: tuple[str, ...]
    root: Node
    values: Json
    faults: tuple[Fault, ...]
    recipe: RecipeSchema | None
    texts: dict[str, str]
    files: tuple[Path, ...]


def load(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and check a recipe, with Hydra overrides.

    Raises RecipeError with all faults at file:line:column; of an override the file is ``<override>`` and the line its
    index from 1.
    """
    hint = f"mlkit explain {shell_word(path)} KEY shows what set a value and what is allowed"
    written = {OVERRIDE_FILE: "\n".join(text.replace("\n", " ") for text in overrides)}
    try:
        examined = examine(path, overrides)
        if examined.faults or examined.recipe is None:
            written = _without_secrets(examined.root, written)
            raise RecipeError(examined.faults, hint=hint, sources=examined.texts)
    except RecipeError as error:
        error.sources |= written
        raise
    composed = examined.recipe.model_dump(mode="json")
    files = tuple(dict.fromkeys((examined.path, *examined.files)))
    return LoadedRecipe(examined.recipe, examined.path, examined.overrides, composed, files)


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> tuple[LoadedRecipe, ...]:
    """Load the recipes of a sweep such as ``train.epochs=5,10``; the last swept key varies fastest.

    Raises RecipeError with the faults of all recipes.
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
        if HIDDEN not in sources.get(OVERRIDE_FILE, ""):
            sources[OVERRIDE_FILE] = "\n".join(text.replace("\n", " ") for text in overrides)
        raise RecipeError(faults, sources=sources)
    return tuple(loaded)


def examine(path: Path | str, overrides: Sequence[str] = ()) -> ExaminedRecipe:
    """Read and check a recipe. Raises RecipeError only when it cannot be read at all."""
    absolute, shown = _absolute(path), str(path)
    if absolute.suffix != ".yaml" and absolute.is_file():
        hint = f"mv {shell_word(shown)} {shell_word(Path(shown).with_suffix('.yaml'))}"
        raise RecipeError([Fault(shown, 1, 1, "", absolute.name, "the name of a recipe ends in .yaml", hint)])
    composition = compose.compose(absolute, tuple(overrides), shown=shown)
    root = composition.root
    faults = _FaultCollector(composition.faults)
    values = _resolve_values(root, faults)
    recipe = _validate(root, values, faults, complete=composition.complete)
    folder = absolute.parent
    beside = (reference_rules, column_rules, check_file_rules)
    references = [problem for module in beside for problem in module.problems(values, folder)]
    for problem in [*rules.problems(values), *references]:
        node = yaml_tree.nearest_node(root, problem.path)
        faults.add(schema_errors.fault_at(node, problem.path, problem.message, problem.hint, at_key=problem.at_key))
    order = {name: index for index, name in enumerate([shown, *composition.texts, OVERRIDE_FILE])}
    ordered = sorted(faults.faults, key=lambda fault: (order.get(fault.file, len(order)), fault.line, fault.column))
    texts, files = _without_secrets(root, composition.texts), composition.files
    return ExaminedRecipe(absolute, tuple(overrides), root, values, tuple(ordered), recipe, texts, files)


def _without_secrets(root: Node, texts: dict[str, str]) -> dict[str, str]:
    """The texts that errors quote, without the secrets that stand in them."""
    for path, node in yaml_tree.walk(root):
        if isinstance(node.value, str) and node.value and source_rules.secret_kind(path, node.value):
            texts = {name: text.replace(node.value, HIDDEN) for name, text in texts.items()}
    return texts


class _FaultCollector:
    """Collects faults by phase; drops one at, inside or around a key with a fault of an earlier phase."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: list[Fault] = list(faults)
        self._composition_count = len(self.faults)
        self._faulty_keys: list[str] = []

    def add(self, fault: Fault) -> None:
        own = f"{fault.key}."
        if not any(own.startswith(f"{key}.") or f"{key}.".startswith(own) for key in self._faulty_keys if key):
            self.faults.append(fault)

    def end_phase(self) -> None:
        """Let the faults so far hide those of later phases, except those of overrides that could not be composed."""
        self._faulty_keys = [
            fault.key
            for index, fault in enumerate(self.faults)
            if fault.file != OVERRIDE_FILE or index >= self._composition_count
        ]


def _absolute(path: Path | str) -> Path:
    """The absolute path, links resolved: code and config groups are beside the file itself."""
    return Path(os.path.realpath(Path(path).expanduser()))


def _resolve_values(root: Node, faults: _FaultCollector) -> Json:
    """The values of a tree with interpolations resolved; adds faults for forbidden values."""
    values = yaml_tree.to_plain(root)
    unresolved: list[KeyPath] = []
    for path, node in yaml_tree.walk(root):
        fault, interpolated = _forbidden_value(path, node), isinstance(node.value, str) and "${" in node.value
        if interpolated and fault is None:
            fault = _resolver_fault(path, node)
        if fault is not None:
            faults.add(fault)
        elif interpolated:
            unresolved.append(path)
    if unresolved:
        values, failed = compose.resolve(values, unresolved)
        for path, message in failed.items():
            hint = "name a key of the recipe from its root, such as ${data.target}"
            if "Environment variable" in message:
                name = message.split("'")[1] if "'" in message else "NAME"
                hint = f"export {name}=..."
            node = yaml_tree.nearest_node(root, path)
            faults.add(schema_errors.fault_at(node, path, f"cannot be resolved: {message}", hint))
    faults.end_phase()
    return values


def _forbidden_value(path: KeyPath, node: Node) -> Fault | None:
    """The fault of a value that no key may have."""
    if path and path[-1] in INSTANTIATING:
        message = f"{path[-1]} is not allowed: a recipe is data, nothing in it is called"
        hint = "name code as MODULE:NAME at a key for it, such as model.module"
        return schema_errors.fault_at(node, path, message, hint, at_key=True)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        message = f"expected a finite number, found {yaml_tree.format_value(node)}"
        return schema_errors.fault_at(node, path, message, "write a number")
    if isinstance(node.value, str) and (kind := source_rules.secret_kind(path, node.value)):
        message = f"this looks like {kind}; a recipe only names where a secret is kept"
        hint = "revoke it: what stood in a file is known; then name where it is kept, such as {env: NAME}"
        return schema_errors.fault_at(node, path, message, hint, value=HIDDEN)
    if node.value == "???" and isinstance(node.value, str):
        message = "a value is required here"
        return schema_errors.fault_at(node, path, message, f"add {yaml_tree.dotted(path)}=VALUE to the command")
    return None


def _resolver_fault(path: KeyPath, node: Node) -> Fault | None:
    """The fault of an interpolation with a resolver that is not allowed at this key."""
    try:
        called = compose.resolvers(node.value)
    except ValueError as error:
        message = f"not an interpolation: {error}"
        return schema_errors.fault_at(node, path, message, "write ${key.path}, or \\${ for a plain ${")
    for name in called:
        if name != "oc.env":
            message, hint = f"the resolver {name} is not allowed", "only ${key.path} within the recipe is"
            return schema_errors.fault_at(node, path, message, hint)
        if path not in ENVIRONMENT_KEYS:
            message = f"the environment may only set paths ({', '.join(map(yaml_tree.dotted, ENVIRONMENT_KEYS))})"
            return schema_errors.fault_at(node, path, message, f"pass it: {yaml_tree.dotted(path)}=VALUE")
    return None


def _validate(root: Node, values: Json, faults: _FaultCollector, *, complete: bool) -> RecipeSchema | None:
    """Validate by the schema; ignores missing keys of an incomplete composition."""
    try:
        return RecipeSchema.model_validate(values, strict=True)
    except ValidationError as error:
        ignored = () if complete else ("missing", "union_tag_not_found")
        errors = [item for item in error.errors(include_url=False, include_input=False) if item["type"] not in ignored]
        for fault in schema_errors.schema_faults(errors, root, values):
            faults.add(fault)
    finally:
        faults.end_phase()
    return None
