"""Columns of free text: from the file to the graph, and the same from a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import mlflowkit as mk
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Bundle, TokenRule, open_bundle
from mlflowkit.errors import DataError, EngineError, RecipeError
from mlflowkit.features.preprocess import load_sklearn
from mlflowkit.judging.compatibility import compare_signatures
from mlflowkit.scoring.conversion import feature_frame
from mlflowkit.serving.inference.shadow import translate
from mlflowkit.serving.inference.variants import complete_categories
from mlflowkit.serving.protocol.csv_rows import csv_rows
from mlflowkit.serving.protocol.input_schema import Schema

RECIPE = """\
name: reviews
task: classification
data:
  source: {kind: csv, path: reviews.csv}
  target: again
  positive: "yes"
  columns: {review: text}
  split: {kind: stratified, validation: 0.2, test: 0.2}
preprocess:
  texts: {review: {features: 128, ngrams: [1, 2], max_tokens: 12}}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression", args: {C: 30.0}}
optimize: {candidates: [onnx]}
"""
GOOD = ("Lovely", "works", "as described", "würde ich WIEDER kaufen", "super")
BAD = ("broken", "Refund", "not as described", "Müll", "NIE wieder")


def reviews(count: int = 700) -> pd.DataFrame:
    rng = np.random.default_rng(9)
    again = rng.random(count) < 0.5
    texts = [
        " ".join([*rng.choice(["the", "lamp", "kettle,", "and", "it"], rng.integers(0, 6)), *rng.choice(words, 2)])
        for words in (GOOD if happy else BAD for happy in again)
    ]
    table = pd.DataFrame({"review": texts, "stars": rng.integers(1, 6, count), "again": np.where(again, "yes", "no")})
    table.loc[5:9, "review"] = ""
    table.loc[10, "review"] = "endless " * 40
    return table


def write(folder: Path, table: pd.DataFrame, recipe: str = RECIPE) -> Path:
    table.to_csv(folder / "reviews.csv", index=False)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mk.run(write(tmp_path_factory.mktemp("texts"), reviews()), until="package").raise_for_status()


@pytest.fixture(scope="module")
def bundle(run: Any) -> Bundle:
    return open_bundle(run.bundle)


def answers(bundle: Bundle, inputs: Any) -> list[list[float]]:
    values: list[list[float]] = OnnxRuntime().load(bundle.model).run(inputs)["probabilities"].tolist()
    return values


def test_a_model_learns_from_words_and_is_told_what_is_lost(run: Any, bundle: Bundle) -> None:
    assert run.metrics["roc_auc"] > 0.95
    told = [item for step in run.answer["steps"] for item in step.get("findings", ()) if item["column"] == "review"]
    messages = [item["message"] for item in told]
    assert any("different terms in 128 buckets" in message for message in messages)
    assert "preprocess.texts.review.features=" in told[0]["hint"]
    assert not any("has no value" in message or "max_categories" in message for message in messages)
    assert json.loads((bundle.path / "evidence" / "parity.json").read_text())["max_abs_difference"] < 1e-5
    assert bundle.signature.texts.tokens == {"review": TokenRule(max_tokens=12)}


def test_served_answers_are_those_of_the_model_on_scikit_learns_numbers(run: Any, bundle: Bundle) -> None:
    """Raw texts as a request has them, against the estimator on what HashingVectorizer makes of them."""
    from sklearn.feature_extraction.text import HashingVectorizer

    (trained,) = {path.parent for path in Path(run.bundle).parents[2].rglob("model.skops")}
    preprocess = json.loads((trained / "preprocess.json").read_text())
    texts = [
        "Lovely, WORKS as described!",
        "Müll -- refund",
        "",
        "würde ich wieder kaufen \N{SMILING FACE WITH SMILING EYES}",
    ]
    vectorizer = HashingVectorizer(n_features=128, ngram_range=(1, 2))
    stars = (3 - np.float32(preprocess["center"][0])) / np.float32(preprocess["scale"][0])
    numbers = np.hstack([np.full((len(texts), 1), stars), vectorizer.transform(texts).toarray()])
    expected = load_sklearn(trained / "model.skops").predict_proba(numbers)
    query = Schema(bundle.signature).rows({"rows": [{"review": text, "stars": 3} for text in texts]}, limit=9)
    np.testing.assert_allclose(answers(bundle, query.inputs), expected, atol=1e-6)
    assert not query.notes


def test_every_form_of_a_request_is_answered_alike(bundle: Bundle) -> None:
    schema, review = Schema(bundle.signature), "NIE wieder!  Müll, Refund"
    csv = csv_rows(f'review,stars\n"{review}",2\n'.encode(), bundle.signature, header=True, limit=9)
    stars = {"name": "stars", "datatype": "INT64", "shape": [1], "data": [2]}
    numeric = {"name": "numeric", "datatype": "FP32", "shape": [1, 1], "data": [2]}
    forms = [
        schema.rows({"rows": [{"review": review, "stars": 2}]}, limit=9),
        schema.rows({"rows": [{"review": "nie wieder müll refund", "stars": 2}]}, limit=9),
        schema.rows({"rows": csv}, limit=9),
        schema.infer({"inputs": [stars, tensor("review", [review], [1])]}, limit=9),
        schema.infer({"inputs": [numeric, tensor("categorical", [review], [1, 1])]}, limit=9),
    ]
    first = answers(bundle, forms[0].inputs)
    assert [answers(bundle, form.inputs) for form in forms] == [first] * len(forms)
    frame = feature_frame(pa.table({"review": [review], "stars": [2]}), bundle.signature, start=0, categories={})
    assert frame["review"].tolist() == ["nie wieder müll refund"]


def tensor(name: str, data: list[str], shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": shape, "data": data}


def test_a_longer_text_is_read_in_part_and_the_client_is_told(bundle: Bundle) -> None:
    row = {"review": " ".join(f"word{index}" for index in range(13)), "stars": 2}
    query = Schema(bundle.signature).rows({"rows": [row, {**row, "review": "word0"}]}, limit=9)
    assert query.notes == {"shortened_texts": {"review": 1}}
    assert len(query.inputs["categorical"][0, 0].split()) == 12


def test_texts_stay_out_of_profiles_and_are_no_categories(bundle: Bundle) -> None:
    reference = json.loads((bundle.path / "evidence" / "monitor.json").read_text())["columns"]["review"]
    assert reference["cells"] == {"kind": "text", "values": [], "others": [], "complete": False}
    profiles = [(bundle.path / "evidence" / f"reference.{kind}").read_bytes() for kind in ("json", "whylogs")]
    assert not any(b"kettle" in profile for profile in profiles)
    categories = {"review": frozenset({"(text)"})}
    assert "review" not in complete_categories(bundle.path)
    query = Schema(bundle.signature, categories).rows({"rows": [{"review": "never seen", "stars": 1}]}, limit=9)
    assert not query.notes


def test_another_way_to_read_texts_is_told_and_gets_no_shadow_of_them(bundle: Bundle) -> None:
    other = bundle.signature.texts.model_copy(update={"tokens": {"review": TokenRule(analyzer="char")}})
    candidate = bundle.signature.model_copy(update={"texts": other})
    (change,) = compare_signatures(bundle.signature, candidate)
    assert (change.subject, change.breaking) == ("review", False)
    inputs = Schema(bundle.signature).rows({"rows": [{"review": "a", "stars": 1}]}, limit=9).inputs
    with pytest.raises(EngineError, match="the text of review is read otherwise"):
        translate(inputs, Schema(bundle.signature), Schema(candidate))
    assert translate(inputs, Schema(bundle.signature), Schema(bundle.signature)).keys() == inputs.keys()


def test_a_torch_model_takes_texts_too(tmp_path: Path) -> None:
    """Its network is traced at an earlier opset than texts need, and is lifted."""
    model = "model: {kind: torch}\ntrain: {epochs: 2}\n"
    recipe = RECIPE.replace(RECIPE[RECIPE.index("model:") : RECIPE.index("optimize")], model)
    recipe = write(tmp_path, reviews(200), recipe.replace("[1, 2]", "[2, 3], analyzer: char"))
    mk.run(recipe, until="export").raise_for_status()
    (parity,) = tmp_path.rglob("parity.json")
    assert json.loads(parity.read_text())["max_abs_difference"] < 1e-5


def test_a_column_without_words_is_told(tmp_path: Path) -> None:
    table = reviews(60).assign(review=["- ? !", "a b"] * 30)
    run = mk.run(write(tmp_path, table), until="train").raise_for_status()
    told = {item["message"]: item["hint"] for step in run.answer["steps"] for item in step.get("findings", ())}
    hint = told["holds no words in the training rows: a model learns nothing from it"]
    assert hint.endswith("or write data.columns: {review: ignore} and remove preprocess.texts.review")
    mk.load(
        write(tmp_path, table, RECIPE.replace("review: text", "review: ignore").replace("texts: {", "numeric: {} #"))
    )
    recipe = write(tmp_path, reviews(60), RECIPE.replace("features: 128", "features: 2048"))
    more = mk.run(recipe, until="train").answer
    (shared,) = [
        item["hint"] for step in more["steps"] for item in step.get("findings", ()) if "share" in item["message"]
    ]
    assert shared == "mlkit run RECIPE preprocess.texts.review.features=4096"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("columns: {review: text}", "columns: {review: categorical}", "'review' is not declared a text"),
        ("texts: {review", "texts: {revew", "no column 'revew'"),
        ("ngrams: [1, 2]", "ngrams: [2, 1]", "the fewest tokens, 2, are more than the most, 1"),
        ("features: 128", "features: 1", "expected an integer >= 2 and <= 16384, found 1"),
        ("  split", "  orders: {review: [a, b]}\n  split", "'review' is declared text, which has no order"),
        ("preprocess:\n", "preprocess:\n  categorical: {review: {}}\n", "'review' is declared text"),
        (RECIPE[RECIPE.index("model:") : RECIPE.index("optimize")], "model: {kind: onnx, path: a.onnx}\n", "itself"),
    ],
)
def test_faults_of_the_recipe(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in RECIPE
    with pytest.raises(RecipeError) as caught:
        mk.load(write(tmp_path, reviews(20), RECIPE.replace(before, after)))
    assert any(message in fault.message for fault in caught.value.faults), caught.value


def test_a_text_that_is_not_declared_is_treated_as_before(tmp_path: Path) -> None:
    recipe = RECIPE.replace("  columns: {review: text}\n", "").replace(
        "  texts: {review: {features: 128, ngrams: [1, 2], max_tokens: 12}}", "  max_categories: 20"
    )
    run = mk.run(write(tmp_path, reviews(120), recipe), until="train").raise_for_status()
    told = [item["message"] for step in run.answer["steps"] for item in step.get("findings", ())]
    assert any("preprocess.max_categories is 20" in message for message in told)


def test_a_column_of_lists_is_no_text(tmp_path: Path) -> None:
    table = reviews(60)
    pa.parquet.write_table(pa.table({**table, "review": [["a"]] * 60}), tmp_path / "reviews.parquet")
    recipe = RECIPE.replace("kind: csv, path: reviews.csv", "kind: parquet, path: reviews.parquet")
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(DataError, match="'review' holds list"):
        mk.run(tmp_path / "recipe.yaml", until="data")
