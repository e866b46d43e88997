"""The schema as a tree that key paths can walk: what is allowed at a key, in words, and where a fault belongs."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlflowkit.recipe.schema import Recipe
from mlflowkit.recipe.yaml_tree import KeyPath, show
from mlflowkit.sections import Section
from mlflowkit.values import Json

_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


@dataclass(frozen=True, slots=True)
class Shape:
    """What is allowed at one key: a type without Annotated, its constraints, the key that tells unions apart."""

    type: Any
    constraints: tuple[Any, ...] = ()
    discriminator: str = ""
    owner: type[Section] | None = None
    """The section that has this field, and its name there; None for items of lists and mappings."""
    name: str = ""

    @property
    def info(self) -> FieldInfo | None:
        """pydantic's description of the field."""
        return self.owner.model_fields.get(self.name) if self.owner is not None else None

    @property
    def default(self) -> Any:
        """The value when the recipe says nothing; PydanticUndefined for a required key."""
        info = self.info
        return PydanticUndefined if info is None else info.get_default(call_default_factory=True)


ROOT = Shape(Recipe)


def shape_of(annotation: Any, constraints: Sequence[Any] = (), **where: Any) -> Shape:
    """The shape of an annotation, Annotated taken apart."""
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
    return Shape(annotation, tuple(constraints), discriminator, **where)


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
    """The members of a union; the shape itself when it is none."""
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
    """Of a union told apart by a key (``kind``): its members by the value of that key."""
    found: dict[str, Shape] = {}
    for branch in branches(shape):
        if shape.discriminator and is_section(branch.type):
            literal = branch.type.model_fields[shape.discriminator].annotation
            found.update({str(value): branch for value in get_args(literal)})
    return found


def narrow(shape: Shape, value: Json) -> Shape:
    """The member of a union that a value means to be."""
    if shape.discriminator:
        kind = value.get(shape.discriminator) if isinstance(value, dict) else None
        return tags(shape).get(kind, shape) if isinstance(kind, str) else shape
    for branch in branches(shape):
        origin = get_origin(branch.type)
        if isinstance(value, dict) and (is_section(branch.type) or origin is dict):
            return branch
        if isinstance(value, list) and origin in (list, tuple):
            return branch
    return shape


def step(shape: Shape, part: str | int, value: Json) -> Shape | None:
    """One step down from a shape; ``value`` is what the recipe has there. None where the schema has no such key."""
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
    """The shape at a key path of a recipe, or None where the schema has no such key."""
    shape: Shape | None = ROOT
    for part in path:
        if shape is None:
            return None
        shape = step(shape, part, values)
        values = _below(values, part)
    return shape


def _below(values: Json, part: str | int) -> Json:
    if isinstance(values, dict):
        return values.get(part)
    if isinstance(values, list) and str(part).isdigit() and int(part) < len(values):
        return values[int(part)]
    return None


def keys(shape: Shape, value: Json = None) -> tuple[str, ...]:
    """The keys that a section has; for a union whose member is not known, those of all its members."""
    shape = narrow(shape, value)
    names: dict[str, None] = {}
    for branch in branches(shape):
        if is_section(branch.type):
            names.update(dict.fromkeys(branch.type.model_fields))
    return tuple(names)


def key_path(location: Sequence[str | int], values: Json) -> tuple[KeyPath, Shape | None, bool]:
    """Where a pydantic location is in the recipe: its key path, the shape there, and whether it names a mapping's key.

    pydantic's locations also name the members of unions, which are no keys.
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
        found = tags(shape).get(str(part)) if shape.discriminator else None
        if found is not None:
            shape = found
            continue
        if shape.discriminator == "" and len(members := _members(shape)) > 1 and isinstance(part, str):
            if len(rest) == 0 or isinstance(values, str | int | float | bool | None):
                return tuple(path), shape, False
            shape = next((item for item in members if narrow(shape, values) == item), shape)
            if _is_label(part) or part in {getattr(item.type, "__name__", "") for item in members}:
                continue
        shape = step(shape, part, values)
        values = _below(values, part)
        path.append(part)
    return tuple(path), shape, False


def _members(shape: Shape) -> tuple[Shape, ...]:
    """The members of a union, null apart."""
    return tuple(branch for branch in branches(shape) if branch.type is not type(None))


def _is_label(part: str) -> bool:
    """Whether a part of a pydantic location names a member of a union rather than a key."""
    return any(
        part.startswith(word) for word in ("literal[", "dict[", "list[", "str", "int", "float", "bool", "constrained")
    )


def choices(shape: Shape) -> tuple[Any, ...]:
    """The values of a Literal, in a union or alone; the kinds of a union told apart by one."""
    if shape.discriminator:
        return tuple(tags(shape))
    found: list[Any] = []
    for branch in branches(shape):
        if get_origin(branch.type) is Literal:
            found.extend(get_args(branch.type))
    return tuple(found)


def expected(shape: Shape) -> str:
    """What is allowed, in words.

    >>> expected(field_shape(Recipe, "seed"))
    'an integer >= 0 and < 4294967296'
    >>> expected(field_shape(Recipe, "task"))
    'classification or regression'
    """
    parts = list(dict.fromkeys(_expected_one(branch) for branch in _ordered(shape)))
    return _either(parts)


def _ordered(shape: Shape) -> list[Shape]:
    return sorted(branches(shape), key=lambda branch: branch.type is type(None))


def _expected_one(shape: Shape) -> str:
    origin, arguments = get_origin(shape.type), get_args(shape.type)
    if shape.type is type(None):
        return "null"
    if origin is Literal:
        return _either([str(value) if isinstance(value, str) else show(value) for value in arguments])
    if origin is list:
        least = next((item.min_length for item in shape.constraints if hasattr(item, "min_length")), 0)
        return f"a list{' of at least ' + str(least) if least else ''}"
    if origin is dict or is_section(shape.type):
        return "a mapping"
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(shape.type, "a value")
    limits = [f"{sign} {getattr(item, name):g}" if getattr(item, name) < 1e6 else f"{sign} {getattr(item, name)}"
              for item in shape.constraints for name, sign in _BOUNDS if hasattr(item, name)]  # fmt: skip
    return f"{words} {' and '.join(limits)}" if limits and shape.type in (int, float) else words


def _either(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " or " + parts[-1]


def pattern(shape: Shape) -> str:
    """The regular expression that a text must match, or ""."""
    for branch in branches(shape):
        for item in branch.constraints:
            found = getattr(item, "pattern", None)
            if isinstance(found, str):
                return found
    return ""
