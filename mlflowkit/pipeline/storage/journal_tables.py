"""The tables of the journal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

VERSION = 2
"""Version of this layout. A journal with a larger one was written by a newer mlflowkit."""

metadata = MetaData()


def _columns(kind: Any, *names: str, **default: Any) -> list[Column[Any]]:
    """Columns of one type that are not null."""
    return [Column(name, kind, nullable=False, **default) for name in names]


meta = Table("meta", metadata, Column("key", String(32), primary_key=True), *_columns(Text, "value"))

runs = Table(
    "runs",
    metadata,
    Column("run", String(32), primary_key=True),
    *_columns(String(64), "name"),
    *_columns(Text, "recipe_path"),
    *_columns(String(16), "status"),
    *_columns(Float, "started"),
    Column("finished", Float),
    *_columns(Text, "lineage", "recipe", "overrides"),
    *_columns(String(64), "bundle", default=""),
    *_columns(Boolean, "blessed", default=False),
    *_columns(Text, "endpoint", "report", "error", default=""),
    *_columns(Text, "owner"),
    *_columns(Boolean, "tracked", default=True),  # of version 1, whose processes may end a run here: see `deliveries`
    Index("runs_by_name", "name", "started"),
)

steps = Table(
    "steps",
    metadata,
    Column("run", String(32), ForeignKey("runs.run"), primary_key=True),
    Column("position", Integer, primary_key=True),
    *_columns(String(16), "stage"),
    *_columns(String(8), "action"),
    *_columns(Text, "reason"),
    *_columns(String(64), "fingerprint"),
    *_columns(String(16), "status"),
    *_columns(Float, "seconds", default=0.0),
    *_columns(String(64), "digest", default=""),
    Column("result", Text),
    *_columns(Text, "error", default=""),
    Index("steps_by_fingerprint", "fingerprint"),
)

results = Table(
    "results",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    *_columns(String(16), "stage"),
    *_columns(String(64), "name", "digest"),
    *_columns(Text, "files", "result", "ingredients", "inputs"),
    *_columns(String(32), "run"),
    *_columns(Float, "created", "seconds"),
    Index("results_by_stage", "name", "stage", "created"),
)

leases = Table(
    "leases",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    *_columns(Integer, "fence"),
    *_columns(Text, "owner"),
    *_columns(String(32), "run"),
    *_columns(String(16), "stage"),
    *_columns(Integer, "heartbeat"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(16), primary_key=True),
    *_columns(String(64), "identity", "digest", "optimize", "judged_identity", "judged_digest"),
    *_columns(String(32), "run"),
    *_columns(Float, "created"),
)

file_digests = Table(
    "file_digests",
    metadata,
    Column("path", Text, primary_key=True),
    *_columns(Text, "stat"),
    *_columns(String(64), "digest"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("target", String(200), primary_key=True),
    Column("key", String(200), primary_key=True),
    *_columns(String(32), "run"),
    *_columns(String(16), "status"),
    *_columns(Integer, "attempts", default=0),
    *_columns(Text, "error", "receipt", default=""),
    *_columns(Float, "created"),
    *_columns(Float, "tried", default=0.0),
    Index("deliveries_by_run", "run"),
    Index("deliveries_by_status", "status", "created"),
)
