"""Exports a trained model to one ONNX graph that takes raw columns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_exporter import (
    external_model,
    graph_parts,
    preprocessing_graph,
    reference_models,
    sklearn_remedies,
    torch_trace,
)
from mlflowkit.adapters.onnx_exporter.trained_model import TrainedModel, read_trained
from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.errors import EngineError
from mlflowkit.features import row_digests
from mlflowkit.features.preprocess import load_preprocess, load_sklearn
from mlflowkit.ports import ReferenceModel

ELEMENTS = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT64": TensorProto.INT64,
    "BYTES": TensorProto.STRING,
}
"""The ONNX type of each datatype of a signature."""


class OnnxExporter:
    """Converts with ONNX operators (preprocessing), torch (networks) and skl2onnx (estimators)."""

    def export(self, trained: Path, folder: Path, out: Path) -> None:
        """Write ``model.onnx`` and ``signature.json`` into ``out``; the same bytes for the same model. The digests of
        the rows that a bundle was trained on go with it.

        Raises EngineError when a part of the model has no ONNX form.
        """
        model = read_trained(trained)
        signature = signature_of(model)
        values = [[_value_info(tensor) for tensor in side] for side in (signature.inputs, signature.outputs)]
        if model.kind == "onnx":
            content = external_model.wrap_external(external_model.read_external(trained), *values)
        else:
            before = preprocessing_graph.preprocessing(load_preprocess(trained))
            opset = before.opsets[""]
            network = _network_part(model, folder, opset) if model.kind == "torch" else _estimator_part(model, opset)
            content = graph_parts.assemble("mlflowkit", [before, network], *values, width=model.width)
        (out / "model.onnx").write_bytes(content)
        (out / "signature.json").write_text(signature.model_dump_json(indent=1))
        if (trained / row_digests.FILE).exists():
            shutil.copyfile(trained / row_digests.FILE, out / row_digests.FILE)

    def reference(self, trained: Path, folder: Path) -> ReferenceModel:
        """The Python model or the external graph, with its outputs under the bundle's names and types."""
        model = read_trained(trained)
        if model.kind == "onnx":
            return reference_models.ExternalReference(trained)
        kind = reference_models.TorchReference if model.kind == "torch" else reference_models.SklearnReference
        return kind(model, folder)


def signature_of(model: TrainedModel) -> Signature:
    """Inputs and outputs of the exported graph."""
    number: Literal["FP32", "FP64"] = "FP64" if model.double_inputs else "FP32"
    inputs = [
        TensorSpec(name=name, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for name, datatype, columns in (
            ("numeric", number, model.numeric),
            ("dates", "FP64", model.dates),
            ("categorical", "BYTES", model.categorical),
        )
        if columns
    ]
    if model.task == "regression":
        outputs = [TensorSpec(name="prediction", datatype="FP64" if model.double_target else "FP32", shape=(-1,))]
    else:
        label: Literal["BYTES", "INT64"] = "BYTES" if isinstance(model.classes[0], str) else "INT64"
        outputs = [
            TensorSpec(name="label", datatype=label, shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(model.classes))),
        ]
    texts = TextRule(tokens=dict(model.tokens))
    return Signature(task=model.task, inputs=tuple(inputs), outputs=tuple(outputs), classes=model.classes, texts=texts)


def _value_info(tensor: TensorSpec) -> Any:
    shape = ["rows" if size == -1 else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, ELEMENTS[tensor.datatype], shape)


def _network_part(model: TrainedModel, folder: Path, opset: int) -> Any:
    from mlflowkit.models import load_trained

    traced = torch_trace.convert(load_trained(model.folder, folder), model.width, folder)
    part = graph_parts.part_from_model(traced, opset)
    if model.task == "classification":
        graph_parts.add_class_outputs(part, model.classes, scores="network/scores")
    else:
        graph_parts.add_value_output(part, "network/scores", model.mean, model.scale, double=model.double_target)
    return part


def _estimator_part(model: TrainedModel, opset: int) -> Any:
    fitted = load_sklearn(model.folder / "model.skops")
    remedy = sklearn_remedies.remedy(type(fitted).__name__, model.task, len(model.classes))
    if model.task == "regression":
        part = graph_parts.estimator(fitted, model.width, remedy, opset)
        graph_parts.add_value_output(part, "network/variable", model.mean, model.scale, double=model.double_target)
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
    part = graph_parts.estimator(fitted, model.width, remedy, opset)
    part.add("Identity", ["network/probabilities"], "probabilities")
    graph_parts.add_class_outputs(part, model.classes, codes="network/label")
    return part
