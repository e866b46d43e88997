"""What every Runtime promises: answers by name, from several threads, and an EngineError for everything else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mlflowkit.adapters.onnxruntime import CPU, OnnxRuntime
from mlflowkit.errors import EngineError
from mlflowkit.ports import Runtime, Session

RUNTIMES: dict[str, Callable[[], Runtime]] = {"onnxruntime": OnnxRuntime}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """total = row sums of ``numeric`` [rows, 2]; echo = ``categorical`` [rows, 1] as it came; quotient = 1 // whole."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Identity", ["categorical"], ["echo"]),
        helper.make_node("Reshape", ["numeric", "three"], ["threes"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["rows", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("echo", TensorProto.STRING, ["rows", 1]),
        helper.make_tensor_value_info("threes", TensorProto.FLOAT, None),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("three", TensorProto.INT64, [2], [-1, 4]),
    ]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    path = tmp_path_factory.mktemp("runtime") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    numeric = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return {"numeric": numeric, "categorical": np.array([[f"é{row}"] for row in range(rows)], dtype=object)}


@pytest.fixture
def session(runtime: Runtime, model: Path) -> Session:
    return runtime.load(model)


def test_answers_come_by_name_with_strings_both_ways(session: Session) -> None:
    answers = session.run(feeds())
    assert set(answers) == {"total", "echo", "threes"}
    assert answers["total"].tolist() == [1.0, 5.0]
    assert answers["total"].dtype == np.float32
    assert answers["echo"].tolist() == [["é0"], ["é1"]]
    assert answers["echo"].dtype == object


def test_a_session_answers_several_threads_at_once(session: Session) -> None:
    def ask(rows: int) -> bool:
        asked = feeds(rows)
        for _ in range(50):
            answers = session.run(asked)
            if answers["total"].tolist() != asked["numeric"].sum(axis=1).tolist():
                return False
            if answers["echo"].tolist() != asked["categorical"].tolist():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(2, 34, 2)))


def test_sessions_of_one_runtime_are_independent(runtime: Runtime, model: Path) -> None:
    one, two = runtime.load(model), runtime.load(model, threads=2)
    assert one.run(feeds())["total"].tolist() == two.run(feeds())["total"].tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"numeric": None}, "input numeric is missing"),
        ({"extra": np.zeros(1)}, "no input extra"),
        ({"numeric": np.zeros((2, 2))}, "input numeric is float64; the graph wants float32"),
        ({"numeric": np.zeros((2, 3), np.float32)}, "numeric"),
        ({"numeric": np.zeros(2, np.float32)}, r"input numeric has shape \[2\]; the graph wants 2 axes"),
        ({"numeric": [[0.0, 1.0]]}, "input numeric is a list, not an array"),
        ({"categorical": np.array([["a"], [None]], dtype=object)}, "not a string"),
        ({"categorical": np.array([["a"], [3]], dtype=object)}, "not a string"),
        ({"categorical": np.zeros((2, 1), np.float32)}, "input categorical is float32; the graph wants object"),
        ({"numeric": np.zeros((3, 2), np.float32)}, "model.onnx does not answer"),  # 6 cells do not make rows of 4
    ],
)
def test_a_bad_request_is_an_engine_error_that_names_it(session: Session, change: dict, says: str) -> None:
    asked = {name: value for name, value in {**feeds(), **change}.items() if value is not None}
    with pytest.raises(EngineError, match=says) as caught:
        session.run(asked)
    assert "numeric float32" in caught.value.hint
    assert session.run(feeds())["total"].tolist() == [1.0, 5.0], "and the session goes on"


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x08\x12\x00" * 50, None])
def test_a_file_that_is_no_graph_is_an_engine_error(runtime: Runtime, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.onnx") as caught:
        runtime.load(path)
    assert caught.value.hint


def test_a_truncated_graph_is_an_engine_error(runtime: Runtime, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes()[:-20])
    with pytest.raises(EngineError):
        runtime.load(path)


@pytest.mark.skipif(len(onnxruntime.get_available_providers()) > 2, reason="a GPU build has these providers")
@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "NoSuchProvider"])
def test_a_provider_that_cannot_be_had_is_no_silent_fallback(provider: str, model: Path) -> None:
    with pytest.raises(EngineError, match=provider) as caught:
        OnnxRuntime(providers=(provider, CPU)).load(model)
    assert "mlflowkit[gpu]" in caught.value.hint


def test_a_provider_that_the_session_dropped_is_no_silent_fallback(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU build lists CUDA, warns that its libraries do not load, and goes on with the CPU: that is refused too."""
    listed = ["CUDAExecutionProvider", CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        OnnxRuntime(providers=listed).load(model)


def test_provider_options_reach_the_provider(model: Path) -> None:
    session = OnnxRuntime(providers=((CPU, {}),)).load(model)
    assert session.providers == (CPU,)
    assert session.run(feeds())["total"].tolist() == [1.0, 5.0]


def test_a_graph_for_so_many_rows_answers_any_number(runtime: Runtime, tmp_path: Path) -> None:
    """Four rows at a time; what fills up the last part is not answered, and what is wrong is told as ever."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Identity", ["categorical"], ["echo"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [4, 2]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, [4, 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("echo", TensorProto.STRING, [4, 1]),
    ]
    graph = helper.make_graph(
        nodes, "fixed", inputs, outputs, [helper.make_tensor("axes", TensorProto.INT64, [1], [1])]
    )
    path = tmp_path / "fixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    session = runtime.load(path)
    for rows in (1, 3, 4, 5, 65):
        asked = feeds(rows)
        found = session.run(asked)
        np.testing.assert_array_equal(found["total"], asked["numeric"].sum(axis=1))
        assert found["echo"].tolist() == asked["categorical"].tolist()
    with pytest.raises(EngineError, match="numeric is missing"):
        session.run({"categorical": feeds(3)["categorical"]})
    with pytest.raises(EngineError):
        session.run({**feeds(3), "numeric": feeds(2)["numeric"]})
