"""What the device itself can do, measured: matrix products, copies between host and device, memory of this process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SIDE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices whose product is the peak."""
REPEATS = 50
LONGEST = 2.0
"""Seconds after which no more products are tried: what has no fast kernel takes seconds."""
COPIES = 50


def matmul_peak(precision: str, threads: int, device: str) -> dict[str, Any]:
    """The most operations a second that a large square matrix product reaches on a device ("cuda", "cpu").

    Through torch (cuBLAS on a GPU), and on a processor through ONNX Runtime too in FP32: of two libraries the better
    one, and in FP16, which a processor computes through FP32, those of FP32. {"device", "operations_per_second",
    "reason"}; the reason says why there is no figure. FP32 on a GPU may use TF32, as ONNX Runtime and TensorRT do by
    default. The best of several: a peak is what the device can do, not what it usually does.
    """
    import torch

    torch.set_num_threads(threads)
    if device == "cpu" and precision == "fp16":
        precision = "fp32"
    side = SIDE[device]
    try:
        times = _times(lambda work: _seconds(torch, work, device), _product(torch, precision, device, side))
        if device == "cpu" and precision == "fp32":
            times += _times(lambda work: _seconds(torch, work, device), _ort_product(side, threads))
    except (RuntimeError, NotImplementedError, AssertionError) as error:  # torch asserts that it was built with CUDA
        return {"device": device, "operations_per_second": None, "reason": str(error).splitlines()[0]}
    return {"device": device, "operations_per_second": 2 * side**3 / min(times), "reason": ""}


def _times(seconds: Callable[[Callable[[], Any]], float], work: Callable[[], Any]) -> list[float]:
    times = [seconds(work)]
    while len(times) < REPEATS and sum(times) < LONGEST:
        times.append(seconds(work))
    return times


def _ort_product(side: int, threads: int) -> Callable[[], Any]:
    """A product with a constant matrix, as in a network's linear layer."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    cells = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in ("left", "answers")]
    node = helper.make_node("MatMul", ["left", "right"], ["answers"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(cells[1], "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": cells[0]})


def _product(torch: Any, precision: str, device: str, side: int) -> Callable[[], Any]:
    torch.backends.cuda.matmul.allow_tf32 = True
    if precision == "int8":
        left, right = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(left, right.T)  # cuBLAS wants the right side by columns
    dtype = torch.float16 if precision == "fp16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right


def _seconds(torch: Any, work: Callable[[], Any], device: str) -> float:
    """Seconds of one call: by CUDA events on a GPU, by the clock of the host elsewhere."""
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def copies(inputs: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Microseconds (median) of bringing a request's inputs to the GPU, and its answers back, from ordinary memory.

    By whichever library is there. {"to_us", "from_us", "bytes_to", "bytes_from", "reason"}.
    """
    sizes = [sum(array.nbytes for array in side.values()) for side in (inputs, answers)]
    said: dict[str, Any] = {"to_us": None, "from_us": None, "bytes_to": sizes[0], "bytes_from": sizes[1], "reason": ""}
    if any(array.dtype.kind in "OUS" for array in inputs.values()):
        return said | {"reason": "strings stay on the host"}
    ways = _torch_ways() or _ort_ways()
    if ways is None:
        return said | {"reason": "neither torch with CUDA nor onnxruntime-gpu is installed to copy with"}
    to, back, wait = ways
    placed = [to(array) for array in answers.values()]
    wait()
    return said | {
        "to_us": _median(lambda: [to(array) for array in inputs.values()], wait),
        "from_us": _median(lambda: [back(array) for array in placed], wait),
    }


Ways = tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[], Any]]


def _torch_ways() -> Ways | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return (
        lambda array: torch.from_numpy(np.ascontiguousarray(array)).cuda(),
        lambda t: t.cpu(),
        torch.cuda.synchronize,
    )


def _ort_ways() -> Ways | None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    place = onnxruntime.OrtValue.ortvalue_from_numpy
    return lambda array: place(np.ascontiguousarray(array), "cuda", 0), lambda value: value.numpy(), lambda: None


def _median(work: Callable[[], Any], wait: Callable[[], Any]) -> float:
    times = []
    for _ in range(COPIES):
        begin = time.perf_counter()
        work()
        wait()
        times.append(1e6 * (time.perf_counter() - begin))
    return round(statistics.median(times), 1)


def gpu_memory() -> int | None:
    """Bytes of GPU memory that this process holds; None where NVML does not tell."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        found = [
            process.usedGpuMemory
            for index in range(pynvml.nvmlDeviceGetCount())
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            if process.pid == os.getpid() and process.usedGpuMemory
        ]
    except pynvml.NVMLError:
        return None
    return sum(found) or None
