"""What is known of a model's own errors when it is packaged: ``evidence/calibrator.json``.

From the validation and test rows, which the model was not fitted to, as the exported graph answers them: of a binary
classification the calibrator of its score, of a regression the table of its error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bundle import Signature
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.stages.base import TableInfo
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlflowkit.judging.metrics import LabelledPredictions
    from mlflowkit.ports import Session

MAX_ROWS = 100_000
"""Rows of each part that are used; of more, evenly spaced ones are taken."""
PARTS = ("validation", "test")


def model_calibrator(
    data: Path, session: Session, signature: Signature, info: TableInfo, reference: Reference, time_column: str = ""
) -> Json | None:
    """The content of ``evidence/calibrator.json``; None where the rows allow none.

    There is none of a task with more than two classes, of fewer than ten rows of a class (a hundred rows of a
    regression), and where a target is missing or the model answers NaN. Raises EngineError when the graph does not
    answer and StoreError when a part cannot be read.
    """
    if signature.task == "classification" and len(signature.classes) != 2:
        return None
    table = _rows(data, signature, info, time_column)
    predicted = _predict(session, signature, info, table)
    if predicted is None:
        return None
    if signature.task == "regression":
        return _error_table(predicted, signature, reference, table)
    return _calibrator(predicted, reference, _times(table, time_column))


def _rows(data: Path, signature: Signature, info: TableInfo, time_column: str) -> pd.DataFrame:
    import pandas as pd

    from mlflowkit.stages.monitor_evidence import read_columns

    names = [name for tensor in signature.inputs for name in tensor.columns]
    wanted = dict.fromkeys([*names, info.target, *([time_column] if time_column else [])])
    tables = [read_columns(data / f"{part}.parquet", list(wanted)) for part in PARTS]
    return pd.concat([table.iloc[:: -(-len(table) // MAX_ROWS) or 1] for table in tables], ignore_index=True)


def _predict(
    session: Session, signature: Signature, info: TableInfo, table: pd.DataFrame
) -> LabelledPredictions | None:
    """The graph's answers with their targets; None where one of them is missing or no finite number."""
    import numpy as np

    from mlflowkit.features.predictions import predict_rows
    from mlflowkit.features.tensors import class_codes, inputs_from_table
    from mlflowkit.judging import metrics

    target = table[info.target]
    if not len(table) or target.isna().any():
        return None
    if signature.task == "classification":
        actual = class_codes(target, signature.classes)
    else:
        actual = target.to_numpy(dtype=np.float64, na_value=np.nan)
    predicted = predict_rows(session, signature, lambda rows: inputs_from_table(signature, table.iloc[rows]), actual)
    unusable = metrics.unusable_reason(predicted) or not np.isfinite(actual).all()
    return None if unusable else predicted


def _times(table: pd.DataFrame, time_column: str) -> np.ndarray | None:
    if not time_column:
        return None
    import pyarrow as pa

    from mlflowkit.stages import tabular

    column = pa.chunked_array([pa.Array.from_pandas(table[time_column])])
    return tabular.sortable_times(column, time_column)


def _calibrator(predicted: LabelledPredictions, reference: Reference, times: np.ndarray | None) -> Json | None:
    import numpy as np

    from mlflowkit.features.cell_counts import CellCounter
    from mlflowkit.judging.performance.calibrator import fit_calibrator

    scores = predicted.class_scores[:, -1].astype(np.float32)
    column = reference.columns.get("output.score")
    cells = None if column is None else column.cells
    codes = None if cells is None else CellCounter(cells).codes(scores)
    labels = predicted.predicted.astype(np.int64), predicted.actual.astype(np.int64)
    fitted = fit_calibrator(scores.astype(np.float64), *labels, cells, codes, times)
    return None if fitted is None else fitted.to_json()


def _error_table(
    predicted: LabelledPredictions, signature: Signature, reference: Reference, table: pd.DataFrame
) -> Json | None:
    import numpy as np

    from mlflowkit.features.cell_counts import CellCounter
    from mlflowkit.features.tensors import categorical_matrix, numeric_matrix
    from mlflowkit.judging.performance.error_table import fit_error_table

    codes: dict[str, np.ndarray] = {}
    wide = any(tensor.datatype == "FP64" for tensor in signature.outputs)
    values = {"output.prediction": predicted.predicted.astype(np.float64 if wide else np.float32)}
    for tensor in signature.inputs:
        for name in tensor.columns:
            if tensor.datatype == "BYTES":
                values[name] = categorical_matrix(table, [name])[:, 0]
            else:
                dtype = np.float64 if tensor.datatype == "FP64" else np.float32
                values[name] = numeric_matrix(table, [name], dtype)[:, 0]
    sizes: dict[str, int] = {}
    for name, column in values.items():
        if name in reference.columns:
            cells = reference.columns[name].cells
            codes[name], sizes[name] = CellCounter(cells).codes(column), len(cells.names)
    fitted = fit_error_table(codes, sizes, np.abs(predicted.actual - predicted.predicted)) if codes else None
    return None if fitted is None else fitted.to_json()
