"""From what the train stage wrote to one ONNX graph that takes raw columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflowkit.bundle import Signature, Tensor
from mlflowkit.errors import EngineError
from mlflowkit.features.preprocess import load_preprocess, load_sklearn, transform


@dataclass(frozen=True, slots=True)
class Trained:
    """What spec.json says of a trained model. Targets of a regression were ``(value - mean) / scale``."""

    folder: Path
    kind: Literal["torch", "sklearn", "onnx"]
    task: Literal["classification", "regression"]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    classes: tuple[str | int, ...]
    width: int
    mean: float = 0.0
    scale: float = 1.0


class OnnxExporter:
    """Converts with ONNX operators (preprocessing), torch (networks) and skl2onnx (estimators)."""

    def export(self, trained: Path, folder: Path, out: Path) -> None:
        """Write ``model.onnx`` and ``signature.json`` into ``out``; the same bytes for the same model.

        Raises EngineError when a part of the model has no ONNX form.
        """
        from mlflowkit.adapters.onnx_exporter import external_model, graph_parts

        model = read_trained(trained)
        signature = signature_of(model)
        values = [[_value_info(tensor) for tensor in side] for side in (signature.inputs, signature.outputs)]
        if model.kind == "onnx":
            content = external_model.wrap(external_model.read(trained), *values)
        else:
            network = _network(model, folder) if model.kind == "torch" else _estimator(model)
            pieces = [graph_parts.preprocessing(load_preprocess(trained)), network]
            content = graph_parts.assemble("mlflowkit", pieces, *values, width=model.width)
        (out / "model.onnx").write_bytes(content)
        (out / "signature.json").write_text(signature.model_dump_json(indent=1))

    def predict(self, trained: Path, folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers of the Python model, or of the graph that was brought, under the bundle's names and types."""
        model = read_trained(trained)
        if model.kind == "onnx":
            from mlflowkit.adapters.onnx_exporter import external_model

            return external_model.ask(external_model.read(trained), inputs)
        features = transform(load_preprocess(trained), inputs)
        if model.kind == "torch":
            return _network_answers(model, folder, features)
        return _estimator_answers(model, features)


def read_trained(trained: Path) -> Trained:
    """Read spec.json of the train stage's folder."""
    info = json.loads((trained / "spec.json").read_text())
    target = info.get("target_scale") or {}
    return Trained(
        folder=trained,
        kind=info["spec"]["model"]["kind"],
        task=info["spec"]["task"],
        numeric=tuple(info["features"]["numeric"]),
        categorical=tuple(info["features"]["categorical"]),
        classes=tuple(info["classes"]),
        width=info["width"],
        mean=float(target.get("mean", 0.0)),
        scale=float(target.get("scale", 1.0)),
    )


def signature_of(model: Trained) -> Signature:
    """Inputs and outputs of the graph of ``model``."""
    inputs = [
        Tensor(name=name, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for name, datatype, columns in (("numeric", "FP32", model.numeric), ("categorical", "BYTES", model.categorical))
        if columns
    ]
    if model.task == "regression":
        outputs = [Tensor(name="prediction", datatype="FP32", shape=(-1,))]
    else:
        label: Literal["BYTES", "INT64"] = "BYTES" if isinstance(model.classes[0], str) else "INT64"
        outputs = [
            Tensor(name="label", datatype=label, shape=(-1,)),
            Tensor(name="probabilities", datatype="FP32", shape=(-1, len(model.classes))),
        ]
    return Signature(task=model.task, inputs=tuple(inputs), outputs=tuple(outputs), classes=model.classes)


def _value_info(tensor: Tensor) -> Any:
    from onnx import TensorProto, helper

    kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}
    shape = ["rows" if size == -1 else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, kinds[tensor.datatype], shape)


def _network(model: Trained, folder: Path) -> Any:
    from mlflowkit.adapters.onnx_exporter import graph_parts
    from mlflowkit.models import load_trained

    piece = graph_parts.network(load_trained(model.folder, folder), model.width)
    if model.task == "classification":
        graph_parts.class_answers(piece, model.classes, scores="network/scores")
    else:
        graph_parts.value_answers(piece, "network/scores", model.mean, model.scale)
    return piece


def _estimator(model: Trained) -> Any:
    from mlflowkit.adapters.onnx_exporter import graph_parts

    fitted = load_sklearn(model.folder / "model.skops")
    _check_estimator(model, fitted)
    piece = graph_parts.estimator(fitted, model.width)
    if model.task == "classification":
        piece.add("Identity", ["network/probabilities"], "probabilities")
        graph_parts.class_answers(piece, model.classes, codes="network/label")
    else:
        graph_parts.value_answers(piece, "network/variable", model.mean, model.scale)
    return piece


def _check_estimator(model: Trained, fitted: Any) -> None:
    if model.task == "regression":
        return
    if not hasattr(fitted, "predict_proba"):
        raise EngineError(
            f"{type(fitted).__name__} gives no probabilities",
            hint="choose an estimator with predict_proba under model.module",
        )
    if len(fitted.classes_) != len(model.classes):
        raise EngineError(
            f"{type(fitted).__name__} was fitted on {len(fitted.classes_)} of {len(model.classes)} classes",
            hint="a class has no training row: use a stratified split or drop the class",
        )


def _network_answers(model: Trained, folder: Path, features: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    from mlflowkit.models import load_trained

    with torch.inference_mode():
        scores = load_trained(model.folder, folder)(torch.from_numpy(features))
    if model.task == "regression":
        return {"prediction": (scores.numpy().ravel() * model.scale + model.mean).astype(np.float32)}
    return {
        "label": _labels(model, scores.argmax(dim=1).numpy()),
        "probabilities": scores.softmax(dim=1).numpy(),
    }


def _estimator_answers(model: Trained, features: np.ndarray) -> dict[str, np.ndarray]:
    fitted = load_sklearn(model.folder / "model.skops")
    if model.task == "regression":
        return {"prediction": (fitted.predict(features).ravel() * model.scale + model.mean).astype(np.float32)}
    return {
        "label": _labels(model, fitted.predict(features).astype(np.int64)),
        "probabilities": fitted.predict_proba(features).astype(np.float32),
    }


def _labels(model: Trained, codes: np.ndarray) -> np.ndarray:
    dtype = object if isinstance(model.classes[0], str) else np.int64
    labels: np.ndarray = np.array(model.classes, dtype=dtype)[codes]
    return labels
