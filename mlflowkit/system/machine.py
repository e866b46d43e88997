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
    fields = _stat(pid)
    return None if not fields or fields[0] in ("Z", "X") else int(fields[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the process's state on; [] when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


@lru_cache(maxsize=1)
def boot_identity() -> str:
    """Identifies what process ids are valid in: this boot of this machine and this namespace of process ids.

    "" without /proc. A record of another identity says nothing about the processes here.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def is_own_process(pid: int) -> bool:
    """Whether a process exists and belongs to this user."""
    try:
        return pid > 0 and os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def parent_ids() -> dict[int, int]:
    """The parent of every process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    return parents


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (SIGSTOP), so that it does nothing; not by a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[0] == "T"


def command_line(pid: int) -> tuple[str, ...]:
    """Arguments of a process; () when it is gone. A process may overwrite its own."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(part) for part in content.split(b"\0")[:-1])


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
