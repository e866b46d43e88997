"""What predicts a batch of rows: a bundle's graph in this process, or a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from mlflowkit.bundle import Bundle, Signature
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.ports import Runtime

SERVICE_ROWS = 1000
"""Rows of one request to a service."""


class Predictor(Protocol):
    """Predicts the rows of a frame of feature columns (see `conversion.feature_frame`)."""

    signature: Signature
    version: str

    def predict(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """``label`` [rows] and ``probabilities`` [rows, classes], or ``prediction`` [rows]."""


class GraphPredictor:
    """The graph of a verified bundle, on the engine that it names."""

    def __init__(self, bundle: Bundle, runtime: Runtime, threads: int = 1) -> None:
        self.signature = bundle.signature
        self.version = bundle.manifest.version
        self._session = runtime.load(bundle.model, threads=threads, engine=bundle.engine)
        if not all(tensor.columns for tensor in self.signature.inputs):
            raise UsageError(
                f"{bundle.path}: the inputs of this model are tensors without column names",
                hint="send tensors to a service: POST /v2/models/NAME/infer",
            )

    def predict(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        outputs = self._session.run(inputs_from_table(self.signature, frame))
        return {tensor.name: np.asarray(outputs[tensor.name]) for tensor in self.signature.outputs}


class ServicePredictor:
    """A service, asked through ``POST /predict``.

    ``send(method, path, body)`` returns (status, document) and raises for an unreachable service.
    """

    def __init__(self, url: str, send: Callable[[str, str, Any], tuple[int, Any]]) -> None:
        self._url, self._send = url, send
        models = self._get("/v2").get("models")
        if not models:
            raise ServiceError(f"{url} does not list its models", hint="mlkit status")
        document = self._get(f"/v2/models/{models[0]}")
        self.signature = _signature_of(document)
        self.version = str(document.get("parameters", {}).get("version", ""))

    def predict(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        predictions: list[Mapping[str, Any]] = []
        for start in range(0, len(frame), SERVICE_ROWS):
            rows = _json_rows(frame.iloc[start : start + SERVICE_ROWS])
            status, reply = self._send("POST", "/predict", {"rows": rows})
            if status != 200:
                raise self._refused(status, reply)
            predictions += reply["predictions"]
            self.version = str(reply["model_version"])
        if self.signature.task == "regression":
            return {"prediction": np.array([item["prediction"] for item in predictions], dtype=np.float64)}
        classes = [str(name) for name in self.signature.classes]
        shares = [[item["probabilities"][name] for name in classes] for item in predictions]
        labels = np.array([item["label"] for item in predictions], dtype=object)
        return {"label": labels, "probabilities": np.array(shares, dtype=np.float64)}

    def _get(self, path: str) -> Any:
        status, reply = self._send("GET", path, None)
        if status != 200 or not isinstance(reply, dict):
            raise self._refused(status, reply)
        return reply

    def _refused(self, status: int, reply: Any) -> ServiceError:
        reason = (
            reply["error"] if isinstance(reply, dict) and "error" in reply else f"HTTP {status}: {str(reply)[:200]}"
        )
        return ServiceError(f"{self._url}: {reason}", hint="mlkit status")


def _signature_of(metadata: Mapping[str, Any]) -> Signature:
    """The signature in a service's model metadata."""
    parameters = metadata.get("parameters", {})

    def tensors(key: str) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": tensor["shape"],
                "columns": tensor.get("parameters", {}).get("columns", ()),
            }
            for tensor in metadata.get(key, ())
        ]

    return Signature.model_validate(
        {
            "task": parameters.get("task"),
            "inputs": tensors("inputs"),
            "outputs": tensors("outputs"),
            "classes": parameters.get("classes", ()),
            **{key: parameters[key] for key in ("texts",) if key in parameters},
        }
    )


def _json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: null for NaN; text stays text."""
    columns = {name: frame[name].tolist() for name in frame.columns}
    cells = [[None if value != value else value for value in values] for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def prediction_table(outputs: Mapping[str, np.ndarray], classes: Sequence[str | int], prefix: str) -> pa.Table:
    """Predictions as columns: ``prediction``, and ``probability_CLASS`` for each class; NaN and infinity are null."""
    if "probabilities" not in outputs:
        columns = {name: array.reshape(len(array), -1)[:, 0] for name, array in outputs.items()}
        return pa.table({f"{prefix}{name}": _array(values) for name, values in columns.items()})
    table = {f"{prefix}prediction": _array(outputs["label"].reshape(-1))}
    for index, name in enumerate(classes):
        table[f"{prefix}probability_{name}"] = _array(outputs["probabilities"][:, index])
    return pa.table(table)


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, mask=~np.isfinite(values))
    return pa.array(values.tolist())
