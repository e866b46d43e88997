"""Logs of processes: one format, and no character that drives the terminal on which a log is read."""

from __future__ import annotations

import logging

from mlflowkit.system.text import printable

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
