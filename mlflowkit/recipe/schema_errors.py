"""Faults of keys and values: translates pydantic's errors, and corrects overrides that cannot be parsed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticUndefined

from mlflowkit.errors import Fault, closest_match
from mlflowkit.monitoring.monitor_settings import DURATION
from mlflowkit.recipe import schema_tree, yaml_tree
from mlflowkit.recipe.pattern_forms import PATTERN_FORMS, corrected
from mlflowkit.recipe.schema_tree import Shape
from mlflowkit.recipe.yaml_tree import KeyPath, Node
from mlflowkit.sections import Section
from mlflowkit.stages.train import UNSUPPORTED, unsupported_hint
from mlflowkit.system import entry_points
from mlflowkit.values import Json

_DURATIONS = "a duration such as 30s, 5m, 12h or 1d"


def schema_faults(errors: Sequence[Mapping[str, Any]], root: Node, values: Json) -> list[Fault]:
    """The faults of pydantic's errors, one per key (a union gives one error per member)."""
    faults: dict[KeyPath, Fault] = {}
    for error in errors:
        path, shape, is_key = schema_tree.key_path(error["loc"], values)
        if path not in faults:
            faults[path] = _rule_fault(error, path, root) or _schema_fault(
                str(error["type"]), path, shape, is_key, root, values, str(error.get("ctx", {}).get("pattern", ""))
            )
    return [
        fault
        for path, fault in faults.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in faults)
    ]


def _rule_fault(error: Mapping[str, Any], path: KeyPath, root: Node) -> Fault | None:
    """What a section itself says of a value, or of keys that do not go together; None for other errors."""
    node = yaml_tree.find(root, path)
    if error["type"] != "value_error" or node is None:
        return None
    return fault_at(node, path, str(error["ctx"]["error"]))


def _schema_fault(
    kind: str, path: KeyPath, shape: Shape | None, is_key: bool, root: Node, values: Json, pattern: str
) -> Fault:
    """``pattern`` is the one that a text does not match; "" for any other error."""
    if kind == "missing":
        return missing_key(path, root)
    if kind == "extra_forbidden":
        return unknown_key(path, root, values)
    node = yaml_tree.nearest_node(root, path)
    if is_key and pattern in PATTERN_FORMS:
        message, hint = _pattern_message(pattern, path[-1])
        return fault_at(node, path, f"{message} as a key, found {path[-1]!r}", hint, value=str(path[-1]), at_key=True)
    if is_key:
        message = "expected text as a key"
        return fault_at(node, path, message, f'quote it: "{path[-1]}"', value=str(path[-1]), at_key=True)
    if shape is not None and shape.discriminator and kind.startswith("union_tag"):
        return _unknown_tag(kind, path, shape, node, str(values.get("task", "")))
    shape = _input_shape(shape) if shape is not None else None
    expected = schema_tree.expected(shape) if shape is not None else "another value"
    value = yaml_tree.format_value(node)
    if shape is not None and schema_tree.pattern(shape) == DURATION:
        return fault_at(node, path, f"expected {_DURATIONS}, found {value}", _duration_hint(node, shape))
    if shape is not None and isinstance(path[-1], int) and (item := _section_of(shape)) is not None:
        message = f"item {path[-1] + 1} of {path[-2]}: expected {expected}, found {value}"
        return fault_at(node, path, message, _item_hint(node, shape, item))
    if kind == "string_pattern_mismatch" and shape is not None:
        message, hint = _pattern_message(schema_tree.pattern(shape), yaml_tree.to_plain(node))
        return fault_at(node, path, f"{message}, found {value}", hint)
    if kind in ("string_too_short", "too_short"):
        message = "must not be empty" if kind == "string_too_short" else _too_few(node, shape)
        return fault_at(node, path, message, _default_hint(shape))
    if kind == "string_too_long":
        limit = next((item.max_length for item in shape.constraints if hasattr(item, "max_length")), 0) if shape else 0
        return fault_at(node, path, f"expected at most {limit} characters, found {len(str(node.value))}", "shorten it")
    if kind == "finite_number":
        expected = expected.replace("a number", "a finite number", 1)
    return fault_at(node, path, f"expected {expected}, found {value}", _value_hint(node, shape))


def _duration_hint(node: Node, shape: Shape) -> str:
    """A number is meant as seconds; a unit written out has a letter."""
    text = str(node.value).strip().lower().replace(" ", "")
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :][:1] or "s"
    if not isinstance(node.value, bool) and _is_number(number) and float(number) >= 0 and unit in "smhdw":
        return f"write {number}{unit}"
    return _default_hint(shape)


def _input_shape(shape: Shape) -> Shape:
    """The shape of the input where a validator also accepts a shorter form."""
    types = (getattr(item, "json_schema_input_type", PydanticUndefined) for item in shape.constraints)
    input_type = next((item for item in types if item is not PydanticUndefined), None)
    return shape if input_type is None else schema_tree.shape_of(input_type)


def _section_of(shape: Shape) -> type[Section] | None:
    """The only section among the types of a list item, or None."""
    sections = [branch.type for branch in schema_tree.branches(shape) if schema_tree.is_section(branch.type)]
    return sections[0] if len(sections) == 1 else None


def _item_hint(node: Node, shape: Shape, item: type[Section]) -> str:
    value = node.value
    number = any(branch.type in (int, float) for branch in schema_tree.branches(shape))
    if number and isinstance(value, str) and _is_number(value):
        return f"drop the quotes: {value}"
    names_of_items = [str(choice) for choice in schema_tree.choices(shape)]
    if isinstance(value, str) and (similar := closest_match(value, names_of_items)):
        return f"did you mean {similar}?"
    names = item.model_fields
    needed = next((name for name, info in names.items() if info.is_required()), next(iter(names)))
    choices = schema_tree.choices(schema_tree.field_shape(item, needed))
    close = closest_match(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    example = f"{{{needed}: {close or (choices[0] if choices else 'VALUE')}}}"
    return f"write a number, or {example}" if number else f"write {example}"


def fault_at(
    node: Node, path: KeyPath, message: str, hint: str = "", *, value: str | None = None, at_key: bool = False
) -> Fault:
    """A fault at a node of a recipe: at its value, or at its key."""
    location = node.start if at_key else node.location
    shown = yaml_tree.format_value(node) if value is None else value
    return Fault(location.file, location.line, location.column, yaml_tree.dotted(path), shown, message, hint)


def missing_key(path: KeyPath, root: Node) -> Fault:
    """A missing required key, located at the mapping that lacks it."""
    parent = yaml_tree.find(root, path[:-1]) or root
    shape = schema_tree.look_up(path, yaml_tree.to_plain(root))
    expected = f" ({schema_tree.expected(shape)})" if shape is not None else ""
    choices = schema_tree.choices(shape) if shape is not None else ()
    hint = f"add {path[-1]}: {choices[0] if choices else '...'}"
    if shape is not None and (schema_tree.is_section(shape.type) or shape.discriminator):
        expected, hint = "", f"add a {path[-1]}: section"
    return fault_at(parent, path, f"missing key {path[-1]!r}{expected}", hint, value="nothing", at_key=True)


def unknown_key(path: KeyPath, root: Node, values: Json) -> Fault:
    """An unknown key, located at the key, with the most similar valid one as hint."""
    node = yaml_tree.nearest_node(root, path)
    name = str(path[-1])
    parent: Json = values
    for part in path[:-1]:
        parent = parent[part]
    shape = schema_tree.look_up(path[:-1], values)
    keys = list(schema_tree.keys(shape, parent)) if shape is not None else []
    free = [key for key in keys if not isinstance(parent, dict) or key not in parent]
    close = closest_match(name, free) or closest_match(name, keys)
    hint = f"did you mean {close}? " if close else _misplaced(name)
    if path == ("train", "tune"):
        hint = "there is no tuning yet: mlkit run RECIPE train.epochs=10,20 --multirun tries each value"
    owner = yaml_tree.dotted(path[:-1]) or "a recipe"
    message = f"unknown key {name!r}; {owner} has {', '.join(keys)}" if keys else f"unknown key {name!r}"
    return fault_at(node, path, message, hint.strip() or "remove it", value=name, at_key=True)


def _misplaced(name: str) -> str:
    """A hint with the sections that have this key."""
    paths = [path for path, key in _all_keys(schema_tree.ROOT, ()) if key == name]
    return f"it belongs at {' or '.join(paths[:2])}" if paths else ""


def all_keys() -> list[str]:
    """All key paths of the schema, without list indices."""
    return [path for path, _ in _all_keys(schema_tree.ROOT, ())]


def _all_keys(shape: Shape, path: KeyPath) -> list[tuple[str, str]]:
    keys: list[tuple[str, str]] = []
    union = schema_tree.plugin_union(shape)
    own = [Shape(section) for section in union.own_sections()] if union is not None else []
    for branch in (*schema_tree.branches(shape), *own):
        if schema_tree.is_section(branch.type):
            for name in branch.type.model_fields:
                keys.append((yaml_tree.dotted((*path, name)), name))
                keys.extend(_all_keys(schema_tree.field_shape(branch.type, name), (*path, name)))
    return list(dict.fromkeys(keys))


def _unknown_tag(kind: str, path: KeyPath, shape: Shape, node: Node, task: str) -> Fault:
    """A discriminated union whose tag (``kind``) is missing or unknown."""
    names = list(schema_tree.tags(shape))
    tag = shape.discriminator
    tag_node = (node.mapping or {}).get(tag)
    allowed = ", ".join(names)
    if tag_node is None or kind == "union_tag_not_found":
        message = f"missing key {tag!r} (one of {allowed})"
        return fault_at(node, (*path, tag), message, f"add {tag}: {names[0]}", value="nothing", at_key=True)
    close, plugins = closest_match(str(tag_node.value), names), schema_tree.plugin_union(shape)
    hint = f"did you mean {close}?" if close else f"write {tag}: {names[0]}"
    is_typo = bool(close) and abs(len(close) - len(str(tag_node.value))) <= 1  # sqlite is no slip of the pen for sql
    if plugins is not None and not is_typo and isinstance(tag_node.value, str):
        mark = "" if close else ","
        hint = f"{hint}{mark} or {entry_points.install_hint(plugins.group, tag_node.value)}"
    if path == ("model",) and tag_node.value in UNSUPPORTED:
        message, hint = f"{tag_node.value} is not supported", unsupported_hint(str(tag_node.value), task)
        return fault_at(tag_node, (*path, tag), message, hint)
    message = f"expected {tag} to be one of {allowed}, found {yaml_tree.format_value(tag_node)}"
    return fault_at(tag_node, (*path, tag), message, hint)


def _pattern_message(pattern: str, value: Json) -> tuple[str, str]:
    if (form := PATTERN_FORMS.get(pattern)) is not None:
        guess = corrected(pattern, str(value))
        return f"expected {form.words}", f"write {guess}" if guess else f"such as {form.example}"
    if pattern.startswith("^https?://"):
        return "expected a URL that begins with http:// or https://", f"write http://{value}"
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
        close = closest_match(value, [str(choice) for choice in schema_tree.choices(shape)])
        if close:
            return f"did you mean {close}?"
        if any(branch.type in (int, float) for branch in schema_tree.branches(shape)) and _is_number(value):
            return f"drop the quotes: {value}"
    if isinstance(value, bool | int | float) and any(branch.type is str for branch in schema_tree.branches(shape)):
        return f'quote it: "{yaml_tree.format_value(node)}"'
    if schema_tree.choices(shape):
        return f"write {schema_tree.choices(shape)[0]}"
    return _default_hint(shape)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _too_few(node: Node, shape: Shape | None) -> str:
    """The message for a list or mapping with too few items."""
    least = next((item.min_length for item in shape.constraints if hasattr(item, "min_length")), 1) if shape else 1
    count = len(node.value) if isinstance(node.value, list | dict) else 0
    return f"expected at least {'one item' if least == 1 else f'{least} items'}, found {count or 'none'}"


def _default_hint(shape: Shape | None) -> str:
    if shape is None or shape.info is None or shape.default is PydanticUndefined:
        placeholder = "TEXT" if shape is not None and shape.type is str else "VALUE"
        return f"write {shape.name}: {placeholder}" if shape is not None and shape.name else "write another value"
    default = shape.default
    if hasattr(default, "model_dump"):
        return "leave it out for the default"
    return f"the default is {yaml_tree.format_value(default)}"


def corrected_override(text: str, parses: Callable[[str], bool]) -> str:
    """What to type in place of an override that cannot be parsed: a hint.

    >>> corrected_override("data.columns.mean radius=numeric", lambda text: "mean radius=" not in text)
    "write '+data.columns={mean radius: numeric}'"
    >>> corrected_override("data.drop=[a, b", lambda text: text.endswith("]"))
    "write 'data.drop=[a, b]'"
    """
    for candidate in _corrections(text):
        if parses(candidate):
            return f"write {shlex.quote(candidate)}"
    parent, _, name = text.partition("=")[0].strip().lstrip("+~").rpartition(".")
    value = text.partition("=")[2].strip()
    where = f"under {parent}" if parent else "at its top"
    return f"write it in the recipe, {where}: {json.dumps(name, ensure_ascii=False)}: {value}"


def _corrections(text: str) -> Iterator[str]:
    """Overrides that may have been meant: without spaces around =, brackets closed, the value or the column quoted."""
    key, _, value = (part.strip() for part in text.partition("="))
    quoted = '"' + value.replace('"', '\\"') + '"'
    values = (value, value + _missing_brackets(value), quoted)
    yield from (f"{key}={item}" for item in values)
    head, _, name = key.lstrip("+~").rpartition(".")
    for free in ("data.columns", "model.args", "train.class_weights"):
        if key.lstrip("+~").startswith(f"{free}."):
            head, name = free, key.lstrip("+~")[len(free) + 1 :]
    escaped = "".join(f"\\{letter}" if letter in "\\()[]{}:=," else letter for letter in name)
    yield from (f"+{head}={{{escaped}: {item}}}" for item in values)


def _missing_brackets(value: str) -> str:
    """The brackets that a value opens and does not close."""
    closing = {"[": "]", "{": "}", "(": ")"}
    missing: list[str] = []
    for letter in value:
        if letter in closing:
            missing.append(closing[letter])
        elif missing and letter == missing[-1]:
            missing.pop()
    return "".join(reversed(missing))
