"""`mlkit rollout` where no controller runs: what it shows, what it would do, what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli import app as cli
from mlflowkit.cli.commands import rollout as command
from mlflowkit.service_state import version_history
from mlflowkit.service_state.version_history import RejectionRecord
from tests.support.rollout_world import CHAMPION, RolloutWorld


def mlkit(capsys: pytest.CaptureFixture[str], state: Path, *arguments: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--state", str(state)])
    out = capsys.readouterr().out
    return int(ended.value.code or 0), json.loads(out) if "--json" in arguments else out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> RolloutWorld:
    """A canary in its second step."""
    made = RolloutWorld(tmp_path_factory.mktemp("state")).begin().run(150)
    version_history.record_rejection(
        made.files, RejectionRecord("c" * 64, "20261101-cc", "error_rate +3 points", 1.0, "e0", "rolled_back")
    )
    return made


def test_status_shows_the_step_the_evidence_and_what_can_be_said(
    world: RolloutWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = mlkit(capsys, world.state, "rollout", "status")
    assert code == 0
    assert "canary, step 2 of 4 at 5 %" in text
    assert "0% > [5%] > 25% > 50%" in text
    assert "error_rate" in text
    assert "commands  mlkit rollout promote" in text
    assert "rejected  version 20261101-cc; unblock it with: mlkit rollout forget lending 20261101-cc" in text
    assert "docs/glossary.md" in text.splitlines()[-1]


def test_status_json_has_its_keys(world: RolloutWorld, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = mlkit(capsys, world.state, "rollout", "status", "lending", "--json")
    (one,) = found["services"]
    assert code == 0
    assert set(one) == {"service", "rollout", "incidents", "turned_down", "previous", "problems"}
    assert one["rollout"]["phase"] == "running"
    assert [step["weight"] for step in one["rollout"]["steps"]] == [0.0, 0.05, 0.25, 0.5]
    assert one["turned_down"][0]["reason"] == "error_rate +3 points"
    assert one["previous"] is None


@pytest.mark.parametrize(
    ("arguments", "effect"),
    [
        (("promote",), "would go on to step 3"),
        (("promote", "--full"), "would make 20261123-bb22 the champion"),
        (("abort",), f"would give all traffic to version {CHAMPION.version} and turn 20261123-bb22 down"),
        (("rollback",), f"would give all traffic to version {CHAMPION.version} and turn 20261123-bb22 down"),
        (("pause",), "would stay at the present step"),
    ],
)
def test_a_dry_run_says_what_it_would_do_and_leaves_no_command(
    world: RolloutWorld, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], effect: str
) -> None:
    code, found = mlkit(capsys, world.state, "rollout", *arguments, "--dry-run", "--json")
    assert (code, found["message"]) == (0, effect)
    assert not (world.files.folder / "commands").exists()


def test_what_makes_no_sense_is_told(
    world: RolloutWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not paused" in mlkit(capsys, world.state, "rollout", "resume", "--json")[1]["error"]["message"]
    code, found = mlkit(capsys, world.state, "rollout", "promote", "lendin", "--json")
    assert (code, found["error"]["hint"]) == (2, "did you mean lending?")
    code, found = mlkit(capsys, tmp_path, "rollout", "promote", "--json")
    assert code == 2
    assert "which service? there is none" in found["error"]["message"]
    code, found = mlkit(capsys, world.state, "rollout", "forget", "2027", "--json")
    assert (code, "20261101-cc" in found["error"]["message"]) == (2, True)
    monkeypatch.setattr(command, "REPLY_SECONDS", 0.2)
    code, found = mlkit(capsys, world.state, "rollout", "pause", "--json")  # nobody answers here
    assert (code, found["error"]["kind"]) == (3, "service")
    assert "did not answer within" in found["error"]["message"]


def test_forget_takes_one_version_and_never_all_that_begin_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = RolloutWorld(tmp_path).files
    for number, digest in enumerate(("2a" * 32, "2b" * 32, "2b2c" * 16, "f" * 64, "2" * 64), 1):
        version_history.record_rejection(
            files, RejectionRecord(digest, str(number), "errors", 1.0, f"e{number}", "rolled_back")
        )
    left = {"1", "2", "3", "4", "5"}
    code, found = mlkit(capsys, tmp_path, "rollout", "forget", "2b", "--json")
    assert (code, found["error"]["message"]) == (
        2,
        "2 rejected versions of lending have a digest that begins with 2b",
    )
    assert "2 (2b2b2b2b2b2b), 3 (2b2c2b2c2b2c)" in found["error"]["hint"]
    for said, version in (("2", "2"), ("f", "4"), ("2a2a2a", "1"), ("2" * 64, "5")):
        code, found = mlkit(capsys, tmp_path, "rollout", "forget", said, "--json")
        assert (code, [one["version"] for one in found["forgotten"]]) == (0, [version])
        left.remove(version)
        assert {one.version for one in version_history.rejections(files).values()} == left
    assert mlkit(capsys, tmp_path, "rollout", "forget", "", "--json")[0] == 2
    assert left == {"3"}


@pytest.mark.parametrize(
    ("words", "code", "notice"),
    [
        (("20261101-cc",), 0, ""),
        (("lending", "20261101-cc"), 0, ""),
        (
            ("20261101-cc", "lending"),
            0,
            "notice: the service comes first now: mlkit rollout forget lending 20261101-cc",
        ),
        (("lendin", "20261101-cc"), 2, "did you mean lending?"),
        (("lending", "20261101-cc", "more"), 2, "mlkit rollout forget SERVICE VERSION"),
    ],
)
def test_the_service_comes_first_and_the_old_order_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, notice: str
) -> None:
    files = RolloutWorld(tmp_path).files
    version_history.record_rejection(files, RejectionRecord("c" * 64, "20261101-cc", "errors", 1.0, "e0", "aborted"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollout", "forget", *words, "--state", str(tmp_path)])
    out, err = capsys.readouterr()
    assert int(ended.value.code or 0) == code
    assert notice in err
    assert ("can be rolled out again" in out) is (code == 0)
    assert bool(version_history.rejections(files)) is (code != 0)
