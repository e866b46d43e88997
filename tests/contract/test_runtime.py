"""ONNX Runtime passes the contract of runtimes, and never falls back to another provider silently."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from mlflowkit.adapters.onnxruntime import CPU, OnnxRuntime
from mlflowkit.errors import EngineError
from mlflowkit.ports import Runtime
from mlflowkit.testing import RuntimeContract, runtime_graph, runtime_inputs


class TestOnnxRuntime(RuntimeContract):
    def runtime(self) -> Runtime:
        return OnnxRuntime()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_graph(tmp_path_factory.mktemp("runtime") / "model.onnx")


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
    assert session.run(runtime_inputs(2))["total"].tolist() == [1.0, 5.0]
