"""Exports a trained model to one ONNX graph that takes raw columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_exporter import external_model, graph_parts
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.errors import EngineError
from mlflowkit.features.preprocess import load_preprocess, load_sklearn, transform


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The contents of a train folder's spec.json. Regression targets were scaled as ``(value - mean) / scale``."""

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
        model = read_trained(trained)
        signature = signature_of(model)
        values = [[_value_info(tensor) for tensor in side] for side in (signature.inputs, signature.outputs)]
        if model.kind == "onnx":
            content = external_model.wrap_external(external_model.read_external(trained), *values)
        else:
            network = _network_part(model, folder) if model.kind == "torch" else _estimator_part(model)
            parts = [graph_parts.preprocessing(load_preprocess(trained)), network]
            content = graph_parts.assemble("mlflowkit", parts, *values, width=model.width)
        (out / "model.onnx").write_bytes(content)
        (out / "signature.json").write_text(signature.model_dump_json(indent=1))

    def predict(self, trained: Path, folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predictions of the Python model or the external graph, under the bundle's names and types."""
        model = read_trained(trained)
        if model.kind == "onnx":
            return external_model.predict_external(external_model.read_external(trained), inputs)
        features = transform(load_preprocess(trained), inputs)
        classify = model.task == "classification"
        if model.kind == "torch":
            import torch

            from mlflowkit.models import load_trained

            with torch.inference_mode():
                scores = load_trained(trained, folder)(torch.from_numpy(features))
            values = (scores.argmax(dim=1) if classify else scores).numpy()
            probabilities = scores.softmax(dim=1).numpy()
        else:
            fitted = load_sklearn(trained / "model.skops")
            values = fitted.predict(features)
            probabilities = fitted.predict_proba(features).astype(np.float32) if classify else None
        if not classify:
            return {"prediction": (values.ravel() * model.scale + model.mean).astype(np.float32)}
        dtype = object if isinstance(model.classes[0], str) else np.int64
        labels = np.array(model.classes, dtype=dtype)[values.astype(np.int64)]
        return {"label": labels, "probabilities": probabilities}


def read_trained(trained: Path) -> TrainedModel:
    """Read a train folder's spec.json."""
    info = json.loads((trained / "spec.json").read_text())
    target = info.get("target_scale") or {}
    return TrainedModel(
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


def signature_of(model: TrainedModel) -> Signature:
    """Inputs and outputs of the exported graph."""
    inputs = [
        TensorSpec(name=name, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for name, datatype, columns in (("numeric", "FP32", model.numeric), ("categorical", "BYTES", model.categorical))
        if columns
    ]
    if model.task == "regression":
        outputs = [TensorSpec(name="prediction", datatype="FP32", shape=(-1,))]
    else:
        label: Literal["BYTES", "INT64"] = "BYTES" if isinstance(model.classes[0], str) else "INT64"
        outputs = [
            TensorSpec(name="label", datatype=label, shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(model.classes))),
        ]
    return Signature(task=model.task, inputs=tuple(inputs), outputs=tuple(outputs), classes=model.classes)


def _value_info(tensor: TensorSpec) -> Any:
    kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}
    shape = ["rows" if size == -1 else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, kinds[tensor.datatype], shape)


def _network_part(model: TrainedModel, folder: Path) -> Any:
    from mlflowkit.models import load_trained

    part = graph_parts.network(load_trained(model.folder, folder), model.width)
    if model.task == "classification":
        graph_parts.add_class_outputs(part, model.classes, scores="network/scores")
    else:
        graph_parts.add_value_output(part, "network/scores", model.mean, model.scale)
    return part


def _estimator_part(model: TrainedModel) -> Any:
    fitted = load_sklearn(model.folder / "model.skops")
    if model.task == "regression":
        part = graph_parts.estimator(fitted, model.width)
        graph_parts.add_value_output(part, "network/variable", model.mean, model.scale)
        return part
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
    part = graph_parts.estimator(fitted, model.width)
    part.add("Identity", ["network/probabilities"], "probabilities")
    graph_parts.add_class_outputs(part, model.classes, codes="network/label")
    return part
