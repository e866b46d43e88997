"""The output of `mlkit validate` for a recipe with every kind of fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.cli.error_format import render
from mlflowkit.errors import RecipeError
from mlflowkit.recipe.check import load
from tests.support.golden import Golden

FOLDER = Path(__file__).parent / "recipe"


def test_every_fault_word_for_word(monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        load("mistakes.yaml", ["train.epochs=-1", "+serv.port=1", "optimize.samples=1,2", "+gates=none", "name"])
    rendered = render(caught.value, color=False) + "\n"
    golden("recipe/mistakes.txt", rendered)
