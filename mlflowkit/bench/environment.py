"""Facts of the machine that latency depends on, and its state at one moment, from /proc and /sys.

A fact that the system hides is None, with the reason in ``unknown``. GPUs are in `bench.nvml`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflowkit.bench.nvml import GpuReadings, read_gpus
from mlflowkit.errors import UsageError
from mlflowkit.system.machine import memory, processor
from mlflowkit.system.text import format_numbers

CPUFREQ = "/sys/devices/system/cpu/cpu{core}/cpufreq"
"""Folder of a core's governor and clock in Linux."""
NO_LIMIT = 1 << 60
"""A memory limit of cgroup version 1 of at least this many bytes means no limit."""
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "torch")
"""Distributions whose versions affect latency."""


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use.

    >>> len(usable_cores()) >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@contextmanager
def pinned_to(cores: Collection[int]) -> Iterator[tuple[int, ...]]:
    """Pin the calling thread, and what it starts inside the context, to cores; restore its affinity afterwards.

    Running threads are not moved: pin before a runtime creates its own. Raises UsageError for a core that this process
    may not use, and on a system without affinity.

    >>> with pinned_to(usable_cores()[:1]) as held:
    ...     len(held)
    1
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("this system cannot keep a process on a core", hint="leave the cores out")
    before = usable_cores()
    if not cores or not set(cores) <= set(before):
        raise UsageError(
            f"this process cannot be kept on cores {format_numbers(cores) or 'of an empty list'}",
            hint=f"it may use {format_numbers(before)}",
        )
    os.sched_setaffinity(0, cores)
    try:
        yield usable_cores()
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """Facts that latency depends on. ``unknown`` maps each fact that is None against expectation to the reason."""

    processor: str
    architecture: str
    cores: int
    """Number of cores that this process may use."""
    affinity: tuple[int, ...]
    """Numbers of those cores."""
    governor: str | None
    """Frequency governor of the cores ("performance", "powersave", ...); "mixed" if they differ."""
    min_mhz: float | None
    max_mhz: float | None
    """Clock limits over the cores that this process may use."""
    boost: bool | None
    """Whether turbo is enabled."""
    smt: bool | None
    """Whether two threads share a core."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    """Limit of this process's container, if any."""
    cpu_limit: float | None
    """CPU quota of the container in cores, if any."""
    virtual: bool
    """Whether the machine is virtual: other guests may use its cores."""
    system: str
    kernel: str
    python: str
    libraries: Mapping[str, str]
    """Versions of the installed LIBRARIES."""
    gpus: GpuReadings
    unknown: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of results files: GPUs under ``gpus``, or null with ``gpus_reason``."""
        return asdict(self) | {"affinity": list(self.affinity)} | self.gpus.to_json()


def machine_info() -> MachineInfo:
    """Describe this machine.

    >>> machine_info().cores == len(usable_cores())
    True
    """
    import platform

    cores = usable_cores()
    governors = sorted({_read(f"{CPUFREQ.format(core=core)}/scaling_governor") for core in cores} - {""})
    slowest, fastest = _megahertz(cores, "cpuinfo_min_freq"), _megahertz(cores, "cpuinfo_max_freq")
    flags = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), "")
    hidden = "" if governors else f"{CPUFREQ.format(core=cores[0])} does not exist: the system hides it"
    return MachineInfo(
        processor=processor() or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=len(cores),
        affinity=cores,
        governor=("mixed" if len(governors) > 1 else governors[0]) if governors else None,
        min_mhz=min(slowest) if slowest else None,
        max_mhz=max(fastest) if fastest else None,
        boost=_boost(),
        smt={"1": True, "0": False}.get(_read("/sys/devices/system/cpu/smt/active")),
        memory_bytes=memory("MemTotal"),
        memory_limit_bytes=_memory_limit(),
        cpu_limit=_cpu_limit(),
        virtual="hypervisor" in flags.split(),
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        libraries=_libraries(),
        gpus=read_gpus(),
        unknown=dict.fromkeys(("governor", "min_mhz", "max_mhz", "boost"), hidden) if hidden else {},
    )


@dataclass(frozen=True, slots=True)
class MachineMoment:
    """State of the machine at one moment. Two, around a measurement, show what disturbed it."""

    mhz: float | None
    """Mean clock of the cores that this process may use, if known."""
    load: float | None
    """Load average of the last minute, over all cores of the machine."""
    busy_ticks: int | None
    """Clock ticks since boot in which the machine's cores were busy."""
    stolen_ticks: int | None
    """Clock ticks in which the hypervisor ran another guest."""
    throttled_seconds: float | None
    """Seconds since its start in which the container was throttled at its CPU quota."""
    gpus: GpuReadings
    clock: float = 0.0
    """Monotonic time in seconds."""
    thread_seconds: float = 0.0
    """Processor time of the calling thread."""
    preempted: int | None = None
    """Involuntary context switches of the calling thread."""
    running: int | None = None
    """Processes that run or wait for a core now, the calling one included."""
    pressure_seconds: float | None = None
    """Seconds since boot in which a process waited for a core (pressure stall information)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | self.gpus.to_json()


def read_moment() -> MachineMoment:
    """Read the machine's state."""
    clocks = _megahertz(usable_cores(), "scaling_cur_freq")
    fields = _read("/proc/stat").partition("\n")[0].split()[1:]
    ticks = [int(field) for field in fields] if len(fields) >= 8 else None
    return MachineMoment(
        mhz=sum(clocks) / len(clocks) if clocks else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        busy_ticks=sum(ticks[:8]) - ticks[3] - ticks[4] if ticks else None,
        stolen_ticks=ticks[7] if ticks else None,
        throttled_seconds=_throttled(),
        gpus=read_gpus(),
        clock=time.monotonic(),
        thread_seconds=time.thread_time(),
        preempted=_preempted(),
        running=_running(),
        pressure_seconds=_pressure(),
    )


def _preempted() -> int | None:
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    except (ImportError, AttributeError):
        return None


def _running() -> int | None:
    """Return the number of runnable processes of /proc/loadavg ("0.64 0.84 1.58 2/104 32592")."""
    fields = _read("/proc/loadavg").split()
    count = fields[3].partition("/")[0] if len(fields) > 3 else ""
    return int(count) if count.isdigit() else None


def _pressure() -> float | None:
    """Return the seconds of ``some`` in the cgroup's cpu.pressure, or in the machine's where the cgroup has none."""
    text = _read(_cgroup("cpu") / "cpu.pressure") or _read("/proc/pressure/cpu")
    first = text.partition("\n")[0]
    total = first.rpartition("total=")[2]
    return int(total) / 1e6 if first.startswith("some") and total.isdigit() else None


def _read(path: str | Path) -> str:
    """Return a small file's stripped text; "" if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _megahertz(cores: Collection[int], name: str) -> list[float]:
    values = (_read(f"{CPUFREQ.format(core=core)}/{name}") for core in cores)
    return [int(value) / 1000 for value in values if value.isdigit()]


def _boost() -> bool | None:
    if forbidden := _read("/sys/devices/system/cpu/intel_pstate/no_turbo"):
        return forbidden == "0"
    return {"1": True, "0": False}.get(_read("/sys/devices/system/cpu/cpufreq/boost"))


def _cgroup(controller: str) -> Path:
    """Return this process's folder of a cgroup controller (version 1 or 2); the root if a container hides it."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup", controller) if controllers else Path("/sys/fs/cgroup")
        if controller in controllers.split(",") or (not controllers and (root / "cgroup.controllers").exists()):
            own = root / path.lstrip("/")
            return own if own.is_dir() else root
    return Path("/sys/fs/cgroup")


def _memory_limit() -> int | None:
    folder = _cgroup("memory")
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    return int(limit) if limit.isdigit() and int(limit) < NO_LIMIT else None


def _cpu_limit() -> float | None:
    folder = _cgroup("cpu")
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _throttled() -> float | None:
    rows = dict(line.split(" ", 1) for line in _read(_cgroup("cpu") / "cpu.stat").splitlines())
    if "throttled_usec" in rows:
        return int(rows["throttled_usec"]) / 1e6
    return int(rows["throttled_time"]) / 1e9 if "throttled_time" in rows else None


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
