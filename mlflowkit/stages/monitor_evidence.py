"""The reference of a model, ``evidence/monitor.json`` of its bundle: features on the training rows, outputs on the test
rows as the exported graph answered them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError, StoreError
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.system.text import format_list, parse_json
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlflowkit.features.outlier_forest import OutlierForest

SEGMENT_VALUES = 8
"""Values of a column that are a segment each, the most frequent of the training rows."""
DATE_CELLS = Cells("number", edges=(-62_135_596_800.0, 253_402_300_800.0))
"""One cell for all dates: they move on by themselves, and what is judged is how many are missing."""
TEXT_CELLS = Cells("text", complete=False)
"""One cell for all free texts, which are seldom twice the same: what is judged is how many are missing."""
MIN_OUTLIER_ROWS = 200
"""Training rows from which an outlier model is fitted."""
T = TypeVar("T")


def model_reference(
    data: Path, evaluated: Path, signature: Signature, *, time_column: str = "", segments: Sequence[str] = ()
) -> Reference:
    """The reference of a model from the folders of the data and evaluate stages.

    ``time_column`` orders the rows where they were split by time; ``segments`` are columns whose most frequent values
    are counted apart. Raises StoreError when a file cannot be read, and DataError for a segment that is not a column.
    """
    shares = importance_shares(_read_json(evaluated / "evaluation.json").get("importance"))
    train, test = data / "train.parquet", data / "test.parquet"
    names = _segment_values(train, segments)
    columns: dict[str, ColumnReference] = {}
    counts: dict[str, dict[str, tuple[int, ...]]] = {}
    features = {name: tensor.datatype for tensor in signature.inputs for name in tensor.columns}
    outputs = output_columns(evaluated / "predictions.parquet", signature)
    for part, present in ((train, tuple(features)), (test, tuple(outputs))):
        parts, rows = _time_parts(part, time_column), _segment_rows(part, names)
        for name in present:
            values = outputs[name] if part is test else feature_values(part, name, features[name])
            cells = _fixed_cells(name, signature)
            columns[name] = _column(name, values, parts, shares, cells)
            _add_segments(counts, columns[name], name, values, rows)
    return Reference(columns, counts)


def outlier_model(
    data: Path, signature: Signature, reference: Reference, share: float
) -> tuple[OutlierForest, ColumnReference]:
    """An isolation forest of the training rows that calls ``share`` of them outliers, and its counts of the test rows.

    Raises DataError where there are no training rows.
    """
    import numpy as np

    from mlflowkit.features import outlier_forest
    from mlflowkit.features.cell_counts import count_cells

    features = {
        name: tensor.datatype
        for tensor in signature.inputs
        for name in tensor.columns
        if _fixed_cells(name, signature) is None  # later rows are later, and no outliers for it
    }
    train = {name: feature_values(data / "train.parquet", name, datatype) for name, datatype in features.items()}
    rows = max(map(len, train.values()), default=0)
    if rows < MIN_OUTLIER_ROWS:
        message = f"{rows} training rows are too few for monitor.outliers, which needs {MIN_OUTLIER_ROWS}"
        raise DataError(message, hint="leave monitor.outliers out")
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[: outlier_forest.FIT_ROWS])
    sample = {name: values[chosen] for name, values in train.items()}
    forest = outlier_forest.fit_forest(sample, reference.columns, share)
    test = {name: feature_values(data / "test.parquet", name, datatype) for name, datatype in features.items()}
    labels = np.array(outlier_forest.CELLS.values, dtype=object)[forest.outliers(test).astype(np.int64)]
    return forest, ColumnReference(outlier_forest.CELLS, count_cells(outlier_forest.CELLS, labels))


def importance_shares(importance: Json) -> dict[str, float]:
    """Each column's share of the summed falls of the metric; {} where importance was not measured.

    >>> importance_shares({"columns": [{"column": "a", "fall": 0.3}, {"column": "b", "fall": -0.01}]})
    {'a': 1.0, 'b': 0.0}
    """
    falls = {item["column"]: max(float(item["fall"]), 0.0) for item in (importance or {}).get("columns", ())}
    total = sum(falls.values())
    return {name: round(fall / total, 6) if total else 0.0 for name, fall in falls.items()}


def feature_values(part: Path, name: str, datatype: str) -> np.ndarray:
    """One column of a part as the graph takes it: float32, float64, or texts. Raises StoreError and DataError."""
    import numpy as np

    from mlflowkit.features.tensors import categorical_matrix, numeric_matrix

    table = read_columns(part, [name])
    if datatype == "BYTES":
        return categorical_matrix(table, [name])[:, 0]
    return numeric_matrix(table, [name], np.float64 if datatype == "FP64" else np.float32)[:, 0]


def output_columns(predictions: Path, signature: Signature) -> dict[str, np.ndarray]:
    """The outputs that are monitored, by name, from the evaluate stage's ``predictions.parquet``."""
    from mlflowkit.features.tensors import categorical_matrix, numeric_matrix

    binary = len(signature.classes) == 2
    score = f"score:{signature.classes[-1]}" if binary else ""
    table = read_columns(predictions, ["prediction", *([score] if binary else [])])
    if signature.task == "regression":
        wide = any(tensor.datatype == "FP64" for tensor in signature.outputs)
        return {"output.prediction": numeric_matrix(table, ["prediction"], "f8" if wide else "f4")[:, 0]}
    columns = {"output.label": categorical_matrix(table, ["prediction"])[:, 0]}
    return columns | ({"output.score": numeric_matrix(table, [score])[:, 0]} if binary else {})


def _fixed_cells(name: str, signature: Signature) -> Cells | None:
    """The cells of columns of which only missing values are judged; None for others."""
    if name in signature.texts.dates:
        return DATE_CELLS
    return TEXT_CELLS if name in signature.texts.tokens else None


def _column(
    name: str, values: np.ndarray, parts: Sequence[np.ndarray], shares: Mapping[str, float], cells: Cells | None
) -> ColumnReference:
    from mlflowkit.features.reference_cells import column_reference

    tail = name == "output.score"
    return column_reference(values, parts=parts, importance=shares.get(name), tail=tail, cells=cells)


def _add_segments(
    counts: dict[str, dict[str, tuple[int, ...]]],
    column: ColumnReference,
    name: str,
    values: np.ndarray,
    rows: Mapping[str, np.ndarray],
) -> None:
    from mlflowkit.features.reference_cells import segment_counts

    for segment, counted in segment_counts(column.cells, values, rows).items():
        counts.setdefault(segment, {})[name] = counted


def _time_parts(part: Path, time_column: str) -> list[np.ndarray]:
    from mlflowkit.features.reference_cells import time_parts_of
    from mlflowkit.stages import tabular

    if not time_column:
        return []
    import pyarrow.parquet as pq

    column = _reading(part, lambda: pq.read_table(part, columns=[time_column]).column(0))
    return time_parts_of(tabular.sortable_times(column, time_column))


def _segment_values(train: Path, segments: Sequence[str]) -> dict[str, list[str]]:
    """The values of each segment column, the most frequent first."""
    from collections import Counter

    return {
        name: sorted(count, key=lambda text: (-count[text], text))[:SEGMENT_VALUES]
        for name in segments
        for count in [Counter(text for text in _segment_column(train, name).tolist() if text)]
    }


def _segment_rows(part: Path, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    import numpy as np

    rows: dict[str, np.ndarray] = {}
    for name, values in names.items():
        column = _segment_column(part, name)
        rows |= {f"{name}={value}": np.flatnonzero(column == value) for value in values}
    return rows


def _segment_column(part: Path, name: str) -> np.ndarray:
    import pyarrow.parquet as pq

    present = _reading(part, lambda: pq.read_schema(part).names)
    if name not in present:
        message = f"monitor.segments names {name!r}, which is not a column of the table"
        raise DataError(message, hint=f"it has {format_list(present, 12)}")
    return feature_values(part, name, "BYTES")


def read_columns(part: Path, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return _reading(part, lambda: pd.read_parquet(part, columns=list(columns)))


def _reading(part: Path, read: Callable[[], T]) -> T:
    import pyarrow as pa

    try:
        return read()
    except (OSError, ValueError, pa.ArrowException) as error:
        stage = "evaluate" if part.name == "predictions.parquet" else "data"
        raise StoreError(f"{part} cannot be read: {error}", hint=f"mlkit run RECIPE --force {stage}") from error


def _read_json(path: Path) -> Json:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="mlkit run RECIPE --force evaluate") from error
