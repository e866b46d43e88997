"""Logs of processes: one format, and no character that drives the terminal on which a log is read."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

from mlflowkit.system.text import printable

MAX_LOG_BYTES = 8 << 20
FORMAT = "%(asctime)s %(name)s %(message)s"


class PrintableFormatter(logging.Formatter):
    """Formats records, with tracebacks, without terminal escapes.

    >>> record = logging.LogRecord("a", logging.INFO, "", 0, "model %s", ("x\\x1b[2J",), None)
    >>> print(PrintableFormatter("%(message)s").format(record))
    model x\\x1b[2J
    """

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(level: int = logging.INFO) -> None:
    """Log to stderr. For the entry points of processes of our own."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


def rotate_log(path: Path, limit: int = MAX_LOG_BYTES) -> bool:
    """Move a log longer than ``limit`` to ``<name>.1`` and empty it; True when it did.

    Its writers go on: they append to the same file. Lines written during the copy may be lost.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.log"
    >>> _ = path.write_text("long enough")
    >>> rotate_log(path, 100), rotate_log(path, 3), path.read_text(), path.with_name("a.log.1").read_text()
    (False, True, '', 'long enough')
    """
    with contextlib.suppress(OSError):  # a missing log, or a full disk: try again later
        if path.stat().st_size > limit:
            older = path.with_name(f"{path.name}.1")
            older.unlink(missing_ok=True)
            shutil.copy(path, older)  # with its permissions
            os.truncate(path, 0)
            return True
    return False
