"""What every pass promises: a valid graph with the same inputs and answers, the same bytes each time, or a reason."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlflowkit.adapters.onnx_passes import OnnxPasses
from mlflowkit.errors import DataError
from mlflowkit.graphs.candidates import (
    BFloat16,
    FixedRows,
    Float16,
    Fuse,
    Int8,
    Int8Dynamic,
    Pass,
    WeightOnly,
    candidate_title,
)
from mlflowkit.graphs.candidates import Engine as Default
from mlflowkit.graphs.onnx_file import FEATURES_TENSOR, NETWORK_PREFIX
from mlflowkit.testing import PassContract
from tests.support import ROOT, pass_graphs
from tests.support.onnx_graphs import mlp, save
from tests.support.pass_graphs import Case, answers

Cases = Callable[[str], Case]

FP16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
DIFFERENCE: Sequence[tuple[str, list[Pass], float]] = [
    ("loans", [], 0.0),
    ("loans", [Float16()], 0.002),
    ("loans", [Int8()], 0.05),
    ("loans", [Int8(form="cpu")], 0.05),
    ("loans", [Int8(form="cpu", per_channel=True, rows=64)], 0.05),
    ("loans", [Int8(form="cpu", per_channel=True, keep=1)], 0.05),
    ("loans", [Int8(per_channel=True, calibration="entropy")], 0.3),
    ("loans", [Int8(calibration="percentile", keep=1)], 0.1),
    ("loans", [Int8Dynamic()], 0.05),
    ("loans", [Int8Dynamic(per_channel=True)], 0.05),
    ("loans", [WeightOnly(smallest=64)], 0.3),
    ("loans", [WeightOnly(bits=8, block=16, smallest=64)], 0.02),
    ("loans", [FixedRows(rows=32)], 1e-6),
    ("loans", [FixedRows(rows=32), Int8()], 0.05),
    ("loans", [Int8(), FixedRows(rows=32)], 0.05),
    ("loans", [Float16(), Int8()], 0.05),
    ("loans", [Int8(), Float16()], 0.05),
    ("loans", [Int8Dynamic(), Float16()], 0.05),
    ("loans", [WeightOnly(smallest=64), Float16()], 0.3),
    ("trees", [FixedRows(rows=32)], 0.0),
    ("digits", [Float16()], 0.005),
    ("digits", [Int8(per_channel=True)], 0.2),
    ("digits", [Int8(form="cpu")], 0.2),
    ("digits", [FixedRows(rows=32)], 1e-6),
    ("digits", [Float16(), Int8()], 0.2),
    ("encoder", [Fuse()], 1e-4),
    ("encoder", [Fuse(heads=4)], 1e-4),
    ("encoder", [Float16()], 0.01),
    ("encoder", [Int8()], 0.1),
    ("encoder", [Int8(form="cpu", per_channel=True)], 0.1),
    ("encoder", [Int8(keep=4)], 0.1),
    ("encoder", [Int8Dynamic()], 0.1),
    ("encoder", [WeightOnly()], 0.2),
    ("encoder", [WeightOnly(bits=8)], 0.02),
    ("encoder", [FixedRows(rows=32)], 1e-5),
    ("encoder", [Fuse(), Float16()], 0.01),
    ("encoder", [Fuse(), Int8(form="cpu")], 0.1),
    ("encoder", [Fuse(), WeightOnly(), FixedRows(rows=32)], 0.2),
    ("encoder", [FixedRows(rows=32), Fuse(), Int8()], 0.1),
]
"""Graph, passes, and the largest difference of a float answer that is let pass over 32 real rows."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """A case by its name, made once."""
    folder = tmp_path_factory.mktemp("graphs")
    return cache(lambda name: getattr(pass_graphs, name)(folder))


def applied(case: Case, passes: Sequence[Pass], out: Path) -> onnx.ModelProto:
    assert OnnxPasses().apply(passes, case.model, out, case.rows) == ""
    return onnx.load(out)


def interface(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    entries = [*model.graph.input, *model.graph.output]
    return [(e.name, e.type.tensor_type.elem_type, len(e.type.tensor_type.shape.dim)) for e in entries]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class TestBuiltInPasses(PassContract):
    @pytest.fixture(
        autouse=True, params=DIFFERENCE, ids=[f"{n}: {candidate_title(list(p), Default())}" for n, p, _ in DIFFERENCE]
    )
    def choose(self, request: pytest.FixtureRequest, cases: Cases) -> None:
        name, self.passes, self.tolerance = request.param
        self.case = cases(name)
        self.agreement = 0.8 if self.passes else 0.99

    def model(self, folder: Path) -> Path:
        return self.case.model

    def rows(self) -> Mapping[str, np.ndarray]:
        return self.case.rows

    def apply(self, model: Path, out: Path, rows: Mapping[str, np.ndarray]) -> str:
        return OnnxPasses().apply(self.passes, model, out, rows)


def test_bf16_is_valid_and_computes_what_onnx_says(cases: Cases, tmp_path: Path) -> None:
    """ONNX Runtime has no kernels for it on the CPU, so ONNX's reference implementation answers."""
    case = cases("encoder")
    model = applied(case, [BFloat16()], tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert interface(model) == interface(onnx.load(case.model))
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} == {BF16}
    (exact,) = ReferenceEvaluator(str(case.model)).run(None, case.some(4))
    (computed,) = ReferenceEvaluator(model).run(None, case.some(4))
    assert computed.dtype == np.float32
    assert 0 < np.abs(exact - computed).max() < 0.05


@pytest.mark.parametrize("settings", [Float16(), BFloat16()], ids=["fp16", "bf16"])
def test_narrow_arithmetic_keeps_to_the_network(settings: Pass, cases: Cases, tmp_path: Path) -> None:
    """Incomes are beyond FP16: no number is narrow before it is scaled, and the answers are made in float again."""
    model = applied(cases("loans"), [settings], tmp_path / "out.onnx")
    narrow = [node for node in model.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in narrow] == [FEATURES_TENSOR, f"{NETWORK_PREFIX}scores"]
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert makers["probabilities"] == "Softmax"
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert all(kind in (FP16, BF16) for name, kind in kinds.items() if name.startswith(NETWORK_PREFIX))
    assert kinds["numeric/center"] == TensorProto.FLOAT


def test_numbers_that_name_something_stay_exact_in_fp16(tmp_path: Path) -> None:
    """A token comes as a float; in FP16 4,097 is 4,096, the token before it."""
    table = np.arange(5000, dtype=np.float32)[:, None] % 7
    nodes = [
        helper.make_node("Add", ["x", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["token"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "token"], ["vector"]),
        helper.make_node("MatMul", ["vector", "one"], ["y"]),
    ]
    constants = {"zero": np.zeros(1, np.float32), "table": table, "one": np.ones((1, 2), np.float32)}
    path = save(tmp_path / "tokens.onnx", nodes, {"x": (1, ["rows"])}, {"y": 1}, constants)
    rows = {"x": np.array([4097, 4096, 3001], np.float32)}
    model = applied(Case(path, rows), [Float16()], tmp_path / "out.onnx")
    assert FP16 in {tensor.data_type for tensor in model.graph.initializer}
    assert np.array_equal(answers(tmp_path / "out.onnx", rows)["y"], answers(path, rows)["y"])


@pytest.mark.parametrize("name", ["loans", "digits"])
def test_what_is_quantised_is_what_tensorrt_takes(name: str, cases: Cases, tmp_path: Path) -> None:
    """Explicit Q/DQ, INT8, symmetric (zero points 0), on both factors of every product, and nothing dynamic."""
    model = applied(cases(name), [Int8()], tmp_path / "out.onnx")
    constants = {entry.name: entry for entry in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    assert not {op for op in operators(model) if "Dynamic" in op or op.startswith("QLinear") or "Integer" in op}
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx.ml"}, "no vendor operators"
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero).any()
        assert (numpy_helper.to_array(scale) > 0).all()
        assert scale.data_type == TensorProto.FLOAT
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "Conv")]
    assert len(products) >= 2
    for node in products:
        activation, weight = (makers[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert makers[activation.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        for bias in node.input[2:]:
            assert constants[bias].data_type == TensorProto.FLOAT
    assert all(node.output[0].startswith(NETWORK_PREFIX) for node in pairs), (
        "preprocessing and answers stay as they are"
    )
    assert FEATURES_TENSOR in {entry.name for entry in model.graph.value_info}, (
        "the network can be cut out for an engine"
    )


def test_the_form_for_cpus_runs_on_integer_kernels(cases: Cases, tmp_path: Path) -> None:
    """Unsigned activations with a zero point; ONNX Runtime then has no float product left."""
    for name, kernels in {
        "loans": {"QGemm"},
        "digits": {"QLinearConv", "QGemm"},
        "encoder": {"MatMulIntegerToFloat"},
    }.items():
        case = cases(name)
        model = applied(case, [Int8(form="cpu", per_channel=True)], tmp_path / "out.onnx")
        zeros = {t.name: t for t in model.graph.initializer}
        activations = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert {zeros[node.input[2]].data_type for node in activations} == {TensorProto.UINT8}
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "seen.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(tmp_path / "seen.onnx")
        weights = {tensor.name for tensor in optimised.graph.initializer}
        assert kernels <= set(operators(optimised))
        left = [n for n in optimised.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "FusedConv")]
        assert not [node for node in left if weights.intersection(node.input)]
        assert "SkipLayerNormalization" not in operators(optimised), (
            "its kernel is slower than Sum and LayerNormalization"
        )
        assert ("LayerNormalization" in operators(optimised)) == (name == "encoder")


def test_the_products_that_cost_most_stay_in_float(tmp_path: Path) -> None:
    """Of three products one has a weight far beyond its others, so that one scale leaves these without value."""
    random = np.random.default_rng(3)
    weights = {name: random.normal(size=(8, 8)).astype(np.float32) / 3 for name in "abc"}
    weights["b"][0, 0] = 3000.0
    nodes = [
        helper.make_node("MatMul", [before, name], [f"{name}out"], name=f"product {name}")
        for before, name in (("x", "a"), ("x", "b"), ("x", "c"))
    ]
    nodes += [
        helper.make_node("Sum", ["aout", "cout"], ["ac"]),
        helper.make_node("Concat", ["ac", "bout"], ["y"], axis=1),
    ]
    path = save(tmp_path / "three.onnx", nodes, {"x": (1, ["rows", 8])}, {"y": 1}, weights)
    rows = {"x": random.normal(size=(50, 8)).astype(np.float32)}
    case, out = Case(path, rows), tmp_path / "out.onnx"
    applied(case, [Int8()], out)
    worse = np.abs(answers(out, rows)["y"] - answers(path, rows)["y"]).mean()
    model = applied(case, [Int8(keep=1)], out)
    better = np.abs(answers(out, rows)["y"] - answers(path, rows)["y"]).mean()
    float_nodes = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert float_nodes == ["product b"]
    assert better < worse / 10


def test_weights_are_as_small_as_their_bits_say(cases: Cases, tmp_path: Path) -> None:
    case = cases("encoder")
    original = case.model.stat().st_size
    sizes = {}
    for bits in (4, 8):
        model = applied(case, [WeightOnly(bits=bits)], tmp_path / "out.onnx")
        sizes[bits] = (tmp_path / "out.onnx").stat().st_size
        assert operators(model).count("MatMulNBits") == 12
    assert sizes[4] < sizes[8] < original


def test_layers_below_the_smallest_keep_their_weights(cases: Cases, tmp_path: Path) -> None:
    model = applied(cases("encoder"), [WeightOnly(smallest=16384)], tmp_path / "out.onnx")
    assert operators(model).count("MatMulNBits") == 4, "the feed-forward parts, 64 x 256"


def test_fusion_finds_attention(cases: Cases, tmp_path: Path) -> None:
    fused = operators(applied(cases("encoder"), [Fuse()], tmp_path / "out.onnx"))
    assert fused.count("Attention") == 2
    assert "SkipLayerNormalization" in fused
    assert "Softmax" not in fused


def test_one_batch_size_leaves_no_arithmetic_on_shapes(cases: Cases, tmp_path: Path) -> None:
    case = cases("digits")
    model = applied(case, [FixedRows(rows=7)], tmp_path / "out.onnx")
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [7, 64]
    assert [size.dim_value for size in model.graph.output[1].type.tensor_type.shape.dim] == [7, 10]
    assert not {"Shape", "Gather", "Unsqueeze"} & {
        n.op_type for n in model.graph.node if n.name.startswith(NETWORK_PREFIX)
    }
    with pytest.raises(Exception, match="Got invalid dimensions"):
        answers(tmp_path / "out.onnx", case.some(8))


ORDERS: Sequence[tuple[list[Pass], str]] = [
    ([Int8(), WeightOnly(smallest=64)], "no linear layer"),
    ([WeightOnly(smallest=16), Int8()], "no matrix product"),
    ([FixedRows(rows=4), FixedRows(rows=8)], "for 4 rows"),
    ([FixedRows(rows=8), FixedRows(rows=4)], "for 8 rows"),
]


@pytest.mark.parametrize(("passes", "reason"), ORDERS, ids=["int8 first", "weights first", "4 first", "8 first"])
def test_passes_are_applied_in_their_order(passes: list[Pass], reason: str, cases: Cases, tmp_path: Path) -> None:
    case = cases("loans")
    assert reason in OnnxPasses().apply(passes, case.model, tmp_path / "out.onnx", case.rows)


def too_large(path: Path) -> Path:
    weights = {"w": np.array([[1e5, 1.0], [1.0, 1.0]], np.float32)}
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, ["rows", 2])}, {"y": 1}, weights)


REASONS: Sequence[tuple[str, Pass, str]] = [
    ("trees", Int8(), "no matrix product"),
    ("trees", Int8Dynamic(), "no linear layer"),
    ("trees", WeightOnly(), "no linear layer"),
    ("trees", Float16(), "no weights"),
    ("trees", BFloat16(), "no weights"),
    ("trees", Fuse(), "nothing in the graph is a transformer's"),
    ("loans", WeightOnly(smallest=10**6), "1000000 weights or more; the largest has"),
    ("loans", Int8(keep=3), "3 products and keep leaves 3"),
    ("too_large", Float16(), "w holds 100000, and FP16 ends at 65504"),
]


@pytest.mark.parametrize(("name", "settings", "reason"), REASONS, ids=[f"{n}: {s.kind}" for n, s, _ in REASONS])
def test_what_cannot_be_had_is_a_reason_and_no_file(
    name: str, settings: Pass, reason: str, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name) if name != "too_large" else Case(too_large(tmp_path / "large.onnx"), {})
    assert reason in OnnxPasses().apply([settings], case.model, tmp_path / "out.onnx", case.rows)
    assert not (tmp_path / "out.onnx").exists()


def test_a_mask_of_the_lowest_float_is_no_weight_beyond_fp16(tmp_path: Path) -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "mask": mask}
    path = save(tmp_path / "mask.onnx", nodes, {"x": (1, [4, 4])}, {"y": 1}, weights)
    rows = {"x": np.ones((4, 4), np.float32)}
    applied(Case(path, rows), [Float16()], tmp_path / "out.onnx")
    scores = answers(tmp_path / "out.onnx", rows)["y"]
    assert np.allclose(scores, answers(path, rows)["y"], atol=1e-3)
    assert not scores[~np.tri(4, dtype=bool)].any()


def without(rows: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {other: matrix for other, matrix in rows.items() if other != name}


def infinite(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    numeric = rows["numeric"].copy()
    numeric[3, 1] = np.inf
    return {**rows, "numeric": numeric}


FAULTS: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "an input is missing": (lambda rows: without(rows, "numeric"), "without numeric"),
    "an input too many": (lambda rows: {**rows, "age": rows["numeric"]}, "with age"),
    "no inputs": (lambda rows: {}, "without categorical, numeric"),
    "wrong rank": (lambda rows: {**rows, "numeric": rows["numeric"][:, 0]}, r"numeric has shape \(400,\)"),
    "wrong width": (lambda rows: {**rows, "numeric": rows["numeric"][:, :2]}, r"takes \(-1, 5\)"),
    "numbers for strings": (lambda rows: {**rows, "categorical": np.zeros((400, 2))}, "categorical is float64"),
    "strings for numbers": (lambda rows: {**rows, "numeric": rows["numeric"].astype(str)}, "numeric is <U"),
    "no row": (lambda rows: {name: matrix[:0] for name, matrix in rows.items()}, "no row"),
    "unlike rows": (lambda rows: {**rows, "numeric": rows["numeric"][:7]}, "different numbers of rows"),
    "infinite": (infinite, "numeric is infinite in row 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_calibration_rows_are_held_against_the_inputs(fault: str, cases: Cases, tmp_path: Path) -> None:
    case, (spoil, message) = cases("loans"), FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        OnnxPasses().apply([Int8()], case.model, tmp_path / "out.onnx", spoil(case.rows))
    assert caught.value.hint
    assert not (tmp_path / "out.onnx").exists()
    assert OnnxPasses().apply([Float16()], case.model, tmp_path / "out.onnx", spoil(case.rows)) == "", "it needs none"


def test_nan_is_a_gap_where_the_graph_fills_gaps_and_a_fault_where_not(cases: Cases, tmp_path: Path) -> None:
    gaps = cases("loans")
    assert np.isnan(gaps.rows["numeric"]).any()
    applied(gaps, [Int8()], tmp_path / "out.onnx")
    rows = {"x": np.full((40, 8), np.nan, np.float32)}
    for method in ("minmax", "entropy", "percentile"):
        with pytest.raises(DataError, match="not finite"):
            OnnxPasses().apply([Int8(calibration=method)], mlp(tmp_path / "mlp.onnx"), tmp_path / "out.onnx", rows)


def test_rows_that_the_graph_cannot_run_are_a_fault_of_theirs(cases: Cases, tmp_path: Path) -> None:
    case = cases("encoder")
    with pytest.raises(DataError, match="cannot run the calibration rows"):
        OnnxPasses().apply(
            [Int8()], case.model, tmp_path / "out.onnx", {**case.rows, "input_ids": case.rows["input_ids"] + 1000}
        )


def test_a_graph_for_many_rows_wants_as_many_to_calibrate_with(cases: Cases, tmp_path: Path) -> None:
    case = cases("loans")
    with pytest.raises(DataError, match="takes 16 rows at a time and there are 9"):
        OnnxPasses().apply([FixedRows(rows=16), Int8()], case.model, tmp_path / "out.onnx", case.some(9))
    assert OnnxPasses().apply([Int8(), FixedRows(rows=16)], case.model, tmp_path / "out.onnx", case.some(9)) == ""


EVERY: Sequence[list[Pass]] = [
    [Fuse()],
    [Float16()],
    [BFloat16()],
    [Int8(keep=2)],
    [Int8(form="cpu", per_channel=True, calibration="entropy")],
    [Int8(calibration="percentile")],
    [Int8Dynamic()],
    [WeightOnly()],
    [FixedRows(rows=4)],
    [Fuse(), Float16(), Int8()],
]
AGAIN = """
import hashlib, sys
from pathlib import Path
import numpy as np
sys.path[:0] = {path}
from tests.contract.test_passes import EVERY
from mlflowkit.adapters.onnx_passes import OnnxPasses
model, rows, out = map(Path, sys.argv[1:])
for passes in EVERY:
    assert OnnxPasses().apply(passes, model, out, dict(np.load(rows))) == ""
    print(hashlib.sha256(out.read_bytes()).hexdigest())
"""


def test_the_same_graph_gives_the_same_bytes_in_another_process(cases: Cases, tmp_path: Path) -> None:
    case, rows, out = cases("encoder"), tmp_path / "rows.npz", tmp_path / "out.onnx"
    np.savez(rows, **case.rows)
    here = []
    for passes in EVERY:
        applied(case, passes, out)
        here.append(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(set(here)) == len(EVERY)
    command = [sys.executable, "-c", AGAIN.format(path=[str(ROOT)]), *map(str, (case.model, rows, out))]
    environment = {"PYTHONHASHSEED": "321", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert done.stdout.split() == here
    assert done.stderr == "", "tools neither warn nor print"
