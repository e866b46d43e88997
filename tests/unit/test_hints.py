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
from mlflowkit.recipe.schema_errors import all_keys

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


PROGRAMS = {
    "mlkit", "mv", "rm", "cat", "tail", "ls", "df", "sed", "head", "iconv", "fuser", "python", "export", "nvidia-smi",
}  # fmt: skip
PATHS = re.compile(r"\b(path|folder|place|directory|recipe_path|recipe|file|shown|location|log_path|keys|state)\b")
"""Names of expressions that give a path."""
VAGUE = re.compile(r"(see|check|look|inspect) (?!.*[`=(])|is (it|the|another) |its log |the (log|traceback) is in")
"""Beginnings that tell to look and not how."""
OTHER_OPTIONS = {
    "--help", "--upgrade", "--force-reinstall", "--head", "--port", "--global", "--add", "--unshallow",
    "--rev", "--all-commits", "--cached", "--bucket", "--key", "--restore-request", "--versioning-configuration",
}  # fmt: skip
"""Options of other programs, git among them, and of a command that only some machines have."""


def _hints() -> Iterator[tuple[str, ast.expr]]:
    """The expression of every hint with its place: arguments named hint, those of faults, and constants."""
    positions = {"Problem": 2, "Fault": 6, "fault_at": 3, "Mismatch": 2}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            value: ast.expr | None = None
            if (isinstance(node, ast.keyword) and node.arg == "hint") or (
                isinstance(node, ast.Assign) and str(getattr(node.targets[0], "id", "")).lower().endswith("hint")
            ):
                value = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in positions:
                position = positions[node.func.id]
                value = node.args[position] if len(node.args) > position else None
            if value is not None:
                yield f"{file.relative_to(PACKAGE.parent)}:{value.lineno}", value


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.IfExp):
        yield from (*_alternatives(node.body), *_alternatives(node.orelse))
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _alternatives(value)
    else:
        yield node


HINTS = [(place, part) for place, value in _hints() for part in _alternatives(value)]


def test_there_are_hints_to_check() -> None:
    assert len(HINTS) > 500


def test_a_path_in_a_command_is_one_word_of_the_shell() -> None:
    """``rm my file`` would remove two others."""
    faults = []
    for place, part in HINTS:
        command = ""
        for item in part.values if isinstance(part, ast.JoinedStr) else ():
            if isinstance(item, ast.Constant):
                command = re.split(r"[,;:(]|\. ", command + str(item.value))[-1]
            elif isinstance(item, ast.FormattedValue):
                source = ast.unparse(item.value)
                words = command.split()
                is_command = bool(words) and words[0] in PROGRAMS
                if is_command and PATHS.search(source) and not re.match(r"(shell_word|shlex\.(quote|join))\(", source):
                    faults.append(f"{place}: {command}{{{source}}}: shell_word({source})")
                command += VALUE
    assert not faults, "\n".join(faults)


def test_no_hint_says_only_to_look() -> None:
    texts = [(place, text) for place, part in HINTS for _, text in _texts(ast.Expression(part))]
    faults = [f"{place}: {text!r}: say which command shows it" for place, text in texts if VAGUE.match(text)]
    assert not faults, "\n".join(faults)


def test_options_in_hints_exist() -> None:
    known: set[str] = set(OTHER_OPTIONS)
    commands = [_root()]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        known.update(name for param in command.params for name in (*param.opts, *param.secondary_opts))
    faults = []
    for place, part in HINTS:
        for _, text in _texts(ast.Expression(part)):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
                if option not in known:
                    faults.append(f"{place}: {option} in {text!r}")
    assert not faults, "\n".join(faults)


def test_keys_of_a_recipe_in_hints_exist() -> None:
    keys = set(all_keys())
    sections = {key.partition(".")[0] for key in keys}
    free = ("data.columns.", "model.args.", "data.source.args.", "train.class_weights.")
    faults = []
    for place, part in HINTS:
        for _, text in _texts(ast.Expression(part)):
            for key in re.findall(r"(?<![\w./{-])([a-z_]+(?:\.[a-z_]+)+)(?=[=:, ]|$)", text):
                if key.partition(".")[0] in sections and key not in keys and not f"{key}.".startswith(free):
                    faults.append(f"{place}: {key} in {text!r}")
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
