"""Explains a key of a recipe: its value's source, the values it shadows, allowed values and description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.recipe import config_files, jsonschema, schema_errors, schema_tree, yaml_tree
from mlflowkit.recipe.check import ExaminedRecipe, examine
from mlflowkit.recipe.schema_tree import Shape
from mlflowkit.recipe.yaml_tree import KeyPath, Node
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class ValueSource:
    """A value and its source: a file, an override, or the default of the schema."""

    value: Json
    source: str
    """``file``, ``override`` or ``default``."""
    file: str = ""
    line: int = 0
    column: int = 0
    override: str = ""

    @property
    def where(self) -> str:
        """The source as text."""
        if self.source == "default":
            return "the default"
        if self.source == "override":
            return f"override {self.line}: {self.override}"
        return f"{self.file}:{self.line}:{self.column}"

    def to_json(self) -> dict[str, Json]:
        source: dict[str, Json] = {"value": self.value, "source": self.source}
        if self.source != "default":
            source |= {"file": self.file, "line": self.line, "column": self.column}
        return source | ({"override": self.override} if self.override else {})


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a key. ``set_by`` is None for a required key that the recipe lacks."""

    key: str
    set_by: ValueSource | None
    shadows: tuple[ValueSource, ...]
    """The replaced values, latest first; the schema's default last."""
    expected: str
    allowed: tuple[Any, ...]
    required: bool
    description: str
    inside: tuple[tuple[str, ValueSource | None], ...] = ()
    """The keys of a section."""
    groups: tuple[str, ...] = ()
    """For the recipe as a whole: the config groups that can be added, as ``group/option``."""

    def to_json(self) -> dict[str, Json]:
        return {
            "key": self.key,
            "value": self.set_by.value if self.set_by else None,
            "set_by": self.set_by.to_json() if self.set_by else None,
            "shadows": [source.to_json() for source in self.shadows],
            "type": self.expected,
            "allowed": list(self.allowed),
            "required": self.required,
            "description": self.description,
            "keys": [{"key": key, **(source.to_json() if source else {})} for key, source in self.inside],
            "groups": list(self.groups),
        }


def explain(path: Path | str, key: str, overrides: Sequence[str] = ()) -> Explanation:
    """Explain a key of a recipe, such as ``train.optimizer.lr`` or ``gates.0.min``; "" is the whole recipe.

    Works for invalid recipes too. Raises UsageError for an unknown key, RecipeError for an unreadable recipe.
    """
    examined = examine(path, overrides)
    parts = _split(key, examined.values)
    shape = schema_tree.look_up(parts, examined.values)
    node = yaml_tree.find(examined.root, parts)
    if shape is None and node is None:
        raise _unknown_key(key, path, examined.values)
    shape = shape or Shape(Any)
    set_by, shadows = _history(node, shape, parts, examined)
    section = shape.owner
    narrowed = schema_tree.narrow(shape, _value_at(examined.values, parts))
    description = jsonschema.describe(section, shape.name) if section is not None else ""
    if not description and schema_tree.is_section(narrowed.type):
        description = " ".join((narrowed.type.__doc__ or "").split())
    folder = examined.path.parent
    names = config_files.known_groups(folder)
    groups = (f"{group}/{option}" for group in names for option in config_files.group_options(folder, group))
    return Explanation(
        key=yaml_tree.dotted(parts),
        set_by=set_by,
        shadows=shadows,
        expected=schema_tree.expected(shape),
        allowed=schema_tree.choices(shape),
        required=shape.info is not None and shape.info.is_required(),
        description=description,
        inside=tuple(_inside(parts, narrowed, node, examined)),
        groups=() if parts else tuple(groups),
    )


def _split(key: str, values: Json) -> KeyPath:
    """The parts of a dotted key; ``gates[0].min`` is accepted too."""
    parts: list[str | int] = []
    for part in key.replace("[", ".").replace("]", "").split("."):
        if part:
            parent = _value_at(values, tuple(parts))
            parts.append(int(part) if isinstance(parent, list) and part.isdigit() else part)
    return tuple(parts)


def _value_at(values: Json, path: KeyPath) -> Json:
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def _history(
    node: Node | None, shape: Shape, parts: KeyPath, examined: ExaminedRecipe
) -> tuple[ValueSource | None, tuple[ValueSource, ...]]:
    chain = []
    if node is not None:
        chain.append(_value_source(node, _value_at(examined.values, parts)))
        chain.extend(_value_source(shadowed, yaml_tree.to_plain(shadowed)) for shadowed in node.shadows)
    if shape.default is not PydanticUndefined:
        default = shape.default
        plain = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
        chain.append(ValueSource(plain, "default"))
    return (chain[0], tuple(chain[1:])) if chain else (None, ())


def _value_source(node: Node, value: Json) -> ValueSource:
    location = node.location
    source = "override" if location.file == yaml_tree.OVERRIDE_FILE else "file"
    return ValueSource(value, source, location.file, location.line, location.column, node.origin)


def _inside(
    path: KeyPath, shape: Shape, node: Node | None, examined: ExaminedRecipe
) -> list[tuple[str, ValueSource | None]]:
    """The keys of a section with the sources of their values."""
    if not schema_tree.is_section(shape.type):
        return []
    rows: list[tuple[str, ValueSource | None]] = []
    for name in shape.type.model_fields:
        below = yaml_tree.child_of(node, name) if node is not None else None
        source, _ = _history(below, schema_tree.field_shape(shape.type, name), (*path, name), examined)
        rows.append((yaml_tree.dotted((*path, name)), source))
    return rows


def _unknown_key(key: str, path: Path | str, values: Json) -> UsageError:
    keys = schema_errors.all_keys()
    if key in keys:
        parent = key.rpartition(".")[0]
        kind = (_value_at(values, _split(parent, values)) or {}).get("kind")
        hint = f"mlkit explain {shell_word(path)} {parent} lists its keys"
        return UsageError(f"{parent} of kind {kind} has no key {key.rpartition('.')[2]!r}", hint=hint)
    name = key.rpartition(".")[2]
    same = (other for other in keys if other.rpartition(".")[2] == name)
    suggestion = closest_match(key, keys) or closest_match(name, keys) or next(same, "")
    command = f"mlkit explain {shell_word(path)}"
    hint = f"did you mean {suggestion}? {command} {suggestion}" if suggestion else f"{command} lists the keys"
    return UsageError(f"a recipe has no key {key!r}", hint=hint)
