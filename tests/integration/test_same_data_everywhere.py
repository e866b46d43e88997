"""One recipe over copies of the lending table in every kind of store: the same data version, and one training."""

from __future__ import annotations

import io
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mlflowkit as mk
from tests.support.dvc_repository import DvcFixture
from tests.support.hub_fake import DATASET, FakeHub
from tests.support.lakefs_fake import KEY, SECRET, FakeLakefs

pytest.importorskip("lakefs_client", reason="pip install 'mlflowkit[lakefs]'")
deltalake = pytest.importorskip("deltalake", reason="pip install 'mlflowkit[delta]'")

ROWS = 2000
RECIPE = """name: lending
task: classification
connections:
  lake: {{kind: lakefs, url: {lake}, access_key: {{env: LAKE_KEY}}, secret: {{env: LAKE_SECRET}}}}
  hub: {{kind: huggingface, endpoint: {hub}}}
  warehouse: {{kind: sql, url: "sqlite:///lending.db"}}
data:
  source: {source}
  target: Class
  positive: bad
  drop: [rownames]
  columns: {{term: categorical}}
  split: {{kind: stratified}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
gates:
  - {{metric: roc_auc, min: 0.5, on_inconclusive: allow}}
"""
SOURCES = {
    "csv": "{kind: csv, path: lending.csv}",
    "parquet": "{kind: parquet, path: lending.parquet}",
    "lakefs": "{kind: lakefs, connection: lake, repository: lending, ref: main, path: loans/, format: csv}",
    "dvc": "{kind: dvc, repository: versioned, rev: main, path: data/lending.csv, format: csv}",
    "huggingface": f"{{kind: huggingface, connection: hub, dataset: {DATASET}, files: data/*.parquet}}",
    "sql": (
        "{kind: sql, connection: warehouse, query: select * from lending, order_by: [rownames], "
        "watermark: select count(*) from lending}"
    ),
    "delta": "{kind: delta, url: table, version: 0, order_by: [rownames]}",
}

TEXTS = "missing: [NA]"
"""Else a CSV file and a typed table differ in which texts of a request are missing, and so would their models."""


class CopiedTable:
    """The lending table in a folder, a lakeFS repository, a DVC repository, a Hub, a database and a Delta table."""

    def __init__(self, folder: Path, lake: FakeLakefs, hub: FakeHub) -> None:
        self.folder, self.lake, self.hub = folder, lake, hub
        sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
        try:
            import datasets

            table: pd.DataFrame = datasets.lending_club().head(ROWS).reset_index(drop=True)
        finally:
            sys.path.pop(0)
        csv, parquet = table.to_csv(index=False).encode(), io.BytesIO()
        table.to_parquet(parquet, index=False)
        (folder / "lending.csv").write_bytes(csv)
        (folder / "lending.parquet").write_bytes(parquet.getvalue())
        lake.repository().replace_all("main", {"loans/lending.csv": csv})
        versioned = DvcFixture.create(folder / "versioned")
        versioned.add_file("data/lending.csv", csv)
        versioned.commit("the table")
        hub.commit({"data/lending.parquet": parquet.getvalue()})
        shuffled = table.sample(frac=1, random_state=1)  # a database has no order of rows, nor has a Delta table
        with sqlite3.connect(folder / "lending.db") as database:
            shuffled.to_sql("lending", database, index=False)
        deltalake.write_deltalake(str(folder / "table"), shuffled.reset_index(drop=True))

    def run(self, kind: str) -> Any:
        """What a run over one of the copies says of itself."""
        recipe = self.folder / "recipe.yaml"
        source = f"{SOURCES[kind][:-1]}, {TEXTS}}}"
        recipe.write_text(RECIPE.format(lake=self.lake.url, hub=self.hub.url, source=source))
        return mk.run(mk.load(recipe), until="package", state=self.folder / "state").answer


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CopiedTable]:
    monkeypatch.setenv("LAKE_KEY", KEY)
    monkeypatch.setenv("LAKE_SECRET", SECRET)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    lake, hub = FakeLakefs(), FakeHub()
    yield CopiedTable(tmp_path, lake, hub)
    lake.close()
    hub.close()


def test_a_table_is_the_same_wherever_it_is_kept_and_is_trained_on_once(copies: CopiedTable) -> None:
    answers = {kind: copies.run(kind) for kind in SOURCES}
    assert {answer["status"] for answer in answers.values()} == {"done"}
    versions = {kind: answer["lineage"]["data_version"] for kind, answer in answers.items()}
    assert len(set(versions.values())) == 1, versions
    trained = {
        kind
        for kind, answer in answers.items()
        for step in answer["steps"]
        if (step["stage"], step["action"]) == ("train", "run")
    }
    assert trained == {"csv"}
    assert len({answer["identity"] for answer in answers.values()}) == 1
    commits = {kind: answer["lineage"]["data_commit"] for kind, answer in answers.items()}
    assert commits["lakefs"] == copies.lake.repository().branches["main"].head
    assert all(commits[kind] for kind in ("dvc", "huggingface", "sql", "delta")), commits
