"""A suite of Great Expectations 1.x (JSON), judged without importing Great Expectations.

Great Expectations drops an expectation that it does not know and then reports success, so each is looked up here by
the files of the installed package, and the checker compares what was evaluated with the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import yaml

from mlflowkit.errors import closest_match
from mlflowkit.judging.file_checks.file_problem import FileProblem, RulesFile
from mlflowkit.system.text import shell_word

PARAMETER = "$PARAMETER"
COLUMN_KEYS = ("column", "column_A", "column_B")
NUMBER_KEYS = ("min_value", "max_value", "value_set")
CONVERT = 'sed -i \'s/"expectation_type"/"type"/; s/"expectation_suite_name"/"name"/\' {}'
"""A command that converts a suite of 0.x; the names of arguments are then checked as any."""


def open_suite(text: str, name: str = "SUITE.json") -> list[Any] | FileProblem:
    """The expectations of a suite, or why the file as a whole cannot be used."""
    try:
        suite = json.loads(text)
    except json.JSONDecodeError as error:
        return FileProblem(f"not JSON: {error.msg}", "", error.lineno, error.colno)
    except (ValueError, RecursionError) as error:
        return FileProblem(f"not JSON: {error}")
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list):
        hint = 'a suite is {"name": ..., "expectations": [{"type": ..., "kwargs": {...}}]}'
        return FileProblem("not a suite: it has no list of expectations", hint, 1, 1)
    if "expectation_suite_name" in suite or any(map(_is_old, expectations)):
        places = zip(expectations, _places(text, len(expectations)), strict=True)
        where = next((place for item, place in places if _is_old(item)), (1, 1))
        message = "this is a suite of Great Expectations 0.x (expectation_type); suites of 1.x have type"
        return FileProblem(message, CONVERT.format(shell_word(name)), *where)
    if not expectations:
        return FileProblem("the suite has no expectations: it would always pass", "add one", 1, 1)
    return expectations


def read_suite(text: str, parameters: Mapping[str, Any], name: str = "SUITE.json") -> RulesFile:
    """The problems of a suite with the values of its parameters, and the columns that it names."""
    expectations = open_suite(text, name)
    if isinstance(expectations, FileProblem):
        return RulesFile((expectations,))
    problems: list[FileProblem] = []
    columns: dict[str, tuple[int, int]] = {}
    for item, place in zip(expectations, _places(text, len(expectations)), strict=True):
        problems += _problems(item, parameters, place)
        for column in columns_of(item):
            columns.setdefault(column, place)
    used = " ".join(parameter for item in expectations for parameter in parameters_of(item))
    unused = [parameter for parameter in parameters if parameter not in used]
    problems += [FileProblem(f"no expectation uses the parameter {item!r}", "remove it") for item in unused]
    return RulesFile(tuple(problems), columns)


def columns_of(expectation: Any) -> list[str]:
    """The columns that an expectation names."""
    kwargs = expectation.get("kwargs") if isinstance(expectation, dict) else None
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    listed = kwargs.get("column_list")
    names = [kwargs.get(key) for key in COLUMN_KEYS] + (listed if isinstance(listed, list) else [])
    return [name for name in names if isinstance(name, str)]


def number_columns(expectations: Sequence[Any]) -> set[str]:
    """Columns whose expectations compare with numbers and with no text."""
    numeric: set[str] = set()
    texts: set[str] = set()
    for item in expectations:
        kwargs = item.get("kwargs") if isinstance(item, dict) else None
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        values = [kwargs.get(key) for key in NUMBER_KEYS]
        flat = [part for value in values for part in (value if isinstance(value, list) else [value])]
        numbers = any(isinstance(part, int | float) and not isinstance(part, bool) for part in flat)
        lengths = "length" in str(item.get("type")) or "unique" in str(item.get("type"))
        if any(isinstance(part, str) for part in flat):
            texts.update(columns_of(item))
        elif numbers and not lengths:
            numeric.update(columns_of(item))
    return numeric - texts


def parameters_of(value: Any) -> Iterator[str]:
    """The names in all ``{"$PARAMETER": name}`` inside a value."""
    if isinstance(value, dict):
        if isinstance(value.get(PARAMETER), str):
            yield value[PARAMETER]
        for item in value.values():
            yield from parameters_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from parameters_of(item)


def _is_old(item: Any) -> bool:
    return isinstance(item, dict) and "expectation_type" in item


def _problems(item: Any, parameters: Mapping[str, Any], place: tuple[int, int]) -> Iterator[FileProblem]:
    if not isinstance(item, dict) or not isinstance(item.get("type"), str) or not isinstance(item.get("kwargs"), dict):
        yield FileProblem("an expectation has a type and kwargs", '{"type": "expect_...", "kwargs": {...}}', *place)
        return
    kind, kwargs = str(item["type"]), item["kwargs"]
    known = known_types()
    if known and kind not in known:
        close = closest_match(kind, sorted(known))
        yield FileProblem(f"there is no expectation {kind!r}", f"did you mean {close}?" if close else "", *place)
        return
    yield from _arguments(kind, kwargs, place)
    for parameter in parameters_of(kwargs):
        if parameter.isidentifier() and parameter not in parameters:
            message = f"{kind}: the parameter {parameter!r} has no value"
            yield FileProblem(message, f"add parameters: {{{parameter}: ...}} to the check", *place)


def _arguments(kind: str, kwargs: Mapping[str, Any], place: tuple[int, int]) -> Iterator[FileProblem]:
    described = known_arguments(kind)
    if described is None:
        return
    names, required = described
    for key in kwargs:
        if key not in names:
            close = closest_match(key, names)
            hint = f"did you mean {close}?" if close else f"it takes {', '.join(names)}"
            yield FileProblem(f"{kind} takes no argument {key!r}", hint, *place)
    for key in required:
        if key not in kwargs:
            yield FileProblem(f"{kind} needs an argument {key!r}", f'add "{key}": ... to its kwargs', *place)


def _core() -> Path | None:
    """The folder of expectations of the installed Great Expectations; None where it is not installed."""
    spec = PathFinder.find_spec("great_expectations")
    return Path(spec.origin).parent / "expectations" / "core" if spec is not None and spec.origin else None


@lru_cache(maxsize=1)
def known_types() -> frozenset[str]:
    """The expectations of the installed Great Expectations; empty where it is not installed."""
    folder = _core()
    return frozenset() if folder is None else frozenset(path.stem for path in folder.glob("*expect*.py"))


@lru_cache(maxsize=128)
def known_arguments(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The arguments of an expectation and the required ones; None where its description is not installed."""
    folder = _core()
    path = folder / "schemas" / f"{''.join(map(_capital, kind.split('_')))}.json" if folder is not None else None
    path = path if path is None or path.is_file() else _same_name(path)
    if path is None:
        return None
    described = json.loads(path.read_text(encoding="utf-8"))
    hidden = ("id", "meta", "notes", "rendered_content", "metadata", "description", "severity", "windows")
    names = tuple(name for name in described["properties"] if name not in hidden)
    return names, tuple(name for name in described.get("required", ()) if name in names)


def _same_name(path: Path) -> Path | None:
    """A file whose name differs in its capitals only (KLDivergence)."""
    matches = (item for item in path.parent.glob("*.json") if item.name.lower() == path.name.lower())
    return next(matches, None)


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


def _places(text: str, count: int) -> list[tuple[int, int]]:
    """Line and column of each expectation; (0, 0) where they are not to be had."""
    unknown = [(0, 0)] * count
    try:
        root = yaml.compose(re.sub("\t", " ", text), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return unknown
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    listed: list[yaml.Node] = next((value.value for key, value in pairs if key.value == "expectations"), [])
    places = [(node.start_mark.line + 1, node.start_mark.column + 1) for node in listed]
    return places if len(places) == count else unknown
