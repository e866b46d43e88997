"""Rows of the journal's tables from values, and values from rows, which are checked: they may be damaged."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from sqlalchemy import Connection, Row, Table, select

from mlflowkit.data_access.cached_files import DataVersion
from mlflowkit.errors import StoreError
from mlflowkit.pipeline.storage import codec
from mlflowkit.pipeline.storage.garbage import StoredAlias, StoredResult, StoredRun
from mlflowkit.pipeline.storage.journal_tables import aliases, deliveries, leases, results, runs, steps
from mlflowkit.pipeline.storage.step_lease import is_alive
from mlflowkit.values import (
    Alias,
    HeldLease,
    Json,
    Lineage,
    Owner,
    Published,
    RunDelivery,
    RunRecord,
    RunStatus,
    StageResult,
    StepRecord,
    StepResult,
)

DAMAGES = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading a damaged row raises."""


def start_over(path: Path) -> str:
    """The hint that puts a damaged journal aside, with SQLite's files beside it, and keeps the store."""
    place = shlex.quote(str(path.parent / "damaged"))
    return f"mkdir -p {place} && mv {shlex.quote(str(path))}* {place}/ puts it aside: the next run makes a new one"


@contextmanager
def damaged_rows(path: Path, what: str) -> Iterator[None]:
    """Convert what a damaged row raises to a StoreError."""
    try:
        yield
    except DAMAGES as error:
        detail = str(error) or type(error).__name__
        raise StoreError(f"{path} is damaged: {what}: {detail}", hint=start_over(path)) from error


def _checked(row: Row[Any], table: Table) -> dict[str, Any]:
    """The values of a row by column. Raises ValueError for one of another type, which SQLite does not refuse."""
    values = dict(row._mapping)
    for column in table.columns:
        value, kind = values[column.name], column.type.python_type
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) and not (value is None and column.nullable):
            raise ValueError(f"{table.name}.{column.name} is {value!r:.60}")
    return values


def _object(text: str, name: str, kind: type = dict) -> Any:
    """A JSON document of a kind. Raises ValueError."""
    value = codec.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {text[:60]!r}")
    return value


def run_row(record: RunRecord) -> dict[str, Json]:
    row = {name: getattr(record, name) for name in ("run", "name", "recipe_path", "status", "started", "finished")}
    row |= {name: getattr(record, name) for name in ("bundle", "blessed", "endpoint", "report", "error")}
    row["lineage"] = codec.dumps(record.lineage.to_json())
    row["recipe"] = codec.dumps(record.recipe)
    row["overrides"] = codec.dumps(list(record.overrides))
    return row


def run_record(row: Row[Any], own: tuple[StepRecord, ...], owed: tuple[RunDelivery, ...] = ()) -> RunRecord:
    """A run with its steps and deliveries; one that is running though its process is dead counts as interrupted."""
    values = _checked(row, runs)
    owner = Owner.parse(values.pop("owner"))
    del values["tracked"]
    if values["status"] not in get_args(RunStatus):
        raise ValueError(f"runs.status is {values['status']!r}")
    values["lineage"] = Lineage.from_json(_object(row.lineage, "runs.lineage"))
    values["recipe"] = _object(row.recipe, "runs.recipe")
    values["overrides"] = tuple(_object(row.overrides, "runs.overrides", list))
    record = RunRecord(**values, steps=own, deliveries=owed)
    if record.status == "running" and is_alive(owner) is False:
        return replace(record, status="interrupted", error="the process was killed")
    return record


def step_row(run: str, position: int, step: StepRecord) -> dict[str, Json]:
    row = {name: getattr(step, name) for name in ("stage", "action", "reason", "fingerprint", "status")}
    row |= {"run": run, "position": position, "seconds": step.seconds, "digest": step.digest, "error": step.error}
    row["result"] = None if step.result is None else codec.dumps(codec.result_json(step.result))
    return row


def step_record(row: Row[Any]) -> StepRecord:
    values = _checked(row, steps)
    del values["run"], values["position"]
    return StepRecord(**values | {"result": codec.result_from(codec.loads(row.result or "null"))})


def result_row(result: StepResult) -> dict[str, Json]:
    row = {name: getattr(result, name) for name in ("fingerprint", "stage", "name", "run", "seconds")}
    row |= {"created": result.created or time.time(), "digest": result.published.digest}
    mappings: Mapping[str, Mapping[str, Json]] = {
        "files": result.published.files, "ingredients": result.ingredients, "inputs": result.inputs,
    }  # fmt: skip
    row |= {name: codec.dumps(dict(mapping)) for name, mapping in mappings.items()}
    return {**row, "result": codec.dumps(codec.result_json(result.result))}


def step_result(row: Row[Any]) -> StepResult:
    _checked(row, results)
    files, ingredients, inputs = (
        _object(getattr(row, name), f"results.{name}") for name in ("files", "ingredients", "inputs")
    )
    published = Published(row.digest, files)
    result = codec.result_from(_object(row.result, "results.result")) or StageResult()
    return StepResult(
        row.fingerprint, row.stage, row.name, published, result, ingredients, inputs, row.run, row.seconds, row.created
    )


def alias_from(row: Row[Any]) -> Alias:
    return Alias(**_checked(row, aliases))


def held_lease(row: Row[Any]) -> HeldLease | None:
    """The holder of a lease, if it is held."""
    values = _checked(row, leases)
    if not values["owner"]:
        return None
    return HeldLease(Owner.parse(row.owner), row.run, row.stage, row.heartbeat, row.fence)


def inventory_rows(
    connection: Connection,
) -> tuple[tuple[StoredRun, ...], tuple[StoredResult, ...], tuple[StoredAlias, ...]]:
    """The runs, results and aliases that an inventory of a state folder lists."""
    own: dict[str, list[Any]] = {}
    for row in connection.execute(select(steps.c.run, steps.c.fingerprint, steps.c.digest)):
        own.setdefault(row.run, []).append(row)
    pending = set(connection.scalars(select(deliveries.c.run).where(deliveries.c.status == "pending")))
    stored_runs = [
        StoredRun(
            run=row.run,
            name=row.name,
            started=float(row.started),
            active=row.status == "running" and is_alive(Owner.parse(row.owner)) is not False,
            delivered=row.run not in pending and bool(row.tracked),
            fingerprints=frozenset(step.fingerprint for step in own.get(row.run, ())),
            digests=frozenset(step.digest for step in own.get(row.run, ()) if step.digest),
            data=_data_version(row),
        )
        for row in connection.execute(select(runs))
    ]
    stored_results = [
        StoredResult(row.fingerprint, row.digest, frozenset(codec.loads(row.inputs).values()), _identity(row))
        for row in connection.execute(select(results))
    ]
    stored_aliases = [
        StoredAlias(row.name, row.alias, row.identity, row.run, frozenset({row.digest, row.judged_digest} - {""}))
        for row in connection.execute(select(aliases))
    ]
    return tuple(stored_runs), tuple(stored_results), tuple(stored_aliases)


def _data_version(row: Row[Any]) -> DataVersion:
    lineage = Lineage.from_json(_object(row.lineage, "runs.lineage"))
    return lineage.data_source, lineage.data_commit


def _identity(row: Row[Any]) -> str:
    return str(codec.loads(row.result)["summary"].get("identity", "")) if row.stage == "package" else ""
