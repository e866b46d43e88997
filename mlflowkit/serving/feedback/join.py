"""Joins feedback with the prediction log: scores each variant's answers against the ground truth.

One reader per service, in the process that controls its rollouts. It keeps an index on disk (SQLite, ``join.sqlite``)
of answers and feedback, so its memory is bounded, and commits counts and the positions reached in both logs in one
transaction, so it may be killed at any point; without the file it starts over from the logs.

The counts do not depend on the order in which answers and feedback appear, nor on duplicates:

- of a request id, each variant's first answer counts, by the time at which it was given;
- feedback counts that was received after the id's first answer, as `scoring` says;
- only answers that the split assigned (``how`` is "hash") and the variant gave itself count, and a shadow's ("mirror").
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from mlflowkit.errors import StoreError
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.service_state.records import GatewaySettings, ServiceFiles
from mlflowkit.serving.feedback import intake, matured
from mlflowkit.serving.feedback.intake import ASKING, Feedback
from mlflowkit.serving.feedback.scoring import (
    BY_REQUEST,
    COUNTERS,
    AnsweredRequest,
    JoinedOutcome,
    join_request,
    paired_difference,
    sources_beyond,
)
from mlflowkit.serving.observer import prediction_log
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

INDEXED_ROWS = 10_000_000
"""Answered rows, and items of feedback, in the index; the oldest are removed first."""
ITEMS_PER_ID = 32
"""Different items of one source about one request; the oldest are removed first."""
PENDING_ITEMS = 200_000
"""Items about requests that are not in the log; the oldest are removed first."""
PENDING_SECONDS = 86_400.0
"""How long an item waits for its request to appear in the log."""
STEP_ITEMS = 200_000
"""Rows and items that one step reads, approximately."""
_COLUMNS = ("time", "id", "row", "experiment", "epoch", "variant", "version", "answered", "how", "label", "prediction",
            "prob")  # fmt: skip
_COUNTED = ("hash", "mirror")
PAIRED = "paired:"
"""Before a shadow's name: the champion's quality minus the shadow's on the same rows, one observation a request."""
_CHAMPION = "champion"
"""Name of the champion in every table."""
_ONE_A_LABEL = ("accuracy", "absolute_error")
"""Metrics that count each label once."""
_log = logging.getLogger("mlflowkit.rollout")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, id TEXT, variant TEXT, row INTEGER, time REAL, experiment TEXT, epoch INTEGER,
    label TEXT, prediction REAL, probabilities BLOB, classes INTEGER, UNIQUE (id, variant, row));
CREATE TABLE IF NOT EXISTS classes (number INTEGER PRIMARY KEY, names TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY, id TEXT, kind TEXT, said TEXT, source TEXT, first REAL, last REAL,
    matched INTEGER DEFAULT 0, UNIQUE (id, kind, said, source));
CREATE INDEX IF NOT EXISTS pending ON items (number) WHERE matched = 0;
CREATE TABLE IF NOT EXISTS counted (
    number INTEGER PRIMARY KEY, id TEXT, variant TEXT, experiment TEXT, epoch INTEGER, outcome TEXT,
    UNIQUE (id, variant));
CREATE TABLE IF NOT EXISTS totals (
    experiment TEXT, epoch INTEGER, variant TEXT, metric TEXT, count INTEGER, total REAL, squares REAL,
    PRIMARY KEY (experiment, epoch, variant, metric)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (log TEXT, name TEXT, place INTEGER, PRIMARY KEY (log, name)) WITHOUT ROWID;
CREATE TEMP TABLE fresh (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_MIGRATE = """
BEGIN IMMEDIATE;
INSERT OR IGNORE INTO items (id, kind, said, source, first, last, matched)
    SELECT id, kind, said, '', received, received, EXISTS (SELECT 1 FROM answers WHERE answers.id = feedback.id)
    FROM feedback;
INSERT OR IGNORE INTO totals SELECT '', 0, '', '-joined', COUNT(*), 0, 0 FROM counted;
DROP TABLE feedback;
COMMIT;
"""
"""From the format before sources, whose items have the table ``feedback``."""
_INSERT_FEEDBACK = """
INSERT INTO items (id, kind, said, source, first, last) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id, kind, said, source) DO UPDATE SET first = MIN(first, excluded.first), last = MAX(last, excluded.last)
"""
_REMOVE_REPEATED = f"""
DELETE FROM items WHERE number IN (
    SELECT number FROM (
        SELECT number, ROW_NUMBER() OVER (PARTITION BY id, source ORDER BY last DESC, kind, said) AS place FROM items
        WHERE id IN (SELECT id FROM items WHERE id IN (SELECT id FROM fresh)
                     GROUP BY id, source HAVING COUNT(*) > {ITEMS_PER_ID}))
    WHERE place > {ITEMS_PER_ID})
"""
_INSERT_ANSWERS = """
INSERT INTO answers (id, variant, row, time, period, experiment, epoch, label, prediction, probabilities, classes,
version, cell) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, variant, row) DO UPDATE SET
time = excluded.time, period = excluded.period, version = excluded.version, cell = excluded.cell,
experiment = excluded.experiment, epoch = excluded.epoch, label = excluded.label,
prediction = excluded.prediction, probabilities = excluded.probabilities, classes = excluded.classes
WHERE (excluded.time, excluded.epoch) < (time, epoch)
"""


class FeedbackJoin:
    """The join of one service's folder, by one process at a time. Raises StoreError when the index does not open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "join.sqlite"
        self._files = ServiceFiles(folder)
        self._class_names: dict[int, tuple[str, ...]] = {}
        self._written: dict[str, Json] = {}
        self._period = matured.PERIOD_SECONDS
        self._newest: float | None = None
        self._database = _open(self._path)

    def step(self, experiment: str | None = None) -> Evidence:
        """Read new entries of both logs; return the quality of an experiment, by default the routing table's.

        Also writes it to ``evidence/feedback.json``, and what is not used to ``feedback.json``, when they changed.
        Raises StoreError or ServiceError when the disk refuses; nothing is lost, the next step continues after the last
        one that succeeded.
        """
        desired = self._files.desired()
        settings = GatewaySettings(self._files.service) if desired is None else desired.settings
        self._period = matured.period_seconds(float(getattr(settings, "pane_seconds", matured.PERIOD_SECONDS)))
        with self._transaction():
            # Feedback is read when the log of answers has been read to its end: what then has no answer has none yet.
            if self._index("predictions", _INSERT_ANSWERS, self._read_answers()):
                self._index("feedback", _INSERT_FEEDBACK, self._read_feedback())
                self._remove_pending()
            self._database.execute(_REMOVE_REPEATED)
            self._join_changed()
            self._trim(settings.feedback_mb)
        if experiment is None:
            table = self._files.table()
            experiment = "" if table is None else table.experiment
        evidence, withheld = self._judgeable(experiment, settings.feedback_max_share)
        self._write("evidence/feedback.json", evidence.to_json(), skip=not evidence.epochs)
        counters = self.counters()
        status = {"experiment": experiment, "counters": counters, "withheld": withheld}
        self._write("feedback.json", status, skip=not any(counters.values()))
        return evidence

    def _write(self, name: str, document: Json, *, skip: bool) -> None:
        """Write a record when it changed; the first one unless it is to be skipped."""
        if document != self._written.get(name) and (not skip or name in self._written):
            self._files.write_json(name, document, durable=False)
            self._written[name] = document

    def evidence(self, experiment: str) -> Evidence:
        """Return the quality counted for an experiment, whoever sent the feedback."""
        return self._judgeable(experiment, 1.0)[0]

    def _judgeable(self, experiment: str, max_share: float) -> tuple[Evidence, dict[str, float]]:
        """The quality of an experiment without the sources beyond their share, and those sources with their shares."""
        rows = self._database.execute(
            "SELECT epoch, variant, metric, count, total, squares FROM totals"
            " WHERE experiment = ? AND metric NOT LIKE '-%' AND count > 0",
            (experiment,),
        ).fetchall()
        labels: dict[str, Counter[str]] = {}
        for _, variant, metric, count, _, _ in rows:
            name, _, source = metric.partition("@")
            if name in _ONE_A_LABEL and not variant.startswith(PAIRED):
                labels.setdefault(variant, Counter())[source] += count
        beyond = sources_beyond(labels, max_share)
        quality: dict[int, dict[str, dict[str, Moments]]] = {}
        for epoch, variant, metric, *moments in rows:
            name, _, source = metric.partition("@")
            if source not in beyond:
                metrics = quality.setdefault(epoch, {}).setdefault(variant, {})
                metrics[name] = metrics.get(name, Moments()) + Moments(*moments)
        epochs = {
            epoch: {name: _quality_counts(metrics) for name, metrics in variants.items()}
            for epoch, variants in quality.items()
        }
        return Evidence(experiment, epochs), {name.removesuffix(ASKING): share for name, share in beyond.items()}

    def counters(self) -> Mapping[str, int]:
        """Count joined answers, what was left out (see `JoinedOutcome`), and items without an answer in the log.

        ``pending`` items wait for their request to appear in the log; ``unmatched`` ones waited in vain. ``trimmed`` is
        entries of the index that were removed because it was too large.
        """
        totals = dict(
            self._database.execute("SELECT metric, SUM(count) FROM totals WHERE metric LIKE '-%' GROUP BY metric")
        )
        pending = self._database.execute("SELECT COUNT(*) FROM items WHERE matched = 0").fetchone()[0]
        names = ("joined", *COUNTERS, "unmatched", "trimmed")
        return {"pending": pending, **{name: int(totals.get(f"-{name}", 0)) for name in names}}

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
            rows = [
                (item.id, item.kind, json.dumps(item.values), item.source, received, received)
                for item, received in intake.parse_lines(lines)
            ]
            yield name, position, rows

    def _read_answers(self) -> Iterator[tuple[str, int, list[tuple[Any, ...]]]]:
        log = prediction_log.read_since(self.folder / "predictions", self._cursor("predictions"), _COLUMNS)
        for table, writer, position in log:
            yield writer, position, self._answer_rows(table)

    def _index(self, log: str, insert: str, entries: Iterator[tuple[str, int, list[tuple[Any, ...]]]]) -> bool:
        """Add a log's new entries to the index, mark their ids (the first field) as changed, store the position.

        Returns whether the log's end was reached.
        """
        count = 0
        for name, position, rows in entries:
            self._database.executemany(insert, rows)
            self._database.executemany("INSERT OR IGNORE INTO fresh VALUES (?)", [(row[0],) for row in rows])
            self._database.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (log, name, position))
            count += len(rows)
            if count > STEP_ITEMS:
                return False
        return True

    def _answer_rows(self, table: pa.Table) -> list[tuple[Any, ...]]:
        """Convert the rows of the log that count to rows of the index."""
        own_answer = compute.equal(table["variant"], table["answered"])
        table = table.filter(compute.and_(own_answer, compute.is_in(table["how"], pa.array(_COUNTED))))
        answered = [table[name].to_pylist() for name in ("id", "variant", "row")]
        routed = [table[name].to_pylist() for name in ("experiment", "epoch")]
        times = table["time"].cast(pa.int64()).to_numpy() / 1e6
        periods = matured.period_starts(times, self._period)
        versions = table["version"].to_pylist()
        empty: list[Any] = [None] * table.num_rows
        labels = table["label"].to_pylist() if "label" in table.column_names else empty
        predictions = table["prediction"].to_pylist() if "prediction" in table.column_names else empty
        names = [name for name in table.column_names if name.startswith("probability.")]
        blobs, classes, matrix = empty, empty, None
        labels_of = [name.partition(".")[2] for name in names]
        if names and table.num_rows:
            matrix = np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
            blobs = [row.tobytes() for row in matrix]
            classes = [self._class_key(labels_of)] * table.num_rows
        cells = matured.answer_cells(labels, labels_of, matrix)
        answers = labels, predictions, blobs, classes, versions, cells
        return list(zip(*answered, times.tolist(), periods, *routed, *answers, strict=True))

    def _class_key(self, names: Sequence[str]) -> int:
        text = json.dumps(names)
        self._database.execute("INSERT OR IGNORE INTO classes (names) VALUES (?)", (text,))
        return int(self._database.execute("SELECT number FROM classes WHERE names = ?", (text,)).fetchone()[0])

    def _join_changed(self) -> None:
        """Join each changed request of which both logs have an entry, replacing its earlier outcome."""
        ids = self._database.execute(
            "SELECT id FROM fresh WHERE EXISTS (SELECT 1 FROM items WHERE items.id = fresh.id)"
            " AND EXISTS (SELECT 1 FROM answers WHERE answers.id = fresh.id)"
        ).fetchall()
        for (request_id,) in ids:
            query = "SELECT MIN(time) FROM answers WHERE id = ?"
            answered = self._database.execute(query, (request_id,)).fetchone()[0]
            feedback = [
                (received, Feedback(request_id, kind, tuple(json.loads(values)), None, source))
                for kind, values, source, *receipts in self._database.execute(
                    "SELECT kind, said, source, first, last FROM items WHERE id = ?", (request_id,)
                )
                for received in receipts
            ]
            outcomes: dict[str, JoinedOutcome] = {}
            for number, (variant, experiment, epoch, answers) in enumerate(self._answers_of(request_id)):
                outcome = join_request(answers, feedback, answered)
                if number > 0:  # an item is left out once, however many variants answered
                    outcome = JoinedOutcome(outcome.by_source, labelled=outcome.labelled)
                outcomes[variant] = outcome
                self._count(request_id, variant, experiment, epoch, outcome)
                self._count_matured(request_id, variant, answers, outcome)
                if variant != _CHAMPION and _CHAMPION in outcomes:  # it comes before all shadows, see _answers_of
                    pair = paired_difference(outcomes[_CHAMPION], outcome)
                    self._count(request_id, f"{PAIRED}{variant}", experiment, epoch, pair)
        self._database.executemany("UPDATE items SET matched = 1 WHERE id = ? AND matched = 0", ids)

    def _answers_of(self, request_id: str) -> list[tuple[str, str, int, list[AnsweredRequest]]]:
        """(variant, experiment, epoch, rows) of a request; experiment and epoch are those of its first row."""
        rows = self._database.execute(
            "SELECT variant, experiment, epoch, label, prediction, probabilities, classes FROM answers"
            " WHERE id = ? ORDER BY variant != ?, variant, row",
            (request_id, _CHAMPION),
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
        if earlier is None:
            if not variant.startswith(PAIRED):
                self._add_to_total(_joined("joined"), [1, 0.0, 0.0])
        else:
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

    def _count_matured(
        self, request_id: str, variant: str, answers: Sequence[AnsweredRequest], outcome: JoinedOutcome
    ) -> None:
        """Count the labelled rows by the period of their answer; answers of indexes of before count nowhere."""
        period, version, answered = self._database.execute(
            "SELECT period, version, time FROM answers WHERE id = ? AND variant = ? ORDER BY row LIMIT 1",
            (request_id, variant),
        ).fetchone()
        if version is not None:
            sums = matured.contribution(answers, outcome, answered)
            matured.replace_contribution(self._database, request_id, variant, (period, version), sums)

    def _add_to_total(self, key: tuple[str, int, str, str], moments: Sequence[float]) -> None:
        self._database.execute(
            "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " count = count + excluded.count, total = total + excluded.total, squares = squares + excluded.squares",
            (*key, *moments),
        )

    def _remove_pending(self) -> None:
        """Remove items whose requests did not appear in the log: the oldest beyond a number and an age.

        The age is that beside the newest item, so that an index that is rebuilt from the logs becomes the same.
        """
        removed = self._database.execute(
            "DELETE FROM items WHERE number IN (SELECT number FROM items AS waiting WHERE matched = 0"
            " AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.id = waiting.id) AND"
            " (last < (SELECT last FROM items ORDER BY number DESC LIMIT 1) - ? OR number <="
            " (SELECT number FROM items WHERE matched = 0 ORDER BY number DESC LIMIT 1 OFFSET ?)))",
            (PENDING_SECONDS, PENDING_ITEMS),
        ).rowcount
        if removed:
            self._add_to_total(_joined("unmatched"), [removed, 0.0, 0.0])

    def _trim(self, megabytes: float) -> None:
        """Remove the oldest rows beyond the limits; outcomes stay longest, so that nothing counts twice."""
        for name, factor in (("answers", 1), ("items", 1), ("counted", 2)):
            self._database.execute(
                f"DELETE FROM {name} WHERE number <= (SELECT MAX(number) FROM {name}) - ?", (factor * INDEXED_ROWS,)
            )
        self._newest = matured.remove_oldest(self._database, 2 * INDEXED_ROWS, self._newest)
        removed = 0
        while self._size() > megabytes * (1 << 20):
            before = removed
            for name, part in (("answers", 5), ("items", 5), ("counted", 20), ("contributed", 20)):
                first, last = self._database.execute(f"SELECT MIN(number), MAX(number) FROM {name}").fetchone()
                if last is not None:
                    until = first + (last - first) // part
                    removed += self._database.execute(f"DELETE FROM {name} WHERE number <= ?", (until,)).rowcount
            if removed == before:
                break
        if removed:
            self._add_to_total(_joined("trimmed"), [removed, 0.0, 0.0])

    def _size(self) -> int:
        """Bytes of the index in use; removed rows leave room that is used again."""
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def _quality_counts(metrics: Mapping[str, Moments]) -> VariantCounts:
    rows = {name: moments for name, moments in metrics.items() if not name.startswith(BY_REQUEST)}
    requests = {name.removeprefix(BY_REQUEST): metrics[name] for name in metrics if name not in rows}
    return VariantCounts(quality=rows, request_quality=requests)


def _joined(name: str) -> tuple[str, int, str, str]:
    """The key of a total that belongs to no experiment."""
    return "", 0, "", f"-{name}"


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
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'feedback'").fetchone():
            connection.executescript(_MIGRATE)
        matured.add_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _store_error(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path}: {error}", hint=f"make room on the disk, or rm {shell_word(path)}: it is rebuilt from the logs"
    )
