"""The recipe schema as a tree: the allowed values at a key path, their description, and pydantic locations."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlflowkit.recipe.schema import RecipeSchema
from mlflowkit.recipe.yaml_tree import KeyPath, format_value
from mlflowkit.sections import PluginUnion, Section
from mlflowkit.values import Json

_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


@dataclass(frozen=True, slots=True)
class Shape:
    """The allowed values at a key: a type (without Annotated), its constraints, the discriminator of a union."""

    type: Any
    constraints: tuple[Any, ...] = ()
    discriminator: str = ""
    owner: type[Section] | None = None
    """The section with this field (``name``); None for items of lists and mappings."""
    name: str = ""

    @property
    def info(self) -> FieldInfo | None:
        """pydantic's FieldInfo."""
        return self.owner.model_fields.get(self.name) if self.owner is not None else None

    @property
    def default(self) -> Any:
        """The default value; PydanticUndefined for a required key."""
        info = self.info
        return PydanticUndefined if info is None else info.get_default(call_default_factory=True)


ROOT = Shape(RecipeSchema)


def shape_of(annotation: Any, constraints: Sequence[Any] = (), **field: Any) -> Shape:
    """The shape of an annotation, with Annotated unpacked."""
    constraints = list(constraints)
    discriminator = ""
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        for item in metadata:
            if isinstance(item, FieldInfo):
                discriminator = discriminator or str(item.discriminator or "")
                constraints.extend(item.metadata)
            else:
                constraints.append(item)
    return Shape(annotation, tuple(constraints), discriminator, **field)


def field_shape(section: type[Section], name: str) -> Shape:
    """The shape of a field of a section."""
    info = section.model_fields[name]
    shape = shape_of(info.annotation, info.metadata, owner=section, name=name)
    if info.discriminator:
        return Shape(shape.type, shape.constraints, str(info.discriminator), section, name)
    return shape


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def branches(shape: Shape) -> tuple[Shape, ...]:
    """The members of a union; other shapes are their only branch."""
    if get_origin(shape.type) in (Union, types.UnionType):
        return tuple(
            Shape(part.type, part.constraints + shape.constraints, part.discriminator, shape.owner, shape.name)
            for part in map(shape_of, get_args(shape.type))
        )
    return (shape,)


def arguments(shape: Shape) -> tuple[Any, ...]:
    """The types inside a list or a mapping."""
    return get_args(shape.type) if get_origin(shape.type) in (list, dict, tuple) else ()


def tags(shape: Shape) -> dict[str, Shape]:
    """The members of a discriminated union by tag, those of installed plugins last."""
    return built_in_tags(shape) | {kind: Shape(section) for kind, section in plugin_sections(shape).items()}


def plugin_sections(shape: Shape) -> Mapping[str, type[Section]]:
    """The sections of installed plugins that extend a union, by kind."""
    plugins = plugin_union(shape)
    return plugins.sections() if plugins is not None else {}


def plugin_union(shape: Shape) -> PluginUnion | None:
    """The annotation by which plugins extend a discriminated union, or None."""
    if not shape.discriminator:
        return None
    return next((item for item in shape.constraints if isinstance(item, PluginUnion)), None)


def built_in_tags(shape: Shape) -> dict[str, Shape]:
    members: dict[str, Shape] = {}
    for branch in branches(shape):
        if shape.discriminator and is_section(branch.type):
            literal = branch.type.model_fields[shape.discriminator].annotation
            members.update({str(value): branch for value in get_args(literal)})
    return members


def narrow(shape: Shape, value: Json) -> Shape:
    """The member of a union that a value is meant to be."""
    if shape.discriminator:
        kind = value.get(shape.discriminator) if isinstance(value, dict) else None
        if not isinstance(kind, str):
            return shape
        member, plugins = built_in_tags(shape).get(kind), plugin_union(shape)
        section = plugins.section(kind) if member is None and plugins is not None else None
        return Shape(section) if section is not None else member or shape
    for branch in branches(shape):
        origin = get_origin(branch.type)
        if isinstance(value, dict) and (is_section(branch.type) or origin is dict):
            return branch
        if isinstance(value, list) and origin in (list, tuple):
            return branch
    return shape


def descend(shape: Shape, part: str | int, value: Json) -> Shape | None:
    """The shape of a key or item of ``shape``, given the recipe's ``value`` of that shape; None for an unknown key."""
    shape = narrow(shape, value)
    if is_section(shape.type):
        return field_shape(shape.type, str(part)) if part in shape.type.model_fields else None
    origin, arguments = get_origin(shape.type), get_args(shape.type)
    if origin is list and str(part).isdigit():
        return shape_of(arguments[0])
    if origin is dict:
        return shape_of(arguments[1])
    return Shape(Any) if shape.type is Any else None


def look_up(path: Sequence[str | int], values: Json) -> Shape | None:
    """The shape at a key path of a recipe, or None for an unknown key."""
    shape: Shape | None = ROOT
    for part in path:
        if shape is None:
            return None
        shape = descend(shape, part, values)
        values = _item_at(values, part)
    return shape


def _item_at(values: Json, part: str | int) -> Json:
    if isinstance(values, dict):
        return values.get(part)
    if isinstance(values, list) and str(part).isdigit() and int(part) < len(values):
        return values[int(part)]
    return None


def keys(shape: Shape, value: Json = None) -> tuple[str, ...]:
    """The keys of a section; of an undetermined union, those of all members."""
    shape = narrow(shape, value)
    names: dict[str, None] = {}
    for branch in branches(shape):
        if is_section(branch.type):
            names.update(dict.fromkeys(branch.type.model_fields))
    return tuple(names)


def key_path(location: Sequence[str | int], values: Json) -> tuple[KeyPath, Shape | None, bool]:
    """Convert a pydantic location, which also names members of unions, to a key path.

    Returns the path, the shape there, and whether the location is a key of a mapping.
    """
    shape: Shape | None = ROOT
    path: list[str | int] = []
    rest = list(location)
    while rest:
        part = rest.pop(0)
        if shape is None:
            path.append(part)
            continue
        if part == "[key]":
            return tuple(path), shape, True
        if shape.discriminator and (member := built_in_tags(shape).get(str(part))) and narrow(shape, values) == member:
            shape = member
            continue
        if shape.discriminator == "" and len(members := _members(shape)) > 1 and isinstance(part, str):
            if len(rest) == 0 or isinstance(values, str | int | float | bool | None):
                return tuple(path), shape, False
            shape = next((item for item in members if narrow(shape, values) == item), shape)
            if _is_label(part) or part in {getattr(item.type, "__name__", "") for item in members}:
                continue
        shape = descend(shape, part, values)
        values = _item_at(values, part)
        path.append(part)
    return tuple(path), shape, False


def _members(shape: Shape) -> tuple[Shape, ...]:
    """The members of a union, without null."""
    return tuple(branch for branch in branches(shape) if branch.type is not type(None))


def _is_label(part: str) -> bool:
    """Whether a part of a pydantic location names a union member, not a key."""
    return any(
        part.startswith(word) for word in ("literal[", "dict[", "list[", "str", "int", "float", "bool", "constrained")
    )


def choices(shape: Shape) -> tuple[Any, ...]:
    """The values of a Literal (also inside a union), or the tags of a discriminated union."""
    if shape.discriminator:
        return tuple(tags(shape))
    literals = [branch.type for branch in branches(shape) if get_origin(branch.type) is Literal]
    return tuple(value for literal in literals for value in get_args(literal))


def expected(shape: Shape) -> str:
    """Describe the allowed values.

    >>> expected(field_shape(RecipeSchema, "seed"))
    'an integer >= 0 and < 4294967296'
    >>> expected(field_shape(RecipeSchema, "task"))
    'classification or regression'
    """
    parts = list(dict.fromkeys(_expected_branch(branch) for branch in _ordered(shape)))
    return _either(parts)


def _ordered(shape: Shape) -> list[Shape]:
    return sorted(branches(shape), key=lambda branch: branch.type is type(None))


def _expected_branch(shape: Shape) -> str:
    origin, arguments = get_origin(shape.type), get_args(shape.type)
    if shape.type is type(None):
        return "null"
    if origin is Literal:
        return _either([str(value) if isinstance(value, str) else format_value(value) for value in arguments])
    if origin is list:
        least = next((item.min_length for item in shape.constraints if hasattr(item, "min_length")), 0)
        return f"a list{' of at least ' + str(least) if least else ''}"
    if origin is dict or is_section(shape.type):
        return "a mapping"
    description = {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(shape.type, "a value")
    limits = [f"{sign} {getattr(item, name):g}" if getattr(item, name) < 1e6 else f"{sign} {getattr(item, name)}"
              for item in shape.constraints for name, sign in _BOUNDS if hasattr(item, name)]  # fmt: skip
    return f"{description} {' and '.join(limits)}" if limits and shape.type in (int, float) else description


def _either(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " or " + parts[-1]


def pattern(shape: Shape) -> str:
    """The regular expression that a text must match, or ""."""
    for branch in branches(shape):
        for item in branch.constraints:
            expression = getattr(item, "pattern", None)
            if isinstance(expression, str):
                return expression
    return ""
