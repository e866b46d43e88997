"""A run reads a commit that DVC tracks, and a commit with the same bytes runs nothing again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mlflowkit as mk
from tests.support.dvc_repository import DvcFixture

RECIPE = """name: loans
task: classification
data:
  source: {kind: dvc, repository: ., rev: v1, path: data/loans.csv, format: csv}
  target: y
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
"""


def table(first: int) -> bytes:
    return ("x,y\n" + "".join(f"{first + row},{row % 2}\n" for row in range(200))).encode()


def run(recipe: Path, rev: str) -> Mapping[str, Any]:
    """What the data step did."""
    done = mk.run(mk.load(recipe, [f"data.source.rev={rev}"]), until="data", state=recipe.parent.parent / "state")
    (step,) = done.answer["steps"]
    return step  # type: ignore[no-any-return]


def test_a_run_reads_the_commit_and_reuse_hangs_on_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    repository = DvcFixture.create(tmp_path / "loans")
    repository.add_file("data/loans.csv", table(0))
    recipe = repository.root / "recipe.yaml"
    recipe.write_text(RECIPE)
    repository.commit("first")
    repository.git("tag", "v1")
    first = run(recipe, "v1")
    (repository.root / "note.txt").write_text("other")
    repository.commit("another commit with the same data")
    repository.git("tag", "v2")
    again = run(recipe, "v2")
    repository.add_file("data/loans.csv", table(1))
    repository.commit("other data")
    repository.git("tag", "v3")
    changed = run(recipe, "v3")
    assert [step["action"] for step in (first, again, changed)] == ["run", "reuse", "run"]
    assert "loans.csv" in changed["reason"]
