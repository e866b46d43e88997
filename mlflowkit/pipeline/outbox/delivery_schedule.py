"""Which deliveries are due, and what an attempt makes of one: pure functions of deliveries and the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlflowkit.ports import RunTarget
from mlflowkit.values import TRACKING_TARGET, DeliveryStatus, RunDelivery, RunRecord

WAITS = (0.0, 0.0, 0.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0)
"""Seconds after the attempt of this number, and after every later one, in which no run tries again. The first attempts
wait for nobody: whoever runs the command again means it."""
MAX_ATTEMPTS = 20
"""Attempts after which a delivery has failed: until then at least three days have passed, with a run every hour."""


def owed_deliveries(record: RunRecord, targets: Iterable[RunTarget]) -> tuple[RunDelivery, ...]:
    """What a run owes at its end: itself to the tracker, and what each target asks of it."""
    keys = {target.name: target.key(record) for target in targets if target.name != TRACKING_TARGET}
    return tuple(
        RunDelivery(record.run, name, key) for name, key in {TRACKING_TARGET: record.run, **keys}.items() if key
    )


def next_attempt(delivery: RunDelivery) -> float:
    """The time from which a run tries a pending delivery.

    >>> next_attempt(RunDelivery("r", "mlflow", "r", attempts=4, tried=1000.0))
    1300.0
    """
    return delivery.tried + WAITS[min(delivery.attempts, len(WAITS) - 1)]


def due_deliveries(deliveries: Iterable[RunDelivery], now: float) -> tuple[RunDelivery, ...]:
    """The pending deliveries that are to be tried, in their order. A time of the last attempt that has yet to come is
    that of a clock that was wrong: it holds nothing up."""
    return tuple(
        delivery
        for delivery in deliveries
        if delivery.status == "pending" and (now >= next_attempt(delivery) or delivery.tried > now)
    )


def after_success(delivery: RunDelivery, receipt: str, now: float) -> RunDelivery:
    """A delivery that the system took."""
    attempts = delivery.attempts + 1
    return replace(delivery, status="delivered", attempts=attempts, error="", receipt=receipt, tried=now)


def after_failure(delivery: RunDelivery, error: str, now: float, *, refused: bool = False) -> RunDelivery:
    """A delivery whose attempt failed: pending, or failed where it was refused or tried for the last time.

    >>> after_failure(RunDelivery("r", "mlflow", "r", attempts=19), "no answer", 5.0).status
    'failed'
    """
    attempts = delivery.attempts + 1
    status: DeliveryStatus = "failed" if refused or attempts >= MAX_ATTEMPTS else "pending"
    return replace(delivery, status=status, attempts=attempts, error=error, tried=now)


def troubled(deliveries: Iterable[RunDelivery]) -> Sequence[RunDelivery]:
    """The deliveries that people are told of: those that failed, for good or at their last attempt."""
    return [item for item in deliveries if item.status == "failed" or (item.status == "pending" and item.error)]
