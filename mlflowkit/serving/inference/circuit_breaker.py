"""A circuit breaker: a variant that keeps failing is not asked for a while, then asked once. Pure but for its state.

Source: M. Nygard, "Release It!" (2nd edition, 2018), chapter 5. Time is handed in, so that it can be tested without.
"""

from __future__ import annotations

FAILURES = 5
"""Failures in a row that open the circuit."""
OPEN_SECONDS = 5.0
"""How long it stays open; then one request is let through."""


class Breaker:
    """One variant's circuit, in one gateway.

    >>> breaker = Breaker()
    >>> for _ in range(FAILURES): breaker.failed(now=0.0)
    >>> breaker.allows(now=1.0), breaker.allows(now=5.0), breaker.allows(now=5.1)
    (False, True, False)
    >>> breaker.succeeded(); breaker.allows(now=5.2)
    True
    """

    __slots__ = ("_failures", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    def allows(self, now: float) -> bool:
        """Whether to ask the variant. An open circuit lets one request through when its time is up."""
        if self._failures < FAILURES:
            return True
        if now < self._until:
            return False
        self._until = now + OPEN_SECONDS
        return True

    @property
    def open(self) -> bool:
        return self._failures >= FAILURES

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._until = now + OPEN_SECONDS
