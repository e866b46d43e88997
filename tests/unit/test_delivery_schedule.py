"""When deliveries to other systems are tried: at once, then ever more rarely, and in the end no more."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.pipeline.outbox import delivery_schedule as schedule
from mlflowkit.values import RunDelivery

NEW = RunDelivery("r", "hub org/m", "identity", created=1.0)


def test_first_attempts_wait_for_nobody_and_later_ones_do() -> None:
    now, delivery, starts = 1000.0, NEW, []
    for _ in range(6):
        assert schedule.due_deliveries([delivery], now) == (delivery,)
        delivery = schedule.after_failure(delivery, "no answer", now)
        starts.append(schedule.next_attempt(delivery) - now)
        now = schedule.next_attempt(delivery)
    assert starts == [0.0, 0.0, 60.0, 300.0, 900.0, 3600.0]
    assert schedule.due_deliveries([delivery], now - 1) == ()


def test_attempts_are_bounded_and_last_for_days() -> None:
    now, delivery = 1000.0, NEW
    while delivery.status == "pending":
        now = schedule.next_attempt(delivery) + 3600
        delivery = schedule.after_failure(delivery, "no answer", now)
    assert (delivery.status, delivery.attempts, delivery.error) == ("failed", schedule.MAX_ATTEMPTS, "no answer")
    assert now - 1000 > 3 * 86_400
    assert schedule.due_deliveries([delivery], now + 1e9) == ()


def test_what_was_refused_is_not_tried_again() -> None:
    refused = schedule.after_failure(NEW, "a conflict", 5.0, refused=True)
    assert (refused.status, refused.attempts) == ("failed", 1)
    assert schedule.troubled([refused, NEW, schedule.after_success(NEW, "v1", 2.0)]) == [refused]


def test_a_success_forgets_the_error_and_keeps_the_receipt() -> None:
    failed = schedule.after_failure(NEW, "no answer", 5.0)
    assert schedule.after_success(failed, "v1", 9.0) == replace(
        NEW, status="delivered", attempts=2, receipt="v1", tried=9.0
    )


@given(st.integers(0, schedule.MAX_ATTEMPTS - 1), st.floats(1, 1e10), st.floats(1, 1e10))
def test_a_clock_that_was_wrong_holds_nothing_up(attempts: int, tried: float, now: float) -> None:
    delivery = replace(NEW, attempts=attempts, tried=tried)
    is_due = bool(schedule.due_deliveries([delivery], now))
    assert is_due or 0 <= now - tried < max(schedule.WAITS)
    assert is_due == (tried > now or now >= schedule.next_attempt(delivery))
