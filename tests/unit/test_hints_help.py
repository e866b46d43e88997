"""What a hint says to write, written, mends what it was said for: overrides, and seeded mistakes in working recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe.check import load
from tests.unit.test_recipe_mistakes import CASES, folder

__all__ = ["folder"]  # a fixture

RECIPE = """\
name: case
task: classification
data:
  source: {kind: csv, path: d.csv}
  target: y
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
"""
HEADER = "mean radius,a=b,a.b,it's,x#1,100%,size (mm),p{q},b:c,s\\t,y"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "d.csv").write_text(f"{HEADER}\n1,2,3,4,5,6,7,8,9,10,0\n2,3,4,5,6,7,8,9,10,11,1\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def faults_of(recipe: Path, *overrides: str) -> tuple[Fault, ...]:
    try:
        load(recipe, overrides)
    except RecipeError as error:
        return error.faults
    return ()


def typed(hint: str) -> str:
    """The override in ``write OVERRIDE``, as a shell would pass it."""
    assert hint.startswith("write "), hint
    (word,) = shlex.split(hint.removeprefix("write "))
    return word


FORMS = ("data.columns.{}=numeric", 'data.columns.{}="numeric"', "+data.columns.{}=categorical")
IN_THE_RECIPE = "write it in the recipe, under data.columns: "


@pytest.mark.parametrize("column", [name for name in HEADER.split(",")[:-1] if "=" not in name])
@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_any_name_can_be_declared(recipe: Path, column: str, form: str) -> None:
    override = form.format(column)
    faults = faults_of(recipe, override)
    if not faults:
        return  # it is taken as it stands
    hint = faults[0].hint
    if hint.startswith(IN_THE_RECIPE):
        line = f"  columns: {{{hint.removeprefix(IN_THE_RECIPE)}}}\n"
        recipe.write_text(RECIPE.replace("  target: y\n", f"  target: y\n{line}"))
        loaded = load(recipe)
    else:
        loaded = load(recipe, (typed(hint),))
    assert loaded.recipe.data.columns == {column: "categorical" if "categorical" in form else "numeric"}


@pytest.mark.parametrize("column", [*HEADER.split(",")[:-1]])
def test_a_column_of_any_name_can_be_the_target(recipe: Path, column: str) -> None:
    faults = faults_of(recipe, f"data.target={column}")
    if faults:
        assert load(recipe, (typed(faults[0].hint),)).recipe.data.target == column


@pytest.mark.parametrize(
    "override",
    [
        "seed = 3",
        "data.drop=[a=b, x#1",
        "gates=[{metric: accuracy, min: 0.5}",
        "data.drop=[mean radius, it's]",
        "seed= 3",
    ],
)
def test_the_corrected_override_is_taken(recipe: Path, override: str) -> None:
    faults = faults_of(recipe, override)
    if faults:
        corrected = faults_of(recipe, typed(faults[0].hint))
        assert not [fault for fault in corrected if "override" in fault.message], corrected


def test_a_name_that_no_override_can_hold_is_written_in_the_recipe(recipe: Path) -> None:
    (fault,) = faults_of(recipe, "data.columns.größe=numeric")
    assert fault.hint == 'write it in the recipe, under data.columns: "größe": numeric'


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost", "keras"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("form", ["model.kind={}", "model.module={}:Model"])
def test_a_library_that_is_not_supported_is_answered_by_what_is(
    recipe: Path, library: str, task: str, form: str
) -> None:
    faults = faults_of(recipe, form.format(library), f"task={task}")
    (fault,) = [fault for fault in faults if "not supported" in fault.message]
    assert fault.message == f"{library} is not supported"
    words = re.match(r"write kind: (\w+) and module: ([\w.:]+), or .* kind: onnx and path: model.onnx$", fault.hint)
    assert words
    overrides = (f"model.kind={words[1]}", f"model.module={words[2]}", f"task={task}")
    assert faults_of(recipe, *overrides) == ()


def test_there_is_no_tuning(recipe: Path) -> None:
    assert faults_of(recipe, "+train={tune: null}") == (), "what earlier recipes say"
    (fault,) = faults_of(recipe, "+train={tune: {method: tpe}}")
    assert "--multirun" in fault.hint


# the corpus of recipe mistakes

CORRECTION = re.compile(r"(?:did you mean '?([^?']+)'?\?|(?:drop the quotes:|the default is|write) ([^ ]+)$)")
"""Hints that name what to put in the place of the fault."""
WORD = re.compile(r"""("[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s,\]\}#]+?(?=:(?:\s|$))|[^\s,\]\}#]+)""")
REMOVED, ADDED = re.compile(r"remove it$"), re.compile(r"add (\w+): (\S+)$")


def corrected(text: str, fault: Fault) -> tuple[str, tuple[str, ...]] | None:
    """The text and the overrides that do what a fault's hint says; None when it says what only a person can do."""
    if match := CORRECTION.match(fault.hint):
        lines = text.split("\n")
        line = lines[fault.line - 1]
        before, rest = line[: fault.column - 1], line[fault.column - 1 :]
        word = WORD.match(rest)
        if word is None:
            return None
        lines[fault.line - 1] = before + (match[1] or match[2]) + rest[word.end() :]
        return "\n".join(lines), ()
    if re.search(r"\.\d", fault.key):
        return None  # an override cannot name an item of a list
    if REMOVED.match(fault.hint):
        return text, (f"~{fault.key}",)
    match = ADDED.match(fault.hint)
    return None if match is None or match[2] == "..." else (text, (f"+{fault.key}={match[2]}",))


def test_what_the_hint_says_mends_the_mistake(folder: Path) -> None:
    """Written at its place, it leaves no fault of the same key and message."""
    tried, failed = 0, []
    path = folder / "mended.yaml"
    for name, mistake, _ in CASES:
        path.write_text(mistake.text)
        for fault in faults_of(path):
            mended = corrected(mistake.text, fault)
            if mended is None:
                continue
            tried += 1
            path.write_text(mended[0])
            if any((other.key, other.message) == (fault.key, fault.message) for other in faults_of(path, *mended[1])):
                failed.append(f"{name}: {fault}: {fault.hint}")
    assert tried > 100
    assert not failed, f"{len(failed)} of {tried}\n" + "\n".join(failed)
