"""External ONNX graphs: imported as they are (the Trainer of model.kind onnx), and wrapped for a bundle.

Wrapping adds nodes before and after, so that the graph takes the inputs of every bundle (``numeric`` and
``categorical``) and returns its output names. The graph itself changes only in the prefix of its names and, below
opset 17, in its opset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, inliner

from mlflowkit.adapters.onnx_exporter import graph_parts
from mlflowkit.adapters.onnx_exporter.graph_parts import NETWORK, GraphPart
from mlflowkit.errors import DataError, EngineError, UsageError
from mlflowkit.features.preprocess import Table, open_table
from mlflowkit.graphs import imported_graph, onnx_file
from mlflowkit.graphs.imported_graph import ColumnMapping, GraphIO
from mlflowkit.ports import StageContext
from mlflowkit.system.text import first_line

MODEL, BUNDLE_KEYS = "model.onnx", "bundle.json"


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """An imported graph with its column mappings and outputs by role.

    ``score_order`` lists the classes in the order of the graph's scores, ``classes`` in the order of the bundle's.
    """

    path: Path
    task: Literal["classification", "regression"]
    mappings: tuple[ColumnMapping, ...]
    outputs: Mapping[str, GraphIO]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    classes: tuple[str | int, ...]
    score_order: tuple[str | int, ...]
    double_inputs: bool
    double_target: bool

    @property
    def score_indices(self) -> list[int]:
        """The index among the graph's scores of each of the bundle's classes."""
        return [self.score_order.index(label) for label in self.classes]


class OnnxImporter:
    """The Trainer port for external graphs: stores a checked copy with its weights inside."""

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Copy the graph named by a stages.train.Spec; returns the fields of a stages.train.FitResult.

        Raises EngineError for an invalid ONNX file or one the runtime cannot load, UsageError for a graph that cannot
        be a recipe's model, DataError when it does not fit the table.
        """
        section = spec.model
        outputs = section.outputs.model_dump(exclude_none=True) if section.outputs is not None else {}
        keys = GraphKeys(section.inputs, outputs, section.classes)
        return import_graph(context.folder / section.path, spec.task, keys, context)


@dataclass(frozen=True, slots=True)
class GraphKeys:
    """What a recipe says of a graph: columns by input, outputs by role, and the classes in the order of its scores."""

    inputs: Mapping[str, Sequence[str]] | None
    outputs: Mapping[str, str]
    classes: Sequence[str | int] | None


def import_graph(source: Path, task: str, keys: GraphKeys, context: StageContext) -> Mapping[str, Any]:
    """Store a checked copy of a graph; returns the fields of a FitResult. Raises as `OnnxImporter.fit` does."""
    model = onnx_file.load_checked(source)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise EngineError(f"{source} is not valid ONNX: {first_line(error)}", hint="export it again") from error
    graph = imported_graph.read_interface(model)
    for fault in imported_graph.find_incompatibilities(graph, task, keys.inputs, keys.outputs):
        raise UsageError(f"{'.'.join(fault.key)}: {fault.message}", hint=fault.hint)
    table = open_table(context.inputs["data"])
    mappings = imported_graph.map_columns(graph, keys.inputs, table.features.numeric, table.features.categorical)
    _check_missing_values(mappings, table)
    if task == "classification":
        order = imported_graph.class_order(keys.classes, table.classes)
        _check_class_outputs(imported_graph.assign_outputs(graph, task, keys.outputs), order)
    if sum(len(constant.raw_data) for constant in model.graph.initializer) > onnx_file.MAX_FILE_BYTES:
        hint = "a bundle holds one file: halve them (FP16)"
        raise EngineError(f"{source} has more than 2 GB of weights", hint=hint)
    onnx_file.write(model, context.out / MODEL)
    context.ports.runtime.load(context.out / MODEL)  # reports unsupported operators
    return {
        "epochs": 0,
        "best_epoch": 0,
        "metrics": {},
        "curves": {},
        "parameters": sum(int(np.prod(constant.dims)) for constant in model.graph.initializer),
        "features": asdict(table.features),
        "classes": table.classes,
        "width": sum(len(mapping.columns) for mapping in mappings),
        "outputs": len(table.classes) or 1,
        "target_scale": table.target_scale and {**table.target_scale, "mean": 0.0},
    }


def read_external(trained: Path) -> ExternalModel:
    """Read the train stage's folder as written by `OnnxImporter`, or by `bundle_model.BundleImporter`."""
    info = json.loads((trained / "spec.json").read_text())
    section, task, features = info["spec"]["model"], info["spec"]["task"], info["features"]
    if (trained / BUNDLE_KEYS).exists():
        section = json.loads((trained / BUNDLE_KEYS).read_text())
    graph = imported_graph.read_interface(onnx_file.load_checked(trained / MODEL, weights=False))
    outputs = {role: name for role, name in (section["outputs"] or {}).items() if name is not None}
    return ExternalModel(
        path=trained / MODEL,
        task=task,
        mappings=imported_graph.map_columns(graph, section["inputs"], features["numeric"], features["categorical"]),
        outputs=imported_graph.assign_outputs(graph, task, outputs),
        numeric=tuple(features["numeric"]),
        categorical=tuple(features["categorical"]),
        classes=tuple(info["classes"]),
        score_order=imported_graph.class_order(section["classes"], info["classes"]) if info["classes"] else (),
        double_inputs=any(features.get("offsets", ())),
        double_target=bool((info.get("target_scale") or {}).get("double")),
    )


def wrap_external(external: ExternalModel, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
    """One checked model from a bundle's inputs to its outputs. Raises EngineError when it is not valid."""
    model = inliner.inline_local_functions(onnx_file.load_checked(external.path))
    body = graph_parts.part_from_model(model)
    opset = max(graph_parts.OPSET, body.opsets.get("", 0))
    before, after = GraphPart(opsets={"": opset}), GraphPart(opsets={"": opset})
    for mapping in external.mappings:
        _add_input(before, mapping, external)
    if external.task == "regression":
        kind = TensorProto.DOUBLE if external.double_target else TensorProto.FLOAT
        after.add("Cast", [NETWORK + external.outputs["prediction"].name], "answer/value", to=kind)
        after.add("Reshape", ["answer/value", after.constant("answer/shape", [-1], np.int64)], "prediction")
    else:
        _add_probabilities(after, external)
        _add_label(after, external)
    ir_version = max(graph_parts.IR_VERSION, model.ir_version)
    return graph_parts.assemble("mlflowkit", [before, body, after], inputs, outputs, ir_version=ir_version)


def predict_external(external: ExternalModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Predictions of the unwrapped graph, mapped in NumPy: the reference for the wrapped graph's parity."""
    session = onnxruntime.InferenceSession(str(external.path), providers=["CPUExecutionProvider"])
    fed = {mapping.target.name: _select_columns(external, mapping, inputs) for mapping in external.mappings}
    names = {role: output.name for role, output in external.outputs.items()}
    outputs = dict(zip(names, session.run(list(names.values()), fed), strict=True))
    if external.task == "regression":
        dtype = np.float64 if external.double_target else np.float32
        return {"prediction": np.asarray(outputs["prediction"], dtype).reshape(-1)}
    probabilities = _probabilities(external, outputs)
    labels = np.array(external.classes, dtype=object)[probabilities.argmax(axis=1)]
    if "label" in outputs:
        labels = np.asarray(outputs["label"]).reshape(-1)
        if isinstance(external.score_order[0], str) and external.outputs["label"].element != "STRING":
            labels = np.array(external.score_order, dtype=object)[labels.astype(np.int64)]
    kind = object if isinstance(external.classes[0], str) else np.int64
    return {"label": labels.astype(kind), "probabilities": probabilities}


def _check_missing_values(mappings: Sequence[ColumnMapping], table: Table) -> None:
    """Raise DataError when a column with missing values maps to an input that cannot hold them."""
    integers = [mapping for mapping in mappings if mapping.target.element in imported_graph.INTEGERS]
    integer_inputs = {column: mapping.target for mapping in integers for column in mapping.columns}
    columns = list(table.features.numeric)
    for part in ("train", "validation", "test") if integer_inputs else ():
        numeric = table.read(part).inputs["numeric"]
        for column, target in integer_inputs.items():
            missing = int(np.isnan(numeric[:, columns.index(column)]).sum())
            if missing:
                raise DataError(
                    f"column {column!r} has missing values ({missing} in the {part} part), and input {target.name} is "
                    f"{target.element.lower()}: it cannot hold them",
                    hint="fill them at the source, or export the graph with a float input",
                )


def _check_class_outputs(outputs: Mapping[str, GraphIO], order: Sequence[str | int]) -> None:
    scores = outputs.get("probabilities") or outputs["logits"]
    if scores.width is not None and scores.width != len(order) and (scores.width, len(order)) != (1, 2):
        raise DataError(
            f"output {scores.name} has {scores.width} columns, and the target has {len(order)} classes",
            hint="was it trained on other classes? Drop the rows of classes unknown to it",
        )
    label = outputs.get("label")
    if label is not None and label.element == "STRING" and not isinstance(order[0], str):
        raise DataError(
            f"output {label.name} gives text, and the classes of the target are whole numbers",
            hint="write the target as text at the source",
        )


def _add_input(part: GraphPart, mapping: ColumnMapping, external: ExternalModel) -> None:
    """Nodes from ``numeric`` or ``categorical`` to one input of the graph."""
    columns = external.numeric if mapping.kind == "numeric" else external.categorical
    target, value = mapping.target, str(mapping.kind)
    if mapping.columns != tuple(columns):
        indices = [list(columns).index(column) for column in mapping.columns]
        chosen = part.constant(f"feed/{target.name}/columns", indices, np.int64)
        part.add("Gather", [value, chosen], value := f"feed/{target.name}/chosen", axis=1)
    if mapping.kind == "numeric" and target.element != ("DOUBLE" if external.double_inputs else "FLOAT"):
        kind = TensorProto.DataType.Value(target.element)
        part.add("Cast", [value], value := f"feed/{target.name}/cast", to=kind)
    if target.rank == 1:
        flat = part.constant(f"feed/{target.name}/shape", [-1], np.int64)
        part.add("Reshape", [value, flat], NETWORK + target.name)
    else:
        part.add("Identity", [value], NETWORK + target.name)


def _add_probabilities(part: GraphPart, external: ExternalModel) -> None:
    role = "logits" if "logits" in external.outputs else "probabilities"
    scores, classes = external.outputs[role], external.classes
    part.add("Cast", [NETWORK + scores.name], value := "answer/cast", to=TensorProto.FLOAT)
    if scores.rank == 1:
        shape = part.constant("answer/scores/shape", [-1, 1], np.int64)
        part.add("Reshape", [value, shape], value := "answer/scores")
    if len(classes) == 2 and scores.width == 1:
        if role == "logits":
            part.add("Sigmoid", [value], value := "answer/positive")
        part.add("Sub", [part.constant("answer/one", 1.0, np.float32), value], "answer/negative")
        part.add("Concat", ["answer/negative", value], value := "answer/both", axis=1)
    elif role == "logits":
        part.add("Softmax", [value], value := "answer/softmax", axis=1)
    indices = part.constant("answer/order", external.score_indices, np.int64)
    part.add("Gather", [value, indices], "probabilities", axis=1)


def _add_label(part: GraphPart, external: ExternalModel) -> None:
    label, is_text = external.outputs.get("label"), isinstance(external.classes[0], str)
    dtype = object if is_text else np.int64
    if label is None:
        part.add("ArgMax", ["probabilities"], "answer/best", axis=1, keepdims=0)
        part.add("Gather", [part.constant("answer/classes", external.classes, dtype), "answer/best"], "label", axis=0)
        return
    flat = part.constant("answer/label/shape", [-1], np.int64)
    part.add("Reshape", [NETWORK + label.name, flat], value := "answer/label")
    if label.element == "STRING":
        part.add("Identity", [value], "label")
        return
    part.add("Cast", [value], "answer/code" if is_text else "label", to=TensorProto.INT64)
    if is_text:
        classes = part.constant("answer/classes", external.score_order, dtype)
        part.add("Gather", [classes, "answer/code"], "label", axis=0)


def _select_columns(external: ExternalModel, mapping: ColumnMapping, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    columns = external.numeric if mapping.kind == "numeric" else external.categorical
    matrix = inputs[mapping.kind][:, [columns.index(column) for column in mapping.columns]]
    if mapping.kind == "numeric":
        kind = TensorProto.DataType.Value(mapping.target.element)
        matrix = matrix.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return matrix.reshape(-1) if mapping.target.rank == 1 else matrix


def _probabilities(external: ExternalModel, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [rows, classes] in the bundle's class order."""
    role = "logits" if "logits" in outputs else "probabilities"
    scores = np.asarray(outputs[role], np.float32)
    scores = scores.reshape(len(scores), -1)
    is_single = external.outputs[role].width == 1 and len(external.classes) == 2
    if scores.shape[1] != (1 if is_single else len(external.classes)):
        raise EngineError(
            f"output {external.outputs[role].name} has {scores.shape[1]} columns, and the target has "
            f"{len(external.classes)} classes",
            hint="write the shape of the output into the graph, or name the right one under model.outputs",
        )
    if is_single:
        positive = 1 / (1 + np.exp(-scores)) if role == "logits" else scores
        scores = np.concatenate([1 - positive, positive], axis=1)
    elif role == "logits":
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)
    return scores[:, external.score_indices]
