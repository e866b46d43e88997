"""A log file of bounded size: what a process writes to a pipe, in two pieces of which the older is dropped."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

from mlflowkit.system.files import make_folder, private_opener

PIECE_BYTES = 512 << 10
"""Size of a piece of the log; there are at most two, ``<name>`` and ``<name>.1``."""
KEPT_LOGS = 20
"""Logs of a folder that are kept, the newest."""


class BoundedLog:
    """Copies a pipe to a file, of mode 0600, until the pipe ends. A full disk loses lines, never the process."""

    def __init__(self, path: Path, source: IO[bytes]) -> None:
        self.path = path
        self._source = source
        self._last = b""
        self._thread = threading.Thread(target=self._copy, name="mlkit-log", daemon=True)
        self._thread.start()

    def wait(self, seconds: float = 10.0) -> str:
        """Wait for the end of the pipe; returns the last line."""
        self._thread.join(seconds)
        return self._last.decode(errors="replace").strip()

    def _copy(self) -> None:
        writable = True
        for line in iter(lambda: self._source.readline(1 << 16), b""):
            self._last = line if line.strip() else self._last
            if writable:
                try:
                    self._write(line)
                except OSError:
                    writable = False

    def _write(self, line: bytes) -> None:
        make_folder(self.path.parent)
        if self.path.exists() and self.path.stat().st_size + len(line) > PIECE_BYTES:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        with open(self.path, "ab", opener=private_opener) as stream:
            stream.write(line)


def sweep_logs(folder: Path) -> None:
    """Remove the oldest logs of a folder beyond `KEPT_LOGS`."""
    logs = sorted(folder.glob("*.log*"), key=lambda path: path.stat().st_mtime)
    for path in logs[: max(0, len(logs) - 2 * KEPT_LOGS)]:
        path.unlink(missing_ok=True)
