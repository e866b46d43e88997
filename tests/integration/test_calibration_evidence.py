"""``evidence/calibrator.json``: from the stages' tables, as the exported graph answers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.features.cell_counts import CellCounter, count_cells
from mlflowkit.features.reference_cells import cells_of, column_reference
from mlflowkit.judging.performance.calibrator import Calibrator
from mlflowkit.judging.performance.error_table import ErrorTable, estimate_error
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.stages.base import Column, TableInfo
from mlflowkit.stages.evaluation.calibration_evidence import model_calibrator

NUMERIC = TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("a", "b"))


@dataclass
class LogisticGraph:
    """A session: the probability of "bad" is logistic in a; or, of a regression, the prediction is a."""

    task: str = "classification"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        a = inputs["numeric"][:, 0]
        if self.task == "regression":
            return {"prediction": a}
        bad = 1 / (1 + np.exp(-(a - 1)))
        label = np.where(bad > 0.5, "bad", "good").astype(object)
        return {"label": label, "probabilities": np.stack([1 - bad, bad], axis=1).astype(np.float32)}


def world(folder: Path, task: str, rows: int = 1500) -> tuple[Signature, TableInfo, Reference]:
    random = np.random.default_rng(0)
    tables = {}
    for part in ("train", "validation", "test"):
        table = pd.DataFrame({"a": random.normal(size=rows), "b": random.integers(0, 3, rows).astype(float)})
        if task == "classification":
            chance = 1 / (1 + np.exp(-(table["a"] * 0.8 - 1.2)))
            table["y"] = np.where(random.random(rows) < chance, "bad", "good")
        else:
            table["y"] = table["a"] + random.normal(size=rows) * (1 + table["b"])
        table["day"] = np.arange(rows) + 10_000 * len(tables)
        table.to_parquet(folder / f"{part}.parquet")
        tables[part] = table
    outputs = (
        (
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
        )
        if task == "classification"
        else (TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),)
    )
    classes = ("good", "bad") if task == "classification" else ()
    signature = Signature.model_validate({"task": task, "inputs": (NUMERIC,), "outputs": outputs, "classes": classes})
    columns = tuple(Column(name=name, kind="numeric") for name in ("a", "b"))
    info = TableInfo.model_validate(
        {"task": task, "target": "y", "features": columns, "classes": classes, "rows": {}, "data_version": ""}
    )
    answers = LogisticGraph(task).run({"numeric": tables["test"][["a", "b"]].to_numpy(np.float32)})
    if task == "classification":
        scores = answers["probabilities"][:, 1]
        return signature, info, Reference({"output.score": column_reference(scores, tail=True)})
    values = {name: tables["train"][name].to_numpy(np.float32) for name in ("a", "b")}
    values["output.prediction"] = answers["prediction"]
    return signature, info, Reference({name: column_reference(column) for name, column in values.items()})


@pytest.mark.parametrize("time_column", ["", "day"])
def test_the_calibrator_of_a_classification(tmp_path: Path, time_column: str) -> None:
    signature, info, reference = world(tmp_path, "classification")
    made = [
        model_calibrator(tmp_path, LogisticGraph(), signature, info, reference, time_column)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert json.dumps(made[0], allow_nan=False) == json.dumps(made[1])
    fitted = Calibrator.from_json(made[0])
    assert fitted.rows == 3000
    assert fitted.kind == "isotonic"
    assert fitted.cells == reference.columns["output.score"].cells
    assert abs(fitted.held_out["roc_auc"].bias) < 3 * fitted.held_out["roc_auc"].error
    middle = float(np.interp(1 / (1 + np.exp(1)), fitted.knots, fitted.curve))  # a = 0: truly 1 / (1 + e^1.2)
    assert middle == pytest.approx(1 / (1 + np.exp(1.2)), abs=0.06)
    assert len(json.dumps(made[0])) < 130_000


def test_the_error_table_of_a_regression(tmp_path: Path) -> None:
    signature, info, reference = world(tmp_path, "regression")
    document = model_calibrator(tmp_path, LogisticGraph("regression"), signature, info, reference)  # type: ignore[arg-type]
    table = ErrorTable.from_json(json.loads(json.dumps(document, allow_nan=False)))
    live = pd.DataFrame({"a": np.zeros(900), "b": np.full(900, 2.0)}).astype(np.float32)
    counts = {
        name: count_cells(reference.columns[name].cells, live[name.replace("output.prediction", "a")].to_numpy())
        for name in table.effects
    }
    estimate = estimate_error(table, counts, 900)
    assert estimate is not None
    assert estimate.low <= 3 * np.sqrt(2 / np.pi) <= estimate.high


def test_what_allows_no_calibrator_gives_none(tmp_path: Path) -> None:
    signature, info, reference = world(tmp_path, "classification", rows=60)
    table = pd.read_parquet(tmp_path / "test.parquet")
    table.assign(y="good").to_parquet(tmp_path / "test.parquet")
    table.assign(y="good").to_parquet(tmp_path / "validation.parquet")
    assert model_calibrator(tmp_path, LogisticGraph(), signature, info, reference) is None  # type: ignore[arg-type]
    table.assign(y=None).to_parquet(tmp_path / "test.parquet")
    assert model_calibrator(tmp_path, LogisticGraph(), signature, info, reference) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [np.array([1, 2, 2, np.nan, np.inf, -np.inf, 9], np.float32), np.array([np.nan])])
def test_codes_are_of_the_cells_that_are_counted(values: np.ndarray) -> None:
    for cells in (cells_of(values), cells_of(np.linspace(0, 5, 500)), cells_of(np.array([2.0, 2.0]))):
        codes = CellCounter(cells).codes(values)
        assert tuple(np.bincount(codes, minlength=len(count_cells(cells, values))).tolist()) == count_cells(
            cells, values
        )
    texts = np.array(["a", "b", "", "c", "a"], object)
    cells = cells_of(np.array(["a", "b"], object))
    assert tuple(np.bincount(CellCounter(cells).codes(texts), minlength=len(cells.names)).tolist()) == count_cells(
        cells, texts
    )
