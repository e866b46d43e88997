"""The journal: what was run, with which result, by whom, in one SQLite file. It is the truth; trackers mirror it.

Every write is one immediate transaction between two failpoints. Readers never wait for writers (WAL).
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, create_engine, delete, event, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.pipeline import JOURNAL, codec, journal_tables
from mlflowkit.pipeline.step_lease import Held, Lease, Owner, lives_here
from mlflowkit.pipeline.store import Published
from mlflowkit.system import failpoint
from mlflowkit.values import Json, Lineage, RunRecord, RunStatus, StageResult, StepRecord

BUSY_SECONDS = 60.0
SHARED_MEMORY_BYTES = 1 << 20
"""With less room than this SQLite fails to lay out the index of its log, and calls that an I/O error."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a fingerprint came to. ``inputs`` are the digests of the folders that it was made from."""

    fingerprint: str
    stage: str
    name: str
    published: Published
    result: StageResult
    ingredients: Mapping[str, str]
    inputs: Mapping[str, str]
    run: str
    seconds: float = 0.0
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version: ``champion`` serves now, ``challenger`` was the last to be blessed.

    ``digest`` is of the package stage's folder; ``optimize`` the fingerprint that the graph came from; ``judged_*``
    the champion that it was judged against ("" for none).
    """

    name: str
    alias: str
    identity: str
    digest: str
    optimize: str
    judged_identity: str
    judged_digest: str
    run: str
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """How a run ended."""

    status: RunStatus
    bundle: str = ""
    blessed: bool = False
    endpoint: str = ""
    report: str = ""
    error: str = ""
    track: bool = False
    """Whether the tracker is still to be told."""


@dataclass
class Journal:
    """The journal of a state folder. With ``create`` false a missing one reads as empty and is not made.

    Raises StoreError when the file is not a journal, or one of a newer mlflowkit.

    >>> import tempfile
    >>> with Journal(Path(tempfile.mkdtemp()), create=False) as journal:
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
            _make_folder(self.state)
        self.engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": None})
        event.listen(self.engine, "begin", _begin)
        with self._translated():
            self._prepare(exists)

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ reading

    def runs(self, limit: int | None = None, name: str = "") -> tuple[RunRecord, ...]:
        """Runs, newest first."""
        query = select(journal_tables.runs).order_by(
            journal_tables.runs.c.started.desc(), journal_tables.runs.c.run.desc()
        )
        if name:
            query = query.where(journal_tables.runs.c.name == name)
        with self._read() as connection:
            rows = connection.execute(query.limit(limit)).all()
            return tuple(_run_record(row, self._steps(connection, row.run)) for row in rows)

    def run(self, name: str) -> RunRecord:
        """A run by its id, a prefix of it that only one run has, or ``last``. Raises UsageError."""
        with self._read() as connection:
            known = list(
                connection.scalars(select(journal_tables.runs.c.run).order_by(journal_tables.runs.c.started.desc()))
            )
            run = _resolve(name, known)
            row = connection.execute(select(journal_tables.runs).where(journal_tables.runs.c.run == run)).one()
            return _run_record(row, self._steps(connection, run))

    def result(self, fingerprint: str) -> Result | None:
        with self._read() as connection:
            row = connection.execute(
                select(journal_tables.results).where(journal_tables.results.c.fingerprint == fingerprint)
            ).one_or_none()
        return None if row is None else _result(row)

    def latest(self, name: str, stage: str) -> Result | None:
        """The newest result of a stage of a recipe, whatever its fingerprint."""
        query = (
            select(journal_tables.results)
            .where(journal_tables.results.c.name == name, journal_tables.results.c.stage == stage)
            .order_by(journal_tables.results.c.created.desc())
            .limit(1)
        )
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _result(row)

    def alias(self, name: str, alias: str) -> Alias | None:
        query = select(journal_tables.aliases).where(
            journal_tables.aliases.c.name == name, journal_tables.aliases.c.alias == alias
        )
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Alias(**row._mapping)

    def finished_run(self, name: str, fingerprints: Sequence[str]) -> RunRecord | None:
        """The newest finished run whose steps published exactly these fingerprints."""
        if not fingerprints:
            return None
        query = (
            select(journal_tables.steps.c.run)
            .join(journal_tables.runs, journal_tables.runs.c.run == journal_tables.steps.c.run)
            .where(journal_tables.steps.c.fingerprint == fingerprints[-1], journal_tables.steps.c.status == "done")
            .where(
                journal_tables.runs.c.status.in_(("done", "gate-failed", "inconclusive")),
                journal_tables.runs.c.name == name,
            )
            .order_by(journal_tables.runs.c.started.desc())
        )
        with self._read() as connection:
            candidates = list(connection.scalars(query))
        for run in candidates:
            record = self.run(run)
            if [step.fingerprint for step in record.steps if step.status == "done"] == list(fingerprints):
                return record
        return None

    def untracked(self) -> tuple[RunRecord, ...]:
        """Finished runs that the tracker was not told of, oldest first."""
        query = (
            select(journal_tables.runs)
            .where(journal_tables.runs.c.tracked.is_(False))
            .order_by(journal_tables.runs.c.started)
        )
        with self._read() as connection:
            rows = connection.execute(query).all()
            return tuple(_run_record(row, self._steps(connection, row.run)) for row in rows)

    def held(self, fingerprint: str) -> Held | None:
        """Who holds the lease of a fingerprint, as the journal has it."""
        with self._read() as connection:
            return self._held(connection, fingerprint)

    def live(self) -> set[str]:
        """Fingerprints whose lease is held by an owner that is not known to be dead."""
        query = select(journal_tables.leases.c.fingerprint, journal_tables.leases.c.owner).where(
            journal_tables.leases.c.owner != ""
        )
        with self._read() as connection:
            rows = connection.execute(query).all()
        return {row.fingerprint for row in rows if lives_here(Owner.parse(row.owner)) is not False}

    def finished(self, fingerprints: Sequence[str]) -> set[str]:
        """Which of these fingerprints have a result."""
        query = select(journal_tables.results.c.fingerprint).where(
            journal_tables.results.c.fingerprint.in_(fingerprints)
        )
        with self._read() as connection:
            return set(connection.scalars(query))

    def file_digests(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(stat, digest) of files that were digested before, by path."""
        query = select(journal_tables.file_digests).where(journal_tables.file_digests.c.path.in_(paths))
        with self._read() as connection:
            return {row.path: (row.stat, row.digest) for row in connection.execute(query)}

    # ------------------------------------------------------------------------------------------------ writing

    def remember_files(self, digests: Mapping[str, tuple[str, str]]) -> None:
        """Keep (stat, digest) of files by path."""
        if not digests or not self.create:
            return
        rows = [{"path": path, "stat": stat, "digest": digest} for path, (stat, digest) in digests.items()]
        with self._write() as connection:
            connection.execute(
                delete(journal_tables.file_digests).where(journal_tables.file_digests.c.path.in_(list(digests)))
            )
            connection.execute(insert(journal_tables.file_digests), rows)

    def start_run(self, record: RunRecord, owner: Owner) -> None:
        """Enter a run and its pending steps."""
        with self._write("start-run") as connection:
            connection.execute(insert(journal_tables.runs), {**_run_row(record), "owner": str(owner), "tracked": True})
            rows = [_step_row(record.run, position, step) for position, step in enumerate(record.steps)]
            connection.execute(insert(journal_tables.steps), rows)

    def set_lineage(self, run: str, lineage: Lineage) -> None:
        """Replace a run's lineage: the data version is known once the data stage is done."""
        with self._write("set-lineage") as connection:
            values = {"lineage": codec.dumps(asdict(lineage))}
            connection.execute(update(journal_tables.runs).where(journal_tables.runs.c.run == run).values(values))

    def take_lease(
        self, fingerprint: str, owner: Owner, run: str, stage: str, *, over: Held | None = None
    ) -> Lease | Held:
        """Take the lease if it is free, or still as in ``over`` (an owner found dead); else say who holds it."""
        with self._write("take-lease", stage) as connection:
            held = self._held(connection, fingerprint)
            if held is not None and lives_here(held.owner) is not False and held != over:
                return held
            table = journal_tables.leases
            fence = connection.scalar(select(table.c.fence).where(table.c.fingerprint == fingerprint)) or 0
            connection.execute(delete(table).where(table.c.fingerprint == fingerprint))
            row = {"fence": fence + 1, "owner": str(owner), "run": run, "stage": stage, "heartbeat": 0}
            connection.execute(insert(table), {"fingerprint": fingerprint, **row})
        return Lease(fingerprint, fence + 1)

    def beat(self, lease: Lease) -> None:
        """Raise the heartbeat of a lease."""
        table = journal_tables.leases
        with self._write() as connection:
            connection.execute(
                update(table)
                .where(table.c.fingerprint == lease.fingerprint, table.c.fence == lease.fence)
                .values(heartbeat=table.c.heartbeat + 1)
            )

    def release_lease(self, lease: Lease, stage: str = "") -> None:
        """Give a lease back; its fence stays."""
        table = journal_tables.leases
        with self._write("release-lease", stage) as connection:
            connection.execute(
                update(table)
                .where(table.c.fingerprint == lease.fingerprint, table.c.fence == lease.fence)
                .values(owner="")
            )

    def begin_step(self, run: str, stage: str) -> None:
        """Say that a step is being worked on."""
        table = journal_tables.steps
        with self._write("begin-step", stage) as connection:
            where = (table.c.run == run, table.c.stage == stage)
            connection.execute(update(table).where(*where).values(status="running"))

    def publish(self, result: Result, lease: Lease, alias: Alias | None = None) -> None:
        """Enter a result (and the alias that it earns), if the lease's fence still stands. Raises StoreError."""
        table = journal_tables.leases
        with self._write("publish", result.stage) as connection:
            where = (table.c.fingerprint == lease.fingerprint, table.c.fence == lease.fence, table.c.owner != "")
            if connection.scalar(select(func.count()).select_from(table).where(*where)) != 1:
                raise StoreError(
                    f"{result.stage}: another run took over while this one stood still; its result stands",
                    hint="run the same command again",
                )
            done = journal_tables.results
            connection.execute(delete(done).where(done.c.fingerprint == result.fingerprint))
            connection.execute(insert(done), _result_row(result))
            if alias is not None:
                _put_alias(connection, alias)

    def finish_step(self, run: str, step: StepRecord) -> None:
        """Replace what the journal has of a step."""
        table = journal_tables.steps
        values = _step_row(run, 0, step)
        del values["position"]
        with self._write("finish-step", step.stage) as connection:
            where = (table.c.run == run, table.c.stage == step.stage)
            connection.execute(update(table).where(*where).values(values))

    def finish_run(self, run: str, finish: Finish) -> None:
        """Say how a run ended; steps that were being worked on are marked alike."""
        values: dict[str, Any] = {**asdict(finish), "finished": time.time(), "tracked": not finish.track}
        del values["track"]
        with self._write("finish-run") as connection:
            connection.execute(update(journal_tables.runs).where(journal_tables.runs.c.run == run).values(values))

    def put_alias(self, alias: Alias) -> None:
        """Point an alias at another version."""
        with self._write() as connection:
            _put_alias(connection, alias)

    def mark_tracked(self, run: str, *, tracked: bool = True) -> None:
        """Say that the tracker was told of a run, or has to be told again."""
        with self._write("mark-tracked") as connection:
            connection.execute(
                update(journal_tables.runs).where(journal_tables.runs.c.run == run).values(tracked=tracked)
            )

    def sweep(self) -> tuple[str, ...]:
        """Mark as interrupted the runs whose process is dead; returns their ids."""
        running = select(journal_tables.runs.c.run, journal_tables.runs.c.owner).where(
            journal_tables.runs.c.status == "running"
        )
        with self._read() as connection:
            rows = connection.execute(running).all()
        dead = tuple(row.run for row in rows if lives_here(Owner.parse(row.owner)) is False)
        if dead:
            with self._write() as connection:
                ended = {"status": "interrupted", "finished": time.time(), "error": "the process was killed"}
                connection.execute(update(journal_tables.runs).where(journal_tables.runs.c.run.in_(dead)).values(ended))
                cut = (journal_tables.steps.c.run.in_(dead), journal_tables.steps.c.status == "running")
                connection.execute(update(journal_tables.steps).where(*cut).values(status="interrupted"))
        return dead

    # ------------------------------------------------------------------------------------------------- inside

    def _held(self, connection: Connection, fingerprint: str) -> Held | None:
        row = connection.execute(
            select(journal_tables.leases).where(journal_tables.leases.c.fingerprint == fingerprint)
        ).one_or_none()
        if row is None or not row.owner:
            return None
        return Held(Owner.parse(row.owner), row.run, row.stage, row.heartbeat, row.fence)

    def _steps(self, connection: Connection, run: str) -> tuple[StepRecord, ...]:
        query = (
            select(journal_tables.steps)
            .where(journal_tables.steps.c.run == run)
            .order_by(journal_tables.steps.c.position)
        )
        return tuple(_step_record(row) for row in connection.execute(query))

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self, transition: str = "", stage: str = "") -> Iterator[Connection]:
        with self._translated():
            if transition:
                failpoint.reach(f"{transition}.before", stage)
            with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
                yield connection
            if transition:
                failpoint.reach(f"{transition}.after", stage)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _store_error(error, self.state / JOURNAL) from error

    def _prepare(self, exists: bool) -> None:
        if exists:
            with self.engine.connect() as connection:
                found = _version(connection)
            if found is not None:
                _check_version(found, self.state / JOURNAL)
                return
        if self.create:
            _use_wal(self.engine)
        with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
            if _version(connection) is None:
                journal_tables.metadata.create_all(connection)
                connection.execute(
                    insert(journal_tables.meta), {"key": "version", "value": str(journal_tables.VERSION)}
                )


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _make_folder(state: Path) -> None:
    from mlflowkit.system.files import disk_errors

    with disk_errors(state):
        state.mkdir(parents=True, exist_ok=True)
        ignore = state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")


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


def _version(connection: Connection) -> int | None:
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'meta'"
    if not connection.exec_driver_sql(query).scalar():
        return None
    value = connection.scalar(select(journal_tables.meta.c.value).where(journal_tables.meta.c.key == "version"))
    return None if value is None else int(value)


def _check_version(found: int, path: Path) -> None:
    if found > journal_tables.VERSION:
        raise StoreError(
            f"{path} was written by a newer mlflowkit (journal {found}; this one reads {journal_tables.VERSION})",
            hint="pip install --upgrade mlflowkit, or choose another place with --state DIR",
        )


def _store_error(error: DBAPIError, path: Path) -> StoreError:
    text = str(error.orig)
    if "full" in text or ("disk I/O" in text and shutil.disk_usage(path.parent).free < SHARED_MEMORY_BYTES):
        return StoreError(
            f"the disk is full while writing {path}",
            hint="make room (or choose another place with --state DIR) and run the same command again: "
            "finished steps are kept",
        )
    if "not a database" in text or "malformed" in text:
        return StoreError(
            f"{path} is damaged: {text}",
            hint=f"mv {path} {path}.damaged and run again; the steps are done anew",
        )
    if "locked" in text:
        return StoreError(f"{path} was locked for {BUSY_SECONDS:.0f} s", hint="is another program holding it open?")
    if "disk I/O" in text:
        return StoreError(f"{path}: {text}", hint=f"check the disk under {path.parent}, its quota and `ulimit -f`")
    if "readonly" in text or "unable to open" in text:
        return StoreError(f"{path}: {text}", hint=f"check the permissions of {path.parent}")
    return StoreError(f"{path}: {text}", hint="mlkit runs")


def _resolve(name: str, known: Sequence[str]) -> str:
    if not known:
        raise UsageError("no run was recorded here yet", hint="mlkit run RECIPE, or choose a place with --state DIR")
    if name == "last":
        return known[0]
    matches = [run for run in known if run.startswith(name)] if name else []
    if name in known or len(matches) == 1:
        return name if name in known else matches[0]
    if matches:
        raise UsageError(f"{name!r} begins {len(matches)} runs: {', '.join(matches[:5])}", hint="type more of it")
    near = get_close_matches(name, known, n=3, cutoff=0.5) or list(known[:3])
    raise UsageError(f"no run {name!r}", hint=f"did you mean {' or '.join(near)}? `mlkit runs` lists them")


# ------------------------------------------------------------------------------------------------ rows and values


def _run_row(record: RunRecord) -> dict[str, Json]:
    row = {name: getattr(record, name) for name in ("run", "name", "recipe_path", "status", "started", "finished")}
    row |= {name: getattr(record, name) for name in ("bundle", "blessed", "endpoint", "report", "error")}
    row["lineage"] = codec.dumps(asdict(record.lineage))
    row["recipe"] = codec.dumps(record.recipe)
    row["overrides"] = codec.dumps(list(record.overrides))
    return row


def _run_record(row: Row[Any], steps: tuple[StepRecord, ...]) -> RunRecord:
    values = dict(row._mapping)
    owner = Owner.parse(values.pop("owner"))
    del values["tracked"]
    values["lineage"] = Lineage(**codec.loads(row.lineage))
    values["recipe"] = codec.loads(row.recipe)
    values["overrides"] = tuple(codec.loads(row.overrides))
    record = RunRecord(**values, steps=steps)
    if record.status == "running" and lives_here(owner) is False:
        return replace(record, status="interrupted", error="the process was killed")
    return record


def _step_row(run: str, position: int, step: StepRecord) -> dict[str, Json]:
    row = {name: getattr(step, name) for name in ("stage", "action", "reason", "fingerprint", "status")}
    row |= {"run": run, "position": position, "seconds": step.seconds, "digest": step.digest, "error": step.error}
    row["result"] = None if step.result is None else codec.dumps(codec.result_json(step.result))
    return row


def _step_record(row: Row[Any]) -> StepRecord:
    values = dict(row._mapping)
    del values["run"], values["position"]
    values["result"] = None if row.result is None else codec.result_from(codec.loads(row.result))
    return StepRecord(**values)


def _result_row(result: Result) -> dict[str, Json]:
    row = {name: getattr(result, name) for name in ("fingerprint", "stage", "name", "run", "seconds")}
    row |= {"created": result.created or time.time(), "digest": result.published.digest}
    row["files"] = codec.dumps(dict(result.published.files))
    row["result"] = codec.dumps(codec.result_json(result.result))
    row["ingredients"] = codec.dumps(dict(result.ingredients))
    row["inputs"] = codec.dumps(dict(result.inputs))
    return row


def _result(row: Row[Any]) -> Result:
    outcome = codec.result_from(codec.loads(row.result))
    return Result(
        fingerprint=row.fingerprint,
        stage=row.stage,
        name=row.name,
        published=Published(row.digest, codec.loads(row.files)),
        result=outcome if outcome is not None else StageResult(),
        ingredients=codec.loads(row.ingredients),
        inputs=codec.loads(row.inputs),
        run=row.run,
        seconds=row.seconds,
        created=row.created,
    )


def candidate_alias(identity: str) -> str:
    """The alias under which a version that may become champion, or was it, is remembered.

    >>> candidate_alias("3f9a" * 16)
    'v-3f9a3f9a3f9a3f'
    """
    return f"v-{identity[:14]}"


def _put_alias(connection: Connection, alias: Alias) -> None:
    """Replace an alias; a champion that is replaced is remembered as a candidate, to go back to."""
    table = journal_tables.aliases
    if alias.alias == "champion":
        query = select(table).where(table.c.name == alias.name, table.c.alias == "champion")
        row = connection.execute(query).one_or_none()
        if row is not None and row.identity != alias.identity:
            _put_alias(connection, replace(Alias(**row._mapping), alias=candidate_alias(row.identity)))
    connection.execute(delete(table).where(table.c.name == alias.name, table.c.alias == alias.alias))
    connection.execute(insert(table), {**asdict(alias), "created": alias.created or time.time()})
