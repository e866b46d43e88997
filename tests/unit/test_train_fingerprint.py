"""What is computed is in the fingerprint of train; by how many workers is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.pipeline.fingerprint import FileDigests, collect_ingredients
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.recipe.check import load

RECIPE = """
name: flat
task: classification
data: {source: {kind: csv, path: table.csv}, target: y, split: {kind: random}}
model: {kind: torch}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "table.csv").write_text("a,y\n1,no\n2,yes\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def ingredients(recipe: Path, *overrides: str) -> dict[str, str]:
    with SqliteJournal(recipe.parent / ".mlkit") as journal:
        return collect_ingredients(load(recipe, overrides), FileDigests(journal))["train"]


def test_workers_failures_and_checkpoints_are_no_ingredients(recipe: Path) -> None:
    alone = ingredients(recipe, "train.shards=4")
    others = ("train.workers=4", "train.max_failures=9", "train.checkpoint_every=3")
    assert ingredients(recipe, "train.shards=4", *others) == alone


def test_workers_without_shards_are_shards(recipe: Path) -> None:
    assert ingredients(recipe, "train.workers=1") == ingredients(recipe)
    assert ingredients(recipe, "train.workers=2") == ingredients(recipe, "train.shards=2") != ingredients(recipe)
    assert ingredients(recipe, "train.workers=2")["spec:train.shards"] == "2"
