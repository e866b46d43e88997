"""Readings of NVIDIA GPUs through NVML: names, clocks, temperature, and why a clock was held back.

Uses nvidia-ml-py (module ``pynvml``) if it is installed; without it, or without a driver, there is a reason instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

HELD_BACK: Mapping[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean a clock below the requested one; the others mean idle or settings."""
IDLE = 0x01
"""The bit of an idle GPU."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. A value that this model does not report is None."""

    index: int
    name: str
    driver: str
    memory_bytes: int | None
    clock_mhz: int | None
    """Clock of the multiprocessors."""
    max_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_celsius: int | None
    power_watts: float | None
    idle: bool
    """Whether it was idle: its clock then says nothing about a measurement."""
    held_back: tuple[str, ...]
    """Reasons for a clock below the requested one."""


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """Readings of this machine's GPUs; None, with the reason, if they cannot be read."""

    readings: tuple[GpuReading, ...] | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        readings = self.readings
        rows = None if readings is None else [asdict(gpu) | {"held_back": [*gpu.held_back]} for gpu in readings]
        return {"gpus": rows, "gpus_reason": self.reason}


def read_gpus() -> GpuReadings:
    """Read all GPUs.

    >>> gpus = read_gpus()
    >>> gpus.readings is not None or bool(gpus.reason)
    True
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return GpuReadings(None, "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        try:
            driver = _decode(nvml.nvmlSystemGetDriverVersion())
            return GpuReadings(tuple(_read_gpu(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return GpuReadings(None, f"NVML cannot be read: {error}")


def _read_gpu(nvml: ModuleType, index: int, driver: str) -> GpuReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def optional(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except nvml.NVMLError:
            return None

    power = optional(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    reasons = optional(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
    return GpuReading(
        index=index,
        name=_decode(nvml.nvmlDeviceGetName(handle)),
        driver=driver,
        memory_bytes=optional(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        clock_mhz=optional(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        max_clock_mhz=optional(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=optional(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        temperature_celsius=optional(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_watts=None if power is None else power / 1000,
        idle=bool(reasons & IDLE),
        held_back=tuple(name for bit, name in HELD_BACK.items() if reasons & bit),
    )


def _decode(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
