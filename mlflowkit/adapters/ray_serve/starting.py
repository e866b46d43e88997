"""How long Ray may take to start, and what is said meanwhile. Imports no Ray.

A busy machine starts Ray several times slower than an idle one, and Ray's own limits (30 s for its raylet, as long for
the raylet's agent) then end it. So each try has limits of its own, and the next one twice as long.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mlflowkit.errors import UsageError

SETTING = "MLKIT_RAY_START_SECONDS"
"""Environment variable: the seconds that the first of TRIES may take."""
DEFAULT_SECONDS = 60.0
TRIES = 3
TRY = "MLKIT_RAY_TRY"
"""Environment variable of a reconciler: which try it is."""
FAILED_START = 75
"""Exit code of a reconciler whose Ray did not start, but may the next time."""
ORDINALS = ("first", "second", "third")


def first_seconds() -> float:
    """The seconds of the first try. Raises UsageError when the environment variable holds no such number."""
    text = os.environ.get(SETTING, "")
    try:
        seconds = float(text) if text else DEFAULT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 3600.0:
        raise UsageError(f"{SETTING}={text} is not a number of seconds from 1 to 3600", hint=f"export {SETTING}=120")
    return seconds


def seconds_of(number: int) -> float:
    """The seconds of a try; each may take twice as long as the one before it.

    >>> [seconds_of(number) for number in (1, 2, 3)]
    [60.0, 120.0, 240.0]
    """
    return float(first_seconds() * 2 ** (min(number, TRIES) - 1))


def limit_of(number: int) -> float:
    """The seconds after which a try is ended whatever it does: Ray itself has `seconds_of`, then Serve starts."""
    return 2 * seconds_of(number)


def total_seconds() -> float:
    """The seconds after which no try can be running, with some for what lies between them."""
    return sum(limit_of(number) + 30.0 for number in range(1, TRIES + 1))


def retry_message(failed: int, seconds: float, load: float, reason: str = "") -> str:
    """What is said when a try has failed after ``seconds`` and the next begins.

    >>> retry_message(1, 60.3, 1.0)
    'Ray did not start within 60 s (load 1): second try, up to 120 s'
    >>> retry_message(2, 4.2, 1.0, "raylet.err: Check failed")
    'Ray ended while it started, after 4 s (load 1): third try, up to 240 s; raylet.err: Check failed'
    """
    early = seconds < 0.9 * seconds_of(failed)
    what = f"ended while it started, after {seconds:.0f} s" if early else f"did not start within {seconds:.0f} s"
    busy = " on a busy machine" if load > 2 * (os.cpu_count() or 1) else ""
    following = f"{ORDINALS[failed]} try, up to {seconds_of(failed + 1):g} s"
    return f"Ray {what}{busy} (load {load:.0f}): {following}{f'; {reason}' if reason else ''}"


def ray_limits(number: int) -> Mapping[str, str]:
    """Environment variables that make Ray's own limits those of a try."""
    seconds = round(seconds_of(number))
    return {
        TRY: str(number),
        "RAY_agent_register_timeout_ms": str(1000 * seconds),
        "RAY_raylet_start_wait_time_s": str(seconds),
        "RAY_gcs_server_port_wait_time_s": str(seconds),
        "RAY_worker_register_timeout_seconds": str(max(60, seconds)),
    }


def this_try() -> int:
    """The number of this reconciler's try."""
    return int(os.environ.get(TRY, "1"))
