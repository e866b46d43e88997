"""This machine and its processes, as /proc tells them. Standard library only: light paths import it."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def process_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone, a zombie, or there is no /proc.

    With the process id it names a process for good: ids are used again, pairs of both are not.

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
    """The processor's model name; "" where /proc does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def cores() -> int:
    """Cores that this process may use: its affinity, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that new processes can have without swapping; None where /proc does not tell it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def described() -> str:
    """Architecture, processor and cores in one line: what latency depends on."""
    import platform

    return " ".join(filter(None, (platform.machine(), processor(), f"x{cores()}")))
