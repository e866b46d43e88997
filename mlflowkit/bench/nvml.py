"""GPUs as NVIDIA's management library (NVML) tells them: names, clocks, temperature, why a clock was held back.

Read through nvidia-ml-py (module ``pynvml``) where it is installed. Without it, or without a driver, there is a reason
instead; latency is then measured all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
"""Bits of NVML's clock event reasons that mean: slower than asked for. The others are idleness and settings."""
IDLE = 0x01
"""The bit that means: nothing to do."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. A figure that this model does not tell is None."""

    index: int
    name: str
    driver: str
    memory_bytes: int | None
    clock_mhz: int | None
    """Of the multiprocessors."""
    max_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_celsius: int | None
    power_watts: float | None
    idle: bool
    """Whether it had nothing to do just then: its clock then says nothing about a measurement."""
    held_back: tuple[str, ...]
    """Why the clock is lower than asked for; empty when it is not."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of this machine; None where they cannot be read, with the reason in words."""

    found: tuple[Gpu, ...] | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        listed = None if self.found is None else [asdict(gpu) | {"held_back": [*gpu.held_back]} for gpu in self.found]
        return {"gpus": listed, "gpus_reason": self.reason}


def gpus() -> Gpus:
    """All GPUs as they are now.

    >>> found = gpus()
    >>> found.found is not None or bool(found.reason)
    True
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return Gpus(None, "nvidia-ml-py is not installed")
    try:
        with _opened(nvml):
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            return Gpus(tuple(_gpu(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())))
    except nvml.NVMLError as error:
        return Gpus(None, f"NVML cannot be read: {error}")


@contextmanager
def _opened(nvml: ModuleType) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ModuleType, index: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except nvml.NVMLError:
            return None

    power = told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    reasons = told(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        driver=driver,
        memory_bytes=told(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        max_clock_mhz=told(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        temperature_celsius=told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_watts=None if power is None else power / 1000,
        idle=bool(reasons & IDLE),
        held_back=held_back(reasons),
    )


def held_back(reasons: int) -> tuple[str, ...]:
    """Why a clock is lower than asked for, from NVML's bits.

    >>> held_back(0x01), held_back(0x04 | 0x20)
    ((), ('power cap', 'thermal (software)'))
    """
    return tuple(words for bit, words in HELD_BACK.items() if reasons & bit)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
