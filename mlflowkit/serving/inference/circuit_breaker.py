"""A circuit breaker: a variant that keeps failing is not called for a while, then probed with one request.

The clock is passed in. Source: M. Nygard, "Release It!" (2nd edition, 2018), chapter 5.
"""

from __future__ import annotations

MAX_FAILURES = 5
"""Consecutive failures that open the circuit."""
OPEN_SECONDS = 5.0
"""How long it stays open; then one request is let through."""


class CircuitBreaker:
    """The circuit of one variant in one gateway.

    >>> breaker = CircuitBreaker()
    >>> for _ in range(MAX_FAILURES): breaker.record_failure(now=0.0)
    >>> breaker.allows(now=1.0), breaker.allows(now=5.0), breaker.allows(now=5.1)
    (False, True, False)
    >>> breaker.record_success(); breaker.allows(now=5.2)
    True
    """

    __slots__ = ("_failures", "_open_until")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    def allows(self, now: float) -> bool:
        """Whether to call the variant. An expired open circuit lets one request through."""
        if self._failures < MAX_FAILURES:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + OPEN_SECONDS
        return True

    @property
    def open(self) -> bool:
        return self._failures >= MAX_FAILURES

    def record_success(self) -> None:
        self._failures = 0

    def record_failure(self, now: float) -> None:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._open_until = now + OPEN_SECONDS
