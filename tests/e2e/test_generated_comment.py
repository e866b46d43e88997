"""The generated workflow that comments, executed by act against a forge on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_generated_workflow import git, new_project
from tests.support.act_world import ActWorld
from tests.support.fake_forge import TOKEN, FakeForge, fake_forge

pytestmark = [pytest.mark.delivery, pytest.mark.heavy, pytest.mark.slow]
WORKFLOW = ".github/workflows/mlkit-tumours-comment.yml"
HEAD = "a" * 40
HOSTILE = (
    "<img src=x onerror=alert(1)> @everyone `${{ secrets.GITHUB_TOKEN }}` | [x](javascript:alert(1)) \u202egnp.exe"
)


@pytest.fixture
def forge() -> Iterator[FakeForge]:
    with fake_forge() as running:
        yield running


@pytest.fixture
def world(tmp_path: Path) -> ActWorld:
    project = new_project(tmp_path / "project")
    git(project, "remote", "set-url", "origin", "https://github.com/acme/lending.git")
    return ActWorld(tmp_path / "act", project)


def event(*, owner: str = "someone", branch: str = "topic", head: str = HEAD, conclusion: str = "success") -> Any:
    """What GitHub says of a run that has ended: of a pull request from a fork, as from the repository itself."""
    run = {
        "id": 1, "event": "pull_request", "conclusion": conclusion, "head_sha": head, "head_branch": branch,
        "head_repository": {"owner": {"login": owner}, "full_name": f"{owner}/lending"}, "pull_requests": [],
    }  # fmt: skip
    return {
        "action": "completed",
        "workflow_run": run,
        "repository": {"full_name": "acme/lending", "default_branch": "main"},
    }


def write_report(world: ActWorld, **fields: Any) -> None:
    folder = world.artifacts / "mlkit-tumours" / "mlkit"
    folder.mkdir(parents=True, exist_ok=True)
    verdict = {"gate": "roc_auc, min 0.9", "verdict": "PASSED", "message": "0.99 is at least 0.9"}
    report = {
        "schema": 1, "recipe": "tumours", "path": "recipe.yaml", "status": "done", "exit_code": 0,
        "identity": "1" * 64, "run": "run-1", "head": "", "verdicts": [verdict],
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report | fields))


def run(world: ActWorld, forge: FakeForge, payload: Any) -> str:
    done = world.run(
        WORKFLOW, "workflow_run", payload=payload, env={"GITHUB_API_URL": forge.url}, secrets={"GITHUB_TOKEN": TOKEN}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def test_a_pull_request_gets_one_comment_that_a_later_run_updates(world: ActWorld, forge: FakeForge) -> None:
    write_report(world)
    run(world, forge, event())
    (first,) = forge.texts()
    assert "tumours" in first
    forge.head = "b" * 40
    write_report(world, identity="2" * 64, run="run-2", status="gate-failed", exit_code=1)
    run(world, forge, event(head="b" * 40, conclusion="failure"))
    (second,) = forge.texts()
    assert second != first
    assert (forge.requests["POST"], forge.requests["PATCH"]) == (1, 1)


def test_the_number_is_that_of_the_head_commit_and_not_of_the_report(world: ActWorld, forge: FakeForge) -> None:
    write_report(world, number=1, pull_request=1, head="c" * 40)
    run(world, forge, event())
    assert forge.texts() == [], "a report about another commit"
    write_report(world, number=1, pull_request=1)
    run(world, forge, event(branch="other"))
    assert forge.texts() == [], "no open pull request has that head"
    run(world, forge, event())
    assert len(forge.texts()) == 1


def test_what_a_hostile_report_says_is_inert(world: ActWorld, forge: FakeForge) -> None:
    verdict = {"gate": HOSTILE, "verdict": "FAILED", "message": HOSTILE, "metric": HOSTILE, "slice": HOSTILE}
    write_report(world, exit_code=1, status="gate-failed", verdicts=[verdict])
    run(world, forge, event(conclusion="failure"))
    (text,) = forge.texts()
    assert "onerror" in text, "it is shown"
    outside = "".join(part for index, part in enumerate(text.replace("``", "`").split("`")) if index % 2 == 0)
    for words in ("<img", "@everyone", "](javascript", "\u202e"):
        assert words not in outside
    assert "\u202e" not in text
    assert TOKEN not in text


def test_a_report_that_is_none_costs_no_comment(world: ActWorld, forge: FakeForge) -> None:
    write_report(world)
    (world.artifacts / "mlkit-tumours" / "mlkit" / "report.json").write_text("[" * 100_000)
    done = world.run(
        WORKFLOW, "workflow_run", payload=event(), env={"GITHUB_API_URL": forge.url}, secrets={"GITHUB_TOKEN": TOKEN}
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert forge.texts() == []


def test_a_run_of_a_push_or_one_that_was_cancelled_is_not_commented_on(world: ActWorld, forge: FakeForge) -> None:
    write_report(world)
    push = event()
    push["workflow_run"]["event"] = "push"
    for payload in (push, event(conclusion="cancelled")):
        run(world, forge, payload)
    assert not forge.requests
