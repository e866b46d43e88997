"""Ray's own logs: the line that says why it ended, and a copy that outlives its temporary folder. Imports no Ray."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mlflowkit.adapters.ray_serve import ownership
from mlflowkit.system.files import make_folder, private_opener

SOURCES = (
    "raylet.err",
    "raylet.out",
    "gcs_server.err",
    "gcs_server.out",
    "runtime_env_agent.log",
    "dashboard_agent.log",
)
"""Logs in which the cause of a failed start stands, the most telling first."""
TAIL_BYTES = 64 << 10
KEPT_BYTES = 256 << 10
"""End of each log that is kept after a crash."""
KEPT_CRASHES = 3
CAUSE_LINES = 2
MAX_CAUSE = 500
_FATAL = re.compile(
    r"Check failed|\] ?\(?\w*\)? .*(FATAL|exited|timed out|failed)|\bF \d+|\bC \d+|Error\b|error:", re.IGNORECASE
)
_FRAME = re.compile(r"^\s*(@|#\d+|0x[0-9a-f]+|/\S+\(\+?|\*\*\* )|StackTrace|^\s*$")
_HEAD = re.compile(
    r"^\[?\d{4}-\d\d-\d\d[ T][\d:,.]+\s*(?:[A-Z]\s+\d+\s+\d+)?\]?\s*(?:\(\w+\)\s*)?(?:\S+\.(?:cc|h|py):\d+:\s*)?"
)


def cause(temp_dir: Path) -> str:
    """The last lines of Ray's logs that say why it failed, with their file's name; "" when none does.

    Of a log with a fatal error its first line counts, as the stack that follows says nothing to a reader.
    """
    for name in SOURCES:
        text = _tail(temp_dir / ownership.RAY / "session_latest" / "logs" / name, TAIL_BYTES)
        lines = [line for line in text.splitlines() if _FATAL.search(line) and not _FRAME.search(line)]
        if lines:
            cause = "; ".join(_HEAD.sub("", line).strip() for line in lines[-CAUSE_LINES:])
            return f"{name}: {cause[:MAX_CAUSE]}"
    return ""


def save_crash_logs(temp_dir: Path, state: Path) -> Path | None:
    """Copy the ends of Ray's logs to ``<state>/ray/crashes``, where the last few stay; returns the new folder."""
    if not ownership.owns_temp_dir(temp_dir, state):
        return None
    crashes = state / "ray" / "crashes"
    if crashes.is_symlink():
        return None
    target = crashes / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    files = list(_logs(temp_dir))
    if not files or target.exists():
        return None
    with contextlib.suppress(OSError):  # a full disk does not keep Ray from starting
        make_folder(target)
        for path in files:
            with open(target / path.name, "w", opener=private_opener) as copy:
                copy.write(_tail(path, KEPT_BYTES))
        for old in sorted(crashes.iterdir())[:-KEPT_CRASHES]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _logs(temp_dir: Path) -> Iterator[Path]:
    """Logs with content, of every session in the folder."""
    for pattern in ("session_2*/logs/*.*", "session_2*/logs/serve/*.log"):
        for path in sorted((temp_dir / ownership.RAY).glob(pattern)):
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                yield path


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - size))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
