"""The JSON Schema of recipes for editors, and the field descriptions (also shown by ``mlkit explain``).

Descriptions are the attribute docstrings of sections. pydantic can collect them too, but parses the sources at import
(80 ms a process); here they are read on demand.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mlflowkit.recipe import schema_tree
from mlflowkit.recipe.schema import RecipeSchema
from mlflowkit.recipe.schema_tree import Shape
from mlflowkit.sections import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "recipe.schema.json"
"""File name of the schema that `mlkit init` writes beside a recipe."""


def describe(section: type[Section], name: str) -> str:
    """The description of a field.

    >>> describe(RecipeSchema, "task")
    'What is predicted: a class or a number.'
    """
    owners = (owner for owner in section.__mro__ if owner is section or name in inspect.get_annotations(owner))
    texts = (_attribute_docstrings(owner.__module__).get(owner.__qualname__, {}).get(name, "") for owner in owners)
    return next((text for text in texts if text), "")


@cache
def _attribute_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Attribute docstrings by class and attribute."""
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    docstrings: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, following in zip(node.body, node.body[1:], strict=False):
            text = following.value if isinstance(following, ast.Expr) else None
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Constant)
                and isinstance(text.value, str)
            ):
                docstrings.setdefault(node.name, {})[field.target.id] = " ".join(inspect.cleandoc(text.value).split())
    return docstrings


def sections() -> dict[str, type[Section]]:
    """All sections of a recipe by class name, those of installed plugins included."""
    return {shape.type.__name__: shape.type for shape in _shapes() if schema_tree.is_section(shape.type)}


def _shapes() -> Iterator[Shape]:
    """The shapes of all keys of a recipe, and of the members of their unions."""
    stack, visited = [schema_tree.ROOT], set[type]()
    while stack:
        shape = stack.pop()
        yield shape
        for member in (*schema_tree.branches(shape), *map(Shape, schema_tree.plugin_sections(shape).values())):
            if member.type in visited:
                continue
            if schema_tree.is_section(member.type):
                visited.add(member.type)
                yield member
                stack.extend(schema_tree.field_shape(member.type, name) for name in member.type.model_fields)
            else:
                stack.extend(schema_tree.shape_of(item) for item in schema_tree.arguments(member))


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with descriptions.

    Values may also be interpolations (``${seed}``), and Hydra's defaults list is allowed.
    """
    generated = RecipeSchema.model_json_schema()
    definitions = generated.get("$defs", {})
    _add_plugins(generated)
    for name, section in sections().items():
        target = generated if section is RecipeSchema else definitions.get(name)
        if target is None:
            continue
        for field, value in target.get("properties", {}).items():
            text = describe(section, field)
            value.pop("title", None)
            if text:
                value["description"] = text
    properties = {"defaults": _DEFAULTS, **generated["properties"]}
    generated["properties"] = properties
    for section in (generated, *definitions.values()):
        section["properties"] = {name: _or_interpolation(value) for name, value in section["properties"].items()}
        section["patternProperties"] = {r"\+$": {"type": "array", "description": _APPENDED}}
    return {"$schema": DIALECT, "title": "mlflowkit recipe", **{k: v for k, v in generated.items() if k != "title"}}


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings of a JSON Schema, outermost first."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(item)


def _add_plugins(generated: dict[str, Any]) -> None:
    """Add the sections of installed plugins to the unions that they extend."""
    extended = [shape for shape in _shapes() if schema_tree.plugin_sections(shape)]
    installed = {frozenset(schema_tree.built_in_tags(shape)): schema_tree.plugin_sections(shape) for shape in extended}
    definitions = generated["$defs"]
    for part in list(_parts(generated)) if installed else ():
        mapping = part.get("discriminator", {}).get("mapping", {})
        for kind, section in installed.get(frozenset(mapping), {}).items():
            definition = section.model_json_schema()
            definitions |= definition.pop("$defs", {})
            definitions[section.__name__] = definition
            mapping[kind] = f"#/$defs/{section.__name__}"
            part["oneOf"].append({"$ref": mapping[kind]})


_APPENDED = "A list to append to the list of the key without the +."
_DEFAULTS: dict[str, Any] = {
    "type": "array",
    "description": "Config groups that this recipe is composed with, such as `- train: fast`, and `_self_`.",
    "items": {"anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]},
    "default": ["_self_"],
}
_INTERPOLATION: dict[str, Any] = {"type": "string", "pattern": r"\$\{.+\}"}


def _or_interpolation(value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a scalar that may also be an interpolation."""
    kinds = {value.get("type"), *(part.get("type") for part in value.get("anyOf", ()))}
    if not kinds & {"integer", "number", "boolean"} or "string" in kinds:
        return value
    outer: dict[str, Any] = {name: value.pop(name) for name in ("description", "default") if name in value}
    return {"anyOf": [*value.get("anyOf", [value]), _INTERPOLATION], **outer}
