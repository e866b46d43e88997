"""Run a graph on many rows, a chunk at a time, and pair its predictions with the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError, EngineError
from mlflowkit.features.tensors import class_codes
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.ports import Session

CHUNK = 4096
"""Rows per call of the graph."""


def predict_rows(
    session: Session, signature: Signature, inputs: Callable[[slice], Mapping[str, np.ndarray]], actual: np.ndarray
) -> LabelledPredictions:
    """The graph's predictions on all rows, with their labels.

    ``inputs`` returns the graph's inputs for a slice of the rows; ``actual`` holds class codes int64 [rows] in the
    order of ``signature.classes``, or values float64 [rows]. Raises DataError when there are no rows or a label is not
    a class, EngineError when the graph lacks an output.
    """
    rows = len(actual)
    if not rows:
        raise DataError("there are no rows to predict", hint="enlarge data.split")
    chunks = [session.run(inputs(slice(start, start + CHUNK))) for start in range(0, rows, CHUNK)]
    outputs = {name: np.concatenate([np.asarray(chunk[name]) for chunk in chunks]) for name in chunks[0]}
    return to_labelled_predictions(outputs, signature, actual)


def to_labelled_predictions(
    outputs: Mapping[str, np.ndarray], signature: Signature, actual: np.ndarray
) -> LabelledPredictions:
    """Pair the graph's outputs on all rows with their labels; see `predict_rows`. Raises EngineError."""
    missing = [tensor.name for tensor in signature.outputs if tensor.name not in outputs]
    if missing:
        raise EngineError(f"the graph has no output {', '.join(missing)}", hint="mlkit run RECIPE --force export")
    if signature.task == "regression":
        return LabelledPredictions("regression", actual, outputs["prediction"].astype(np.float64).reshape(-1))
    predicted = class_codes(pd.Series(outputs["label"].reshape(-1), name="label"), signature.classes)
    return LabelledPredictions("classification", actual, predicted, outputs["probabilities"].astype(np.float64))
