"""Files of a service that a crash, a full disk or a hand has damaged: every command says which, and none falls over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.cli import app as cli
from mlflowkit.cli.commands import feedback as _feedback  # noqa: F401 - registers its command
from mlflowkit.cli.commands import rollout as _rollout  # noqa: F401
from mlflowkit.service_state import version_history
from mlflowkit.service_state.version_history import RejectionRecord
from tests.support.rollout_world import RolloutWorld

FILES = ("table.json", "rollout.json", "champions.json", "failed.json", "incidents/lending-e0.json", "replicas/r1.json")
DEEP = b"[" * 100_000
"""Deeper than Python's JSON reader goes."""
DAMAGES = (b"", b"[1]", b'{"a": 1}', DEEP, b'{"a":' * 100_000, None)
"""What a file holds instead; None is a folder in its place."""
COMMANDS = (
    ("status", "--json"),
    ("rollout", "status"),
    ("rollout", "rollback", "--dry-run", "--json"),
    ("rollout", "forget", "none", "--json"),
)


@pytest.fixture
def world(tmp_path: Path) -> RolloutWorld:
    """A canary in its first step, of a service that turned a version down before."""
    world = RolloutWorld(tmp_path).begin().run(10)
    version_history.record_champion(world.files, world.champion, {"name": "lending"}, 1.0)
    version_history.record_rejection(
        world.files, RejectionRecord("c" * 64, "cccccccccccc", "worse", 1.0, "lending-e0", "rolled_back")
    )
    (world.files.folder / "incidents").mkdir()
    (world.files.folder / "incidents" / "lending-e0.json").write_text("{}")
    return world


def _damaged(path: Path) -> Iterator[bytes | None]:
    whole = path.read_bytes()
    for damage in DAMAGES:
        path.unlink()
        path.mkdir() if damage is None else path.write_bytes(damage)
        yield damage
        path.rmdir() if damage is None else path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_no_damage_makes_a_command_fall_over(
    world: RolloutWorld, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in _damaged(world.files.folder / name):
        for command in COMMANDS:
            with pytest.raises(SystemExit) as ended:
                cli.main([*command, "--state", str(world.state)])
            out, err = capsys.readouterr()
            assert "Traceback" not in err, (damage, command)
            if "--json" in command:
                assert ("error" in json.loads(out)) == bool(ended.value.code), (damage, command)


@pytest.mark.parametrize("name", ["champions.json", "failed.json"])
def test_a_damaged_memory_is_named_with_what_to_do(
    world: RolloutWorld, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.files.folder / name
    path.write_text('{"a": 1}')
    with pytest.raises(SystemExit):
        cli.main(["rollout", "status", "--json", "--state", str(world.state)])
    error = json.loads(capsys.readouterr().out)["error"]
    assert str(path) in error["message"]
    assert f"mv {path}" in error["hint"]


def test_a_damaged_rollout_is_a_problem_and_not_no_rollout(
    world: RolloutWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.files.folder / "rollout.json"
    path.write_text("{")
    with pytest.raises(SystemExit):
        cli.main(["rollout", "status", "--state", str(world.state)])
    assert f"problem  {path} is damaged" in capsys.readouterr().out


def test_no_version_is_not_every_version(world: RolloutWorld, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollout", "forget", "", "--json", "--state", str(world.state)])
    assert ended.value.code == 2
    assert "cccccccccccc" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert version_history.rejections(world.files)
