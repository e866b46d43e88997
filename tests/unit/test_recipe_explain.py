"""Explaining: which file and line or which override set a value, what it shadowed, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.errors import UsageError
from mlflowkit.recipe.explain import explain
from mlflowkit.system.entry_points import OWN, SOURCES

RECIPE = """\
defaults:
  - _self_
  - train: mine
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: bad
  split: {kind: random}
  columns: {grade: categorical}
model: {kind: torch, args: {hidden: [8, 4]}}
train:
  optimizer: {lr: 0.1}
gates:
  - {metric: roc_auc, min: 0.7}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("loans.csv").write_text("a,bad\n1,0\n")
    Path("conf/train").mkdir(parents=True)
    Path("conf/train/mine.yaml").write_text("# slower\noptimizer:\n  lr: 0.01\n")
    path = Path("recipe.yaml")
    path.write_text(RECIPE)
    return path


def test_the_whole_chain_of_a_value(recipe: Path) -> None:
    explanation = explain(recipe, "train.optimizer.lr", ["seed=1", "train.optimizer.lr=1e-4"])
    assert explanation.set_by is not None
    assert (explanation.set_by.value, explanation.set_by.where) == (0.0001, "override 2: train.optimizer.lr=1e-4")
    assert [(setting.value, setting.where) for setting in explanation.shadows] == [
        (0.01, "conf/train/mine.yaml:3:7"),
        (0.1, "recipe.yaml:13:19"),
        (0.001, "the default"),
    ]
    assert explanation.expected == "a number > 0"
    assert explanation.description == "Learning rate."


def test_a_value_left_at_its_default(recipe: Path) -> None:
    explanation = explain(recipe, "train.epochs")
    assert explanation.set_by is not None
    assert (explanation.set_by.value, explanation.set_by.where, explanation.shadows) == (20, "the default", ())


def test_a_required_key_that_is_not_set(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("  target: bad\n", ""))
    explanation = explain(recipe, "data.target")
    assert explanation.set_by is None
    assert explanation.required


def test_the_values_that_are_allowed(recipe: Path) -> None:
    assert explain(recipe, "train.optimizer.name").allowed == ("adamw", "adam", "sgd")
    assert explain(recipe, "data.source.kind").allowed == ("csv",)
    assert explain(recipe, "data.source").allowed == ("csv", "parquet", "python", *sorted(OWN[SOURCES]))


@pytest.mark.parametrize("key", ["gates.0.min", "gates[0].min"])
def test_items_of_lists(recipe: Path, key: str) -> None:
    explanation = explain(recipe, key)
    assert explanation.set_by is not None
    assert (explanation.key, explanation.set_by.where) == ("gates.0.min", "recipe.yaml:15:28")


def test_names_of_the_users_own(recipe: Path) -> None:
    hidden, grade = explain(recipe, "model.args.hidden.1"), explain(recipe, "data.columns.grade")
    assert hidden.set_by is not None
    assert hidden.set_by.value == 4
    assert grade.expected == "numeric, categorical, date, text, time, group or ignore"


def test_a_section_lists_its_keys(recipe: Path) -> None:
    explanation = explain(recipe, "train.optimizer")
    wheres = {key: setting.where if setting else None for key, setting in explanation.inside}
    assert wheres["train.optimizer.lr"] == "conf/train/mine.yaml:3:7"
    assert wheres["train.optimizer.name"] == "the default"


def test_the_recipe_itself(recipe: Path) -> None:
    explanation = explain(recipe, "")
    assert dict(explanation.inside).keys() >= {"name", "task", "serve"}
    assert "gates/strict" in explanation.groups


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.epoch", "train.epochs"),
        ("optimizer.lr", "train.optimizer.lr"),
        ("lr", "train.optimizer.lr"),
        ("traim", "train"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(recipe: Path, key: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        explain(recipe, key)
    assert f"did you mean {near}?" in caught.value.hint


def test_a_key_of_another_kind_is_named_as_such(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.source of kind csv has no key"):
        explain(recipe, "data.source.function")


def test_a_recipe_with_faults_is_explained_all_the_same(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("lr: 0.1", "lr: fast") + "nonsense: 1\n")
    assert [setting.value for setting in explain(recipe, "train.optimizer.lr").shadows] == ["fast", 0.001]
