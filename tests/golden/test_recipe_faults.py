"""What `mlkit validate` says of a recipe that is wrong in every way, word for word.

After a change of words that is meant: ``MLKIT_GOLDEN=write pytest tests/golden/test_recipe_faults.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlflowkit.cli.error_format import render
from mlflowkit.errors import RecipeError
from mlflowkit.recipe.check import load

FOLDER = Path(__file__).parent / "recipe"


def test_every_fault_word_for_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        load("mistakes.yaml", ["train.epochs=-1", "+serv.port=1", "optimize.samples=1,2", "+gates=none", "name"])
    said = render(caught.value, color=False) + "\n"
    golden = FOLDER / "mistakes.txt"
    if os.environ.get("MLKIT_GOLDEN") == "write":
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")
