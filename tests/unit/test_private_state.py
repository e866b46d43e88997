"""What lies in a state folder can be read by its owner only, whatever the umask of who starts us."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflowkit
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.auth import edit_keys
from mlflowkit.serving.feedback.intake import Intake
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.system.files import close_to_others, replace_file
from mlflowkit.values import Event
from tests.support.pipeline_world import PipelineWorld, lay_out

PACKAGE = Path(mlflowkit.__file__).parent


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_entries(folder: Path) -> list[str]:
    """The entries of a folder, itself included, with a permission for group or others."""
    entries = [folder, *folder.rglob("*")]
    return [f"{path} {path.lstat().st_mode & 0o777:o}" for path in entries if path.lstat().st_mode & 0o077]


def test_a_run_of_the_library_leaves_nothing_open(tmp_path: Path) -> None:
    lay_out(tmp_path)
    PipelineWorld(tmp_path).run(reporter=lambda *_: "<html>")
    state = tmp_path / ".mlkit"
    assert open_entries(state) == []
    assert {path.name for path in state.iterdir()} >= {"journal.db", "objects", "runs"}
    published = next((state / "objects").rglob("rows.csv"))
    assert published.stat().st_mode & 0o777 == 0o400
    assert (tmp_path / "rows.csv").stat().st_mode & 0o777 == 0o644, "what is no state is left alone"


def test_a_killed_run_leaves_nothing_open(tmp_path: Path) -> None:
    lay_out(tmp_path)
    command = [sys.executable, "-m", "tests.support.pipeline_world", str(tmp_path)]
    environment = {**os.environ, "MLKIT_FAILPOINT": "publish.before@train"}
    subprocess.run(command, env=environment, capture_output=True, check=False)
    state = tmp_path / ".mlkit"
    assert state.stat().st_mode & 0o777 == 0o700
    assert not (state / "journal.db").stat().st_mode & 0o077
    assert not (state / "journal.db-wal").stat().st_mode & 0o077


def test_records_of_a_service_are_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    files = ServiceFiles(state / "services" / "lending")
    files.write_bytes("rollout.json", b"{}")
    files.write_metrics_page("one", b"x")
    with files.records.lock("rollout"):
        pass
    with edit_keys(state / "keys.json") as keys:
        keys.clear()
    assert open_entries(state) == []


def test_a_looser_state_is_closed_and_told_once(tmp_path: Path) -> None:
    lay_out(tmp_path)
    world, state = PipelineWorld(tmp_path), tmp_path / ".mlkit"
    world.run()
    secret = tmp_path / "outside"
    secret.write_text("mine")
    (state / "link").symlink_to(secret)
    for path in (state, *(path for path in state.rglob("*") if not path.is_symlink())):
        path.chmod(path.stat().st_mode | 0o055)
    events: list[Event] = []
    world.run({"train.epochs": 4}, events=events)
    told = [event.message for event in events if event.kind == "warning"]
    assert len(told) == 1
    assert f"{state} was open to other users of this machine (mode 755)" in told[0]
    (state / "link").unlink()
    assert open_entries(state) == []
    assert secret.stat().st_mode & 0o777 == 0o644, "a link is not followed"
    again: list[Event] = []
    world.run({"train.epochs": 5}, events=again)
    assert [event for event in again if event.kind == "warning"] == []


def test_closing_that_was_cut_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    for name in ("a", "b", "c"):
        replace_file(state / name / "x", b"", shared=True)
    change, calls = os.chmod, []

    def cut(path: str, mode: int) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        change(path, mode)

    monkeypatch.setattr(os, "chmod", cut)
    with pytest.raises(KeyboardInterrupt):
        close_to_others(state)
    assert state.stat().st_mode & 0o077, "or nobody would look at the rest"
    assert close_to_others(state) > 0
    assert open_entries(state) == []


def test_a_file_that_a_user_names_has_the_users_umask(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mlflowkit.cli import main; main()", "schema", "--output"]
    subprocess.run([*command, str(tmp_path / "new" / "schema.json")], check=True, capture_output=True)
    assert (tmp_path / "new" / "schema.json").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755


def test_every_process_of_ours_sets_its_umask() -> None:
    programs = {PACKAGE / "cli" / "__init__.py", PACKAGE / "adapters" / "ray_serve" / "deployment.py"}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            node.left.id for node in ast.walk(tree) if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name)
        }
        if "__name__" in names:
            programs.add(path)
    programs.remove(PACKAGE / "cli" / "__main__.py")  # it runs cli's main
    assert len(programs) >= 8
    for path in programs:
        assert "    use_private_umask()" in path.read_text(), f"{path}: call use_private_umask() first"


def test_feedback_is_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    join = FeedbackJoin(state / "services" / "lending")
    join.close()
    intake = Intake(state / "services" / "lending" / "feedback", "one", days=1)
    intake.stop()
    assert open_entries(state) == []
