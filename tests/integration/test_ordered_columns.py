"""`data.orders`: a model sees the order of categories, in Python and in the graph alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import open_bundle
from mlflowkit.errors import DataError, RecipeError
from mlflowkit.features.tensors import inputs_from_table

SIZES = ["S", "M", "L", "XL", "XXL"]
RECIPE = """\
name: shirts
task: regression
data:
  source: {{kind: csv, path: rows.csv}}
  target: price
  orders: {{{orders}}}
  split: {{kind: random, validation: 0.2, test: 0.2}}
model: {{kind: sklearn, module: "{module}"}}
optimize: {{candidates: [onnx]}}
"""


def write(folder: Path, *, orders: str, module: str = "sklearn.linear_model:Ridge", sizes: list[str] = SIZES) -> Path:
    rng = np.random.default_rng(3)
    size = rng.choice([*sizes, ""], 900, p=[0.9 / len(sizes)] * len(sizes) + [0.1])
    rank = np.array([SIZES.index(value) if value in SIZES else 2 for value in size])
    grade = rng.choice([1, 2, 3], 900)
    price = 10 + 5.0 * rank**2 + grade + rng.normal(size=900) * 0.1
    pd.DataFrame({"size": size, "grade": grade, "price": price}).to_csv(folder / "rows.csv", index=False)
    (folder / "recipe.yaml").write_text(RECIPE.format(orders=orders, module=module))
    return folder / "recipe.yaml"


@pytest.mark.parametrize("module", ["sklearn.linear_model:Ridge", "sklearn.ensemble:HistGradientBoostingRegressor"])
def test_the_order_is_in_the_graph(module: str, tmp_path: Path) -> None:
    recipe = write(tmp_path, orders=f"size: {SIZES}, grade: [1, 2, 3]", module=module)
    run = mk.run(recipe, until="package").raise_for_status()
    assert run.metrics["r2"] > 0.99
    assert run.bundle is not None
    bundle = open_bundle(run.bundle)
    assert {column for tensor in bundle.signature.inputs for column in tensor.columns} == {"size", "grade"}
    assert {tensor.datatype for tensor in bundle.signature.inputs} == {"BYTES"}
    rows = pd.DataFrame({"size": SIZES, "grade": ["2"] * 5})
    answers = OnnxRuntime().load(bundle.model).run(inputs_from_table(bundle.signature, rows))["prediction"].ravel()
    assert answers == pytest.approx([10 + 5 * rank**2 + 2 for rank in range(5)], abs=1.0)


def test_a_level_that_is_rare_borrows_from_its_neighbours(tmp_path: Path) -> None:
    """Without an order a level of few rows is learnt alone; with one, it is at least as much as the level below."""
    from mlflowkit.features.preprocess import Features, fit_preprocess, transform

    class Settings:
        impute, scale, max_categories = "mean", "none", 50

    texts = np.array([["S"], ["L"], ["XXL"], [""], ["?"]], dtype=object)
    fitted = fit_preprocess({"categorical": texts}, Settings(), Features((), ("size",), orders=(tuple(SIZES),)))
    expected: list[list[float]] = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0] * 5, [0] * 5]
    assert transform(fitted, {"categorical": texts}).tolist() == expected


def test_a_value_that_is_not_in_the_order_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    recipe = write(tmp_path, orders=f"size: {SIZES[:-1]}")
    with pytest.raises(DataError, match=r"'XXL' in \d+ rows") as caught:
        mk.run(recipe, until="data")
    assert "XXL" in caught.value.hint


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ("size: [S]", "at least 2 items, found 1"),
        ("size: [S, M, S]", "listed twice"),
        ("sise: [S, M]", "no column 'sise'"),
        ("price: [1, 2]", "is the target"),
    ],
)
def test_an_order_that_cannot_be_is_a_fault_of_the_recipe(orders: str, message: str, tmp_path: Path) -> None:
    recipe: Any = write(tmp_path, orders=orders)
    with pytest.raises(RecipeError) as caught:
        mk.load(recipe)
    assert any(message in fault.message for fault in caught.value.faults), caught.value
