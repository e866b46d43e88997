"""Real bundles, small enough to be made in a test: a softmax over numbers with gaps and two one-hot encoded columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlflowkit import bundle
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.values import Lineage, RoutingTable, Variant

NUMERIC = ("age", "income", "debt")
CATEGORIES = {"term": ("36 months", "60 months"), "purpose": ("car", "home", "other")}
LABELS = ("bad", "good")
ROWS = [
    {"age": 41.0, "income": 52000.0, "debt": None, "term": "36 months", "purpose": "car"},
    {"age": 23.0, "income": 18000.0, "debt": 900.0, "term": "60 months", "purpose": None},
]


def graph(seed: int) -> onnx.ModelProto:
    """log1p of the numbers (so that a number below -1 has no finite answer), one-hot columns, softmax."""
    rng = np.random.default_rng(seed)
    width = len(NUMERIC) + sum(map(len, CATEGORIES.values()))
    weights = rng.normal(size=(width, 2)).astype(np.float32) * 0.2
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["gaps"]),
        helper.make_node("Where", ["gaps", "one", "numeric"], ["filled"]),
        helper.make_node("Add", ["filled", "one"], ["shifted"]),
        helper.make_node("Log", ["shifted"], ["numbers"]),
    ]
    parts = ["numbers"]
    constants = {"one": np.float32(1), "weights": weights, "classes": np.array(LABELS, dtype=object)}
    for place, (column, values) in enumerate(CATEGORIES.items()):
        constants[f"at_{column}"] = np.array([place], dtype=np.int64)
        nodes += [
            helper.make_node("Gather", ["categorical", f"at_{column}"], [f"{column}_cell"], axis=1),
            helper.make_node(
                "OneHotEncoder",
                [f"{column}_cell"],
                [f"{column}_cube"],
                domain="ai.onnx.ml",
                cats_strings=list(values),
                zeros=1,
            ),
            helper.make_node("Flatten", [f"{column}_cube"], [f"{column}_hot"]),
        ]
        parts.append(f"{column}_hot")
    nodes += [
        helper.make_node("Concat", parts, ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "best"], ["label"]),
    ]
    built = helper.make_graph(
        nodes,
        "lending",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, len(NUMERIC)]),
            helper.make_tensor_value_info("categorical", TensorProto.STRING, [None, len(CATEGORIES)]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


SIGNATURE = Signature(
    task="classification",
    inputs=(
        TensorSpec(name="numeric", datatype="FP32", shape=(-1, len(NUMERIC)), columns=NUMERIC),
        TensorSpec(name="categorical", datatype="BYTES", shape=(-1, len(CATEGORIES)), columns=tuple(CATEGORIES)),
    ),
    outputs=(
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
    ),
    classes=LABELS,
)


def make_bundle(
    folder: Path,
    seed: int = 1,
    *,
    blessed: bool = True,
    rows: list[dict[str, Any]] | None = None,
    monitoring: Reference | None = None,
    policy: str = "policy1",
) -> bundle.Bundle:
    """Write a bundle of version ``seed`` into ``folder``, with ``monitoring`` as its cells."""
    (folder / "evidence").mkdir(parents=True)
    onnx.save(graph(seed), folder / "model.onnx")
    (folder / "signature.json").write_text(SIGNATURE.model_dump_json())
    reference = {
        "rows": 100,
        "columns": {
            name: {"type": "categorical", "unique": len(values), "frequent": [[value, 9] for value in values]}
            for name, values in CATEGORIES.items()
        },
    }
    (folder / "evidence" / "reference.json").write_text(json.dumps(reference))
    if monitoring is not None:
        (folder / EVIDENCE).write_text(json.dumps(monitoring.to_json()))
    rows = ROWS if rows is None else rows
    (folder / "evidence" / "sample.json").write_text(json.dumps({"rows": rows, "outputs": expected(folder, rows)}))
    return bundle.write(
        folder,
        name="lending",
        lineage=Lineage("c0ffee", False, "data1", "recipe1"),
        policy=policy,
        run="run1",
        blessed=blessed,
        created=0.0,
    )


def expected(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What ONNX Runtime alone answers for ``rows``."""
    numeric = np.array([[np.nan if row[c] is None else row[c] for c in NUMERIC] for row in rows], dtype=np.float32)
    texts = np.array([[row[c] or "" for c in CATEGORIES] for row in rows], dtype=object)
    answers = OnnxRuntime().load(folder / "model.onnx").run({"numeric": numeric, "categorical": texts})
    return {name: array.tolist() for name, array in answers.items()}


def table(epoch: int, made: bundle.Bundle, service: str = "lending") -> RoutingTable:
    variant = Variant("champion", made.manifest.version, made.manifest.identity, str(made.path))
    return RoutingTable(service, epoch, (variant,))
