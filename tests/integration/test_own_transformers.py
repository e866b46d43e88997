"""`preprocess.transforms`: a class of the user's own, from the recipe to the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import open_bundle
from mlflowkit.errors import RecipeError, UserCodeError
from mlflowkit.features.preprocess import Features, fit_preprocess, transform
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.stages.train import PreprocessSettings

CODE = '''\
class LogRatio:
    """The logarithm of the first column over the second, which counts as at least its 5 % quantile."""

    def __init__(self, share=0.05):
        self.share = share

    def fit(self, values):
        import numpy as np

        return {"least": float(np.nanquantile(values[:, 1], self.share))}

    def graph(self, parameters):
        return f"""
        transform (double[rows, 2] x) => (double[rows, 1] y)
        <int64[1] first = {{0}}, int64[1] second = {{1}}, double[1] least = {{{parameters["least"]}}}>
        {{
            above = Gather <axis = 1> (x, first)
            below = Gather <axis = 1> (x, second)
            bounded = Max (below, least)
            ratio = Div (above, bounded)
            y = Log (ratio)
        }}"""
'''
RECIPE = """\
name: ratios
task: regression
data:
  source: {kind: csv, path: rows.csv}
  target: price
  split: {kind: random, validation: 0.2, test: 0.2}
preprocess:
  transforms:
    - {module: "transforms:LogRatio", columns: [income, debt], args: {share: 0.01}}
model: {kind: sklearn, module: "sklearn.linear_model:Ridge", args: {alpha: 0.001}}
optimize: {candidates: [onnx]}
"""


def write(folder: Path, *, recipe: str = RECIPE, code: str = CODE) -> Path:
    rng = np.random.default_rng(4)
    income, debt = rng.lognormal(8, 2, 400), rng.lognormal(5, 2, 400)
    table = pd.DataFrame({"income": income, "debt": debt, "shop": rng.choice(["a", "b"], 400)})
    table["price"] = 3 * np.log(income / debt) + rng.normal(size=400) * 0.05
    table.loc[3, "debt"] = np.nan
    table.to_csv(folder / "rows.csv", index=False)
    (folder / "transforms.py").write_text(code)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def test_a_linear_model_learns_what_a_transformer_makes_linear_and_is_served_without_its_code(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    run = mk.run(recipe, until="package").raise_for_status()
    assert run.metrics["r2"] > 0.99
    assert run.bundle is not None
    assert json.loads((run.bundle / "evidence" / "parity.json").read_text())["max_abs_difference"] < 1e-5
    (tmp_path / "transforms.py").unlink()
    bundle = open_bundle(run.bundle)
    rows = [{"income": 2718.28, "debt": 100.0, "shop": "a"}, {"income": None, "debt": 0.0, "shop": "b"}]
    query = Schema(bundle.signature).rows({"rows": rows}, limit=9)
    answers = OnnxRuntime().load(bundle.model).run(query.inputs)["prediction"]
    assert answers[0] == pytest.approx(3 * np.log(27.1828), abs=0.3)
    assert np.isfinite(answers).all()
    (saved,) = tmp_path.rglob("preprocess.json")
    assert 0 < json.loads(saved.read_text())["transforms"][0]["parameters"]["least"] < 10
    write(tmp_path, code=CODE.replace("5 % quantile", "5th percentile"))
    again = {step.stage: step for step in mk.plan(recipe, until="train")}
    assert (again["data"].action, again["train"].action) == ("reuse", "run")
    assert "transforms.py" in again["train"].reason


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("def fit(", "def fitt(", "has no method fit, and is no transformer"),
        ("float(np.nanquantile", "(np.nanquantile", ""),
        ('return {"least"', 'return 1 / 0, {"least"', "transforms.py:10: transforms:LogRatio raised ZeroDivisionError"),
        ('{"least": float(', '{"least": np.float32(', "what fit returned is no JSON"),
        ("y = Log (ratio)", "y = Logg (ratio)", "transforms.py:12: transforms:LogRatio: its graph is not valid ONNX"),
        ("y = Log (ratio)", "y = Log ratio", "its graph is not valid ONNX"),
        ("y = Log (ratio)", "y = RandomNormalLike (ratio)", "draws at random"),
        ("double[rows, 2] x", "double[rows, 3] x", "takes 3 columns, and the recipe names 2"),
        (
            "ratio = Div (above, bounded)",
            "ratio = ReduceMax <axes = [0], keepdims = 1> (above)",
            "its graph makes [1, 1]",
        ),
        ("y = Log (ratio)", "m = ReduceMax <axes = [0]> (ratio)\n y = Sub (ratio, m)", "others when it is asked alone"),
        ("bounded = Max (below, least)", "bounded = Sub (below, below)", "infinite numbers of"),
        ("ratio = Div (above, bounded)", "ratio = Neg (bounded)", "makes no number in any of 50 training rows"),
        ('return f"""', 'return 5, f"""', "graph returned a tuple"),
    ],
)
def test_faults_of_a_transformer_name_their_line(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in CODE
    (tmp_path / "transforms.py").write_text(CODE.replace(before, after))
    setting = {"transforms": [{"module": "transforms:LogRatio", "columns": ["income", "debt"]}]}
    inputs = {"numeric": np.random.default_rng(1).lognormal(3, 1, (50, 2))}
    arguments = (inputs, PreprocessSettings.model_validate(setting), Features(("income", "debt"), ()), tmp_path)
    if not message:
        assert transform(fit_preprocess(*arguments), inputs).shape == (50, 3)
        return
    with pytest.raises(UserCodeError) as caught:
        fit_preprocess(*arguments)
    assert message in caught.value.message
    assert caught.value.hint


def test_rows_of_which_a_transformer_makes_no_number_are_told_unless_an_input_is_missing(tmp_path: Path) -> None:
    assert not told(mk.run(write(tmp_path), until="train"))
    recipe = write(tmp_path, code=CODE.replace("ratio = Div (above, bounded)", "ratio = Sub (above, bounded)"))
    (finding,) = told(mk.run(recipe, until="train"))
    assert finding["column"] == "income"
    train = pd.concat([pd.read_parquet(path) for path in tmp_path.rglob("train.parquet")])
    share = (train["income"] <= train["debt"]).mean()
    assert f"is complete with 'debt' in {share:.1%} of the training rows of which" in finding["message"]


def told(run: mk.Run) -> list[Any]:
    return [item for step in run.answer["steps"] for item in step.get("findings", ())]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("transforms:LogRatio", "transforms:LogRato", "transforms.py has no 'LogRato'"),
        ("transforms:LogRatio", "transform:LogRatio", "there is no transform.py beside the recipe"),
        ("share: 0.01", "shar: 0.01", "takes no argument 'shar'"),
        ("[income, debt]", "[income, price]", "'price' is the target"),
        ("[income, debt]", "[income, debts]", "no column 'debts'"),
        ("  split", "  columns: {debt: categorical}\n  split", "'debt' is declared categorical"),
    ],
)
def test_faults_of_the_recipe(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in RECIPE
    with pytest.raises(RecipeError) as caught:
        mk.load(write(tmp_path, recipe=RECIPE.replace(before, after)))
    (fault,) = [fault for fault in caught.value.faults if message in fault.message]
    assert "price: numeric" not in fault.hint, "a target cannot be declared a feature"


def test_recipes_without_transformers_have_the_same_settings() -> None:
    settings: dict[str, Any] = PreprocessSettings().model_dump(mode="json")
    assert "transforms" not in settings
