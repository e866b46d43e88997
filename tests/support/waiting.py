"""Waiting for a condition, with a deadline that fails the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

BUSY_SECONDS = 120.0
"""A deadline for a machine that does other things too: what waits this long has failed."""


def wait_for(
    condition: Callable[[], Any], seconds: float = BUSY_SECONDS, what: object = "a condition", *, poll: float = 0.01
) -> Any:
    """Return the first true value of ``condition``. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(poll)
    return value


async def wait_for_async(condition: Callable[[], bool], seconds: float = BUSY_SECONDS) -> None:
    """Let the event loop run until ``condition`` holds. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for a condition"
        await asyncio.sleep(0.001)
