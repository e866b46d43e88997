"""Facts about this machine and its processes, from /proc. Standard library only: light paths import it."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal


def process_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone, a zombie, or there is no /proc.

    The pair of process id and start time is unique; ids alone are reused.

    >>> process_ticks(os.getpid()) == process_ticks(os.getpid())
    True
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's model name; "" when /proc does not have it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def cores() -> int:
    """Number of cores that this process may use (its CPU affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(field: Literal["MemTotal", "MemAvailable"]) -> int | None:
    """Bytes of a field of /proc/meminfo; None when there is none. MemAvailable can be used without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def describe_machine() -> str:
    """Architecture, processor and number of cores in one line."""
    import platform

    return " ".join(filter(None, (platform.machine(), processor(), f"x{cores()}")))
