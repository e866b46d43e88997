"""The JSON Schema of recipes that editors use, and the descriptions of fields that it shares with ``mlkit explain``.

Descriptions are the attribute docstrings of the sections. pydantic can collect them, but only by parsing sources
when a section is imported (80 ms a process); they are read here, when somebody asks for them.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mlflowkit.recipe.schema import Recipe
from mlflowkit.sections import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "recipe.schema.json"
"""What `mlkit init` calls the schema beside a recipe."""


def describe(section: type[Section], name: str) -> str:
    """The description of a field.

    >>> describe(Recipe, "task")
    'What is predicted: a class or a number.'
    """
    return _attribute_docstrings(section.__module__).get(section.__qualname__, {}).get(name, "")


@cache
def _attribute_docstrings(module: str) -> dict[str, dict[str, str]]:
    """The string below each annotated attribute, by class and name."""
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Constant)
                and isinstance(text.value, str)
            ):
                found.setdefault(node.name, {})[field.target.id] = " ".join(inspect.cleandoc(text.value).split())
    return found


def sections() -> dict[str, type[Section]]:
    """Every section that a recipe can hold, by name."""
    from mlflowkit.recipe import schema_tree

    found: dict[str, type[Section]] = {}
    stack: list[Any] = [schema_tree.ROOT]
    while stack:
        shape = stack.pop()
        for branch in schema_tree.branches(shape):
            if schema_tree.is_section(branch.type):
                if branch.type.__name__ not in found:
                    found[branch.type.__name__] = branch.type
                    stack.extend(schema_tree.field_shape(branch.type, name) for name in branch.type.model_fields)
            else:
                stack.extend(schema_tree.shape_of(item) for item in schema_tree.arguments(branch))
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with descriptions.

    A value may also be an interpolation (``${seed}``), and the defaults list of Hydra is allowed.
    """
    generated = Recipe.model_json_schema()
    definitions = generated.get("$defs", {})
    for name, section in sections().items():
        target = generated if section is Recipe else definitions.get(name)
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


_APPENDED = "A list that is appended to the list of the same key without the +."
_DEFAULTS: dict[str, Any] = {
    "type": "array",
    "description": "Config groups that this recipe is composed with, such as `- train: fast`, and `_self_`.",
    "items": {"anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]},
    "default": ["_self_"],
}
_INTERPOLATION: dict[str, Any] = {"type": "string", "pattern": r"\$\{.+\}"}


def _or_interpolation(value: dict[str, Any]) -> dict[str, Any]:
    """A scalar that may also be written as an interpolation."""
    kinds = {value.get("type"), *(part.get("type") for part in value.get("anyOf", ()))}
    if not kinds & {"integer", "number", "boolean"} or "string" in kinds:
        return value
    outer: dict[str, Any] = {name: value.pop(name) for name in ("description", "default") if name in value}
    return {"anyOf": [*value.get("anyOf", [value]), _INTERPOLATION], **outer}
