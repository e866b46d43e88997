"""Commands in messages can be typed as they stand: command and options exist, required arguments are there."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

import mlflowkit
from mlflowkit.cli.app import COMMANDS, app

PACKAGE = Path(mlflowkit.__file__).parent
VALUE = "VALUE"
"""Stands for the {expressions} of f-strings."""
COMMAND = re.compile(r"(?<![\w/.-])mlkit[ ]+(?=(?P<rest>[^\n`;]*))")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_.]*$")
TYPED_VALUE = re.compile(r"[\w./-]*[./=\d][\w./=-]*$")
"""A value that is no placeholder: a path, an override or a number."""

NOT_COMMANDS = {
    "mlkit reads version",
    "mlkit demands",
    "mlkit does",
    "mlkit service",
    f"mlkit {VALUE}",
}
"""Beginnings of prose about mlkit itself."""
MENTIONS = {
    "mlkit bench": "names the writer of a file, or starts a usage line",
    "mlkit engines build": "names the command that builds engines",
    "mlkit predict": "start of a command that `cli.service_lookup` completes with a service",
    "mlkit feedback --service": "start of a command that `cli.service_lookup` completes with a service",
}
"""Commands without their arguments, as whole texts or between prose, each with a reason."""


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string literal that is no docstring; f-strings with VALUE for each expression."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
            parts = [str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def _commands(text: str) -> Iterator[str]:
    """The text after ``mlkit`` of each command in a text, up to the end of its clause."""
    for match in COMMAND.finditer(text):
        yield re.split(r"[,:)?](?=\s|$)|\s\(|\.(?=\s|$)|\bmlkit\b", match["rest"])[0].strip()


@cache
def _root() -> Any:
    for name in COMMANDS:
        importlib.import_module(f"mlflowkit.cli.commands.{name}")
    return typer.main.get_command(app)


def _is_value(word: str) -> bool:
    return VALUE in word or bool(PLACEHOLDER.match(word)) or bool(TYPED_VALUE.match(word))


def problem_of(rest: str) -> str:
    """Why ``mlkit REST`` cannot be typed, or ""; prose after the command's arguments is ignored."""
    command, words = _root(), rest.split()
    path = "mlkit"
    while getattr(command, "commands", None):
        if not words:
            return f"{path}: a command is missing"
        if VALUE in words[0] and path != "mlkit":
            return ""
        subcommand = command.commands.get(words[0])
        if subcommand is None:
            return f"{path}: there is no command {words[0]!r}"
        command, path = subcommand, f"{path} {words.pop(0)}"
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    values = 0
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            name, _, value = word.partition("=")
            option = options.get(name)
            if name in ("--help", "-h"):
                return ""
            if option is None:
                return f"{path}: there is no option {name}"
            if not option.is_flag and not value:
                if not words:
                    return f"{path}: {name} lacks its value"
                words.pop(0)
        elif _is_value(word):
            values += 1
        else:
            break  # prose
    required = [argument for argument in arguments if argument.required]
    if values < len(required):
        return f"{path}: lacks {required[values].metavar or required[values].name.upper()}"
    if values > len(arguments) and all(argument.nargs != -1 for argument in arguments):
        return f"{path}: takes {len(arguments)} arguments, not {values}"
    return ""


def test_commands_in_messages_can_be_typed() -> None:
    faults = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for line, text in _texts(ast.parse(file.read_text(encoding="utf-8"))):
            for rest in _commands(text):
                full = f"mlkit {rest}"
                if full in MENTIONS or any(full.startswith(prose) for prose in NOT_COMMANDS):
                    continue
                if problem := problem_of(rest):
                    faults.append(f"{file.relative_to(PACKAGE.parent)}:{line}: {full!r}: {problem}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("run RECIPE --force train", ""),
        ("run --force train", "mlkit run: lacks RECIPE"),
        ("run VALUE --until optimize again", ""),
        ("run RECIPE --forse train", "mlkit run: there is no option --forse"),
        ("rum RECIPE", "mlkit: there is no command 'rum'"),
        ("rollout forgot VERSION", "mlkit rollout: there is no command 'forgot'"),
        ("rollout", "mlkit rollout: a command is missing"),
        ("status", ""),
    ],
)
def test_commands_are_parsed_as_the_shell_would(rest: str, problem: str) -> None:
    assert problem_of(rest) == problem


def test_commands_are_collected_from_sentences() -> None:
    text = "mlkit status; `mlkit run RECIPE` makes one, mlkit down, then mlkit up RECIPE."
    assert list(_commands(text)) == ["status", "run RECIPE", "down", "up RECIPE"]
