"""Labels along the time of the answers: counts by period of the answer, version and score cell, in the join's index.

`join` counts by experiment and variant, for rollouts; monitoring asks how good the answers of a *day* turned out to be.
One table holds sums of a few kinds for each (period, version):

========= ============================ ====================================================================
kind      key                          sums
========= ============================ ====================================================================
answered  cell/predicted               answered rows; of a task that is not binary cell -1
cell      cell/predicted/actual@source labelled rows of a binary task, 0 and 1 for the classes
metric    metric@source                [count, sum, sum of squares] of the metric's value a row
delay     bin                          labelled rows by the time from the answer to its first label
========= ============================ ====================================================================

They do not depend on the order in which answers and labels appear, nor on duplicates: what a request contributed is
kept beside it and subtracted before it contributes anew. ``segment`` is "" for all rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np

from mlflowkit.judging.performance.maturity import delay_bin
from mlflowkit.judging.performance.score_table import score_cell, score_cells
from mlflowkit.serving.feedback.scoring import AnsweredRequest, JoinedOutcome

PERIOD_SECONDS = 3600.0
"""Length of a period; that of a pane where panes are shorter than `SHORT_PANE` (a demonstration)."""
SHORT_PANE = 60.0
MAX_PERIODS = 4000
"""Periods that are kept; the oldest are removed first."""
NO_CELL = -1
SCHEMA = """
CREATE TABLE IF NOT EXISTS matured (
    period REAL, version TEXT, segment TEXT, kind TEXT, key TEXT, count INTEGER, total REAL, squares REAL,
    PRIMARY KEY (period, version, segment, kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contributed (
    number INTEGER PRIMARY KEY, id TEXT, variant TEXT, period REAL, version TEXT, sums TEXT, UNIQUE (id, variant));
CREATE TRIGGER IF NOT EXISTS answered_first AFTER INSERT ON answers WHEN new.version IS NOT NULL BEGIN
    INSERT INTO matured VALUES (new.period, new.version, '', 'answered', new.cell, 1, 0, 0)
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER IF NOT EXISTS answered_earlier AFTER UPDATE OF time ON answers WHEN new.version IS NOT NULL BEGIN
    UPDATE matured SET count = count - 1 WHERE period = old.period AND version = old.version AND segment = ''
        AND kind = 'answered' AND key = old.cell;
    INSERT INTO matured VALUES (new.period, new.version, '', 'answered', new.cell, 1, 0, 0)
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
"""
COLUMNS = ("version TEXT", "period REAL", "cell TEXT")
"""Columns of the table of answers that indexes of before do not have; their answers count nowhere here."""
Sums = dict[str, list[float]]


def add_tables(connection: sqlite3.Connection) -> None:
    """Add what an index lacks, also one of an earlier format."""
    present = {row[1] for row in connection.execute("PRAGMA table_info(answers)")}
    for column in COLUMNS:
        if column.partition(" ")[0] not in present:
            connection.execute(f"ALTER TABLE answers ADD COLUMN {column}")
    connection.executescript(SCHEMA)


def period_seconds(pane: float) -> float:
    """The length of periods for panes of a length, in seconds.

    >>> period_seconds(300.0), period_seconds(5.0)
    (3600.0, 5.0)
    """
    return pane if 0 < pane < SHORT_PANE else PERIOD_SECONDS


def period_starts(times: np.ndarray, seconds: float) -> list[float]:
    """The start of each time's period."""
    starts: list[float] = (np.floor(times / seconds) * seconds).tolist()
    return starts


def answer_cells(labels: Sequence[str | None], names: Sequence[str], probabilities: np.ndarray | None) -> list[str]:
    """``cell/predicted`` of each row; ``probabilities`` are by class, NaN for a class that only other versions have.

    >>> answer_cells(["no", "yes"], ["no", "yes"], np.array([[0.5, 0.5], [0.0, 1.0]]))
    ['90/0', '179/1']
    >>> answer_cells([None], [], None)
    ['-1/0']
    """
    cells = [f"{NO_CELL}/0"] * len(labels)
    if probabilities is None:
        return cells
    present = ~np.isnan(probabilities)
    for row in np.flatnonzero(
        (present.sum(axis=1) == 2) & np.isfinite(np.where(present, probabilities, 0)).all(axis=1)
    ):
        positive = int(np.flatnonzero(present[row])[-1])
        cells[row] = f"{positive}"
    binary = [index for index, cell in enumerate(cells) if "/" not in cell]
    if binary:
        columns = [int(cells[index]) for index in binary]
        coded = score_cells(probabilities[binary, columns]).tolist()
        for index, column, cell in zip(binary, columns, coded, strict=True):
            cells[index] = f"{cell}/{int(labels[index] == names[column])}"
    return cells


def contribution(answers: Sequence[AnsweredRequest], outcome: JoinedOutcome, answered: float) -> Sums:
    """What a request's labelled rows add, by ``kind|key``."""
    sums: Sums = {}
    for row, source, actual, received in outcome.labelled:
        answer = answers[row]
        _add(sums, f"delay|{delay_bin(received - answered)}", 1.0, count_only=True)
        classes = list(answer.probabilities)
        if len(classes) != 2 or actual not in classes or answer.label is None:
            continue
        score = answer.probabilities[classes[1]]
        hit = int(actual == classes[1])
        key = f"{score_cell(score)}/{int(answer.label == classes[1])}/{hit}"
        _add(sums, f"cell|{key}@{source}", 1.0, count_only=True)
        _add(sums, f"metric|brier@{source}", (score - hit) ** 2)
    for (metric, source), moments in outcome.by_source.items():
        if moments.count:
            sums[f"metric|{metric}@{source}"] = [moments.count, moments.total, moments.squares]
    return sums


def _add(sums: Sums, key: str, value: float, *, count_only: bool = False) -> None:
    entry = sums.setdefault(key, [0, 0.0, 0.0])
    entry[0] += 1
    if not count_only:
        entry[1] += value
        entry[2] += value * value


def replace_contribution(
    connection: sqlite3.Connection, request_id: str, variant: str, place: tuple[float, str], sums: Sums
) -> None:
    """Count what a request contributes, and subtract what it contributed before; ``place`` is (period, version)."""
    earlier = connection.execute(
        "SELECT period, version, sums FROM contributed WHERE id = ? AND variant = ?", (request_id, variant)
    ).fetchone()
    text = json.dumps(sums, sort_keys=True)
    if earlier is not None:
        if earlier == (*place, text):
            return
        _count(connection, (earlier[0], earlier[1]), json.loads(earlier[2]), -1)
    elif not sums:
        return
    _count(connection, place, sums, 1)
    connection.execute(
        "INSERT INTO contributed (id, variant, period, version, sums) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, variant)"
        " DO UPDATE SET period = excluded.period, version = excluded.version, sums = excluded.sums",
        (request_id, variant, *place, text),
    )


def _count(
    connection: sqlite3.Connection, place: tuple[float, str], sums: Mapping[str, Sequence[float]], sign: int
) -> None:
    rows = []
    for name, (count, total, squares) in sums.items():
        kind, _, key = name.partition("|")
        rows.append((*place, "", kind, key, sign * int(count), sign * total, sign * squares))
    connection.executemany(
        "INSERT INTO matured VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count,"
        " total = total + excluded.total, squares = squares + excluded.squares",
        rows,
    )


def remove_oldest(connection: sqlite3.Connection, rows: int, newest: float | None) -> float | None:
    """Keep the newest `MAX_PERIODS` periods, and what the newest ``rows`` labelled requests contributed.

    ``newest`` is the newest period at the last call, and the result that at this one: without a new one nothing is
    looked for.
    """
    (now,) = connection.execute("SELECT MAX(period) FROM matured").fetchone()
    if now == newest:
        return newest
    oldest = connection.execute(
        "SELECT DISTINCT period FROM matured ORDER BY period DESC LIMIT 1 OFFSET ?", (MAX_PERIODS,)
    ).fetchone()
    if oldest is not None:
        connection.execute("DELETE FROM matured WHERE period <= ?", oldest)
    connection.execute("DELETE FROM contributed WHERE number <= (SELECT MAX(number) FROM contributed) - ?", (rows,))
    return None if now is None else float(now)
