"""What adapters do with a GPU that they are told of, up to where a real one is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mlflowkit.adapters import onnxruntime as ort
from mlflowkit.adapters.tensorrt import TensorRTEngines
from mlflowkit.errors import EngineError
from mlflowkit.graphs import cuda_device
from mlflowkit.graphs.candidates import Engine
from tests.support.onnx_graphs import mlp, quantised_mlp


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "detect_gpu", lambda: cuda_device.CudaDevice("a card", "90", "580.65"))


def cache_options(model: Path, store: Path) -> Mapping[str, str]:
    (tensorrt, options), _ = ort._providers(model, Engine(runtime="ort-tensorrt"), store)
    assert tensorrt == "TensorrtExecutionProvider"
    assert isinstance(options, Mapping)
    return options


@pytest.mark.usefixtures("card")
def test_the_tensorrt_provider_never_sees_another_models_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime#6455: the provider names its cache files by the architecture, so each model has its own folder."""
    first, second = (mlp(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2))
    folders = [cache_options(model, tmp_path / "store")["trt_engine_cache_path"] for model in (first, second, first)]
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).is_dir() for folder in folders)
    monkeypatch.setattr(cuda_device, "detect_gpu", lambda: cuda_device.CudaDevice("another card", "89", "580.65"))
    assert cache_options(first, tmp_path / "store")["trt_engine_cache_path"] not in folders


@pytest.mark.usefixtures("card")
def test_the_tensorrt_provider_may_use_what_the_graph_states(tmp_path: Path) -> None:
    half = cache_options(mlp(tmp_path / "half.onnx", half=True), tmp_path)
    int8 = cache_options(quantised_mlp(tmp_path / "int8.onnx"), tmp_path)
    plain = cache_options(mlp(tmp_path / "plain.onnx"), tmp_path)
    precisions = [
        {name for name in options if name.endswith(("16_enable", "8_enable"))} for options in (half, int8, plain)
    ]
    assert precisions == [{"trt_fp16_enable"}, {"trt_int8_enable"}, set()]


@pytest.mark.usefixtures("card")
def test_a_card_that_a_library_has_no_kernels_for_is_named() -> None:
    reason = TensorRTEngines().missing(Engine(runtime="tensorrt-rtx"))
    assert "no kernels for compute capability 90: it has 75, 80, 86, 89, 120" in reason


def test_no_card_is_an_error_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "detect_gpu", lambda: "there is no GPU driver")
    assert cuda_device.missing() == "there is no GPU driver"
    with pytest.raises(EngineError, match="no GPU driver"):
        cuda_device.require_gpu()
