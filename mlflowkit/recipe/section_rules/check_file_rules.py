"""Rules about data checks whose rules stand in files: the files exist, are understood, and name columns there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflowkit.errors import closest_match
from mlflowkit.judging.file_checks.expectation_suite import read_suite
from mlflowkit.judging.file_checks.file_problem import FileProblem, RulesFile, read_rules_file
from mlflowkit.judging.file_checks.pandera_file import read_pandera_file
from mlflowkit.judging.file_checks.tfdv_schema import read_schema
from mlflowkit.recipe.column_rules import header_names
from mlflowkit.recipe.reference_rules import reference_problems
from mlflowkit.recipe.rule import Problem, RecipeView
from mlflowkit.recipe.yaml_tree import KeyPath
from mlflowkit.system.text import format_list, shell_word
from mlflowkit.values import Json

MAX_PROBLEMS = 20
"""Problems of a file that are reported."""

Reader = Callable[[str, Mapping[str, Any]], RulesFile]
READERS: Mapping[str, tuple[str, Reader]] = {
    "expectations": ("suite", lambda text, check: read_suite(text, _parameters(check), str(check.get("suite")))),
    "tfdv": ("schema", lambda text, check: read_schema(text, **_texts(check, "environment", "serving"))),
    "pandera": ("schema", lambda text, _: read_pandera_file(text)),
}
"""The key that names the file, and what reads it, of each kind of check."""


def problems(values: Json, folder: Path) -> list[Problem]:
    """Faults of the files that ``data.checks`` name. No data are read beyond the header of the source."""
    view = RecipeView(values)
    return [problem for kind in READERS for problem in _of_kind(view, kind, folder)]


def _of_kind(view: RecipeView, kind: str, folder: Path) -> Iterator[Problem]:
    key, reader = READERS[kind]
    for index, check in view.checks(kind):
        path: KeyPath = ("data", "checks", index, key)
        name = view.text(*path)
        if kind == "pandera" and name and not name.endswith((".yaml", ".yml")):
            yield from _code(name, path, folder)
        elif name:
            text = read_rules_file(folder / name)
            rules = reader(text, check) if isinstance(text, str) else RulesFile((text,))
            shown = rules.problems[:MAX_PROBLEMS]
            yield from (Problem(path, item.located(name), item.hint) for item in shown)
            yield from _columns(view, rules, name, path, folder)
            yield from _served_rows(view, ("data", "checks", index, "serving"), folder)


def _served_rows(view: RecipeView, path: KeyPath, folder: Path) -> Iterator[Problem]:
    name = view.text(*path)
    if name and not (folder / name).is_file():
        yield Problem(path, f"there is no file {name}", f"ls {shell_word((folder / name).parent)} shows the files")


def _parameters(check: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = check.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _texts(check: Mapping[str, Any], *keys: str) -> dict[str, str]:
    return {key: value for key in keys if isinstance(value := check.get(key), str)}


def _code(name: str, path: KeyPath, folder: Path) -> Iterator[Problem]:
    if name.count(":") == 1:
        yield from reference_problems(name, path, folder)
    else:
        hint = "write MODULE:NAME for code, FILE.yaml for a file"
        yield Problem(path, f"{name!r} is neither a reference to code nor a YAML file", hint)


def _columns(view: RecipeView, rules: RulesFile, name: str, path: KeyPath, folder: Path) -> Iterator[Problem]:
    """Columns that a file of rules names and the table does not have; nothing where the header is not known."""
    header = header_names(view, folder) if rules.columns else None
    if header is None:
        return
    drop = view.items("data", "drop")
    for column, (line, at) in rules.columns.items():
        if column in drop:
            problem = FileProblem(f"column {column!r} is dropped by the recipe", "take it out of data.drop", line, at)
        elif column in header:
            continue
        else:
            close = closest_match(column, header)
            hint = f"did you mean {close!r}?" if close else f"the columns are {format_list(header, 20)}"
            problem = FileProblem(f"the table has no column {column!r}", hint, line, at)
        yield Problem(path, problem.located(name), problem.hint)
