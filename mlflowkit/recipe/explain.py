"""Where a value of a recipe comes from: what set it, what it shadows, what is allowed there and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from mlflowkit.errors import UsageError, nearest
from mlflowkit.recipe import compose, jsonschema, schema_errors, schema_tree, yaml_tree
from mlflowkit.recipe.check import Examined, examine
from mlflowkit.recipe.schema_tree import Shape
from mlflowkit.recipe.yaml_tree import KeyPath, Node
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and what set it: a place in a file or an override, or the default of the schema."""

    value: Json
    source: str
    """``file``, ``override`` or ``default``."""
    file: str = ""
    line: int = 0
    column: int = 0
    override: str = ""

    @property
    def where(self) -> str:
        """In words."""
        if self.source == "default":
            return "the default"
        if self.source == "override":
            return f"override {self.line}: {self.override}"
        return f"{self.file}:{self.line}:{self.column}"

    def to_json(self) -> dict[str, Json]:
        found: dict[str, Json] = {"value": self.value, "source": self.source}
        if self.source != "default":
            found |= {"file": self.file, "line": self.line, "column": self.column}
        return found | ({"override": self.override} if self.override else {})


@dataclass(frozen=True, slots=True)
class Explanation:
    """All about one key. ``set_by`` is None for a required key that the recipe lacks."""

    key: str
    set_by: Setting | None
    shadows: tuple[Setting, ...]
    """What it replaced, the latest first; the default of the schema last."""
    expected: str
    allowed: tuple[Any, ...]
    required: bool
    description: str
    inside: tuple[tuple[str, Setting | None], ...] = ()
    """Of a section: its keys."""
    groups: tuple[str, ...] = ()
    """Of the recipe itself: the config groups that can be added to it, as ``group/option``."""

    def to_json(self) -> dict[str, Json]:
        return {
            "key": self.key,
            "value": self.set_by.value if self.set_by else None,
            "set_by": self.set_by.to_json() if self.set_by else None,
            "shadows": [setting.to_json() for setting in self.shadows],
            "type": self.expected,
            "allowed": list(self.allowed),
            "required": self.required,
            "description": self.description,
            "keys": [{"key": key, **(setting.to_json() if setting else {})} for key, setting in self.inside],
            "groups": list(self.groups),
        }


def explain(path: Path | str, key: str, overrides: Sequence[str] = ()) -> Explanation:
    """Explain one key of a recipe, such as ``train.optimizer.lr`` or ``gates.0.min``; "" is the recipe itself.

    Works for a recipe with faults too. Raises UsageError for a key that a recipe cannot have, RecipeError for a
    recipe that cannot be read.
    """
    examined = examine(path, overrides)
    parts = _split(key, examined.values)
    shape = schema_tree.look_up(parts, examined.values)
    node = yaml_tree.find(examined.root, parts)
    if shape is None and node is None:
        raise _unknown(key, path, examined.values)
    shape = shape or Shape(Any)
    set_by, shadows = _history(node, shape, parts, examined)
    section = shape.owner
    narrowed = schema_tree.narrow(shape, _value_at(examined.values, parts))
    description = jsonschema.describe(section, shape.name) if section is not None else ""
    if not description and schema_tree.is_section(narrowed.type):
        description = " ".join((narrowed.type.__doc__ or "").split())
    return Explanation(
        key=yaml_tree.dotted(parts),
        set_by=set_by,
        shadows=shadows,
        expected=schema_tree.expected(shape),
        allowed=schema_tree.choices(shape),
        required=shape.info is not None and shape.info.is_required(),
        description=description,
        inside=tuple(_inside(parts, narrowed, node, examined)),
        groups=() if parts else _groups(examined.path.parent),
    )


def _groups(folder: Path) -> tuple[str, ...]:
    groups = compose.known_groups(folder)
    return tuple(f"{group}/{option}" for group in groups for option in compose.options(folder, group))


def _split(key: str, values: Json) -> KeyPath:
    """The parts of a dotted key; ``gates[0].min`` is taken too."""
    parts: list[str | int] = []
    for part in key.replace("[", ".").replace("]", "").split("."):
        if part:
            here = _value_at(values, tuple(parts))
            parts.append(int(part) if isinstance(here, list) and part.isdigit() else part)
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
    node: Node | None, shape: Shape, parts: KeyPath, examined: Examined
) -> tuple[Setting | None, tuple[Setting, ...]]:
    chain = []
    if node is not None:
        chain.append(_setting(node, _value_at(examined.values, parts)))
        chain.extend(_setting(shadowed, yaml_tree.plain(shadowed)) for shadowed in node.shadows)
    if shape.default is not PydanticUndefined:
        chain.append(Setting(_plain_default(shape.default), "default"))
    return (chain[0], tuple(chain[1:])) if chain else (None, ())


def _setting(node: Node, value: Json) -> Setting:
    place = node.place
    source = "override" if place.file == yaml_tree.OVERRIDE else "file"
    return Setting(value, source, place.file, place.line, place.column, node.origin)


def _plain_default(value: Any) -> Json:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _inside(path: KeyPath, shape: Shape, node: Node | None, examined: Examined) -> list[tuple[str, Setting | None]]:
    """The keys of a section, each with what set it."""
    if not schema_tree.is_section(shape.type):
        return []
    rows: list[tuple[str, Setting | None]] = []
    for name in shape.type.model_fields:
        below = yaml_tree.child(node, name) if node is not None else None
        here = (*path, name)
        setting, _ = _history(below, schema_tree.field_shape(shape.type, name), here, examined)
        rows.append((yaml_tree.dotted(here), setting))
    return rows


def _unknown(key: str, path: Path | str, values: Json) -> UsageError:
    known = schema_errors.all_keys()
    if key in known:
        parent = key.rpartition(".")[0]
        kind = (_value_at(values, _split(parent, values)) or {}).get("kind")
        hint = f"mlkit explain {path} {parent} lists what it has"
        return UsageError(f"{parent} of kind {kind} has no key {key.rpartition('.')[2]!r}", hint=hint)
    close = nearest(key, known) or nearest(key.rpartition(".")[2], known)
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    found = close or (same[0] if same else "")
    hint = f"did you mean {found}? mlkit explain {path} {found}" if found else f"mlkit explain {path} lists the keys"
    return UsageError(f"a recipe has no key {key!r}", hint=hint)
