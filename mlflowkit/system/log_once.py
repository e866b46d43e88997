"""Logs a repeated failure once, so that a loop that retries does not flood the log. Standard library only."""

from __future__ import annotations

import logging


class LogOnce:
    """Logs an error only when it differs from the previous error of the same key.

    >>> errors = LogOnce(logging.getLogger("doctest"))
    >>> [errors.error("disk full"), errors.error("disk full")]
    [True, False]
    >>> errors.clear(); errors.error("disk full")
    True
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: dict[str, str] = {}

    def error(self, message: str, *, key: str = "", exc_info: bool = False) -> bool:
        """Log ``message`` unless it repeats the last one of ``key``; return whether it was logged."""
        if self._last.get(key) == message:
            return False
        self._last[key] = message
        self._log.error("%s", message, exc_info=exc_info, stacklevel=2)
        return True

    def clear(self, key: str = "") -> None:
        """Forget the last error of ``key``: the operation succeeded, so the next error is logged again."""
        self._last.pop(key, None)
