"""A text that is no number is named by its row in the source, and only that text."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlflowkit as mk
from mlflowkit.errors import DataError

RECIPE = """\
name: cars
task: regression
data:
  source: {kind: csv, path: rows.csv, thousands: ",", units: ["$"]}
  target: y
  missing_target: drop
  columns: {price: numeric}
  split: {kind: random, validation: 0.2, test: 0.2}
model: {kind: sklearn, module: "sklearn.linear_model:Ridge"}
"""


def test_the_row_and_the_text_are_those_of_the_file(tmp_path: Path) -> None:
    lines = [f'"${1000 + number:,}",{"" if number < 5 else number}' for number in range(60)]
    lines[40] = "abc,40"
    (tmp_path / "rows.csv").write_text("\n".join(["price,y", *lines]) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(DataError) as caught:
        mk.run(tmp_path / "recipe.yaml", until="data")
    assert "'abc' (row 40)" in caught.value.message
    assert "$" not in caught.value.message
    assert "thousands" not in caught.value.hint
    assert "data.source.missing" in caught.value.hint
