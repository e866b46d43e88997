"""`preprocess.numeric` and `preprocess.categorical`, from the recipe to the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.errors import RecipeError, UsageError

RECIPE = """\
name: sales
task: regression
data:
  source: {kind: csv, path: rows.csv}
  target: price
  drop: [note]
  orders: {size: [S, M, L]}
  split: {kind: random, validation: 0.2, test: 0.2}
preprocess:
  numeric: {income: {scale: log}, visits: {scale: quantile, knots: 21}}
  categorical: {shop: {encode: frequency}}
model: {kind: sklearn, module: "sklearn.linear_model:Ridge"}
optimize: {candidates: [onnx]}
"""


def write(folder: Path, recipe: str = RECIPE) -> Path:
    rng = np.random.default_rng(4)
    shop = rng.zipf(1.5, 900) % 200
    income, visits = rng.lognormal(10, 2, 900), rng.exponential(5, 900).round(2)
    shares = pd.Series(shop).map(pd.Series(shop).value_counts() / 900)
    price = np.log1p(income) + 5 * pd.Series(visits).rank(pct=True) + 8 * shares + rng.normal(size=900) * 0.05
    table = {"income": income, "visits": visits, "shop": [f"s{code}" for code in shop], "price": price}
    table |= {"size": rng.choice(["S", "M", "L"], 900), "note": "x"}
    pd.DataFrame(table).to_csv(folder / "rows.csv", index=False)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def test_a_linear_model_learns_what_the_scaling_makes_linear(tmp_path: Path) -> None:
    run = mk.run(write(tmp_path), until="package").raise_for_status()
    assert run.metrics["r2"] > 0.99
    assert not [item for step in run.answer["steps"] for item in step.get("findings", ()) if item["column"] == "shop"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("shop: {encode", "shopp: {encode", "no column 'shopp'"),
        ("income: {scale", "price: {scale", "'price' is the target"),
        ("income: {scale", "note: {scale", "'note' is dropped"),
        ("income: {scale: log}", "income: {scale: log, knots: 5}", "knots are of scale: quantile"),
        ("shop: {encode", "size: {encode", "has an order"),
        ("income: {scale", "size: {scale", "is declared categorical"),
    ],
)
def test_faults_of_the_recipe(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in RECIPE
    with pytest.raises(RecipeError) as caught:
        mk.load(write(tmp_path, RECIPE.replace(before, after)))
    assert any(message in fault.message for fault in caught.value.faults), caught.value


def test_a_column_that_turns_out_to_be_text_is_refused(tmp_path: Path) -> None:
    text = RECIPE.replace("income: {scale: log}", "shop: {scale: log}")
    recipe = write(tmp_path, text.replace("{shop: {encode: frequency}}", "{}"))
    with pytest.raises(UsageError, match="'shop' is no column of numbers"):
        mk.run(recipe, until="train")
