"""pydantic's errors as faults of a recipe, in words for the person who wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticUndefined

from mlflowkit.errors import Fault, nearest
from mlflowkit.recipe import schema_tree, yaml_tree
from mlflowkit.recipe.schema_tree import Shape
from mlflowkit.recipe.yaml_tree import KeyPath, Node
from mlflowkit.sections import Section
from mlflowkit.values import Json


def schema_faults(errors: Sequence[Mapping[str, Any]], root: Node, values: Json) -> list[Fault]:
    """The faults of pydantic's error list, one for each key: a union complains once a member."""
    faults: dict[KeyPath, Fault] = {}
    for error in errors:
        path, shape, is_key = schema_tree.key_path(error["loc"], values)
        if path not in faults:
            faults[path] = _schema_fault(str(error["type"]), path, shape, is_key, root, values)
    return [
        fault
        for path, fault in faults.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in faults)
    ]


def _schema_fault(kind: str, path: KeyPath, shape: Shape | None, is_key: bool, root: Node, values: Json) -> Fault:
    if kind == "missing":
        return missing(path, root)
    if kind == "extra_forbidden":
        return unknown_key(path, root, values)
    node = yaml_tree.nearest(root, path)
    if is_key:
        return fault_at(
            node, path, "expected text as a key", f'quote it: "{path[-1]}"', found=str(path[-1]), at_key=True
        )
    if shape is not None and shape.discriminator and kind.startswith("union_tag"):
        return _unknown_kind(kind, path, shape, node)
    shape = _as_written(shape) if shape is not None else None
    words = schema_tree.expected(shape) if shape is not None else "another value"
    found = yaml_tree.show(node)
    if shape is not None and isinstance(path[-1], int) and (item := _section_of(shape)) is not None:
        message = f"item {path[-1] + 1} of {path[-2]}: expected {words}, found {found}"
        return fault_at(node, path, message, _item_hint(node, shape, item))
    if kind == "string_pattern_mismatch" and shape is not None:
        message, hint = _pattern_words(schema_tree.pattern(shape), yaml_tree.plain(node))
        return fault_at(node, path, f"{message}, found {found}", hint)
    if kind in ("string_too_short", "too_short"):
        return fault_at(
            node,
            path,
            "expected at least one item, found none" if kind == "too_short" else "must not be empty",
            _default_hint(shape),
        )
    if kind == "string_too_long":
        limit = next((item.max_length for item in shape.constraints if hasattr(item, "max_length")), 0) if shape else 0
        return fault_at(node, path, f"expected at most {limit} characters, found {len(str(node.value))}", "shorten it")
    if kind == "finite_number":
        words = words.replace("a number", "a finite number", 1)
    return fault_at(node, path, f"expected {words}, found {found}", _value_hint(node, shape))


def _as_written(shape: Shape) -> Shape:
    """What may be written where a section takes a shorter form too."""
    given = (getattr(item, "json_schema_input_type", PydanticUndefined) for item in shape.constraints)
    written = next((one for one in given if one is not PydanticUndefined), None)
    return shape if written is None else schema_tree.shape_of(written)


def _section_of(shape: Shape) -> type[Section] | None:
    """The section that an item of a list is, or may be; None for an item that is none, or one of several."""
    found = [branch.type for branch in schema_tree.branches(shape) if schema_tree.is_section(branch.type)]
    return found[0] if len(found) == 1 else None


def _item_hint(node: Node, shape: Shape, item: type[Section]) -> str:
    value = node.value
    number = any(branch.type in (int, float) for branch in schema_tree.branches(shape))
    if number and isinstance(value, str) and _is_number(value):
        return f"drop the quotes: {value}"
    names_of_items = [str(choice) for choice in schema_tree.choices(shape)]
    if isinstance(value, str) and (meant := nearest(value, names_of_items)):
        return f"did you mean {meant}?"
    names = item.model_fields
    needed = next((name for name, info in names.items() if info.is_required()), next(iter(names)))
    choices = schema_tree.choices(schema_tree.field_shape(item, needed))
    close = nearest(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    whole = f"{{{needed}: {close or (choices[0] if choices else 'VALUE')}}}"
    return f"write a number, or {whole}" if number else f"write {whole}"


def fault_at(
    node: Node, path: KeyPath, message: str, hint: str = "", *, found: str | None = None, at_key: bool = False
) -> Fault:
    """A fault at a node of a recipe: at its value, or at its key."""
    place = node.start if at_key else node.place
    shown = yaml_tree.show(node) if found is None else found
    return Fault(place.file, place.line, place.column, yaml_tree.dotted(path), shown, message, hint)


def missing(path: KeyPath, root: Node) -> Fault:
    """A required key that is not there: at the mapping that lacks it."""
    parent = yaml_tree.find(root, path[:-1]) or root
    shape = schema_tree.look_up(path, yaml_tree.plain(root))
    words = f" ({schema_tree.expected(shape)})" if shape is not None else ""
    choices = schema_tree.choices(shape) if shape is not None else ()
    hint = f"add {path[-1]}: {choices[0] if choices else '...'}"
    if shape is not None and (schema_tree.is_section(shape.type) or shape.discriminator):
        words, hint = "", f"add a {path[-1]}: section"
    return fault_at(parent, path, f"missing key {path[-1]!r}{words}", hint, found="nothing", at_key=True)


def unknown_key(path: KeyPath, root: Node, values: Json) -> Fault:
    """A key that the schema does not have: at the key, with the nearest that it has."""
    node = yaml_tree.nearest(root, path)
    name = str(path[-1])
    parent: Json = values
    for part in path[:-1]:
        parent = parent[part]
    shape = schema_tree.look_up(path[:-1], values)
    known = list(schema_tree.keys(shape, parent)) if shape is not None else []
    free = [key for key in known if not isinstance(parent, dict) or key not in parent]
    close = nearest(name, free) or nearest(name, known)
    hint = f"did you mean {close}? " if close else _misplaced(name)
    owner = yaml_tree.dotted(path[:-1]) or "a recipe"
    message = f"unknown key {name!r}; {owner} has {', '.join(known)}" if known else f"unknown key {name!r}"
    return fault_at(node, path, message, hint.strip() or "remove it", found=name, at_key=True)


def _misplaced(name: str) -> str:
    """Where a key belongs that was written in the wrong section."""
    places = [path for path, key in _all_keys(schema_tree.ROOT, ()) if key == name]
    return f"it belongs at {' or '.join(places[:2])}" if places else ""


def all_keys() -> list[str]:
    """Every key path that the schema has, list indices left out."""
    return [path for path, _ in _all_keys(schema_tree.ROOT, ())]


def _all_keys(shape: Shape, path: KeyPath) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for branch in schema_tree.branches(shape):
        if schema_tree.is_section(branch.type):
            for name in branch.type.model_fields:
                found.append((yaml_tree.dotted((*path, name)), name))
                found.extend(_all_keys(schema_tree.field_shape(branch.type, name), (*path, name)))
    return list(dict.fromkeys(found))


def _unknown_kind(kind: str, path: KeyPath, shape: Shape, node: Node) -> Fault:
    """A section whose member cannot be told: its ``kind`` is missing or unknown."""
    known = list(schema_tree.tags(shape))
    tag = shape.discriminator
    inside = (node.mapping or {}).get(tag)
    allowed = ", ".join(known)
    if inside is None or kind == "union_tag_not_found":
        return fault_at(
            node,
            (*path, tag),
            f"missing key {tag!r} (one of {allowed})",
            f"add {tag}: {known[0]}",
            found="nothing",
            at_key=True,
        )
    close = nearest(str(inside.value), known)
    hint = f"did you mean {close}?" if close else f"write {tag}: {known[0]}"
    return fault_at(
        inside, (*path, tag), f"expected {tag} to be one of {allowed}, found {yaml_tree.show(inside)}", hint
    )


def _pattern_words(pattern: str, value: Json) -> tuple[str, str]:
    if ":" in pattern:
        hint = ""
        if isinstance(value, str) and ":" not in value and "." in value:
            module, _, name = value.rpartition(".")
            hint = f"did you mean {module}:{name}?"
        return "expected MODULE:NAME, such as datasets:load", hint or "name the module, a colon, and the object in it"
    suggestion = "".join(
        letter if letter.isalnum() and letter.isascii() else "-" for letter in str(value).lower()
    ).strip("-")
    allowed = "a-z, 0-9, _ and -" if "_" in pattern else "a-z, 0-9 and -"
    return f"expected a name of {allowed}", f"write {suggestion}" if suggestion else "such as lending"


def _value_hint(node: Node, shape: Shape | None) -> str:
    if shape is None:
        return _default_hint(shape)
    value = node.value
    if isinstance(value, str):
        close = nearest(value, [str(choice) for choice in schema_tree.choices(shape)])
        if close:
            return f"did you mean {close}?"
        if any(branch.type in (int, float) for branch in schema_tree.branches(shape)) and _is_number(value):
            return f"drop the quotes: {value}"
    if isinstance(value, bool | int | float) and any(branch.type is str for branch in schema_tree.branches(shape)):
        return f'quote it: "{yaml_tree.show(node)}"'
    if schema_tree.choices(shape):
        return f"write {schema_tree.choices(shape)[0]}"
    return _default_hint(shape)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _default_hint(shape: Shape | None) -> str:
    if shape is None or shape.info is None or shape.default is PydanticUndefined:
        placeholder = "TEXT" if shape is not None and shape.type is str else "VALUE"
        return f"write {shape.name}: {placeholder}" if shape is not None and shape.name else "write another value"
    default = shape.default
    if hasattr(default, "model_dump"):
        return "leave it out for the default"
    return f"the default is {yaml_tree.show(default)}"
