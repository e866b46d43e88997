"""The tables of the journal."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

VERSION = 1
"""Of this layout. A journal with a larger one was written by a newer mlflowkit and is left alone."""

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("recipe_path", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started", Float, nullable=False),
    Column("finished", Float),
    Column("lineage", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("overrides", Text, nullable=False),
    Column("bundle", String(64), nullable=False, default=""),
    Column("blessed", Boolean, nullable=False, default=False),
    Column("endpoint", Text, nullable=False, default=""),
    Column("report", Text, nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("owner", Text, nullable=False),
    Column("tracked", Boolean, nullable=False, default=True),
    Index("runs_by_name", "name", "started"),
)

steps = Table(
    "steps",
    metadata,
    Column("run", String(32), ForeignKey("runs.run"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("stage", String(16), nullable=False),
    Column("action", String(8), nullable=False),
    Column("reason", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("digest", String(64), nullable=False, default=""),
    Column("result", Text),
    Column("error", Text, nullable=False, default=""),
    Index("steps_by_fingerprint", "fingerprint"),
)

results = Table(
    "results",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("stage", String(16), nullable=False),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("files", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("ingredients", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("run", String(32), nullable=False),
    Column("created", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Index("results_by_stage", "name", "stage", "created"),
)

leases = Table(
    "leases",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("run", String(32), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("heartbeat", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(16), primary_key=True),
    Column("identity", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("optimize", String(64), nullable=False),
    Column("judged_identity", String(64), nullable=False),
    Column("judged_digest", String(64), nullable=False),
    Column("run", String(32), nullable=False),
    Column("created", Float, nullable=False),
)

file_digests = Table(
    "file_digests",
    metadata,
    Column("path", Text, primary_key=True),
    Column("stat", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)
