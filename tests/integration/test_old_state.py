"""State folders that earlier versions wrote: today's code opens, shows, plans and continues them.

Each ``tests/data/state_N.tar.gz`` is a recipe beside its state: two finished runs of different seeds, a third that was
killed in training, a service with predictions and feedback in the midst of a canary.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.pipeline.storage import journal_migrations, journal_tables
from mlflowkit.pipeline.storage.step_lease import this_owner
from tests.support.warm_commands import warm_command

ARCHIVES = sorted((Path(__file__).parents[1] / "data").glob("state_*.tar.gz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    as_of_this_machine(tmp_path / ".mlkit" / "journal.db")
    return tmp_path


def as_of_this_machine(journal: Path) -> None:
    """Whether a process of another machine is alive, nobody knows: the killed run was one of this machine's."""
    killed = replace(this_owner(), started="0")
    with contextlib.closing(sqlite3.connect(journal)) as connection, connection:
        for table in ("runs", "leases"):
            connection.execute(f"UPDATE {table} SET owner = ? WHERE owner != ''", (str(killed),))


def mlkit(folder: Path, *arguments: str) -> Any:
    """What a command answers; a traceback fails the test."""
    command = [*warm_command("mlflowkit.cli"), *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_there_is_an_archive_of_every_version_of_the_journal() -> None:
    versions = range(journal_migrations.FIRST_VERSION, journal_tables.VERSION + 1)
    assert [path.name for path in ARCHIVES] == [f"state_{version}.tar.gz" for version in versions]


def test_it_is_shown(folder: Path) -> None:
    runs = mlkit(folder, "runs")["runs"]
    assert [run["status"] for run in runs] == ["interrupted", "done", "done"]
    for run in runs[1:]:
        shown = mlkit(folder, "show", run["run"])
        assert shown["metrics"]["accuracy"] > 0.5
        assert Path(shown["bundle"]).is_relative_to(folder), "the bundle of this folder, not of where it was made"
        assert Path(mlkit(folder, "report", run["run"], "--output", "page.html")["report"]).is_file()
    changed = mlkit(folder, "diff", runs[1]["run"], runs[2]["run"])
    assert [row["key"] for row in changed["recipe"]] == ["seed"]


def test_its_service_is_shown(folder: Path) -> None:
    (service,) = mlkit(folder, "status")["services"]
    assert service["service"] == "tiny"
    assert {variant["role"] for variant in service["variants"]} == {"champion", "shadow"}
    (rollout,) = mlkit(folder, "rollout", "status")["services"]
    assert rollout["service"] == "tiny"
    assert "problems" not in rollout or not rollout["problems"]


def test_it_is_planned_and_continued(folder: Path) -> None:
    plan = mlkit(folder, "plan", "recipe.yaml", "seed=9", "--until", "package")
    reasons = {step["stage"]: step["reason"] for step in plan["steps"]}
    assert not any(reason == "first run" for reason in reasons.values()), "earlier results are known"
    run = mlkit(folder, "run", "recipe.yaml", "seed=9", "--until", "package")
    assert run["status"] == "done"
    assert [run["status"] for run in mlkit(folder, "runs")["runs"]] == ["done", "interrupted", "done", "done"]
    again = mlkit(folder, "run", "recipe.yaml", "seed=9", "--until", "package")
    assert {step["action"] for step in again["steps"]} == {"reuse"}
    state = folder / ".mlkit"
    assert not [path for path in (state, *state.rglob("*")) if path.lstat().st_mode & 0o077]
