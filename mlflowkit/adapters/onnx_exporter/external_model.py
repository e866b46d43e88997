"""Graphs that a recipe brings: taken in as they are (the Trainer of model.kind onnx), and wrapped for a bundle.

Wrapping adds nodes before and after, so that the graph takes what every bundle takes (``numeric`` and
``categorical``) and answers under the names that every bundle answers with. The graph itself is not touched, but for
the prefix of its names and, below opset 17, the lift to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from mlflowkit.adapters.onnx_exporter import graph_parts as pieces
from mlflowkit.errors import DataError, EngineError, UsageError
from mlflowkit.features.preprocess import Part, Table, open_table
from mlflowkit.graphs import imported_graph, onnx_file
from mlflowkit.graphs.imported_graph import Feed, Port
from mlflowkit.ports import StageContext

MODEL = "model.onnx"


@dataclass(frozen=True, slots=True)
class Brought:
    """A graph that was taken in, and how it is connected.

    ``order`` are the classes in the order of the graph's scores, ``classes`` in the order of the bundle's.
    """

    path: Path
    task: Literal["classification", "regression"]
    feeds: tuple[Feed, ...]
    answers: Mapping[str, Port]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    classes: tuple[str | int, ...]
    order: tuple[str | int, ...]

    @property
    def shuffle(self) -> list[int]:
        """For each class of the bundle its place among the graph's scores."""
        return [self.order.index(label) for label in self.classes]


class OnnxImporter:
    """Takes a graph in where others are trained: a checked copy, its weights inside."""

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Copy the graph that a stages.train.Spec names, return the fields of a stages.train.FitResult.

        Raises EngineError for what is no sound ONNX file or what no runtime here runs, UsageError for a graph that
        cannot be the model of a recipe, DataError when it does not fit the table.
        """
        section, source = spec.model, context.folder / spec.model.path
        model = onnx_file.checked_load(source)
        _check(model, source)
        outputs = section.outputs.named if section.outputs is not None else {}
        graph = imported_graph.describe(model)
        for found in imported_graph.objections(graph, spec.task, section.inputs, outputs):
            raise UsageError(f"{'.'.join(found.key)}: {found.message}", hint=found.hint)
        table = open_table(context.inputs["data"])
        feeds = imported_graph.feeds(graph, section.inputs, table.features.numeric, table.features.categorical)
        _refuse_gaps(feeds, table)
        if spec.task == "classification":
            order = imported_graph.graph_classes(section.classes, table.classes)
            _fits_classes(imported_graph.answers(graph, spec.task, outputs), order)
        if sum(len(constant.raw_data) for constant in model.graph.initializer) > onnx_file.LARGEST_FILE:
            raise EngineError(
                f"{source} has more than 2 GB of weights", hint="a bundle holds one file: halve them (FP16)"
            )
        onnx_file.write(model, context.out / MODEL)
        context.ports.runtime.load(context.out / MODEL)  # names what this runtime has not
        return _fields(model, table, feeds)


def read(trained: Path) -> Brought:
    """What `OnnxImporter` left in the train stage's folder."""
    info = json.loads((trained / "spec.json").read_text())
    section, task = info["spec"]["model"], info["spec"]["task"]
    graph = imported_graph.describe(onnx_file.checked_load(trained / MODEL, weights=False))
    names = info["features"]
    outputs = {role: name for role, name in (section["outputs"] or {}).items() if name is not None}
    return Brought(
        path=trained / MODEL,
        task=task,
        feeds=imported_graph.feeds(graph, section["inputs"], names["numeric"], names["categorical"]),
        answers=imported_graph.answers(graph, task, outputs),
        numeric=tuple(names["numeric"]),
        categorical=tuple(names["categorical"]),
        classes=tuple(info["classes"]),
        order=imported_graph.graph_classes(section["classes"], info["classes"]) if info["classes"] else (),
    )


def wrap(brought: Brought, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
    """One checked model from a bundle's inputs to its outputs. Raises EngineError when it is not valid."""
    from onnx import inliner

    model = inliner.inline_local_functions(onnx_file.checked_load(brought.path))
    body = pieces.piece_of(model)
    around = {"": max(pieces.OPSET, body.opsets.get("", 0))}
    before, after = pieces.Piece(opsets=dict(around)), pieces.Piece(opsets=dict(around))
    for feed in brought.feeds:
        _feed(before, feed, brought.numeric if feed.kind == "numeric" else brought.categorical)
    if brought.task == "regression":
        _values(after, brought.answers["prediction"])
    else:
        _classes(after, brought)
    ir_version = max(pieces.IR_VERSION, model.ir_version)
    return pieces.assemble("mlflowkit", [before, body, after], inputs, outputs, ir_version=ir_version)


def ask(brought: Brought, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The answers of the graph itself, connected here and not by nodes: what the wrapped one is held against."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(brought.path), providers=["CPUExecutionProvider"])
    fed = {feed.port.name: _columns_of(brought, feed, inputs) for feed in brought.feeds}
    names = {role: port.name for role, port in brought.answers.items()}
    found = dict(zip(names, session.run(list(names.values()), fed), strict=True))
    if brought.task == "regression":
        return {"prediction": np.asarray(found["prediction"], np.float32).reshape(-1)}
    probabilities = _probabilities(brought, found)
    labels = np.array(brought.classes, dtype=object)[probabilities.argmax(axis=1)]
    if "label" in found:
        said = np.asarray(found["label"]).reshape(-1)
        coded = isinstance(brought.order[0], str) and brought.answers["label"].element != "STRING"
        labels = np.array(brought.order, dtype=object)[said.astype(np.int64)] if coded else said
    kind = object if isinstance(brought.classes[0], str) else np.int64
    return {"label": labels.astype(kind), "probabilities": probabilities}


# ---------------------------------------------------------------------------------------------------------- taking in


def _check(model: Any, source: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise EngineError(
            f"{source} is not valid ONNX: {(str(error).splitlines() or [''])[0]}", hint="export it again"
        ) from error


def _refuse_gaps(feeds: Sequence[Feed], table: Table) -> None:
    """Raise DataError when a column with missing values goes into an input that cannot hold them."""
    whole = {
        column: feed.port for feed in feeds if feed.port.element in imported_graph.WHOLE for column in feed.columns
    }
    if not whole:
        return
    columns = list(table.features.numeric)
    for part in ("train", "validation", "test"):
        found: Part = table.read(part)
        for column, port in whole.items():
            rows = np.flatnonzero(np.isnan(found.inputs["numeric"][:, columns.index(column)]))
            if rows.size:
                raise DataError(
                    f"column {column!r} has missing values ({rows.size} in the {part} part), and input {port.name} is "
                    f"{port.element.lower()}: it cannot hold them",
                    hint="fill them at the source, or export the graph with a float input",
                )


def _fits_classes(answers: Mapping[str, Port], order: Sequence[str | int]) -> None:
    scores = answers.get("probabilities") or answers["logits"]
    if scores.width is not None and scores.width != len(order) and (scores.width, len(order)) != (1, 2):
        raise DataError(
            f"output {scores.name} has {scores.width} columns, and the target has {len(order)} classes",
            hint="was it trained on other classes? Drop rows of classes that it does not know",
        )
    label = answers.get("label")
    if label is not None and label.element == "STRING" and not isinstance(order[0], str):
        raise DataError(
            f"output {label.name} gives text, and the classes of the target are whole numbers",
            hint="write the target as text at the source",
        )


def _fields(model: Any, table: Table, feeds: Sequence[Feed]) -> Mapping[str, Any]:
    return {
        "epochs": 0,
        "best_epoch": 0,
        "metrics": {},
        "curves": {},
        "parameters": sum(int(np.prod(constant.dims)) for constant in model.graph.initializer),
        "features": {"numeric": table.features.numeric, "categorical": table.features.categorical},
        "classes": table.classes,
        "width": sum(len(feed.columns) for feed in feeds),
        "outputs": len(table.classes) or 1,
    }


# ----------------------------------------------------------------------------------------------------------- wrapping


def _feed(piece: Any, feed: Feed, columns: Sequence[str]) -> None:
    """Nodes from ``numeric`` or ``categorical`` to one input of the graph."""
    value, name = str(feed.kind), f"{pieces.NETWORK}{feed.port.name}"
    if feed.columns != tuple(columns):
        places = [list(columns).index(column) for column in feed.columns]
        where = piece.constant(f"feed/{feed.port.name}/columns", places, np.int64)
        piece.add("Gather", [value, where], value := f"feed/{feed.port.name}/chosen", axis=1)
    if feed.kind == "numeric" and feed.port.element != "FLOAT":
        kind = TensorProto.DataType.Value(feed.port.element)
        piece.add("Cast", [value], value := f"feed/{feed.port.name}/cast", to=kind)
    if feed.port.rank == 1:
        flat = piece.constant(f"feed/{feed.port.name}/shape", [-1], np.int64)
        piece.add("Reshape", [value, flat], name)
    else:
        piece.add("Identity", [value], name)


def _values(piece: Any, port: Port) -> None:
    piece.add("Cast", [f"{pieces.NETWORK}{port.name}"], "answer/value", to=TensorProto.FLOAT)
    piece.add("Reshape", ["answer/value", piece.constant("answer/shape", [-1], np.int64)], "prediction")


def _classes(piece: Any, brought: Brought) -> None:
    """Nodes to ``probabilities`` and ``label``."""
    role = "logits" if "logits" in brought.answers else "probabilities"
    scores, classes = brought.answers[role], brought.classes
    width = 1 if len(classes) == 2 and scores.width == 1 else len(classes)
    piece.add("Cast", [f"{pieces.NETWORK}{scores.name}"], "answer/cast", to=TensorProto.FLOAT)
    value = "answer/cast"
    if scores.rank == 1:
        piece.add(
            "Reshape", [value, piece.constant("answer/scores/shape", [-1, 1], np.int64)], value := "answer/scores"
        )
    if width == 1:
        if role == "logits":
            piece.add("Sigmoid", [value], value := "answer/positive")
        piece.add("Sub", [piece.constant("answer/one", 1.0, np.float32), value], "answer/negative")
        piece.add("Concat", ["answer/negative", value], value := "answer/both", axis=1)
    elif role == "logits":
        piece.add("Softmax", [value], value := "answer/softmax", axis=1)
    places = piece.constant("answer/order", brought.shuffle, np.int64)
    piece.add("Gather", [value, places], "probabilities", axis=1)
    _label(piece, brought)


def _label(piece: Any, brought: Brought) -> None:
    port, texts = brought.answers.get("label"), isinstance(brought.classes[0], str)
    dtype = object if texts else np.int64
    if port is None:
        piece.add("ArgMax", ["probabilities"], "answer/best", axis=1, keepdims=0)
        piece.add("Gather", [piece.constant("answer/classes", brought.classes, dtype), "answer/best"], "label", axis=0)
        return
    flat = piece.constant("answer/label/shape", [-1], np.int64)
    piece.add("Reshape", [f"{pieces.NETWORK}{port.name}", flat], value := "answer/label")
    if port.element == "STRING":
        piece.add("Identity", [value], "label")
        return
    piece.add("Cast", [value], "answer/code" if texts else "label", to=TensorProto.INT64)
    if texts:
        piece.add("Gather", [piece.constant("answer/classes", brought.order, dtype), "answer/code"], "label", axis=0)


# ------------------------------------------------------------------------------------------------------------- asking


def _columns_of(brought: Brought, feed: Feed, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    columns = brought.numeric if feed.kind == "numeric" else brought.categorical
    matrix = inputs[feed.kind][:, [columns.index(column) for column in feed.columns]]
    if feed.kind == "numeric":
        matrix = matrix.astype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(feed.port.element)))
    found: np.ndarray = matrix.reshape(-1) if feed.port.rank == 1 else matrix
    return found


def _probabilities(brought: Brought, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [rows, classes] in the bundle's order."""
    role = "logits" if "logits" in found else "probabilities"
    scores = np.asarray(found[role], np.float32)
    scores = scores.reshape(len(scores), -1)
    single = brought.answers[role].width == 1 and len(brought.classes) == 2
    if scores.shape[1] != (1 if single else len(brought.classes)):
        raise EngineError(
            f"output {brought.answers[role].name} has {scores.shape[1]} columns, and the target has "
            f"{len(brought.classes)} classes",
            hint="write the shape of the output into the graph, or name the right one under model.outputs",
        )
    if single:
        positive = 1 / (1 + np.exp(-scores)) if role == "logits" else scores
        scores = np.concatenate([1 - positive, positive], axis=1)
    elif role == "logits":
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = raised / raised.sum(axis=1, keepdims=True)
    shuffled: np.ndarray = scores[:, brought.shuffle]
    return shuffled
