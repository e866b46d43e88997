"""A recipe with `decision`: the threshold is in the graph, in the bundle, in the labels that the gates judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.bundle import open_bundle
from mlflowkit.errors import DataError

RECIPE = """\
name: rare
task: classification
seed: 5
data:
  source: {{kind: csv, path: rows.csv}}
  target: y
  {positive}
  split: {{kind: stratified, validation: 0.25, test: 0.25}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
decision: {{costs: {{false_positive: 1, false_negative: 8}}}}
optimize: {{candidates: [onnx]}}
gates: [{{metric: recall, min: 0.5}}]
"""


def write(folder: Path, classes: list[str], positive: str) -> Path:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 1600))
    score = a + b + rng.normal(size=1600)
    codes = np.digitize(score, [2.2, 3.2][: len(classes) - 1])
    pd.DataFrame({"a": a, "b": b, "y": np.array(classes)[codes]}).to_csv(folder / "rows.csv", index=False)
    (folder / "recipe.yaml").write_text(RECIPE.format(positive=positive))
    return folder / "recipe.yaml"


def test_the_threshold_is_what_graph_bundle_and_gates_have(tmp_path: Path) -> None:
    run = mk.run(write(tmp_path, ["no", "yes"], 'positive: "yes"'), until="package").raise_for_status()
    assert run.bundle is not None
    bundle = open_bundle(run.bundle, blessed=True)
    decision = json.loads(bundle.read("evidence/decision.json"))
    assert bundle.signature.threshold == decision["threshold"]
    assert 0.02 < decision["threshold"] < 0.3, "a missed yes costs eight times as much"
    digest = next(step["digest"] for step in run.answer["steps"] if step["stage"] == "evaluate")
    rows = pd.read_parquet(tmp_path / ".mlkit" / "objects" / digest / "predictions.parquet")
    expected = np.where(rows["score:yes"].to_numpy(np.float32) >= np.float32(decision["threshold"]), "yes", "no")
    assert rows["prediction"].tolist() == expected.tolist()
    assert (rows["score:yes"] < 0.5).loc[rows["prediction"] == "yes"].any()
    recall = ((rows["prediction"] == "yes") & (rows["target"] == "yes")).sum() / (rows["target"] == "yes").sum()
    assert run.metrics["recall"] == pytest.approx(recall)
    assert run.answer["decision"]["threshold"] == decision["threshold"]
    importance = run.answer["importance"]
    assert set(importance["columns"]) == {"a", "b"}
    assert min(importance["columns"].values()) > 0.02


def test_three_classes_are_refused_before_training(tmp_path: Path) -> None:
    recipe = write(tmp_path, ["no", "maybe", "yes"], 'positive: "yes"')
    with pytest.raises(DataError, match="positive is for two classes"):
        mk.run(recipe, until="package")
