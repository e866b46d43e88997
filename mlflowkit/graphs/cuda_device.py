"""The GPU that a process would run on, asked of the driver itself: no framework is loaded for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlflowkit.errors import EngineError

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES is heeded).

    ``capability`` is its compute capability without the point, such as "89"; ``driver`` the driver's version as
    nvidia-smi shows it, or the CUDA version that it is for where NVML is not installed.
    """

    name: str
    capability: str
    driver: str


@lru_cache(maxsize=1)
def gpu() -> Gpu | str:
    """The GPU, or in words why there is none: no driver, or no device."""
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
    capability = f"{_attribute(cuda, _MAJOR, device)}{_attribute(cuda, _MINOR, device)}"
    return Gpu(name.value.decode(errors="replace"), capability, _driver(cuda))


def missing() -> str:
    """Why this process has no GPU, or ""."""
    found = gpu()
    return found if isinstance(found, str) else ""


def here() -> Gpu:
    """The GPU. Raises EngineError when there is none."""
    found = gpu()
    if isinstance(found, str):
        raise EngineError(found, hint="run it on a machine with a GPU and its driver")
    return found


def _attribute(cuda: Any, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _driver(cuda: Any) -> str:
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
        pass  # the driver without its management library, as in some containers
    number = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
