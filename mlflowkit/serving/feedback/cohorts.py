"""Reads cohorts of answers with their labels from the join's index, beside its writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflowkit.errors import StoreError
from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.performance.realised import LabelledCohort
from mlflowkit.serving.feedback.matured import NO_CELL
from mlflowkit.serving.feedback.scoring import sources_beyond
from mlflowkit.system.text import shell_word

INDEX = "join.sqlite"
_SUMS = """
SELECT CAST(period / :seconds AS INTEGER), kind, key, SUM(count), SUM(total), SUM(squares) FROM matured
WHERE version = :version AND segment = :segment AND period >= :since AND period < :until
GROUP BY 1, kind, key HAVING SUM(count) > 0 ORDER BY 1
"""


def read_cohorts(
    folder: Path, version: str, since: float, until: float, seconds: float, *, max_share: float = 1.0, segment: str = ""
) -> tuple[LabelledCohort, ...]:
    """The cohorts of a version's answers in [since, until), each of ``seconds``, in the order of time.

    Labels of API keys beyond ``max_share`` are left out, as in rollouts. Without an index, or with one of an earlier
    version, there are none. Raises StoreError when it cannot be read.
    """
    path = folder / INDEX
    if not path.exists():
        return ()
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)
        try:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'matured'").fetchone():
                return ()
            names = {"version": version, "segment": segment, "since": since, "until": until, "seconds": seconds}
            rows = connection.execute(_SUMS, names).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        hint = f"if it stays so, rm {shell_word(path)}: it is rebuilt from the logs"
        raise StoreError(f"{path} cannot be read: {error}", hint=hint) from error
    return _cohorts(rows, seconds, max_share)


def _cohorts(rows: list[tuple[Any, ...]], seconds: float, max_share: float) -> tuple[LabelledCohort, ...]:
    labels: dict[str, int] = {}
    for _, kind, key, count, _, _ in rows:
        metric, _, source = key.partition("@")
        if kind == "metric" and metric in ("accuracy", "absolute_error"):
            labels[source] = labels.get(source, 0) + count
    beyond = sources_beyond({"": labels}, max_share)
    by_period: dict[int, list[tuple[Any, ...]]] = {}
    for period, kind, key, *sums in rows:
        name, _, source = key.partition("@")
        if source not in beyond:
            by_period.setdefault(period, []).append((kind, name, *sums))
    return tuple(_cohort(period * seconds, seconds, sums) for period, sums in sorted(by_period.items()))


def _cohort(start: float, seconds: float, sums: list[tuple[Any, ...]]) -> LabelledCohort:
    answered = 0
    cells: dict[tuple[int, int], int] = {}
    labelled: dict[tuple[int, int, int], int] = {}
    moments: dict[str, Moments] = {}
    delays: dict[int, int] = {}
    for kind, name, count, total, squares in sums:
        if kind == "answered":
            answered += count
            cell, predicted = map(int, name.split("/"))
            if cell != NO_CELL:
                cells[cell, predicted] = cells.get((cell, predicted), 0) + count
        elif kind == "cell":
            cell, predicted, actual = map(int, name.split("/"))
            labelled[cell, predicted, actual] = labelled.get((cell, predicted, actual), 0) + count
        elif kind == "metric":
            moments[name] = moments.get(name, Moments()) + Moments(count, total, squares)
        elif kind == "delay":
            delays[int(name)] = delays.get(int(name), 0) + count
    return LabelledCohort(start, seconds, answered, cells, labelled, _without_traces(moments), delays)


def _without_traces(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments without what subtraction leaves of rounding: no negative sum of squares."""
    return {name: Moments(value.count, value.total, max(value.squares, 0.0)) for name, value in moments.items()}
