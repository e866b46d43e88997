"""A run ends when it says so: MLflow is told by a process of its own, which ends too. Nothing of it imports from the
working directory."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.system.machine import command_line, parent_ids
from tests.support.waiting import wait_for

MLKIT = (sys.executable, "-P", "-c", "from mlflowkit.cli import main; main()")
RECIPE = """
name: tiny
task: classification
data:
  source: {kind: csv, path: rows.csv}
  target: outcome
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
gates: [{metric: roc_auc, min: 0.1}]
"""
VENDORS = ("onnxruntime", "ray", "torch", "mlflow", "numpy", "pandas", "sklearn", "onnx", "pyarrow", "whylogs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, and elsewhere a working directory with modules that leave a file when they are imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    rows = "".join(f"{value % 17},{value % 5},{'bad' if value % 17 > 8 else 'good'}\n" for value in range(400))
    (tmp_path / "rows.csv").write_text(f"a,b,outcome\n{rows}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "hostile").mkdir()
    for name in VENDORS:
        marker = tmp_path / f"{name} ran"
        (tmp_path / "hostile" / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [*MLKIT, "run", str(folder / "recipe.yaml"), "--json", *arguments]
    done = subprocess.run(command, cwd=folder / "hostile", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


def children_of(folder: Path) -> list[int]:
    """Processes that work for the recipe's state folder."""
    state = str(folder / ".mlkit")
    own = {os.getpid(), os.getppid()}
    return [pid for pid in parent_ids() if pid not in own and any(state in part for part in command_line(pid))]


def recorded(folder: Path) -> list[str]:
    path = folder / ".mlkit" / "mlflow.db"
    if not path.exists():
        return []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        try:
            rows = database.execute("SELECT value FROM tags WHERE key = 'mlkit.run' ORDER BY value").fetchall()
        except sqlite3.OperationalError:  # its tables are being made
            return []
    return [str(value) for (value,) in rows]


def undelivered(folder: Path) -> list[str]:
    with SqliteJournal(folder / ".mlkit") as journal:
        return [delivery.run for delivery in journal.deliveries("pending", "failed")]


@pytest.mark.slow
def test_a_run_hands_over_to_a_process_that_ends_and_shorter_runs_start_none(folder: Path) -> None:
    first = run(folder, "--until", "train")
    assert children_of(folder) == []
    assert not (folder / ".mlkit" / "mlflow.db").exists()
    second = run(folder, "--until", "package")
    wait_for(lambda: not children_of(folder), 240)
    assert recorded(folder) == sorted([first["run"], second["run"]])
    assert undelivered(folder) == []
    assert [name for name in VENDORS if (folder / f"{name} ran").exists()] == []


@pytest.mark.slow
def test_what_could_not_be_recorded_is_told_by_the_next_run_which_records_it(folder: Path) -> None:
    (folder / ".mlkit").mkdir()
    (folder / ".mlkit" / "mlflow.db").write_text("this is no database " * 100)
    first = run(folder, "--until", "package")
    wait_for(lambda: not children_of(folder), 240)
    assert undelivered(folder) == [first["run"]]
    (folder / ".mlkit" / "mlflow.db").unlink()
    second = run(folder, "--until", "package", "seed=8")
    assert f"earlier runs are not in MLflow yet: the tracker did not record run {first['run']}" in second["stderr"]
    wait_for(lambda: not children_of(folder), 240)
    assert recorded(folder) == sorted([first["run"], second["run"]])
    third = run(folder, "--until", "package", "seed=9")
    assert "not in MLflow" not in third["stderr"]
    wait_for(lambda: not children_of(folder), 240)
