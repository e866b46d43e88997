"""The YAML file of a pandera schema, judged without pandera: pandera leaves out keys that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mlflowkit.errors import closest_match
from mlflowkit.judging.file_checks.file_problem import FileProblem, RulesFile

TABLE_KEYS = frozenset({
    "schema_type", "version", "api", "dataframe_library", "columns", "checks", "index", "dtype", "coerce", "strict",
    "name", "ordered", "unique", "report_duplicates", "unique_column_names", "add_missing_columns", "title",
    "description", "metadata", "drop_invalid_rows",
})  # fmt: skip
COLUMN_KEYS = frozenset({
    "title", "description", "dtype", "checks", "name", "nullable", "unique", "coerce", "required", "regex", "default",
    "report_duplicates", "drop_invalid_rows",
})  # fmt: skip
CHECKS = frozenset({
    "equal_to", "not_equal_to", "greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to",
    "in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith", "str_length",
    "unique_values_eq", "eq", "ne", "gt", "ge", "lt", "le", "between",
})  # fmt: skip
"""Checks by which a file can name them: those that code registers are not there when a file is read."""


def read_pandera_file(text: str) -> RulesFile:
    """The problems of a file, and the columns that it requires."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        problem = str(getattr(error, "problem", "") or error).splitlines()[0]
        return RulesFile((FileProblem(f"not YAML: {problem}", "schema.to_yaml() writes such a file", *place),))
    if not isinstance(root, yaml.MappingNode):
        return RulesFile((FileProblem("not a schema: a mapping with columns is expected", "schema.to_yaml()", 1, 1),))
    problems = list(_unknown(root, TABLE_KEYS))
    columns: dict[str, tuple[int, int]] = {}
    for name_node, name, node in _columns(root):
        problems += _unknown(node, COLUMN_KEYS | CHECKS)
        problems += _unknown_checks(node)
        optional = any(_value(node, key) == value for key, value in (("required", "false"), ("regex", "true")))
        if not optional:
            columns[name] = _place(name_node)
    problems += _unknown_checks(root)
    return RulesFile(tuple(problems), columns)


def _columns(root: yaml.MappingNode) -> Iterator[tuple[yaml.Node, str, yaml.MappingNode]]:
    """(node of the name, name, node of the column): a mapping by name, or a list of mappings with a name."""
    columns = _node(root, "columns")
    if isinstance(columns, yaml.MappingNode):
        for key, value in columns.value:
            if isinstance(value, yaml.MappingNode):
                yield key, str(key.value), value
    elif isinstance(columns, yaml.SequenceNode):
        for item in columns.value:
            name = _node(item, "name")
            if isinstance(item, yaml.MappingNode) and isinstance(name, yaml.ScalarNode):
                yield name, str(name.value), item


def _unknown_checks(node: yaml.MappingNode) -> Iterator[FileProblem]:
    checks = _node(node, "checks")
    if isinstance(checks, yaml.MappingNode):
        yield from _unknown(checks, CHECKS)
    for item in checks.value if isinstance(checks, yaml.SequenceNode) else ():
        options = _node(item, "options")
        name = _node(options, "check_name")
        if name is None or str(name.value) not in CHECKS:
            yield _problem(name or item, str(name.value) if name is not None else "without options.check_name", CHECKS)


def _unknown(node: yaml.MappingNode, known: frozenset[str]) -> Iterator[FileProblem]:
    for key, _ in node.value:
        if str(key.value) not in known:
            yield _problem(key, str(key.value), known)


def _problem(node: yaml.Node, name: str, known: frozenset[str]) -> FileProblem:
    close = closest_match(name, sorted(known))
    hint = f"did you mean {close}?" if close else "a check of your own needs a schema in code: schema: MODULE:NAME"
    return FileProblem(f"pandera knows no key {name!r} here, and would leave it out", hint, *_place(node))


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _node(node: Any, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)


def _value(node: yaml.MappingNode, key: str) -> str:
    value = _node(node, key)
    return str(value.value).lower() if isinstance(value, yaml.ScalarNode) else ""
