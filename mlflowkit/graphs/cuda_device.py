"""The GPU of this process, queried through the CUDA driver so that no framework is imported."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlflowkit.errors import EngineError

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """The first GPU visible to this process (CUDA_VISIBLE_DEVICES applies).

    ``capability`` is the compute capability without the point, such as "89"; ``driver`` the driver version as
    nvidia-smi prints it, or the CUDA version it supports where NVML is not installed.
    """

    name: str
    capability: str
    driver: str


@lru_cache(maxsize=1)
def detect_gpu() -> CudaDevice | str:
    """The GPU, or the reason why there is none: no driver, or no device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no GPU driver: libcuda.so.1 is not there"
    code = cuda.cuInit(0)
    count = ctypes.c_int(0)
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return f"the GPU driver does not answer: CUDA error {code}"
    if count.value == 0:
        return "the GPU driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    device = ctypes.c_int(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    capability = f"{_device_attribute(cuda, _MAJOR, device)}{_device_attribute(cuda, _MINOR, device)}"
    return CudaDevice(name.value.decode(errors="replace"), capability, _driver_version(cuda))


def missing() -> str:
    """The reason why this process has no GPU, or ""."""
    return device if isinstance(device := detect_gpu(), str) else ""


def require_gpu() -> CudaDevice:
    """The GPU. Raises EngineError when there is none."""
    device = detect_gpu()
    if isinstance(device, str):
        raise EngineError(device, hint="run it on a machine with a GPU and its driver")
    return device


def _device_attribute(cuda: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _driver_version(cuda: Any) -> str:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        version = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0:
            try:
                if nvml.nvmlSystemGetDriverVersion(version, len(version)) == 0:
                    return version.value.decode(errors="replace")
            finally:
                nvml.nvmlShutdown()
    except OSError:
        pass  # containers may have the driver without NVML
    number = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
