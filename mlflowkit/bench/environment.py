"""What latency depends on: the machine, and what it did at one moment. As /proc and /sys tell them.

What a machine does not tell is None, and ``unknown`` says why: a virtual machine hides its clocks, a container its
governor. GPUs are in `bench.nvml`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlflowkit.bench.nvml import Gpus, gpus
from mlflowkit.errors import UsageError
from mlflowkit.system.machine import processor

CPUFREQ = "/sys/devices/system/cpu/cpu{core}/cpufreq"
"""Where Linux tells a core's governor and clock."""
NO_LIMIT = 1 << 60
"""Bytes from which on a limit of memory in cgroup version 1 means that there is none."""
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "torch")
"""Distributions whose versions latency depends on."""


def usable() -> tuple[int, ...]:
    """Numbers of the cores that this process may use.

    >>> len(usable()) >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@contextmanager
def pinned(wanted: Collection[int]) -> Iterator[tuple[int, ...]]:
    """Keep the calling thread, and what it starts meanwhile, on some cores; afterwards it is as before.

    Threads that run already stay where they are: pin before a runtime makes its own. Raises UsageError for a core that
    this process may not use, and where the system has no affinity.

    >>> with pinned(usable()[:1]) as held:
    ...     len(held)
    1
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("this system cannot keep a process on a core", hint="leave the cores out")
    before = usable()
    if not wanted or not set(wanted) <= set(before):
        raise UsageError(
            f"this process cannot be kept on cores {_listed(wanted) or 'of an empty list'}",
            hint=f"it may use {_listed(before)}",
        )
    os.sched_setaffinity(0, wanted)
    try:
        yield usable()
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Machine:
    """What latency depends on. ``unknown`` has, for each figure that is None and should not be, the reason."""

    processor: str
    architecture: str
    cores: int
    """That this process may use."""
    affinity: tuple[int, ...]
    """Their numbers."""
    governor: str | None
    """How Linux chooses the cores' clock ("performance", "powersave", ...); "mixed" where they differ."""
    min_mhz: float | None
    max_mhz: float | None
    """Limits of the clock, over the cores that this process may use."""
    boost: bool | None
    """Whether the clock may go beyond its nominal value."""
    smt: bool | None
    """Whether two threads share a core."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    """Of this process's container; None without one."""
    cpu_limit: float | None
    """Cores' worth of time that the container grants; None without a limit."""
    virtual: bool
    """Whether a hypervisor is underneath: neighbours may take its cores."""
    system: str
    kernel: str
    python: str
    libraries: Mapping[str, str]
    """Versions of those of LIBRARIES that are installed."""
    gpus: Gpus
    unknown: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As results files keep it: GPUs under ``gpus``, or null with ``gpus_reason``."""
        plain = asdict(replace(self, gpus=Gpus(None))) | {"affinity": list(self.affinity)}
        return plain | self.gpus.to_json()


def description() -> Machine:
    """This machine as it is now.

    >>> description().cores == len(usable())
    True
    """
    import platform

    own = usable()
    governors = _distinct(own, "scaling_governor")
    slowest, fastest = _megahertz(own, "cpuinfo_min_freq"), _megahertz(own, "cpuinfo_max_freq")
    hidden = "" if governors else f"{CPUFREQ.format(core=own[0])} is not there: the system hides it"
    return Machine(
        processor=processor() or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=len(own),
        affinity=own,
        governor=("mixed" if len(governors) > 1 else governors[0]) if governors else None,
        min_mhz=min(slowest) if slowest else None,
        max_mhz=max(fastest) if fastest else None,
        boost=_boost(),
        smt={"1": True, "0": False}.get(_read("/sys/devices/system/cpu/smt/active")),
        memory_bytes=_memory(),
        memory_limit_bytes=_memory_limit(),
        cpu_limit=_cpu_limit(),
        virtual=_virtual(),
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        libraries=_libraries(),
        gpus=gpus(),
        unknown=dict.fromkeys(("governor", "min_mhz", "max_mhz", "boost"), hidden) if hidden else {},
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """What the machine did at one moment. Two of them, around a measurement, tell what disturbed it."""

    mhz: float | None
    """Mean clock of the cores that this process may use; None where it is hidden."""
    load: float | None
    """Processes that ran or waited, over the last minute, on all cores of the machine."""
    busy_ticks: int | None
    """Clock ticks since boot in which the machine's cores did something."""
    stolen_ticks: int | None
    """Ticks in which the hypervisor ran somebody else."""
    throttled_seconds: float | None
    """Seconds since its start in which the container was held at its limit of processor time."""
    gpus: Gpus

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, gpus=Gpus(None))) | self.gpus.to_json()


def moment() -> Moment:
    """The machine at this moment."""
    clocks = _megahertz(usable(), "scaling_cur_freq")
    fields = _read("/proc/stat").partition("\n")[0].split()[1:]
    ticks = [int(field) for field in fields] if len(fields) >= 8 else None
    return Moment(
        mhz=sum(clocks) / len(clocks) if clocks else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        busy_ticks=sum(ticks[:8]) - ticks[3] - ticks[4] if ticks else None,
        stolen_ticks=ticks[7] if ticks else None,
        throttled_seconds=_throttled(),
        gpus=gpus(),
    )


def _read(path: str | Path) -> str:
    """A small file's text without the space around it; "" where it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _distinct(own: Collection[int], name: str) -> list[str]:
    found = (_read(f"{CPUFREQ.format(core=core)}/{name}") for core in own)
    return sorted({value for value in found if value})


def _megahertz(own: Collection[int], name: str) -> list[float]:
    found = (_read(f"{CPUFREQ.format(core=core)}/{name}") for core in own)
    return [int(value) / 1000 for value in found if value.isdigit()]


def _boost() -> bool | None:
    if forbidden := _read("/sys/devices/system/cpu/intel_pstate/no_turbo"):
        return forbidden == "0"
    return {"1": True, "0": False}.get(_read("/sys/devices/system/cpu/cpufreq/boost"))


def _memory() -> int | None:
    line = next((line for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")), "")
    return int(line.split()[1]) * 1024 if line else None


def _cgroup(controller: str) -> Path:
    """This process's folder of a cgroup controller, in version 1 or 2; where a container hides it, the outermost."""
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


def _virtual() -> bool:
    flags = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), "")
    return "hypervisor" in flags.split()


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
