"""What the Engines port promises, for every adapter: a session that answers, or an EngineError that says why not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime, OnnxRuntimeEngines
from mlflowkit.adapters.tensorrt import TensorRTEngines
from mlflowkit.adapters.torch_runtime import TorchEngines
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Engine, RuntimeName
from mlflowkit.graphs.cuda_device import detect_gpu
from mlflowkit.ports import Engines
from mlflowkit.wiring import EnginesByRuntime, ServingRuntime
from tests.support.onnx_graphs import FLOAT, STRING, foreign, mlp, outside, save, strings

NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
HERE: tuple[RuntimeName, ...] = ("ort-cpu", "torch")
"""What runs on every machine. torch-compile does too, but takes seconds: see the slow test."""
ENGINES: dict[str, Callable[[], Engines]] = {
    "ort": OnnxRuntimeEngines,
    "tensorrt": TensorRTEngines,
    "torch": TorchEngines,
}


def engines_of(runtime: str) -> Engines:
    return ENGINES[runtime.split("-")[0]]()


@pytest.fixture(params=HERE)
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    name: RuntimeName = request.param
    return name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp(tmp_path / "model.onnx")


def rows(count: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)}


def expected(model: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the graph of `mlp` means, in NumPy."""
    w, b, v = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer)
    return np.maximum(inputs["x"] @ w + b, 0) @ v


def refused(load: Callable[[], object], words: str) -> EngineError:
    with pytest.raises(EngineError, match=words) as caught:
        load()
    assert caught.value.hint
    return caught.value


def test_answers_are_what_the_graph_means(runtime: RuntimeName, model: Path) -> None:
    session = engines_of(runtime).load(model, Engine(runtime=runtime))
    for count in (1, 3, 7):
        answers = session.run(rows(count))
        assert set(answers) == {"y"}
        assert answers["y"].dtype == np.float32
        np.testing.assert_allclose(answers["y"], expected(model, rows(count)), rtol=1e-4, atol=1e-4)


def test_a_session_answers_several_threads_at_once(runtime: RuntimeName, model: Path) -> None:
    session = engines_of(runtime).load(model, Engine(runtime=runtime))

    def ask(count: int) -> bool:
        want = expected(model, rows(count))
        return all(np.allclose(session.run(rows(count))["y"], want, rtol=1e-3, atol=1e-3) for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(2, 10)))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input x is missing"),
        ({**rows(), "extra": np.zeros(1)}, "no input extra"),
        ({"x": np.zeros((3, 8))}, "input x is float64; the graph wants float32"),
        ({"x": np.zeros(8, np.float32)}, r"input x has shape \[8\]; the graph wants 2 axes"),
        ({"x": [[0.0] * 9]}, "input x is a list, not an array"),
        ({"x": np.zeros((3, 9), np.float32)}, "model.onnx does not answer"),
    ],
)
def test_a_bad_request_is_named_and_the_session_goes_on(
    inputs: dict, says: str, runtime: RuntimeName, model: Path
) -> None:
    session = engines_of(runtime).load(model, Engine(runtime=runtime))
    assert "x float32 rank 2" in refused(lambda: session.run(inputs), says).hint
    assert session.run(rows())["y"].shape == (3, 128)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x08\x12\x00" * 50, None])
def test_a_file_that_is_no_graph_is_refused(content: bytes | None, runtime: RuntimeName, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    refused(lambda: engines_of(runtime).load(path, Engine(runtime=runtime)), r"model\.onnx")


def test_a_graph_that_was_cut_short_is_refused(runtime: RuntimeName, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-200])
    refused(lambda: engines_of(runtime).load(model, Engine(runtime=runtime)), r"model\.onnx")


def test_an_operator_that_is_lacking_is_named_with_its_node(runtime: RuntimeName, tmp_path: Path) -> None:
    graph = foreign(tmp_path / "model.onnx")
    refused(lambda: engines_of(runtime).load(graph, Engine(runtime=runtime)), "Swirl .*swirl_1")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_weights_outside_the_models_folder_are_refused(location: str, runtime: RuntimeName, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    graph = outside(tmp_path / "model" / "model.onnx", location)
    refused(lambda: engines_of(runtime).load(graph, Engine(runtime=runtime)), "outside the model's folder")


def test_weights_beside_the_graph_are_read(runtime: RuntimeName, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    graph = onnx.load(model)
    onnx.save(graph, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    session = engines_of(runtime).load(folder / "model.onnx", Engine(runtime=runtime))
    np.testing.assert_allclose(session.run(rows())["y"], expected(model, rows()), rtol=1e-4, atol=1e-4)
    (folder / "weights.bin").write_bytes(bytes(16))
    refused(lambda: engines_of(runtime).load(folder / "model.onnx", Engine(runtime=runtime)), r"weights\.bin")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_machine_lacks_is_said_and_nothing_is_run_instead(name: RuntimeName, model: Path) -> None:
    """Each runtime either runs, or both `missing` and `load` say the same reason."""
    engines, engine = EnginesByRuntime(), Engine(runtime=name)
    reason = engines.missing(engine)
    if not reason:
        assert engines.load(model, engine) is not None
        return
    assert name not in HERE
    error = refused(lambda: engines.load(model, engine), f"model.onnx cannot run on {name}")
    assert reason in error.message


@pytest.mark.skipif(not isinstance(detect_gpu(), str), reason="this machine has a GPU")
def test_without_a_gpu_the_reason_is_what_is_missing() -> None:
    reasons = {name: EnginesByRuntime().missing(Engine(runtime=name)) for name in NAMES}
    assert "CUDAExecutionProvider" in reasons["ort-cuda"]
    assert "mlflowkit[gpu]" in reasons["ort-cuda"]
    assert "TensorrtExecutionProvider" in reasons["ort-tensorrt"]
    assert "libcuda.so.1" in reasons["tensorrt-rtx"]
    assert "mlkit engines build" in reasons["tensorrt-rtx"]
    assert "mlflowkit[gpu]" in reasons["tensorrt"]


@pytest.mark.parametrize("name", ["ort-cpu", "torch"])
def test_cuda_graphs_are_refused_where_there_are_none(name: RuntimeName, model: Path) -> None:
    engine = Engine(runtime=name, cuda_graph=True)
    refused(lambda: engines_of(name).load(model, engine), "CUDA graphs")


@pytest.mark.parametrize("kind", ENGINES)
def test_an_adapter_refuses_runtimes_that_are_not_its_own(kind: str) -> None:
    others = [name for name in NAMES if not name.startswith(kind)]
    assert all(f"does not run {name} engines" in ENGINES[kind]().missing(Engine(runtime=name)) for name in others)


@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_graph_levels_reach_onnx_runtime(level: str, model: Path) -> None:
    session = OnnxRuntimeEngines().load(model, Engine.model_validate({"graph_level": level, "threads": 2}))
    np.testing.assert_allclose(session.run(rows())["y"], expected(model, rows()), rtol=1e-4, atol=1e-4)
    options = session._session.get_session_options()
    assert options.graph_optimization_level.name.lower().endswith({"off": "disable_all"}.get(level, level))
    assert options.intra_op_num_threads == 2


def test_the_larger_number_of_threads_counts(model: Path) -> None:
    def threads(runtime: OnnxRuntime | ServingRuntime, engine: Engine | None, floor: int) -> int:
        session = runtime.load(model, threads=floor, engine=engine)
        return int(session._session.get_session_options().intra_op_num_threads)  # type: ignore[attr-defined]

    for runtime in (OnnxRuntime(), ServingRuntime()):
        assert threads(runtime, None, 2) == 2
        assert threads(runtime, Engine(), 2) == 2
        assert threads(runtime, Engine(threads=2), 1) == 2
        assert threads(runtime, Engine(threads=2), 3) == 3


def test_strings_run_on_onnx_runtime_and_are_named_where_they_do_not(tmp_path: Path) -> None:
    graph = strings(tmp_path / "model.onnx")
    inputs = {"home": np.array([["own"]], dtype=object), "x": np.array([[2.0]], np.float32)}
    assert OnnxRuntimeEngines().load(graph, Engine()).run(inputs)["y"].tolist() == [[3.0]]
    words = r"inputs of strings \(home\) and the operators ai\.onnx\.ml\.LabelEncoder \(node encode\)"
    refused(lambda: TorchEngines().load(graph, Engine(runtime="torch")), words)


def test_an_operator_that_a_provider_lacks_for_a_type_is_named(tmp_path: Path) -> None:
    """ONNX Runtime knows Conv, but not over FP64 on a CPU."""
    double = onnx.TensorProto.DOUBLE
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv_7")
    graph = save(
        tmp_path / "m.onnx", [node], {"x": (double, [1, 1, 4, 4])}, {"y": double}, {"w": np.ones((1, 1, 2, 2))}
    )
    refused(lambda: OnnxRuntimeEngines().load(graph, Engine()), r"lacks operator Conv \(node 'conv_7'\)")


def test_a_type_of_string_is_not_silently_cast_in_torch(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Cast", ["x"], ["y"], name="text", to=STRING)
    graph = save(tmp_path / "model.onnx", [node], {"x": (FLOAT, [1])}, {"y": STRING})
    session = TorchEngines().load(graph, Engine(runtime="torch"))
    refused(lambda: session.run({"x": np.ones(1, np.float32)}), "Cast to STRING")
