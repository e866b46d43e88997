"""Joins feedback with the prediction log: scores each variant's answers against the ground truth.

One reader per service, in the process that controls its rollouts. It keeps an index on disk (SQLite, ``join.sqlite``)
of answers and feedback, so its memory is bounded, and commits counts and the positions reached in both logs in one
transaction, so it may be killed at any point; without the file it starts over from the logs.

The counts do not depend on the order in which answers and feedback appear, nor on duplicates:

- of a request id, each variant's first answer counts, by the time at which it was given;
- of a row, the first value received counts; later values that differ are counted as conflicts;
- only answers that the split assigned (``how`` is "hash") and the variant gave itself count, and a shadow's ("mirror").
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from mlflowkit.errors import StoreError
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.feedback import intake
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.observer import prediction_log
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.text import category_text
from mlflowkit.values import Json

INDEXED_ROWS = 10_000_000
"""Answered rows, and items of feedback, in the index; the oldest are removed first."""
CLIP = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to [CLIP, 1 - CLIP], as in the metrics of the evaluate stage."""
STEP_ITEMS = 200_000
"""Rows and items that one step reads, approximately."""
_COLUMNS = ("time", "id", "row", "experiment", "epoch", "variant", "answered", "how", "label", "prediction", "prob")
_COUNTED = ("hash", "mirror")
_log = logging.getLogger("mlflowkit.rollout")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, id TEXT, variant TEXT, row INTEGER, time REAL, experiment TEXT, epoch INTEGER,
    label TEXT, prediction REAL, probabilities BLOB, classes INTEGER, UNIQUE (id, variant, row));
CREATE TABLE IF NOT EXISTS classes (number INTEGER PRIMARY KEY, names TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS feedback (
    number INTEGER PRIMARY KEY, id TEXT, kind TEXT, said TEXT, received REAL, UNIQUE (id, kind, said));
CREATE TABLE IF NOT EXISTS counted (
    number INTEGER PRIMARY KEY, id TEXT, variant TEXT, experiment TEXT, epoch INTEGER, outcome TEXT,
    UNIQUE (id, variant));
CREATE TABLE IF NOT EXISTS totals (
    experiment TEXT, epoch INTEGER, variant TEXT, metric TEXT, count INTEGER, total REAL, squares REAL,
    PRIMARY KEY (experiment, epoch, variant, metric)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (log TEXT, name TEXT, place INTEGER, PRIMARY KEY (log, name)) WITHOUT ROWID;
CREATE TEMP TABLE fresh (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_INSERT_FEEDBACK = """
INSERT INTO feedback (id, kind, said, received) VALUES (?, ?, ?, ?)
ON CONFLICT (id, kind, said) DO UPDATE SET received = MIN(received, excluded.received)
"""
_INSERT_ANSWERS = """
INSERT INTO answers (id, variant, row, time, experiment, epoch, label, prediction, probabilities, classes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, variant, row) DO UPDATE SET
time = excluded.time, experiment = excluded.experiment, epoch = excluded.epoch, label = excluded.label,
prediction = excluded.prediction, probabilities = excluded.probabilities, classes = excluded.classes
WHERE (excluded.time, excluded.epoch) < (time, epoch)
"""


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One answered row: a label with the probabilities by class, or a prediction."""

    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prediction: float | None = None


@dataclass(frozen=True, slots=True)
class JoinedOutcome:
    """The result of one request's feedback.

    quality     moments by metric, over the rows
    conflicts   values that differ from the first one of their row
    mismatched  items for another number of rows, or of the other kind
    unknown     labels that are none of the model's classes
    """

    quality: Mapping[str, Moments]
    conflicts: int = 0
    mismatched: int = 0
    unknown: int = 0

    def to_json(self) -> dict[str, list[float]]:
        """[count, sum, sum of squares] by metric; counters that are no metric have a name that begins with "-"."""
        counters = {"-conflicts": self.conflicts, "-mismatched": self.mismatched, "-unknown": self.unknown}
        quality = {metric: [value.count, value.total, value.squares] for metric, value in sorted(self.quality.items())}
        return quality | {name: [count, 0.0, 0.0] for name, count in counters.items() if count}


def join_request(answers: Sequence[AnsweredRequest], feedback: Sequence[tuple[float, Feedback]]) -> JoinedOutcome:
    """Score one request's rows against all its feedback, given as (time received, item). Pure.

    >>> join_request([AnsweredRequest("good", {"good": 0.8})], [(7.0, Feedback("r", "label", ("good",)))]).quality[
    ...     "accuracy"
    ... ]
    Moments(count=1, total=1.0, squares=1.0)
    """
    truth: dict[int, Any] = {}
    conflicts = mismatched = unknown = 0
    kind = "label" if answers[0].label is not None else "target"
    for _, item in sorted(feedback, key=lambda pair: (pair[0], json.dumps(pair[1].values))):
        if item.kind != kind or len(item.values) != len(answers):
            mismatched += 1
            continue
        for row, value in enumerate(item.values):
            if value is not None:
                plain = category_text(int(value) if isinstance(value, bool) else value) if kind == "label" else value
                conflicts += truth.setdefault(row, plain) != plain
    quality: dict[str, Moments] = {}
    for row, actual in truth.items():
        scores = _scores(answers[row], actual)
        unknown += scores is None
        for metric, value in (scores or {}).items():
            quality[metric] = quality.get(metric, Moments()) + Moments(1, value, value * value)
    return JoinedOutcome(quality, conflicts, mismatched, unknown)


def _scores(answer: AnsweredRequest, actual: Any) -> dict[str, float] | None:
    """Metrics of one row; None for a label that is none of the classes."""
    if answer.prediction is not None:
        error = answer.prediction - float(actual)
        return {"absolute_error": abs(error), "squared_error": error * error}
    if not answer.probabilities:
        return {"accuracy": float(answer.label == actual)}
    if actual not in answer.probabilities:
        return None
    probability = min(max(answer.probabilities[actual], CLIP), 1.0 - CLIP)
    return {"accuracy": float(answer.label == actual), "log_loss": -math.log(probability)}


class FeedbackJoin:
    """The join of one service's folder, by one process at a time. Raises StoreError when the index does not open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "join.sqlite"
        self._files = ServiceFiles(folder)
        self._class_names: dict[int, tuple[str, ...]] = {}
        self._written: Json = None
        self._database = _open(self._path)

    def step(self, experiment: str | None = None) -> Evidence:
        """Read new entries of both logs; return the quality of an experiment, by default the routing table's.

        Also writes it to ``evidence/feedback.json`` when it changed. Raises StoreError or ServiceError when the disk
        refuses; nothing is lost, the next step continues after the last one that succeeded.
        """
        with self._transaction():
            self._index("feedback", _INSERT_FEEDBACK, self._read_feedback())
            self._index("predictions", _INSERT_ANSWERS, self._read_answers())
            self._join_changed()
            self._trim()
        if experiment is None:
            table = self._files.table()
            experiment = "" if table is None else table.experiment
        evidence = self.evidence(experiment)
        document = evidence.to_json()
        if document != self._written and (evidence.epochs or self._written is not None):
            self._files.write_json("evidence/feedback.json", document, durable=False)
            self._written = document
        return evidence

    def evidence(self, experiment: str) -> Evidence:
        """Return the quality counted for an experiment."""
        quality: dict[int, dict[str, dict[str, Moments]]] = {}
        for epoch, variant, metric, count, total, squares in self._database.execute(
            "SELECT epoch, variant, metric, count, total, squares FROM totals"
            " WHERE experiment = ? AND metric NOT LIKE '-%' AND count > 0",
            (experiment,),
        ):
            quality.setdefault(epoch, {}).setdefault(variant, {})[metric] = Moments(count, total, squares)
        return Evidence(
            experiment,
            {
                epoch: {name: VariantCounts(quality=metrics) for name, metrics in variants.items()}
                for epoch, variants in quality.items()
            },
        )

    def counters(self) -> Mapping[str, int]:
        """Count joined requests, conflicts, mismatched, unknown (see `JoinedOutcome`), and pending feedback items."""
        totals = dict(
            self._database.execute("SELECT metric, SUM(count) FROM totals WHERE metric LIKE '-%' GROUP BY metric")
        )
        joined = self._database.execute("SELECT COUNT(*) FROM counted").fetchone()[0]
        pending = self._database.execute(
            "SELECT COUNT(*) FROM feedback WHERE NOT EXISTS (SELECT 1 FROM counted WHERE counted.id = feedback.id)"
        ).fetchone()[0]
        names = ("conflicts", "mismatched", "unknown")
        return {"joined": joined, "pending": pending, **{name: totals.get(f"-{name}", 0) for name in names}}

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM fresh")
            yield
            self._database.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # the disk may refuse this too
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _store_error(self._path, error) from error
            raise

    def _cursor(self, log: str) -> dict[str, int]:
        return dict(self._database.execute("SELECT name, place FROM places WHERE log = ?", (log,)))

    def _read_feedback(self) -> Iterator[tuple[str, int, list[tuple[Any, ...]]]]:
        for name, position, lines in intake.read_since(self.folder / "feedback", self._cursor("feedback")):
            items = intake.parse_lines(lines)
            yield name, position, [(item.id, item.kind, json.dumps(item.values), received) for item, received in items]

    def _read_answers(self) -> Iterator[tuple[str, int, list[tuple[Any, ...]]]]:
        log = prediction_log.read_since(self.folder / "predictions", self._cursor("predictions"), _COLUMNS)
        for table, writer, position in log:
            yield writer, position, self._answer_rows(table)

    def _index(self, log: str, insert: str, entries: Iterator[tuple[str, int, list[tuple[Any, ...]]]]) -> None:
        """Add a log's new entries to the index, mark their ids (the first field) as changed, store the position."""
        count = 0
        for name, position, rows in entries:
            self._database.executemany(insert, rows)
            self._database.executemany("INSERT OR IGNORE INTO fresh VALUES (?)", [(row[0],) for row in rows])
            self._database.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (log, name, position))
            count += len(rows)
            if count > STEP_ITEMS:
                return

    def _answer_rows(self, table: pa.Table) -> list[tuple[Any, ...]]:
        """Convert the rows of the log that count to rows of the index."""
        own_answer = compute.equal(table["variant"], table["answered"])
        table = table.filter(compute.and_(own_answer, compute.is_in(table["how"], pa.array(_COUNTED))))
        answered = [table[name].to_pylist() for name in ("id", "variant", "row")]
        routed = [table[name].to_pylist() for name in ("experiment", "epoch")]
        times = (table["time"].cast(pa.int64()).to_numpy() / 1e6).tolist()
        empty: list[Any] = [None] * table.num_rows
        labels = table["label"].to_pylist() if "label" in table.column_names else empty
        predictions = table["prediction"].to_pylist() if "prediction" in table.column_names else empty
        names = [name for name in table.column_names if name.startswith("probability.")]
        blobs, classes = empty, empty
        if names and table.num_rows:
            matrix = np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
            blobs = [row.tobytes() for row in matrix]
            classes = [self._class_key([name.partition(".")[2] for name in names])] * table.num_rows
        return list(zip(*answered, times, *routed, labels, predictions, blobs, classes, strict=True))

    def _class_key(self, names: Sequence[str]) -> int:
        text = json.dumps(names)
        self._database.execute("INSERT OR IGNORE INTO classes (names) VALUES (?)", (text,))
        return int(self._database.execute("SELECT number FROM classes WHERE names = ?", (text,)).fetchone()[0])

    def _join_changed(self) -> None:
        """Join each changed request of which both logs have an entry, replacing its earlier outcome."""
        ids = self._database.execute(
            "SELECT id FROM fresh WHERE EXISTS (SELECT 1 FROM feedback WHERE feedback.id = fresh.id)"
            " AND EXISTS (SELECT 1 FROM answers WHERE answers.id = fresh.id)"
        ).fetchall()
        for (request_id,) in ids:
            feedback = [
                (received, Feedback(request_id, kind, tuple(json.loads(values))))
                for kind, values, received in self._database.execute(
                    "SELECT kind, said, received FROM feedback WHERE id = ?", (request_id,)
                )
            ]
            for variant, experiment, epoch, answers in self._answers_of(request_id):
                self._count(request_id, variant, experiment, epoch, join_request(answers, feedback))

    def _answers_of(self, request_id: str) -> list[tuple[str, str, int, list[AnsweredRequest]]]:
        """(variant, experiment, epoch, rows) of a request; experiment and epoch are those of its first row."""
        rows = self._database.execute(
            "SELECT variant, experiment, epoch, label, prediction, probabilities, classes FROM answers"
            " WHERE id = ? ORDER BY variant, row",
            (request_id,),
        ).fetchall()
        groups: dict[str, tuple[str, str, int, list[AnsweredRequest]]] = {}
        for variant, experiment, epoch, label, prediction, blob, classes in rows:
            values = [] if blob is None else np.frombuffer(blob, dtype=np.float32).astype(float).tolist()
            pairs = zip(self._classes(classes) if values else (), values, strict=True)
            # NaN: a class that only another version has
            probabilities = {name: value for name, value in pairs if not math.isnan(value)}
            group = groups.setdefault(variant, (variant, experiment, epoch, []))
            group[3].append(AnsweredRequest(label, probabilities, prediction))
        return list(groups.values())

    def _classes(self, key: int) -> tuple[str, ...]:
        if key not in self._class_names:
            row = self._database.execute("SELECT names FROM classes WHERE number = ?", (key,)).fetchone()
            self._class_names[key] = tuple(json.loads(row[0]))
        return self._class_names[key]

    def _count(self, request_id: str, variant: str, experiment: str, epoch: int, outcome: JoinedOutcome) -> None:
        """Add an outcome to the totals, and subtract the earlier outcome of the same answers."""
        earlier = self._database.execute(
            "SELECT experiment, epoch, outcome FROM counted WHERE id = ? AND variant = ?", (request_id, variant)
        ).fetchone()
        metrics = outcome.to_json()
        if earlier is not None:
            if earlier == (experiment, epoch, json.dumps(metrics)):
                return
            for metric, moments in json.loads(earlier[2]).items():
                self._add_to_total((earlier[0], earlier[1], variant, metric), [-value for value in moments])
        for metric, moments in metrics.items():
            self._add_to_total((experiment, epoch, variant, metric), moments)
        self._database.execute(
            "INSERT INTO counted (id, variant, experiment, epoch, outcome) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id, variant) DO UPDATE SET experiment = excluded.experiment, epoch = excluded.epoch,"
            " outcome = excluded.outcome",
            (request_id, variant, experiment, epoch, json.dumps(metrics)),
        )

    def _add_to_total(self, key: tuple[str, int, str, str], moments: Sequence[float]) -> None:
        self._database.execute(
            "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " count = count + excluded.count, total = total + excluded.total, squares = squares + excluded.squares",
            (*key, *moments),
        )

    def _trim(self) -> None:
        """Remove the oldest rows of the index beyond its limit; outcomes stay longest, so that nothing counts twice."""
        for name, factor in (("answers", 1), ("feedback", 1), ("counted", 2)):
            self._database.execute(
                f"DELETE FROM {name} WHERE number <= (SELECT MAX(number) FROM {name}) - ?", (factor * INDEXED_ROWS,)
            )


def _open(path: Path) -> sqlite3.Connection:
    """Open the index; a damaged one is removed and rebuilt from the logs."""
    try:
        make_folder(path.parent)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            _log.error("%s is damaged; rebuilding it from the logs: %s", path, error)
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise _store_error(path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    os.close(private_opener(str(path), os.O_RDWR | os.O_CREAT))  # SQLite gives its log the same mode
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _store_error(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path}: {error}", hint=f"make room on the disk, or rm {path}: it is rebuilt from the logs")
