"""The journal: runs, steps, results, leases and aliases in one SQLite file. Trackers only mirror it.

Every write is one immediate transaction between two failpoints. Readers do not wait for writers (WAL).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Update,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.pipeline import JOURNAL
from mlflowkit.pipeline.storage import codec, delivery_rows, journal_tables
from mlflowkit.pipeline.storage import journal_migrations as migrations
from mlflowkit.pipeline.storage.garbage import StoredAlias, StoredResult, StoredRun
from mlflowkit.pipeline.storage.journal_rows import (
    alias_from,
    damaged_rows,
    held_lease,
    inventory_rows,
    result_row,
    run_record,
    run_row,
    start_over,
    step_record,
    step_result,
    step_row,
)
from mlflowkit.pipeline.storage.journal_tables import aliases, deliveries, file_digests, leases, results, runs, steps
from mlflowkit.pipeline.storage.step_lease import is_alive
from mlflowkit.system import failpoint
from mlflowkit.system.files import disk_errors, make_folder, private_opener, replace_file
from mlflowkit.system.text import shell_word
from mlflowkit.values import (
    TRACKING_TARGET,
    Alias,
    DeliveryStatus,
    HeldLease,
    Lineage,
    Owner,
    RunDelivery,
    RunEnd,
    RunRecord,
    StepLease,
    StepRecord,
    StepResult,
    candidate_alias,
)

BUSY_SECONDS = 60.0
SHARED_MEMORY_BYTES = 1 << 20
"""With less free space SQLite cannot allocate its WAL index and reports an I/O error."""


@dataclass
class SqliteJournal:
    """The journal of a state folder. With ``create`` false a missing one reads as empty and is not created.

    Raises StoreError when the file is not a journal or was written by a newer mlflowkit.

    >>> import tempfile
    >>> with SqliteJournal(Path(tempfile.mkdtemp()), create=False) as journal:
    ...     journal.runs()
    ()
    """

    state: Path
    create: bool = True
    engine: Engine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        path = self.state / JOURNAL
        exists = path.exists()
        url = f"sqlite:///{path}" if exists or self.create else "sqlite://"
        if self.create:
            with disk_errors(self.state):
                make_folder(self.state)
                if not (ignore := self.state / ".gitignore").exists():
                    replace_file(ignore, b"*\n", durable=False)
                os.close(private_opener(str(path), os.O_RDWR | os.O_CREAT))  # SQLite gives its log the same mode
        self.engine = _engine(url)
        with self._translate_errors():
            self._prepare(exists)

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> SqliteJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def runs(self, limit: int | None = None, name: str = "") -> tuple[RunRecord, ...]:
        """Runs, newest first."""
        query = select(runs).order_by(runs.c.started.desc(), runs.c.run.desc())
        if name:
            query = query.where(runs.c.name == name)
        return self._run_records(query.limit(limit))

    def run(self, name: str) -> RunRecord:
        """A run by its id, a unique prefix of it, or ``last``. Raises UsageError."""
        with self._read() as connection:
            ids = list(connection.scalars(select(runs.c.run).order_by(runs.c.started.desc())))
        return self._run_records(select(runs).where(runs.c.run == _resolve_run(name, ids)))[0]

    def result(self, fingerprint: str) -> StepResult | None:
        row = self._first(select(results).where(results.c.fingerprint == fingerprint))
        return self._result(row)

    def latest(self, name: str, stage: str) -> StepResult | None:
        """The newest result of a stage of a recipe, of any fingerprint."""
        query = select(results).where(results.c.name == name, results.c.stage == stage)
        return self._result(self._first(query.order_by(results.c.created.desc())))

    def alias(self, name: str, alias: str) -> Alias | None:
        row = self._first(select(aliases).where(aliases.c.name == name, aliases.c.alias == alias))
        with damaged_rows(self.state / JOURNAL, f"the alias {alias} of {name}"):
            return None if row is None else alias_from(row)

    def finished_run(self, name: str, fingerprints: Sequence[str]) -> RunRecord | None:
        """The newest finished run whose steps published exactly these fingerprints."""
        if not fingerprints:
            return None
        query = (
            select(steps.c.run)
            .join(runs, runs.c.run == steps.c.run)
            .where(steps.c.fingerprint == fingerprints[-1], steps.c.status == "done", runs.c.name == name)
            .where(runs.c.status.in_(("done", "gate-failed", "inconclusive")))
            .order_by(runs.c.started.desc())
        )
        with self._read() as connection:
            candidates = list(connection.scalars(query))
        for run in candidates:
            record = self.run(run)
            if [step.fingerprint for step in record.steps if step.status == "done"] == list(fingerprints):
                return record
        return None

    def deliveries(self, *statuses: DeliveryStatus) -> tuple[RunDelivery, ...]:
        """Deliveries of these statuses (of any, where none is named), oldest first."""
        with self._read() as connection, damaged_rows(self.state / JOURNAL, "a delivery"):
            return delivery_rows.read(connection, *statuses)

    def held_lease(self, fingerprint: str) -> HeldLease | None:
        """The lease of a fingerprint, if it is held."""
        with self._read() as connection:
            return self._held_lease(connection, fingerprint)

    def live_fingerprints(self) -> set[str]:
        """Fingerprints whose lease has an owner not known to be dead."""
        query = select(leases.c.fingerprint, leases.c.owner).where(leases.c.owner != "")
        with self._read() as connection:
            rows = connection.execute(query).all()
        with damaged_rows(self.state / JOURNAL, "a lease"):
            return {row.fingerprint for row in rows if is_alive(Owner.parse(row.owner)) is not False}

    def finished_fingerprints(self, fingerprints: Sequence[str]) -> set[str]:
        """Those of the fingerprints that have a result."""
        query = select(results.c.fingerprint).where(results.c.fingerprint.in_(fingerprints))
        with self._read() as connection:
            return set(connection.scalars(query))

    def file_digests(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Stored (stat, digest) of files by path."""
        query = select(file_digests).where(file_digests.c.path.in_(paths))
        with self._read() as connection:
            return {row.path: (row.stat, row.digest) for row in connection.execute(query)}

    def save_file_digests(self, digests: Mapping[str, tuple[str, str]]) -> None:
        """Store (stat, digest) of files by path."""
        if not digests or not self.create:
            return
        rows = [{"path": path, "stat": stat, "digest": digest} for path, (stat, digest) in digests.items()]
        with self._write() as connection:
            connection.execute(delete(file_digests).where(file_digests.c.path.in_(list(digests))))
            connection.execute(insert(file_digests), rows)

    def start_run(self, record: RunRecord, owner: Owner) -> None:
        """Insert a run and its pending steps."""
        with self._write("start-run") as connection:
            connection.execute(insert(runs), {**run_row(record), "owner": str(owner), "tracked": True})
            rows = [step_row(record.run, position, step) for position, step in enumerate(record.steps)]
            connection.execute(insert(steps), rows)

    def set_lineage(self, run: str, lineage: Lineage) -> None:
        """Replace a run's lineage (the data stage adds the data version)."""
        self._update(
            update(runs).where(runs.c.run == run).values(lineage=codec.dumps(lineage.to_json())), "set-lineage"
        )

    def take_lease(
        self, fingerprint: str, owner: Owner, run: str, stage: str, *, over: HeldLease | None = None
    ) -> StepLease | HeldLease:
        """Take the lease if it is free or unchanged since ``over`` (whose owner is dead); else return the holder."""
        with self._write("take-lease", stage) as connection:
            held = self._held_lease(connection, fingerprint)
            if held is not None and is_alive(held.owner) is not False and held != over:
                return held
            fence = connection.scalar(select(leases.c.fence).where(leases.c.fingerprint == fingerprint)) or 0
            connection.execute(delete(leases).where(leases.c.fingerprint == fingerprint))
            row = {"fence": fence + 1, "owner": str(owner), "run": run, "stage": stage, "heartbeat": 0}
            connection.execute(insert(leases), {"fingerprint": fingerprint, **row})
        return StepLease(fingerprint, fence + 1)

    def renew_lease(self, lease: StepLease) -> None:
        """Increment the heartbeat of a lease."""
        self._update(update(leases).where(*_is_lease(lease)).values(heartbeat=leases.c.heartbeat + 1))

    def release_lease(self, lease: StepLease, stage: str = "") -> None:
        """Release a lease; its fence stays."""
        self._update(update(leases).where(*_is_lease(lease)).values(owner=""), "release-lease", stage)

    def begin_step(self, run: str, stage: str, fingerprint: str = "") -> None:
        """Mark a step as running, with the fingerprint that it has now that its inputs are known."""
        where = (steps.c.run == run, steps.c.stage == stage)
        values = {"status": "running", **({"fingerprint": fingerprint} if fingerprint else {})}
        self._update(update(steps).where(*where).values(values), "begin-step", stage)

    def publish(self, result: StepResult, lease: StepLease, alias: Alias | None = None) -> None:
        """Insert a result and its alias. Raises StoreError when the lease's fence is no longer current."""
        with self._write("publish", result.stage) as connection:
            where = (*_is_lease(lease), leases.c.owner != "")
            if connection.scalar(select(func.count()).select_from(leases).where(*where)) != 1:
                raise StoreError(
                    f"{result.stage}: another run took over while this one was suspended; its result is kept",
                    hint="run the same command again",
                )
            connection.execute(delete(results).where(results.c.fingerprint == result.fingerprint))
            connection.execute(insert(results), result_row(result))
            if alias is not None:
                _put_alias(connection, alias)

    def finish_step(self, run: str, step: StepRecord) -> None:
        """Update a step."""
        values = step_row(run, 0, step)
        del values["position"]
        where = (steps.c.run == run, steps.c.stage == step.stage)
        self._update(update(steps).where(*where).values(values), "finish-step", step.stage)

    def finish_run(self, run: str, finish: RunEnd) -> None:
        """Update a run with its final state, and insert what it owes to other systems."""
        values: dict[str, Any] = {**asdict(finish), "finished": time.time()}
        del values["deliveries"]
        with self._write("finish-run") as connection:
            connection.execute(update(runs).where(runs.c.run == run).values(values))
            delivery_rows.owe(connection, finish.deliveries)

    def put_alias(self, alias: Alias) -> None:
        """Insert or replace an alias."""
        with self._write() as connection:
            _put_alias(connection, alias)

    def owe(self, deliveries: Sequence[RunDelivery], *, again: bool = False) -> None:
        """Insert deliveries, but those whose target and key are known; ``again`` makes these pending, as if new."""
        with self._write() as connection:
            delivery_rows.owe(connection, deliveries, again=again)

    def save_delivery(self, delivery: RunDelivery) -> None:
        """Update a delivery, by its target and key, after an attempt."""
        with self._write("save-delivery") as connection:
            delivery_rows.save(connection, delivery)

    def sweep(self) -> tuple[str, ...]:
        """Mark runs whose process is dead as interrupted; returns their ids."""
        running = select(runs.c.run, runs.c.owner).where(runs.c.status == "running")
        with self._read() as connection:
            rows = connection.execute(running).all()
            marked = connection.scalar(select(func.count()).select_from(runs).where(runs.c.tracked.is_(False)))
        if marked:
            with self._write() as connection:
                delivery_rows.adopt_untracked(connection)
        with damaged_rows(self.state / JOURNAL, "the owner of a run"):
            dead = tuple(row.run for row in rows if is_alive(Owner.parse(row.owner)) is False)
        if dead:
            with self._write() as connection:
                ended = {"status": "interrupted", "finished": time.time(), "error": "the process was killed"}
                connection.execute(update(runs).where(runs.c.run.in_(dead)).values(ended))
                delivery_rows.owe(connection, [RunDelivery(run, TRACKING_TARGET, run) for run in dead])
                cut = (steps.c.run.in_(dead), steps.c.status == "running")
                connection.execute(update(steps).where(*cut).values(status="interrupted"))
        return dead

    def stored(self) -> tuple[tuple[StoredRun, ...], tuple[StoredResult, ...], tuple[StoredAlias, ...]]:
        """All runs, results and aliases, as far as collecting garbage needs them."""
        with self._read() as connection, damaged_rows(self.state / JOURNAL, "an inventory of it"):
            return inventory_rows(connection)

    def forget(self, gone: Sequence[str], fingerprints: Set[str], dropped: Set[tuple[str, str]]) -> None:
        """Delete runs with their steps, results and aliases, in one transaction."""
        with self._write() as connection:
            for run in gone:
                connection.execute(delete(steps).where(steps.c.run == run))
                connection.execute(delete(deliveries).where(deliveries.c.run == run))
                connection.execute(delete(runs).where(runs.c.run == run))
            for fingerprint in fingerprints:
                connection.execute(delete(results).where(results.c.fingerprint == fingerprint))
                connection.execute(delete(leases).where(leases.c.fingerprint == fingerprint, leases.c.owner == ""))
            for name, alias in dropped:
                connection.execute(delete(aliases).where(aliases.c.name == name, aliases.c.alias == alias))

    def _held_lease(self, connection: Connection, fingerprint: str) -> HeldLease | None:
        row = connection.execute(select(leases).where(leases.c.fingerprint == fingerprint)).one_or_none()
        with damaged_rows(self.state / JOURNAL, f"the lease of {fingerprint[:12]}"):
            return None if row is None else held_lease(row)

    def _result(self, row: Row[Any] | None) -> StepResult | None:
        if row is None:
            return None
        with damaged_rows(self.state / JOURNAL, f"the result {str(row.fingerprint)[:12]}"):
            return step_result(row)

    def _run_records(self, query: Select[Any]) -> tuple[RunRecord, ...]:
        with self._read() as connection:
            records = []
            for row in connection.execute(query).all():
                own = select(steps).where(steps.c.run == row.run).order_by(steps.c.position)
                with damaged_rows(self.state / JOURNAL, f"the run {row.run}"):
                    owed = delivery_rows.read(connection, run=row.run)
                    records.append(run_record(row, tuple(map(step_record, connection.execute(own))), owed))
        return tuple(records)

    def _first(self, query: Select[Any]) -> Row[Any] | None:
        with self._read() as connection:
            return connection.execute(query.limit(1)).first()

    def _update(self, statement: Update, transition: str = "", stage: str = "") -> None:
        with self._write(transition, stage) as connection:
            connection.execute(statement)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._translate_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self, transition: str = "", stage: str = "") -> Iterator[Connection]:
        with self._translate_errors():
            if transition:
                failpoint.hit(f"{transition}.before", stage)
            with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
                yield connection
            if transition:
                failpoint.hit(f"{transition}.after", stage)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _store_error(error, self.state / JOURNAL) from error

    def _prepare(self, exists: bool) -> None:
        path = self.state / JOURNAL
        version = self._version() if exists else None
        if version == journal_tables.VERSION:
            return
        if version is None and self.create:
            _use_wal(self.engine)
        elif version is None:  # missing, or being created at this moment: read as empty
            self.engine.dispose()
            self.engine = _engine("sqlite://")
        else:
            with disk_errors(path):
                migrations.back_up(path, version)
            failpoint.hit("journal.copied")
        with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
            version = migrations.journal_version(connection, path)
            if version is None:
                migrations.create(connection)
            else:
                migrations.migrate(connection, path, version)

    def _version(self) -> int | None:
        with self.engine.connect() as connection:
            return migrations.journal_version(connection, self.state / JOURNAL)


def _engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": None})
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _use_wal(engine: Engine) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            connection.close()


def _is_lease(lease: StepLease) -> tuple[ColumnElement[bool], ...]:
    return leases.c.fingerprint == lease.fingerprint, leases.c.fence == lease.fence


def _store_error(error: DBAPIError, path: Path) -> StoreError:
    text = str(error.orig)
    if "full" in text or ("disk I/O" in text and shutil.disk_usage(path.parent).free < SHARED_MEMORY_BYTES):
        return StoreError(
            f"the disk is full while writing {path}",
            hint="free some space (or use another state folder with --state DIR) and run the same command again: "
            "finished steps are kept",
        )
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{path} is damaged: {text}", hint=start_over(path))
    if "no such table" in text or "no such column" in text:
        return StoreError(f"{path} is damaged, or not a journal of mlflowkit: {text}", hint=start_over(path))
    if "locked" in text:
        return StoreError(
            f"{path} was locked for {BUSY_SECONDS:.0f} s",
            hint=f"fuser -v {shell_word(path)} names who holds it open",
        )
    if "disk I/O" in text:
        return StoreError(
            f"{path}: {text}", hint=f"df {shell_word(path.parent)} shows its room; a quota or ulimit -f may be less"
        )
    if "readonly" in text or "unable to open" in text:
        return StoreError(f"{path}: {text}", hint=f"ls -ld {shell_word(path.parent)} shows its permissions")
    return StoreError(f"{path}: {text}", hint=start_over(path))


def _resolve_run(name: str, ids: Sequence[str]) -> str:
    if not ids:
        raise UsageError("there is no run yet", hint="mlkit run RECIPE, or name the state folder with --state DIR")
    if name == "last":
        return ids[0]
    matches = [run for run in ids if run.startswith(name)] if name else []
    if name in ids or len(matches) == 1:
        return name if name in ids else matches[0]
    if matches:
        several = f"{len(matches)} runs: {', '.join(matches[:5])}"
        raise UsageError(f"{name!r} is the prefix of {several}", hint=f"type more digits, as in {matches[0]}")
    near = get_close_matches(name, ids, n=3, cutoff=0.5) or list(ids[:3])
    raise UsageError(f"no run {name!r}", hint=f"did you mean {' or '.join(near)}? `mlkit runs` lists them")


def _put_alias(connection: Connection, alias: Alias) -> None:
    """Replace an alias. A replaced champion keeps a candidate alias, for rollbacks."""
    present = (aliases.c.name == alias.name, aliases.c.alias == alias.alias)
    if alias.alias == "champion":
        row = connection.execute(select(aliases).where(*present)).one_or_none()
        if row is not None and row.identity != alias.identity:
            _put_alias(connection, replace(Alias(**row._mapping), alias=candidate_alias(row.identity)))
    connection.execute(delete(aliases).where(*present))
    connection.execute(insert(aliases), {**asdict(alias), "created": alias.created or time.time()})
