"""Triggers: claimed once across clones, taken over from a dead owner, quiet when nothing changed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.ci import pipeline_trigger
from mlflowkit.ci.judge_report import JudgeReport, report_bytes
from mlflowkit.ci.pipeline_trigger import ClaimPlace, finish, finish_judged, give_up, trigger
from mlflowkit.delivery.gitops import trigger_claims
from mlflowkit.delivery.gitops.trigger_claims import (
    ClaimStore,
    TriggerAnswer,
    TriggerClaim,
    TriggerTerms,
    claim_trigger,
    decide_trigger,
)
from mlflowkit.errors import UsageError
from tests.support.export_project import make_project
from tests.support.trigger_asking import ask, ask_at_once
from tests.support.warm_commands import warm_command

CLAIM = TriggerClaim("a" * 64, "p1", "lending", "me", "data", 1000.0, 2000.0)
TERMS = TriggerTerms(1000.0, attempts=2, cooldown=100.0, budget_runs=2, budget_seconds=10_000.0)


@pytest.fixture
def clones(tmp_path: Path) -> list[Path]:
    """Four clones of a project with one bare remote; the recipe in each."""
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(remote)], check=True)
    recipe = make_project(tmp_path / "first")
    subprocess.run(["git", "-C", str(recipe.parent), "remote", "add", "origin", str(remote)], check=True)
    recipes = [recipe]
    for number in range(3):
        shutil.copytree(recipe.parent, tmp_path / f"clone-{number}")
        recipes.append(tmp_path / f"clone-{number}" / recipe.name)
    return recipes


def test_twenty_triggers_from_four_clones_start_one_training(clones: list[Path]) -> None:
    actions = Counter(ask_at_once([(clones[number % 4], None, None) for number in range(20)]))
    assert actions == {"started": 1, "running": 19}


def test_a_repository_that_git_does_not_read_is_not_one_without_a_remote(
    clones: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that only this state folder has would let every other clone train as well."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UsageError, match="belongs to another user") as caught:
        ask((clones[0], None, None))
    assert "safe.directory" in caught.value.hint


@pytest.mark.parametrize("place", ["git", "journal"])
def test_a_killed_owner_is_taken_over_once(clones: list[Path], place: ClaimPlace) -> None:
    recipe = clones[0]
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mlflowkit.ci.pipeline_trigger import trigger\n"
        f"recipe = Path({str(recipe)!r})\n"
        f"print(trigger(recipe, 'data', recipe.parent / '.mlkit', claim={place!r}, lease=100, now=1000.0).action,"
        " flush=True)\ntime.sleep(600)\n"
    )
    winner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert winner.stdout is not None
    assert winner.stdout.readline() == "started\n"
    winner.send_signal(signal.SIGKILL)
    winner.wait()
    state = recipe.parent / ".mlkit"
    others = clones if place == "git" else [recipe] * 4
    assert trigger(others[1], "data", others[1].parent / ".mlkit", claim=place, now=1050.0).action == "running"
    actions = Counter(ask_at_once([(other, place, 1200.0) for other in others]))
    assert actions == {"started": 1, "running": 3}
    answer = trigger(recipe, "data", state, claim=place, now=1300.0)
    assert answer.action == "running"
    assert finish(recipe, answer.key, state, claim=place).action == "done"
    assert trigger(recipe, "data", state, claim=place, now=1e9).action == "done"
    with pytest.raises(UsageError, match="there is no claim"):
        finish(recipe, "b" * 64, state, claim=place)


@pytest.mark.parametrize("place", ["git", "journal"])
def test_a_claim_that_two_owners_did_not_finish_is_given_up_by_the_command_that_is_named(
    clones: list[Path], place: ClaimPlace
) -> None:
    recipe, state = clones[0], clones[0].parent / ".mlkit"
    for now in (1000.0, 2000.0):
        assert trigger(recipe, "data", state, claim=place, lease=100, now=now).action == "started"
    stuck = trigger(recipe, "data", state, claim=place, now=3000.0)
    assert (stuck.action, f"--give-up {stuck.key}" in stuck.reason) == ("budget", True)
    assert give_up(recipe, stuck.key, state, claim=place, dry_run=True).action == "given-up"
    assert trigger(recipe, "data", state, claim=place, now=3000.0).action == "budget"
    command = [*warm_command("mlflowkit.cli"), "trigger", str(recipe), "--give-up", stuck.key, "--claim", place]
    done = subprocess.run([*command, "--state", str(state), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["action"] == "given-up"
    assert trigger(recipe, "data", state, claim=place, now=3000.0).action == "started"
    with pytest.raises(UsageError, match="there is no claim"):
        give_up(recipe, "b" * 64, state, claim=place)


@pytest.mark.parametrize("place", ["git", "journal"])
def test_old_claims_do_not_pile_up(clones: list[Path], place: ClaimPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_claims, "KEPT_CLAIMS", 2)
    recipe, state = clones[0], clones[0].parent / ".mlkit"
    keys = []
    for number in range(4):
        (recipe.parent / "rows.csv").write_text(f"a,bad\n1,0\n{number},1\n")
        answer = trigger(recipe, "data", state, claim=place, now=1000.0 + number)
        assert answer.action == "started"
        keys.append(answer.key)
        if number:  # the first one is running, and stays
            finish(recipe, answer.key, state, claim=place)
    with pytest.raises(UsageError, match="there is no claim"):
        finish(recipe, keys[1], state, claim=place)
    assert finish(recipe, keys[0], state, claim=place).action == "done"
    assert finish(recipe, keys[3], state, claim=place).action == "done"


def test_the_same_event_five_times_and_late_ticks_start_one(clones: list[Path]) -> None:
    recipe = clones[0]
    assert [trigger(recipe, "schedule", recipe.parent / ".mlkit").action for _ in range(5)] == [
        "started", "running", "running", "running", "running",
    ]  # fmt: skip


def test_other_data_are_another_key_and_a_dry_run_claims_nothing(clones: list[Path]) -> None:
    recipe, state = clones[0], clones[0].parent / ".mlkit"
    first = trigger(recipe, "data", state, dry_run=True)
    assert trigger(recipe, "data", state, dry_run=True) == replace(first)
    assert trigger(recipe, "data", state).action == "started"
    (recipe.parent / "rows.csv").write_text("a,bad\n1,0\n2,1\n")
    second = trigger(recipe, "data", state)
    assert second.action == "started"
    assert second.key != first.key


def test_a_repository_that_lies_about_claims_is_no_claim(clones: list[Path]) -> None:
    recipe = clones[0]
    remote = str(recipe.parents[1] / "remote.git")
    key = trigger(recipe, "data", recipe.parent / ".mlkit", dry_run=True).key
    for text in ("no json", json.dumps({"key": key}), "x" * 10_000):
        tree = subprocess.run(["git", "-C", remote, "mktree"], input="", text=True, capture_output=True, check=True)
        commit = subprocess.run(
            ["git", "-C", remote, "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", tree.stdout.strip()],
            input=text, text=True, capture_output=True, check=True,
        )  # fmt: skip
        reference = f"refs/mlkit/triggers/{'c' * 64}"
        subprocess.run(["git", "-C", remote, "update-ref", reference, commit.stdout.strip()], check=True)
    assert trigger(recipe, "data", recipe.parent / ".mlkit").action == "started"


def test_the_command_prints_the_answer(clones: list[Path]) -> None:
    command = [*warm_command("mlflowkit.cli"), "trigger", str(clones[0]), "--because", "data", "--json"]
    answers = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2)]
    assert [answer["action"] for answer in answers] == ["started", "running"]
    assert answers[0]["key"] == answers[1]["key"]


@pytest.mark.parametrize(
    ("others", "because", "now", "action"),
    [
        ([], "data", 1000.0, "started"),
        ([replace(CLAIM, key="b", plan="p0", started=950.0, state="done")], "data", 1000.0, "cooldown"),
        ([replace(CLAIM, key="b", plan="p0", started=950.0, state="done")], "merge", 1000.0, "started"),
        ([replace(CLAIM, key="b", plan="p0", name="other", started=950.0)], "data", 1000.0, "started"),
        ([replace(CLAIM, key=key, plan="p0", started=100.0) for key in "bc"], "schedule", 1000.0, "budget"),
        ([replace(CLAIM, key=key, plan="p0", started=-10_000.0) for key in "bc"], "schedule", 1000.0, "started"),
        ([replace(CLAIM, key="b", state="done", started=-9000.0)], "data", 1000.0, "nothing-changed"),
        ([CLAIM], "data", 1999.0, "running"),
        ([CLAIM], "data", 2000.0, "started"),
        ([replace(CLAIM, key="b", plan="p0", started=9_000.0)], "data", 1000.0, "started"),
        ([replace(CLAIM, fence=2)], "data", 2000.0, "budget"),
        ([replace(CLAIM, state="done")], "data", 9000.0, "done"),
    ],
)
def test_decisions(others: list[TriggerClaim], because: str, now: float, action: str) -> None:
    answer, claim = decide_trigger(replace(CLAIM, because=because), others, TERMS, now)
    assert answer.action == action
    assert (claim is not None) == (action == "started")
    assert answer.reason


def test_a_takeover_raises_the_fence() -> None:
    _, claim = decide_trigger(replace(CLAIM, owner="other"), [CLAIM], TERMS, 5000.0)
    assert claim is not None
    assert (claim.owner, claim.fence) == ("other", 2)


def test_an_answer_imports_nothing_heavy(clones: list[Path]) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom mlflowkit.ci.pipeline_trigger import trigger\n"
        f"recipe = Path({str(clones[0])!r})\ntrigger(recipe, 'data', recipe.parent / '.mlkit')\n"
        "heavy = ('torch', 'ray', 'mlflow', 'sklearn', 'pandas', 'onnxruntime')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def judged(key: str, **changes: Any) -> JudgeReport:
    values: dict[str, Any] = {"recipe": "lending", "path": "recipe.yaml", "status": "gate-failed", "exit_code": 1}
    return JudgeReport(**{**values, "trigger": key, **changes})


def test_a_verdict_ends_the_claim_whatever_it_is_and_an_error_does_not(clones: list[Path]) -> None:
    recipe, state = clones[0], clones[0].parent / ".mlkit"
    key = trigger(recipe, "data", state).key
    unfinished = finish_judged(recipe, judged(key, status="error", exit_code=3), state)
    assert unfinished.action == "running"
    assert "exit code 3" in unfinished.reason
    assert trigger(clones[1], "data", clones[1].parent / ".mlkit").action == "running"
    assert finish_judged(recipe, judged(key), state).action == "done"
    assert trigger(clones[1], "data", clones[1].parent / ".mlkit").action == "done"
    with pytest.raises(UsageError, match="names no claim"):
        finish_judged(recipe, judged(""), state)


def test_the_command_asks_for_an_event_or_a_report(clones: list[Path], tmp_path: Path) -> None:
    command = [*warm_command("mlflowkit.cli"), "trigger", str(clones[0]), "--json"]
    neither = subprocess.run(command, capture_output=True, check=False)
    assert neither.returncode == 2
    assert "name the event" in json.loads(neither.stdout)["error"]["message"]
    key = json.loads(subprocess.run([*command, "--because", "drift"], capture_output=True, check=True).stdout)["key"]
    report = tmp_path / "report.json"
    report.write_bytes(report_bytes(judged(key)))
    done = subprocess.run([*command, "--finished", str(report)], capture_output=True, check=True).stdout
    assert json.loads(done)["action"] == "done"
    again = subprocess.run([*command, "--finished", str(report)], capture_output=True, check=True).stdout
    assert json.loads(again) == json.loads(done)


class _OvertakenStore:
    """Claims in which another client claims the same key between this client's look and its write, once."""

    def __init__(self, store: ClaimStore, rival: Callable[[], None]) -> None:
        self._store, self._rival = store, rival

    def claims(self) -> Mapping[str, tuple[TriggerClaim, str]]:
        return self._store.claims()

    def write(self, claim: TriggerClaim, version: str | None) -> None:
        rival, self._rival = self._rival, lambda: None
        rival()
        self._store.write(claim, version)


@pytest.mark.parametrize("place", ["git", "journal"])
@pytest.mark.parametrize("expired", [False, True])
def test_of_two_that_looked_at_the_same_time_one_writes(clones: list[Path], place: ClaimPlace, expired: bool) -> None:
    folder, state = clones[0].parent, clones[0].parent / ".mlkit"
    with (
        pipeline_trigger._store(folder, state, place) as first,
        pipeline_trigger._store(folder, state, place) as second,
    ):
        if expired:  # what both want to take over
            claim_trigger(first, CLAIM, TERMS, 1000.0)
        now = 5000.0 if expired else 1000.0
        answers: list[TriggerAnswer] = []
        theirs = replace(CLAIM, owner="them", started=now, expires=now + 1000.0)

        def rival() -> None:
            answers.append(claim_trigger(second, theirs, TERMS, now))

        mine = replace(CLAIM, owner="me too", started=now, expires=now + 1000.0)
        answers.append(claim_trigger(_OvertakenStore(first, rival), mine, TERMS, now))
        assert [(answer.action, answer.run) for answer in answers] == [("started", "them"), ("running", "them")]
        ((claim, _),) = first.claims().values()
        assert (claim.owner, claim.fence) == ("them", 2 if expired else 1)


@pytest.mark.parametrize("place", ["git", "journal"])
def test_a_run_that_asks_again_goes_on(clones: list[Path], place: ClaimPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, state = clones[0], clones[0].parent / ".mlkit"
    monkeypatch.setenv("GITHUB_RUN_ID", "7")
    assert [trigger(recipe, "data", state, claim=place).action for _ in range(2)] == ["started", "started"]
    monkeypatch.setenv("GITHUB_RUN_ID", "8")
    assert trigger(recipe, "data", state, claim=place).action == "running"


def test_a_claim_that_never_ends_is_none() -> None:
    assert TriggerClaim.parse(json.dumps({**asdict(CLAIM), "expires": 1e999}).encode()) is None
