"""The reference of a bundle: from the stages' tables to ``evidence/monitor.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.errors import DataError, StoreError
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.stages.monitor_evidence import model_reference, outlier_model
from tests.support import ROOT
from tests.support.golden import Golden


def signature(datatype: str = "FP32") -> Signature:
    numeric = TensorSpec.model_validate(
        {"name": "numeric", "datatype": datatype, "shape": (-1, 2), "columns": ("rate", "late")}
    )
    text = TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("country",))
    label = TensorSpec(name="label", datatype="BYTES", shape=(-1,))
    scores = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2))
    return Signature(task="classification", inputs=(numeric, text), outputs=(label, scores), classes=("good", "bad"))


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rate = pd.Series(np.round(rng.uniform(5, 30, rows), 2)).where(rng.random(rows) > 0.1)
    country = rng.choice(["DE", "FR", "NL", None], rows, p=[0.6, 0.3, 0.05, 0.05])
    day = pd.date_range("2024-01-01", periods=rows, freq="h")[rng.permutation(rows)]
    return pd.DataFrame({"rate": rate, "late": rng.random(rows) < 0.2, "country": country, "day": day})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of a data stage (600 training and 300 test rows) and of an evaluate stage."""
    data, evaluated = tmp_path / "data", tmp_path / "evaluate"
    data.mkdir()
    evaluated.mkdir()
    table(600, 1).to_parquet(data / "train.parquet")
    table(300, 2).to_parquet(data / "test.parquet")
    scores = np.random.default_rng(5).beta(1, 4, 300).astype(np.float32).astype(np.float64)
    label = np.where(scores > 0.5, "bad", "good")
    outputs = {"target": label, "prediction": label, "score:good": 1 - scores, "score:bad": scores}
    pd.DataFrame(outputs).to_parquet(evaluated / "predictions.parquet")
    falls = {"rate": 0.03, "country": 0.01, "late": -0.002}
    importance = {"metric": "roc_auc", "columns": [{"column": name, "fall": fall} for name, fall in falls.items()]}
    (evaluated / "evaluation.json").write_text(json.dumps({"importance": importance}))
    return data, evaluated


def test_the_reference_of_a_model(folders: tuple[Path, Path], golden: Golden) -> None:
    reference = model_reference(*folders, signature(), time_column="day", segments=("country",))
    document = json.dumps(reference.to_json(), indent=1, allow_nan=False)
    golden("monitor_reference.json", document + "\n")
    assert Reference.from_json(json.loads(document)) == reference
    again = model_reference(*folders, signature(), time_column="day", segments=("country",))
    assert json.dumps(again.to_json(), indent=1) == document


def test_features_are_of_training_rows_and_outputs_of_test_rows(folders: tuple[Path, Path]) -> None:
    reference = model_reference(*folders, signature(), time_column="day", segments=("country",))
    assert list(reference.columns) == ["rate", "late", "country", "output.label", "output.score"]
    rows = {name: column.rows for name, column in reference.columns.items()}
    assert rows == {"rate": 600, "late": 600, "country": 600, "output.label": 300, "output.score": 300}
    importance = {name: column.importance for name, column in reference.columns.items()}
    assert importance == {"rate": 0.75, "late": 0.0, "country": 0.25, "output.label": None, "output.score": None}
    for column in reference.columns.values():
        assert np.array(column.parts).sum(axis=0).tolist() == list(column.counts)
    train = pd.read_parquet(folders[0] / "train.parquet")
    assert list(reference.segments) == ["country=DE", "country=FR", "country=NL"]
    assert sum(reference.segments["country=DE"]["rate"]) == (train["country"] == "DE").sum()
    assert sum(reference.segments["country=DE"]["output.score"]) < 300


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_its_own_rows_are_not_apart_from_it_in_the_type_of_the_graph(folders: tuple[Path, Path], datatype: str) -> None:
    from mlflowkit.features.cell_counts import count_cells

    reference = model_reference(*folders, signature(datatype))
    inputs = inputs_from_table(signature(datatype), pd.read_parquet(folders[0] / "train.parquet"))
    assert inputs["numeric"].dtype == {"FP32": np.float32, "FP64": np.float64}[datatype]
    for index, name in enumerate(("rate", "late")):
        column = reference.columns[name]
        assert count_cells(column.cells, inputs["numeric"][:, index]) == column.counts
    assert not any(column.parts for column in reference.columns.values())


def test_no_training_rows_and_no_importance_are_no_error(folders: tuple[Path, Path]) -> None:
    table(600, 1).head(0).to_parquet(folders[0] / "train.parquet")
    (folders[1] / "evaluation.json").write_text(json.dumps({"importance": None}))
    reference = model_reference(*folders, signature(), time_column="day", segments=("country",))
    assert reference.columns["rate"].rows == 0
    assert reference.columns["rate"].importance is None
    assert reference.segments == {}


def test_what_is_wrong_is_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"monitor\.segments names 'nation'"):
        model_reference(*folders, signature(), segments=("nation",))
    (folders[1] / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"predictions\.parquet cannot be read") as raised:
        model_reference(*folders, signature())
    assert raised.value.hint == "mlkit run RECIPE --force evaluate"


def test_segments_and_time_column_come_from_the_recipe() -> None:
    from mlflowkit import api
    from mlflowkit.recipe.schema import stage_specs

    overrides = ["+monitor.segments=[home_ownership]", "data.split={kind: time, column: day}"]
    overrides += ["+monitor.outliers={kind: isolation_forest, max_share: 0.02}"]
    specs = stage_specs(api.load(ROOT / "recipes" / "lending.yaml", overrides).loaded.recipe)
    package = specs["package"].model_dump()
    assert (package["segments"], package["time_column"]) == (("home_ownership",), "day")
    assert package["outliers"] == 0.02


def test_an_outlier_model_is_fitted_on_training_rows_and_counts_test_rows(folders: tuple[Path, Path]) -> None:
    reference = model_reference(*folders, signature())
    forest, column = outlier_model(folders[0], signature(), reference, 0.02)
    assert forest.columns == ("rate", "late", "country")
    assert column.rows == 300
    assert column.counts[1] <= 20
    train = inputs_from_table(signature(), pd.read_parquet(folders[0] / "train.parquet"))
    columns = {name: train["numeric"][:, index] for index, name in enumerate(("rate", "late"))}
    flagged = forest.outliers({**columns, "country": train["categorical"][:, 0]})
    assert flagged.mean() == pytest.approx(0.02, abs=0.01)
    table(600, 1).head(50).to_parquet(folders[0] / "train.parquet")
    with pytest.raises(DataError, match="50 training rows are too few"):
        outlier_model(folders[0], signature(), reference, 0.02)
