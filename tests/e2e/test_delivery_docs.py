"""The pages on delivery are true: commands exist, recipes are exported, and what is shown is what is generated."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.cli.app import COMMANDS, app
from mlflowkit.errors import MlkitError
from tests.support import ROOT, docs_page
from tests.support.export_project import RECIPE, make_project

PAGES = sorted((ROOT / "docs" / "howto" / "deliver").glob("*.md"))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.M | re.S)
SHELL = ("", "bash", "console")
EXCERPT = re.compile(r"^```\{code-block\} yaml\n(.*?)^```", re.M | re.S)
GENERATED = ("github",)
"""Pages whose ``code-block`` is a part of a file that their target writes for `PIPELINE`."""
PIPELINE = "triggers: [{on: pull_request}, {on: merge}]\ntargets: [github]"


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks that type `mlkit`, without their comments."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language in SHELL else ():
            if re.match(r"(\$ )?mlkit ", line):
                yield line.removeprefix("$ ")


COMMANDS_OF_PAGES = [(page, line) for page in PAGES for line in commands(page)]


@cache
def _root() -> Any:
    for name in COMMANDS:
        importlib.import_module(f"mlflowkit.cli.commands.{name}")
    return typer.main.get_command(app)


def problem_of(line: str) -> str:
    """Why a line cannot be typed, or ""."""
    command, words = _root(), shlex.split(line, comments=True)[1:]
    while getattr(command, "commands", None):
        if not words or words[0] not in command.commands:
            return f"there is no command {' '.join(words[:1])!r}"
        command = command.commands[words.pop(0)]
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    values = []
    while words:
        name, _, value = words.pop(0).partition("=")
        if not name.startswith("-"):
            values.append(name)
        elif name not in options:
            return f"there is no option {name}"
        elif not options[name].is_flag and not value:
            if not words or words[0].startswith("-"):
                return f"{name} lacks its value"
            words.pop(0)
    if len(values) < sum(argument.required for argument in arguments):
        return f"{len(arguments)} arguments, not {len(values)}"
    if len(values) > len(arguments) and all(argument.nargs != -1 for argument in arguments):
        return f"{len(arguments)} arguments, not {len(values)}"
    return ""


@pytest.mark.parametrize(("page", "line"), COMMANDS_OF_PAGES, ids=lambda value: getattr(value, "stem", None))
def test_a_command_can_be_typed(page: Path, line: str) -> None:
    assert not problem_of(line), f"{page.name}: {line}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("mlkit ci jugde recipe.yaml", "there is no command 'jugde'"),
        ("mlkit export github recipe.yaml --chekc", "there is no option --chekc"),
        ("mlkit gitops promote recipe.yaml --environment", "--environment lacks its value"),
        ("mlkit gitops settle --environment staging", "1 arguments, not 0"),
    ],
)
def test_a_command_that_cannot_be_typed_is_told(line: str, problem: str) -> None:
    assert problem_of(line) == problem


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS_OF_PAGES) > 25


RECIPES = [
    (page, index, block)
    for page in PAGES
    for index, block in enumerate(docs_page.blocks(page))
    if block.language == "yaml"
]


@pytest.mark.parametrize(("page", "index", "block"), RECIPES, ids=lambda value: getattr(value, "stem", None))
def test_a_recipe_is_exported(page: Path, index: int, block: docs_page.Block, tmp_path: Path) -> None:
    text = block.text.replace("sha256:…", f"sha256:{'5' * 64}")
    written = yaml.safe_load(text)
    recipe = make_project(tmp_path / "project")
    base = {key: value for key, value in yaml.safe_load(RECIPE).items() if key not in written}
    recipe.write_text(f"{yaml.safe_dump(base, sort_keys=False)}{text}")
    try:
        assert export_recipe(recipe).changes
    except MlkitError as error:
        pytest.fail(f"{page.name}, block {index}: {error}")


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_shown_is_what_is_generated(name: str, tmp_path: Path) -> None:
    result = export_recipe(make_project(tmp_path / "project", PIPELINE))
    files = [(result.root / change.path).read_text() for change in result.changes]
    excerpts = EXCERPT.findall((ROOT / "docs" / "howto" / "deliver" / f"{name}.md").read_text(encoding="utf-8"))
    assert excerpts
    for excerpt in excerpts:
        lines = [
            r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n"
            for line in excerpt.splitlines()
        ]
        assert any(re.search(f"^{''.join(lines)}", text, re.M) for text in files), excerpt


def test_every_excerpt_is_checked() -> None:
    shown = {page.stem for page in PAGES if EXCERPT.search(page.read_text(encoding="utf-8"))}
    assert shown - set(GENERATED) <= {"gitlab", "gitops"}, "yaml of another kind"
