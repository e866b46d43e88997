"""Candidates are made, measured and judged; the pick serves; an INT8 graph is one that TensorRT takes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, numpy_helper

from mlflowkit.adapters.onnx_exporter import OnnxExporter
from mlflowkit.adapters.onnx_exporter.graph import FEATURES
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError
from mlflowkit.judging import metrics
from mlflowkit.tables import inputs_from_table

from .conftest import World

Make = Callable[[str], World]
BOTH = ["onnx", "onnx-int8"]
MLP = "network, strings, gaps, three classes"


@pytest.fixture
def copy(exported: Make, tmp_path: Path) -> Make:
    """A case's world, copied so that the stage can write beside it."""

    def make(case: str) -> World:
        world = exported(case)
        for stage in ("data", "train", "export"):
            shutil.copytree(world.base / stage, tmp_path / stage)
        return World(tmp_path, world.task)

    return make


def published(world: World, name: str) -> object:
    return json.loads((world.base / "optimize" / name).read_text())


def calibration(world: World) -> dict[str, np.ndarray]:
    signature = Signature.model_validate_json((world.base / "export" / "signature.json").read_bytes())
    return inputs_from_table(signature, pd.read_parquet(world.base / "data" / "train.parquet").head(200))


def quantised(world: World, out: Path) -> onnx.ModelProto:
    assert OnnxExporter().quantize(world.base / "export" / "model.onnx", out, calibration(world)) == ""
    return onnx.load(out)


@pytest.mark.parametrize("case", [MLP, "network, strings, gaps, regression", "images, integer classes"])
def test_what_is_quantised_is_what_tensorrt_takes(case: str, exported: Make, tmp_path: Path) -> None:
    """Explicit Q/DQ, INT8, symmetric (zero points 0), on both factors of every product, and nothing dynamic."""
    model = quantised(exported(case), tmp_path / "int8.onnx")
    onnx.checker.check_model(model)
    constants = {entry.name: entry for entry in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    operators = {node.op_type for node in model.graph.node}
    assert not {op for op in operators if "Dynamic" in op or op.startswith("QLinear") or "Integer" in op}
    assert {entry.domain for entry in model.opset_import} == {"", "ai.onnx.ml"}, "no vendor operators"
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero).any()
        assert (numpy_helper.to_array(scale) > 0).all()
        assert scale.data_type == TensorProto.FLOAT
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "Conv")]
    assert products
    for node in products:
        activation, weight = (producers[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert producers[activation.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        for bias in node.input[2:]:
            assert constants[bias].data_type == TensorProto.FLOAT
    assert all(node.output[0].startswith("network/") for node in pairs), "preprocessing and answers stay as they are"
    assert FEATURES in {entry.name for entry in model.graph.value_info}, "the network can be cut out for an engine"


def test_a_quantised_graph_answers_nearly_the_same_over_raw_columns(exported: Make, tmp_path: Path) -> None:
    world = exported("images, integer classes")
    quantised(world, tmp_path / "int8.onnx")
    rows = calibration(world)
    exact = OnnxRuntime().load(world.base / "export" / "model.onnx").run(rows)["probabilities"]
    rough = OnnxRuntime().load(tmp_path / "int8.onnx").run(rows)["probabilities"]
    assert 0 < np.abs(exact - rough).max() < 0.1


def test_trees_have_nothing_to_quantise(exported: Make, tmp_path: Path) -> None:
    world = exported("boosting, strings, gaps")
    reason = OnnxExporter().quantize(world.base / "export" / "model.onnx", tmp_path / "out.onnx", calibration(world))
    assert "no matrix product" in reason
    assert not (tmp_path / "out.onnx").exists()


QUANTISE = """
import hashlib, sys
from pathlib import Path
import numpy as np
from mlflowkit.adapters.onnx_exporter.quantize import quantize
model, rows, out = map(Path, sys.argv[1:])
calibration = {name: values for name, values in np.load(rows).items()}
calibration["categorical"] = calibration["categorical"].astype(object)
assert quantize(model, out, calibration) == ""
print(hashlib.sha256(out.read_bytes()).hexdigest())
"""


def test_the_same_graph_quantises_to_the_same_bytes_in_another_process(exported: Make, tmp_path: Path) -> None:
    world, rows = exported(MLP), tmp_path / "rows.npz"
    quantised(world, tmp_path / "here.onnx")
    inputs = calibration(world)
    np.savez(rows, numeric=inputs["numeric"], categorical=inputs["categorical"].astype(str))
    command = [sys.executable, "-c", QUANTISE, *map(str, (world.base / "export/model.onnx", rows, tmp_path / "there"))]
    environment = {"PYTHONHASHSEED": "321", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert done.stdout.split() == [hashlib.sha256((tmp_path / "here.onnx").read_bytes()).hexdigest()]
    assert done.stderr == "", "the quantiser warns of nothing"


def test_the_stage_publishes_the_pick_and_what_was_measured(copy: Make) -> None:
    world = copy(MLP)
    result = world.optimize(candidates=BOTH, max_metric_drop=1.0, metric="accuracy", samples=250)
    rows = published(world, "candidates.json")
    assert [row["name"] for row in rows] == BOTH
    assert [row["status"] for row in rows] == ["ok", "ok"]
    (picked,) = [row for row in rows if row["picked"]]
    (other,) = [row for row in rows if not row["picked"]]
    assert "times that of" in other["reason"]
    assert result.summary["picked"] == picked["name"]
    latency = published(world, "latency.json")
    for row in rows:
        assert (row["runtime"], row["batch"], row["samples"]) == ("onnxruntime", 1, 250)
        assert row["p50_us"] <= row["p95_us"] <= row["p99_us"]
        assert row["interval"][0] <= row["p99_us"] <= row["interval"][1]
        assert row["metric"]["name"] == "accuracy"
        samples = latency[row["name"]]
        assert (len(samples["samples_us"]), samples["block"]) == (250, 50)
        gate = metrics.latency("latency_p50_ms", np.array(samples["samples_us"]), samples["block"])
        assert gate.value == pytest.approx(row["p50_us"] / 1000, abs=1e-4), "what evaluate judges is what was measured"
    assert rows[0]["metric_drop"] is None
    assert rows[1]["metric_drop"]["low"] <= rows[1]["metric_drop"]["value"] <= rows[1]["metric_drop"]["high"]
    assert result.metrics["latency_p99_ms"] == picked["p99_us"] / 1000
    made = {"onnx": world.base / "export/model.onnx", "onnx-int8": world.base / "scratch/onnx-int8.onnx"}
    assert (world.base / "optimize/model.onnx").read_bytes() == made[picked["name"]].read_bytes()
    assert (world.base / "optimize/signature.json").read_bytes() == (world.base / "export/signature.json").read_bytes()


def test_a_candidate_that_loses_too_much_is_rejected_with_its_numbers(copy: Make) -> None:
    world = copy(MLP)
    world.optimize(candidates=["onnx-int8", "onnx"], max_metric_drop=0.0, metric="log_loss")
    first, second = published(world, "candidates.json")
    assert (first["status"], first["picked"]) == ("rejected", False)
    assert "log_loss drops by" in first["reason"]
    assert "max_metric_drop 0" in first["reason"]
    assert first["samples"] == 200, "it is measured all the same, for the report"
    assert (second["status"], second["picked"]) == ("ok", True)


def test_no_candidate_left_is_an_error_that_says_why(copy: Make) -> None:
    world = copy(MLP)
    with pytest.raises(EngineError, match="onnx-int8: log_loss drops by") as caught:
        world.optimize(candidates=["onnx-int8"], max_metric_drop=0.0, metric="log_loss")
    assert "optimize.candidates" in caught.value.hint
    assert not (world.base / "optimize" / "model.onnx").exists()


def test_a_candidate_that_cannot_be_made_is_listed_with_the_reason(copy: Make) -> None:
    world = copy("boosting, two classes")
    result = world.optimize(candidates=["onnx-int8", "onnx"])
    first, second = published(world, "candidates.json")
    assert (first["status"], first["samples"], first["p99_us"]) == ("unavailable", 0, None)
    assert "no matrix product" in first["reason"]
    assert second["picked"]
    assert second["metric"]["name"] == "roc_auc"
    assert result.metrics["validation_roc_auc"] == second["metric"]["value"]
    assert list(published(world, "latency.json")) == ["onnx"]


def test_a_regression_is_held_to_its_error(copy: Make) -> None:
    world = copy("network, strings, gaps, regression")
    world.optimize(candidates=BOTH, max_metric_drop=100.0, objective="latency_p50", batch=16)
    rows = published(world, "candidates.json")
    assert {row["metric"]["name"] for row in rows} == {"rmse"}
    assert {row["batch"] for row in rows} == {16}
    worse = rows[1]["metric"]["value"] - rows[0]["metric"]["value"]
    assert rows[1]["metric_drop"]["value"] == pytest.approx(worse), "a larger error is a drop"


def test_rows_that_cannot_say_reject_all_but_the_float_graph(copy: Make) -> None:
    world = copy(MLP)
    path = world.base / "data" / "validation.parquet"
    pd.read_parquet(path).assign(homeownership="RENT").to_parquet(path)
    result = world.optimize(candidates=["onnx-int8", "onnx"], metric="balanced_accuracy")
    rough, exact = published(world, "candidates.json")
    assert (rough["status"], rough["picked"]) == ("rejected", False)
    assert "cannot say what it loses" in rough["reason"]
    assert (exact["picked"], exact["metric"]) == (True, None)
    assert not [name for name in result.metrics if name.startswith("validation_")]
