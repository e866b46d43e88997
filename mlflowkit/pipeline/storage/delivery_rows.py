"""The journal's outbox: rows of what finished runs owe to other systems, written beside the end of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from mlflowkit.pipeline.storage.journal_tables import deliveries, runs
from mlflowkit.values import TRACKING_TARGET, DeliveryStatus, RunDelivery

MAX_TEXT = 2000
"""Longer errors and receipts are cut."""


def owe(connection: Connection, owed: Sequence[RunDelivery], *, again: bool = False) -> None:
    """Insert deliveries, but those whose target and key are known; ``again`` makes these pending, as if new."""
    for delivery in owed:
        if connection.execute(select(deliveries.c.run).where(*_is(delivery))).first() is None:
            connection.execute(insert(deliveries), {**_row(delivery), "created": delivery.created or time.time()})
        elif again:
            fresh = {"status": "pending", "attempts": 0, "error": "", "tried": 0.0}
            connection.execute(update(deliveries).where(*_is(delivery)).values(fresh))


def save(connection: Connection, delivery: RunDelivery) -> None:
    """Update a delivery."""
    row = _row(delivery)
    changed = {name: row[name] for name in ("status", "attempts", "error", "receipt", "tried")}
    connection.execute(update(deliveries).where(*_is(delivery)).values(changed))


def adopt_untracked(connection: Connection) -> None:
    """Owe the tracker the runs that a process of version 1 ended, which marks them in their own row."""
    for row in connection.execute(select(runs.c.run, runs.c.started).where(runs.c.tracked.is_(False))).all():
        owe(connection, [RunDelivery(row.run, TRACKING_TARGET, row.run, created=float(row.started))])
        connection.execute(update(runs).where(runs.c.run == row.run).values(tracked=True))


def read(connection: Connection, *statuses: DeliveryStatus, run: str = "") -> tuple[RunDelivery, ...]:
    """Deliveries, oldest first. Raises ValueError for a damaged row."""
    query = select(deliveries).order_by(deliveries.c.created, deliveries.c.target, deliveries.c.key)
    query = query.where(deliveries.c.status.in_(statuses)) if statuses else query
    query = query.where(deliveries.c.run == run) if run else query
    return tuple(_delivery(row) for row in connection.execute(query))


def _delivery(row: Row[Any]) -> RunDelivery:
    values = dict(row._mapping)
    texts = all(isinstance(values[name], str) for name in ("run", "target", "key", "error", "receipt"))
    numbers = all(isinstance(values[name], int | float) for name in ("attempts", "created", "tried"))
    if not texts or not numbers or values["status"] not in get_args(DeliveryStatus):
        raise ValueError(f"deliveries has {list(values.values())!r:.60}")
    return RunDelivery(**values)


def _row(delivery: RunDelivery) -> dict[str, Any]:
    row = asdict(delivery)
    for name in ("error", "receipt"):  # of other systems: a lone surrogate cannot be stored
        row[name] = row[name].encode(errors="backslashreplace").decode()[:MAX_TEXT]
    return row


def _is(delivery: RunDelivery) -> tuple[ColumnElement[bool], ...]:
    return deliveries.c.target == delivery.target, deliveries.c.key == delivery.key
