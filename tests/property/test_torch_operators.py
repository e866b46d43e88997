"""Each operator's form in torch answers as ONNX Runtime does, over shapes, axes and attributes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mlflowkit.adapters.onnxruntime import OnnxRuntimeEngines
from mlflowkit.adapters.torch_runtime import TorchEngines
from mlflowkit.adapters.torch_runtime.operators import OPERATORS
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Engine
from tests.support.onnx_graphs import FLOAT, save

pytestmark = pytest.mark.heavy

quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def same(
    nodes: Sequence[Any],
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    *,
    kind: int = FLOAT,
    tolerance: float = 1e-5,
) -> None:
    """The graph of ``nodes`` gives the same ``y`` in torch and in ONNX Runtime."""
    inputs = {
        name: (helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim) for name, array in feeds.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        model = save(Path(folder) / "model.onnx", nodes, inputs, {"y": kind}, constants)
        expected = OnnxRuntimeEngines().load(model, Engine()).run(feeds)["y"]
        result = TorchEngines().load(model, Engine(runtime="torch")).run(feeds)["y"]
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def node(name: str, inputs: Sequence[str], **attributes: Any) -> list[Any]:
    return [helper.make_node(name, inputs, ["y"], **attributes)]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


seeds = st.integers(0, 1000)
sizes = st.integers(1, 5)

PLAIN = (
    "Abs Ceil Cos Erf Exp Floor Identity Neg Reciprocal Relu Round Sigmoid Sign Sin Tanh Elu Softplus HardSwish "
    "LeakyRelu Dropout Flatten Transpose GlobalAveragePool GlobalMaxPool"
)
POSITIVE = "Log Sqrt"
PAIRS = "Add Sub Mul Div Max Min Sum MatMul"
COMPARED = "Equal Greater GreaterOrEqual Less LessOrEqual"
REDUCED = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSum"
APART = (
    "And Or Not Pow Where IsNaN Cast Clip Constant Gelu Softmax LogSoftmax Gemm Conv MaxPool AveragePool "
    "BatchNormalization LayerNormalization ArgMax ArgMin Concat Reshape Squeeze Unsqueeze Shape Gather Slice Split "
    "Expand Range ConstantOfShape Trilu Tile"
)


def test_every_operator_is_held_against_onnx_runtime() -> None:
    held = " ".join((PLAIN, POSITIVE, PAIRS, COMPARED, REDUCED, APART)).split()
    assert sorted(held) == sorted(OPERATORS)


@pytest.mark.parametrize("name", PLAIN.split() + POSITIVE.split())
def test_of_one_input(name: str) -> None:
    values = numbers(2, 3, 4, 5)
    same(node(name, ["x"]), {"x": np.abs(values) + 0.1 if name in POSITIVE.split() else values})


@pytest.mark.parametrize("name", PAIRS.split())
def test_of_two_inputs_that_are_broadcast(name: str) -> None:
    same(node(name, ["a", "b"]), {"a": numbers(2, 3, 3), "b": numbers(3, 3, seed=1)})
    if name == "Div":
        integer_values = np.array([[7, -7, 8], [-9, 5, -1]], np.int64)
        same(node(name, ["a", "b"]), {"a": integer_values, "b": np.array([2, 2, -3], np.int64)}, kind=INT64)


@pytest.mark.parametrize("name", COMPARED.split())
def test_comparisons(name: str) -> None:
    left, right = np.array([1, 2, 3], np.float32), np.array([3, 2, 1], np.float32)
    same(node(name, ["a", "b"]), {"a": left, "b": right}, kind=BOOL)


@quick
@given(axes=st.sets(st.integers(-3, 2).map(lambda axis: axis % 3)), keep=st.booleans(), seed=seeds)
@pytest.mark.parametrize("name", REDUCED.split())
def test_reductions(name: str, axes: set[int], keep: bool, seed: int) -> None:
    dims = {"axes": np.array(sorted(axes), np.int64)} if axes else {}
    same(node(name, ["x", *dims], keepdims=int(keep)), {"x": numbers(2, 3, 4, seed=seed)}, dims, tolerance=1e-4)


def test_logic_and_choice() -> None:
    a, b = np.array([True, True, False]), np.array([True, False, False])
    same(node("And", ["a", "b"]), {"a": a, "b": b}, kind=BOOL)
    same(node("Or", ["a", "b"]), {"a": a, "b": b}, kind=BOOL)
    same(node("Not", ["a"]), {"a": a}, kind=BOOL)
    same(node("Where", ["a", "x", "z"]), {"a": a, "x": numbers(2, 3), "z": numbers(3, seed=1)})
    same(node("IsNaN", ["x"]), {"x": np.array([1, np.nan], np.float32)}, kind=BOOL)
    same(node("Pow", ["x", "z"]), {"x": np.abs(numbers(4)), "z": numbers(4, seed=1)})


@pytest.mark.parametrize("kind", [INT64, BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32])
def test_casts(kind: int) -> None:
    same(node("Cast", ["x"], to=kind), {"x": np.array([-1.7, 0, 0.2, 3.9], np.float32)}, kind=kind)


def test_clip_constants_and_ranges() -> None:
    bounds = {"low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)}
    same(node("Clip", ["x", "low", "high"]), {"x": numbers(5)}, bounds)
    same(node("Clip", ["x", "", "high"]), {"x": numbers(5)}, bounds)
    nodes = [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(numbers(5, seed=1)))]
    same([*nodes, *node("Add", ["x", "c"])], {"x": numbers(5)})
    ends = {name: np.array(value, np.int64) for name, value in {"a": 2, "b": 11, "d": 3}.items()}
    same(node("Range", ["a", "b", "d"]), {}, ends, kind=INT64)
    three = numpy_helper.from_array(np.array([3], np.int64))
    same(node("ConstantOfShape", ["n"], value=three), {}, {"n": np.array([4], np.int64)}, kind=INT64)
    same(node("ConstantOfShape", ["n"]), {}, {"n": np.array([2, 3], np.int64)})


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_over_an_axis(axis: int) -> None:
    x = numbers(3, 4, 5)
    same(node("Softmax", ["x"], axis=axis), {"x": x})
    same(node("LogSoftmax", ["x"], axis=axis), {"x": x})
    same(node("Concat", ["x", "z"], axis=axis), {"x": x, "z": numbers(3, 4, 5, seed=1)})
    same(node("Gather", ["x", "i"], axis=axis), {"x": x, "i": np.array([[0, -1], [2, 1]], np.int64)})
    same(node("Gather", ["x", "i"], axis=axis), {"x": x}, {"i": np.array(1, np.int64)})
    for name in ("ArgMax", "ArgMin"):
        tied = np.round(x)
        for last in (0, 1):
            same(node(name, ["x"], axis=axis, keepdims=0, select_last_index=last), {"x": tied}, kind=INT64)
    scale = {"s": numbers(*x.shape[axis:], seed=2), "b": numbers(*x.shape[axis:], seed=3)}
    same(node("LayerNormalization", ["x", "s", "b"], axis=axis), {"x": x}, scale, tolerance=1e-4)
    same(node("Gather", ["x", "i"]), {"x": x}, {"i": np.array([1, 0], np.int64)})


@quick
@given(alpha=st.floats(0.1, 2), trans=st.tuples(st.booleans(), st.booleans()), bias=st.booleans())
def test_gemm(alpha: float, trans: tuple[bool, bool], bias: bool) -> None:
    a, b = numbers(*((4, 3) if trans[0] else (3, 4))), numbers(*((2, 4) if trans[1] else (4, 2)), seed=1)
    attributes = {"alpha": alpha, "transA": int(trans[0]), "transB": int(trans[1]), "beta": 0.5}
    feeds = {"a": a, "b": b, **({"c": numbers(2, seed=2)} if bias else {})}
    same(node("Gemm", list(feeds), **attributes), feeds, tolerance=1e-4)


@quick
@given(
    stride=st.integers(1, 2), dilation=st.integers(1, 2), pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    group=st.sampled_from([1, 2]), seed=seeds,
)  # fmt: skip
def test_convolution(stride: int, dilation: int, pads: list[int], group: int, seed: int) -> None:
    weight = {"w": numbers(4, 4 // group, 3, 3, seed=seed), "b": numbers(4, seed=seed + 1)}
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads, "group": group}
    same(node("Conv", ["x", "w", "b"], **attributes), {"x": numbers(2, 4, 8, 9, seed=seed)}, weight, tolerance=1e-4)


@quick
@given(stride=st.integers(1, 3), pads=st.lists(st.integers(0, 1), min_size=2, max_size=2), ceil=st.integers(0, 1))
def test_pools(stride: int, pads: list[int], ceil: int) -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": pads * 2, "ceil_mode": ceil}
    same(node("MaxPool", ["x"], **attributes), {"x": numbers(2, 3, 9, 9)})
    for counted in (0, 1):
        if not ceil:
            same(node("AveragePool", ["x"], count_include_pad=counted, **attributes), {"x": numbers(2, 3, 9, 9)})
    uneven = {**attributes, "pads": [0, 0, 1, 1], "ceil_mode": 0}
    same(node("MaxPool", ["x"], **uneven), {"x": numbers(2, 3, 9, 9)})


def test_batch_normalization_and_gelu() -> None:
    norms = {name: np.abs(numbers(3, seed=seed)) + 0.1 for seed, name in enumerate("sbmv")}
    same(node("BatchNormalization", ["x", "s", "b", "m", "v"]), {"x": numbers(2, 3, 4)}, norms, tolerance=1e-4)
    model_opset_20 = node("Gelu", ["x"], approximate="tanh")
    with tempfile.TemporaryDirectory() as folder:
        for nodes in (model_opset_20, node("Gelu", ["x"])):
            model = save(Path(folder) / "m.onnx", nodes, {"x": (FLOAT, [None])}, {"y": FLOAT}, opset=20)
            expected = OnnxRuntimeEngines().load(model, Engine()).run({"x": numbers(9)})["y"]
            result = TorchEngines().load(model, Engine(runtime="torch")).run({"x": numbers(9)})["y"]
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@quick
@given(rows=sizes, columns=sizes, depth=sizes)
def test_arithmetic_about_shapes(rows: int, columns: int, depth: int) -> None:
    """What an exporter writes for ``x.view(x.shape[0], -1) + 0`` and the like, for every shape that comes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "first"], ["rows_1"]),
        helper.make_node("Mul", ["rows_1", "two"], ["twice"]),
        helper.make_node("Div", ["twice", "two"], ["once"]),
        helper.make_node("Cast", ["once"], ["same"], to=INT64),
        helper.make_node("Equal", ["same", "minus"], ["is_minus"]),
        helper.make_node("Where", ["is_minus", "two", "same"], ["kept"]),
        helper.make_node("Slice", ["shape", "two", "three"], ["tail"]),
        helper.make_node("Sub", ["tail", "tail"], ["nothing"]),
        helper.make_node("Add", ["nothing", "minus"], ["rest"]),
        helper.make_node("Concat", ["kept", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Squeeze", ["rows_1", "first"], ["again"]),
        helper.make_node("Cast", ["again"], ["count"], to=FLOAT),
        helper.make_node("Mul", ["flat", "count"], ["y"]),
    ]
    integer_values = {"zero": 0, "first": [0], "two": [2], "three": [3], "minus": [-1]}
    constants = {name: np.array(value, np.int64) for name, value in integer_values.items()}
    same(nodes, {"x": numbers(rows, columns, depth)}, constants)


def test_shapes_of_tensors() -> None:
    x = {"x": numbers(2, 1, 6)}

    def integers(**values: Any) -> dict[str, np.ndarray]:
        return {name: np.array(value, np.int64) for name, value in values.items()}

    same(node("Shape", ["x"], start=1), x, kind=INT64)
    same(node("Reshape", ["x", "s"]), x, integers(s=[0, -1, 3]))
    same(node("Squeeze", ["x"]), x)
    same(node("Squeeze", ["x", "a"]), x, integers(a=[1]))
    same(node("Unsqueeze", ["x", "a"]), x, integers(a=[-1, 0]))
    same(node("Slice", ["x", "b", "e", "a", "s"]), x, integers(b=[1, -5], e=[2**62, -1], a=[0, 2], s=[1, 2]))
    same(node("Expand", ["x", "s"]), x, integers(s=[3, 1, 2, 4, 1]))
    same(node("Tile", ["x", "s"]), x, integers(s=[1, 2, 3]))
    same(node("Transpose", ["x"], perm=[1, 2, 0]), x)
    same(node("Flatten", ["x"], axis=2), x)
    same(node("Trilu", ["x", "k"], upper=0), {"x": numbers(4, 4)}, integers(k=1))
    same(node("Trilu", ["x"]), {"x": numbers(4, 4)})
    for parts, more in (({}, {"num_outputs": 3}), (integers(p=[1, 2, 3]), {})):
        nodes = [helper.make_node("Split", ["x", *parts], ["a", "b", "c"], axis=2, **more)]
        same([*nodes, *node("Concat", ["c", "a", "b"], axis=2)], x, parts)


def test_what_has_no_form_is_an_error_not_another_answer(tmp_path: Path) -> None:
    nodes = [helper.make_node("Slice", ["x", "b", "e", "a", "s"], ["y"], name="backwards")]
    constants = {name: np.array([value], np.int64) for name, value in {"b": -1, "e": -9, "a": 0, "s": -1}.items()}
    model = save(tmp_path / "model.onnx", nodes, {"x": (FLOAT, [4])}, {"y": FLOAT}, constants)
    with pytest.raises(EngineError, match="negative step"):
        TorchEngines().load(model, Engine(runtime="torch")).run({"x": numbers(4)})
    several = [helper.make_node("MaxPool", ["x"], ["y", "where"], name="pool", kernel_shape=[2])]
    model = save(tmp_path / "model.onnx", several, {"x": (FLOAT, [1, 1, 4])}, {"y": FLOAT})
    with pytest.raises(EngineError, match=r"MaxPool with 2 outputs \(node pool\)"):
        TorchEngines().load(model, Engine(runtime="torch"))
