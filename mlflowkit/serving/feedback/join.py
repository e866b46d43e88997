"""Joins feedback with the prediction log: what a variant answered, held against what turned out to be true.

One reader a service, in the process that controls its rollouts. It keeps an index on disk (SQLite, ``join.sqlite``)
of the answers and the feedback that it has seen, so its memory is bounded, and commits counts and the places reached
in both logs in one transaction, so it may be killed anywhere; without the file it begins anew from the logs.

What counts does not depend on the order in which the two become visible, nor on how often:

- of a request id, the first answer of each variant, by the time at which it was given;
- of a row, the first value that was received for it; ids for which another one came later are counted as conflicts;
- answers that the split asked for (``how`` is "hash") and that the variant gave itself, and a shadow's ("mirror").
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from mlflowkit.errors import StoreError
from mlflowkit.features.tensors import category_text
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.serving.feedback import intake as told
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.observer import prediction_log
from mlflowkit.values import Json

INDEXED_ROWS = 10_000_000
"""Answered rows, and items of feedback, that are remembered; the oldest are forgotten first."""
CLIP = float(np.finfo(np.float32).eps)
"""A probability counts as at least this and at most one minus this, as in the metrics of the evaluate stage."""
STEP_ITEMS = 200_000
"""Rows and items that one step takes in, about; the rest is the next one's."""
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered row: a label with the probabilities by class, or a prediction."""

    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prediction: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the feedback of one request came to.

    quality     by metric, a row each
    conflicts   values that differ from the first one of their row
    mismatched  items for another number of rows, or of the other kind
    unknown     labels that are none of the model's classes
    """

    quality: Mapping[str, Moments]
    conflicts: int = 0
    mismatched: int = 0
    unknown: int = 0


def settle(answers: Sequence[Answer], said: Sequence[tuple[float, Feedback]]) -> Outcome:
    """Hold one request's answers, a row each, against all that was ``said`` of it: (when it was received, what). Pure.

    >>> settle([Answer("good", {"good": 0.8})], [(7.0, Feedback("r", "label", ("good",)))]).quality["accuracy"]
    Moments(count=1, total=1.0, squares=1.0)
    """
    truth: dict[int, Any] = {}
    conflicts = mismatched = unknown = 0
    kind = "label" if answers[0].label is not None else "target"
    for _, item in sorted(said, key=lambda pair: (pair[0], json.dumps(pair[1].values))):
        if item.kind != kind or len(item.values) != len(answers):
            mismatched += 1
            continue
        for row, value in enumerate(item.values):
            if value is not None:
                plain = category_text(int(value) if isinstance(value, bool) else value) if kind == "label" else value
                conflicts += truth.setdefault(row, plain) != plain
    quality: dict[str, Moments] = {}
    for row, actual in truth.items():
        found = _scores(answers[row], actual)
        unknown += found is None
        for metric, value in (found or {}).items():
            quality[metric] = quality.get(metric, Moments()) + Moments(1, value, value * value)
    return Outcome(quality, conflicts, mismatched, unknown)


def _scores(answer: Answer, actual: Any) -> dict[str, float] | None:
    """Metrics of one row; None for a label that is none of the classes."""
    if answer.prediction is not None:
        error = answer.prediction - float(actual)
        return {"absolute_error": abs(error), "squared_error": error * error}
    if not answer.probabilities:
        return {"accuracy": float(answer.label == actual)}
    if actual not in answer.probabilities:
        return None
    chosen = min(max(answer.probabilities[actual], CLIP), 1.0 - CLIP)
    return {"accuracy": float(answer.label == actual), "log_loss": -math.log(chosen)}


class FeedbackJoin:
    """The join of one service's folder. Call `step` now and then; one process at a time.

    Raises StoreError when the index cannot be made.
    """

    def __init__(self, folder: Path, *, indexed_rows: int = INDEXED_ROWS) -> None:
        self.folder = folder
        self._files = ServiceFiles(folder)
        self._limit = indexed_rows
        self._classes: dict[int, tuple[str, ...]] = {}
        self._written: Json = None
        self._database = self._open()

    def step(self, experiment: str | None = None) -> Evidence:
        """Take in what is new in both logs; the quality of an experiment, that of the routing table by default.

        Also writes it to ``evidence/feedback.json`` when it changed. Raises StoreError or ServiceError when the disk
        refuses; nothing is lost, the next step goes on from where the last one that succeeded came to.
        """
        with self._transaction():
            self._take_feedback()
            self._take_answers()
            self._settle_fresh()
            self._forget()
        if experiment is None:
            table = self._files.table()
            experiment = "" if table is None else table.experiment
        evidence = self.evidence(experiment)
        document = evidence.to_json()
        if document != self._written and (evidence.epochs or self._written is not None):
            write_json(self.folder / "evidence" / "feedback.json", document, durable=False)
            self._written = document
        return evidence

    def evidence(self, experiment: str) -> Evidence:
        """What was counted of an experiment."""
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
        """joined requests, conflicts, mismatched, unknown (see `Outcome`); items of feedback that are pending."""
        found = dict(
            self._database.execute("SELECT metric, SUM(count) FROM totals WHERE metric LIKE '-%' GROUP BY metric")
        )
        joined = self._database.execute("SELECT COUNT(*) FROM counted").fetchone()[0]
        pending = self._database.execute(
            "SELECT COUNT(*) FROM feedback WHERE NOT EXISTS (SELECT 1 FROM counted WHERE counted.id = feedback.id)"
        ).fetchone()[0]
        names = ("conflicts", "mismatched", "unknown")
        return {"joined": joined, "pending": pending, **{name: found.get(f"-{name}", 0) for name in names}}

    def close(self) -> None:
        """Let the index go."""
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        path = self.folder / "join.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                _log.error("%s is damaged, it is made anew from the logs: %s", path, error)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return _connect(path)
        except (OSError, sqlite3.Error) as error:
            raise _refused(path, error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM fresh")
            yield
            self._database.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # the disk that refused the work may refuse this too
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _refused(self.folder / "join.sqlite", error) from error
            raise

    def _places(self, log: str) -> dict[str, int]:
        return dict(self._database.execute("SELECT name, place FROM places WHERE log = ?", (log,)))

    def _reach(self, log: str, name: str, place: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (log, name, place))

    def _take_feedback(self) -> None:
        taken = 0
        for name, place, lines in told.read_since(self.folder / "feedback", self._places("feedback")):
            rows = [row for row in map(_feedback_row, lines) if row is not None]
            self._database.executemany(
                "INSERT INTO feedback (id, kind, said, received) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (id, kind, said) DO UPDATE SET received = MIN(received, excluded.received)",
                rows,
            )
            self._fresh([row[0] for row in rows])
            self._reach("feedback", name, place)
            taken += len(rows)
            if taken > STEP_ITEMS:
                return

    def _take_answers(self) -> None:
        taken = 0
        log = prediction_log.read_since(self.folder / "predictions", self._places("predictions"), _COLUMNS)
        for table, writer, place in log:
            rows = self._answer_rows(table)
            self._database.executemany(
                "INSERT INTO answers"
                " (id, variant, row, time, experiment, epoch, label, prediction, probabilities, classes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, variant, row) DO UPDATE SET"
                " time = excluded.time, experiment = excluded.experiment, epoch = excluded.epoch,"
                " label = excluded.label, prediction = excluded.prediction,"
                " probabilities = excluded.probabilities, classes = excluded.classes"
                " WHERE (excluded.time, excluded.epoch) < (time, epoch)",
                rows,
            )
            self._fresh([row[0] for row in rows])
            self._reach("predictions", writer, place)
            taken += len(rows)
            if taken > STEP_ITEMS:
                return

    def _answer_rows(self, table: pa.Table) -> list[tuple[Any, ...]]:
        """Rows of the log that count, as the index keeps them."""
        own = compute.equal(table["variant"], table["answered"])
        table = table.filter(compute.and_(own, compute.is_in(table["how"], pa.array(_COUNTED))))
        count = table.num_rows
        times = (table["time"].cast(pa.int64()).to_numpy() / 1e6).tolist()
        empty: list[Any] = [None] * count
        columns = {name: table[name].to_pylist() for name in ("id", "variant", "row", "experiment", "epoch")}
        labels = table["label"].to_pylist() if "label" in table.column_names else empty
        predictions = table["prediction"].to_pylist() if "prediction" in table.column_names else empty
        names = [name for name in table.column_names if name.startswith("probability.")]
        blobs, classes = empty, empty
        if names and count:
            matrix = np.stack([_floats(table[name]) for name in names], axis=1)
            blobs = [row.tobytes() for row in matrix]
            classes = [self._classes_number([name.partition(".")[2] for name in names])] * count
        head = (columns["id"], columns["variant"], columns["row"], times, columns["experiment"], columns["epoch"])
        return list(zip(*head, labels, predictions, blobs, classes, strict=True))

    def _classes_number(self, names: Sequence[str]) -> int:
        text = json.dumps(names)
        self._database.execute("INSERT OR IGNORE INTO classes (names) VALUES (?)", (text,))
        return int(self._database.execute("SELECT number FROM classes WHERE names = ?", (text,)).fetchone()[0])

    def _fresh(self, ids: Sequence[str]) -> None:
        self._database.executemany("INSERT OR IGNORE INTO fresh VALUES (?)", [(number,) for number in ids])

    def _settle_fresh(self) -> None:
        """Count anew each request that something new is known of and that both logs have."""
        found = self._database.execute(
            "SELECT id FROM fresh WHERE EXISTS (SELECT 1 FROM feedback WHERE feedback.id = fresh.id)"
            " AND EXISTS (SELECT 1 FROM answers WHERE answers.id = fresh.id)"
        ).fetchall()
        for (number,) in found:
            said = [
                (received, Feedback(number, kind, tuple(json.loads(values))))
                for kind, values, received in self._database.execute(
                    "SELECT kind, said, received FROM feedback WHERE id = ?", (number,)
                )
            ]
            for variant, experiment, epoch, answers in self._answers_of(number):
                self._count(number, variant, experiment, epoch, settle(answers, said))

    def _answers_of(self, number: str) -> list[tuple[str, str, int, list[Answer]]]:
        """(variant, experiment, epoch, its answers) of a request. The first row's table is the request's."""
        rows = self._database.execute(
            "SELECT variant, experiment, epoch, label, prediction, probabilities, classes FROM answers"
            " WHERE id = ? ORDER BY variant, row",
            (number,),
        ).fetchall()
        found: dict[str, tuple[str, str, int, list[Answer]]] = {}
        for variant, experiment, epoch, label, prediction, blob, classes in rows:
            pairs = () if blob is None else zip(self._names(classes), _shares(blob), strict=True)
            shares = {name: share for name, share in pairs if share == share}  # NaN: a class of another version
            group = found.setdefault(variant, (variant, experiment, epoch, []))
            group[3].append(Answer(label, shares, prediction))
        return list(found.values())

    def _names(self, number: int) -> tuple[str, ...]:
        if number not in self._classes:
            row = self._database.execute("SELECT names FROM classes WHERE number = ?", (number,)).fetchone()
            self._classes[number] = tuple(json.loads(row[0]))
        return self._classes[number]

    def _count(self, number: str, variant: str, experiment: str, epoch: int, outcome: Outcome) -> None:
        """Put an outcome into the totals in place of what was counted of the same answers before."""
        before = self._database.execute(
            "SELECT experiment, epoch, outcome FROM counted WHERE id = ? AND variant = ?", (number, variant)
        ).fetchone()
        parts = _parts(outcome)
        if before is not None:
            if before == (experiment, epoch, json.dumps(parts)):
                return
            for metric, moments in json.loads(before[2]).items():
                self._add((before[0], before[1], variant, metric), [-value for value in moments])
        for metric, moments in parts.items():
            self._add((experiment, epoch, variant, metric), moments)
        self._database.execute(
            "INSERT INTO counted (id, variant, experiment, epoch, outcome) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id, variant) DO UPDATE SET experiment = excluded.experiment, epoch = excluded.epoch,"
            " outcome = excluded.outcome",
            (number, variant, experiment, epoch, json.dumps(parts)),
        )

    def _add(self, key: tuple[str, int, str, str], moments: Sequence[float]) -> None:
        self._database.execute(
            "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " count = count + excluded.count, total = total + excluded.total, squares = squares + excluded.squares",
            (*key, *moments),
        )

    def _forget(self) -> None:
        """Keep the index within its bounds. What was counted is kept longest, so that nothing counts twice."""
        for name, most in (("answers", 1), ("feedback", 1), ("counted", 2)):
            self._database.execute(
                f"DELETE FROM {name} WHERE number <= (SELECT MAX(number) FROM {name}) - ?", (most * self._limit,)
            )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _refused(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path}: {error}", hint="make room on the disk, or remove the file: it is made anew")


def _feedback_row(line: bytes) -> tuple[str, str, str, float] | None:
    """A line as the index keeps it; None for one that the disk did not keep whole."""
    try:
        item, received = Feedback.from_line(line)
    except (ValueError, KeyError, TypeError) as error:
        _log.error("a line of feedback is damaged: %r", error)
        return None
    return item.id, item.kind, json.dumps(item.values), received


def _parts(outcome: Outcome) -> dict[str, list[float]]:
    """An outcome by metric; what is no metric has a name that begins with "-"."""
    apart = {"conflicts": outcome.conflicts, "mismatched": outcome.mismatched, "unknown": outcome.unknown}
    found = {metric: [value.count, value.total, value.squares] for metric, value in sorted(outcome.quality.items())}
    return found | {f"-{name}": [count, 0.0, 0.0] for name, count in apart.items() if count}


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = column.to_numpy().astype(np.float32)
    return found


def _shares(blob: bytes) -> list[float]:
    found: list[float] = np.frombuffer(blob, dtype=np.float32).astype(float).tolist()
    return found
