"""A small world for the stages that judge: real ONNX graphs in ONNX Runtime over a table written to Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from mlflowkit.bundle import Signature, Tensor
from mlflowkit.ports import StageContext
from mlflowkit.values import Lineage
from mlflowkit.wiring import Wiring

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def classifier(path: Path, weights: Sequence[float], labels: Sequence[str | int]) -> None:
    """A logistic model of numeric columns as a graph: label (text or INT64) and probabilities [rows, classes]."""
    matrix = np.stack([np.zeros(len(weights)), np.array(weights)], axis=1).astype(np.float32)
    text = isinstance(labels[0], str)
    keys = {"keys_int64s": [0, 1]}
    values = {"values_strings": list(labels)} if text else {"values_int64s": list(labels)}
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["code"], axis=1, keepdims=0),
        helper.make_node("LabelEncoder", ["code"], ["label"], domain="ai.onnx.ml", **keys, **values),
    ]
    kind = TensorProto.STRING if text else TensorProto.INT64
    outputs = [("label", kind, ["N"]), ("probabilities", TensorProto.FLOAT, ["N", 2])]
    _save(path, nodes, len(weights), outputs, matrix)


def regressor(path: Path, weights: Sequence[float]) -> None:
    """A linear model of numeric columns as a graph: prediction [rows]."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], ["prediction"]),
    ]
    matrix = np.array(weights, dtype=np.float32)[:, None]
    _save(path, nodes, len(weights), [("prediction", TensorProto.FLOAT, ["N"])], matrix)


def _save(
    path: Path, nodes: list[Any], width: int, outputs: list[tuple[str, int, list[Any]]], matrix: np.ndarray
) -> None:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, matrix.shape, matrix.ravel().tolist()),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)


def signature(columns: Sequence[str], classes: Sequence[str | int] = ()) -> Signature:
    inputs = (Tensor(name="numeric", datatype="FP32", shape=(-1, len(columns)), columns=tuple(columns)),)
    if not classes:
        outputs = (Tensor(name="prediction", datatype="FP32", shape=(-1,)),)
        return Signature(task="regression", inputs=inputs, outputs=outputs)
    label = "BYTES" if isinstance(classes[0], str) else "INT64"
    outputs = (
        Tensor(name="label", datatype=label, shape=(-1,)),
        Tensor(name="probabilities", datatype="FP32", shape=(-1, len(classes))),
    )
    return Signature(task="classification", inputs=inputs, outputs=outputs, classes=tuple(classes))


def loans(rows: int, seed: int = 0, labels: Sequence[str | int] = ("good", "bad")) -> pd.DataFrame:
    """Two informative columns, one slice column with a rare value, and a label drawn from a logistic model."""
    rng = np.random.default_rng(seed)
    income, debt = rng.normal(size=rows), rng.normal(size=rows)
    bad = rng.random(rows) < 1 / (1 + np.exp(-(1.5 * debt - 1.0 * income - 1)))
    term = rng.choice(["36", "60", "84"], p=[0.6, 0.38, 0.02], size=rows)
    target = np.array(labels, dtype=object if isinstance(labels[0], str) else np.int64)[bad.astype(int)]
    return pd.DataFrame({"income": income, "debt": debt, "term": term, "status": target})


class World:
    """The folders of the stages before evaluate, and contexts over them."""

    def __init__(self, root: Path, table: pd.DataFrame, target: str, classes: Sequence[str | int] = ()) -> None:
        self.root = root
        self.table = table
        self.target = target
        self.classes = tuple(classes)
        self.features = ["income", "debt"]
        self.wiring = Wiring(root / "state")
        self.inputs = {name: root / name for name in ("data", "validate", "export", "optimize")}
        for folder in self.inputs.values():
            folder.mkdir(parents=True)
        self._data()
        (self.inputs["validate"] / "reference.whylogs").write_bytes(b"profile")
        (self.inputs["validate"] / "reference.json").write_text("{}")
        (self.inputs["export"] / "parity.json").write_text("{}")

    def _data(self) -> None:
        self.table.to_parquet(self.inputs["data"] / "test.parquet")
        info = {
            "task": "classification" if self.classes else "regression",
            "target": self.target,
            "features": [{"name": name, "kind": "numeric"} for name in self.features],
            "classes": list(self.classes),
            "rows": {"train": 0, "validation": 0, "test": len(self.table)},
            "data_version": "d" * 64,
            "slice_columns": [],
        }
        (self.inputs["data"] / "table.json").write_text(json.dumps(info))

    def optimized(self, write: Callable[[Path], None], samples_us: Sequence[float] | None = None) -> None:
        """Publish a graph as the optimize stage would."""
        folder = self.inputs["optimize"]
        write(folder / "model.onnx")
        made = signature(self.features, self.classes)
        (folder / "signature.json").write_text(made.model_dump_json())
        (folder / "candidates.json").write_text(json.dumps([{"name": "onnx", "picked": True}]))
        if samples_us is None:
            samples_us = np.random.default_rng(1).gamma(20, 5, size=2000).tolist()
        (folder / "latency.json").write_text(json.dumps({"onnx": {"samples_us": list(samples_us), "block": 50}}))

    def context(
        self, stage: str, *, champion: Path | None = None, more: Mapping[str, Path] | None = None
    ) -> StageContext:
        number = len(list(self.root.glob(f"{stage}-out-*")))
        out = self.root / f"{stage}-out-{number}"
        out.mkdir()
        return StageContext(
            inputs={**self.inputs, **(more or {})},
            out=out,
            scratch=self.root,
            folder=self.root,
            seed=7,
            lineage=Lineage(COMMIT, False, "d" * 64, "r" * 64),
            run="run-1",
            ports=self.wiring,
            progress=lambda event: None,
            champion=champion,
            state=self.root / "state",
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    """1,500 loans with text labels, and no graph yet."""
    return World(tmp_path, loans(1500), "status", ("good", "bad"))
