"""`mlkit ci comment` against strict fakes of the forges: one comment, whatever happens."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlflowkit.ci import comment_text
from mlflowkit.ci.comments import forge_client
from mlflowkit.ci.comments.commenting import CommentResult, comment
from mlflowkit.ci.judge_report import JudgeReport, ReportedVerdict, report_bytes
from mlflowkit.errors import UsageError
from tests.support.fake_forge import BOT, TOKEN, FakeForge, fake_forge

FORGES = ("github", "gitlab", "bitbucket", "azure")
OWN = {"github": BOT, "gitlab": 1, "bitbucket": "{1}", "azure": "me"}


@pytest.fixture
def forge() -> Iterator[FakeForge]:
    with fake_forge() as running:
        yield running


@pytest.fixture
def environment(forge: FakeForge, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The variables of a job of a forge, for the pull request's newest commit."""

    def of(name: str, *, head: str = "", event: dict[str, Any] | None = None) -> dict[str, str]:
        head = head or forge.head
        path = tmp_path / "event.json"
        path.write_text(json.dumps(event or {"pull_request": {"number": 7, "head": {"sha": head}}}))
        return {
            "github": {"GITHUB_ACTIONS": "true", "GITHUB_TOKEN": TOKEN, "GITHUB_REPOSITORY": "acme/lending",
                       "GITHUB_API_URL": forge.url, "GITHUB_EVENT_PATH": str(path)},
            "gitlab": {"GITLAB_CI": "true", "GITLAB_TOKEN": TOKEN, "CI_API_V4_URL": f"{forge.url}/api/v4",
                       "CI_PROJECT_ID": "3", "CI_MERGE_REQUEST_IID": "7", "CI_COMMIT_SHA": head},
            "bitbucket": {"BITBUCKET_BUILD_NUMBER": "1", "BITBUCKET_TOKEN": TOKEN, "BITBUCKET_PR_ID": "7",
                          "BITBUCKET_API_URL": f"{forge.url}/2.0", "BITBUCKET_REPO_FULL_NAME": "acme/lending",
                          "BITBUCKET_COMMIT": head},
            "azure": {"TF_BUILD": "True", "SYSTEM_ACCESSTOKEN": TOKEN, "SYSTEM_COLLECTIONURI": f"{forge.url}/",
                      "SYSTEM_TEAMPROJECT": "lending", "BUILD_REPOSITORY_ID": "r1",
                      "SYSTEM_PULLREQUEST_PULLREQUESTID": "7", "SYSTEM_PULLREQUEST_SOURCECOMMITID": head},
        }[name]  # fmt: skip

    return of


def report(gate: str = "roc_auc >= 0.7", **changes: Any) -> JudgeReport:
    verdicts = (ReportedVerdict(gate=gate, verdict="FAILED", message="0.6 [0.5, 0.65]"),)
    values: dict[str, Any] = {"recipe": "lending", "path": "recipes/lending.yaml", "environment": "prod"}
    return JudgeReport(status="gate-failed", exit_code=1, verdicts=verdicts, **{**values, **changes})


def write(name: str, variables: dict[str, str], **changes: Any) -> CommentResult:
    return comment(report(**changes), name, variables, sleep=lambda seconds: None)


Environment = Callable[..., dict[str, str]]


@pytest.mark.parametrize("name", FORGES)
def test_twenty_pushes_are_one_comment(forge: FakeForge, environment: Environment, name: str) -> None:
    forge.add("a person's comment", "someone")
    forge.add(f"{comment_text.marker(report())}\nquoted by another account", "someone")
    actions = []
    for push in range(20):
        forge.head = f"{push:040x}"
        actions.append(write(name, environment(name), gate=f"gate {push}").action)
    assert actions == ["created", *["updated"] * 19]
    texts = forge.texts()
    assert len(texts) == 3
    assert "gate 19" in texts[-1]
    assert "quoted by another account" in texts[1]
    assert write(name, environment(name), gate="gate 19").action == "unchanged"


@pytest.mark.parametrize("name", FORGES)
def test_each_environment_has_its_own(forge: FakeForge, environment: Environment, name: str) -> None:
    for where in ("staging", "prod", "staging"):
        assert write(name, environment(name), environment=where).action in ("created", "updated", "unchanged")
    assert len(forge.comments) == 2


@pytest.mark.parametrize("name", FORGES)
def test_two_jobs_at_once_are_one_comment(forge: FakeForge, environment: Environment, name: str) -> None:
    barrier = threading.Barrier(2)
    forge.before_creation = lambda: barrier.wait(30)  # both have looked, and there was none
    results: list[CommentResult] = []
    jobs = [threading.Thread(target=lambda: results.append(write(name, environment(name)))) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [result.action for result in results if result.action == "failed"] == []
    assert len(forge.comments) == 1


@pytest.mark.parametrize("name", ["github", "gitlab", "azure"])
def test_the_job_of_an_older_commit_does_not_overwrite(forge: FakeForge, environment: Environment, name: str) -> None:
    write(name, environment(name), gate="of the newest commit")
    assert write(name, environment(name, head="b" * 40), gate="of an older commit").action == "superseded"
    assert "of the newest commit" in forge.texts()[0]


def test_more_than_a_page_of_comments(forge: FakeForge, environment: Environment) -> None:
    for name in ("github", "gitlab", "bitbucket"):
        forge.comments.clear()
        for number in range(250):
            forge.add(f"comment {number}", "someone")
        assert [write(name, environment(name)).action for _ in range(2)] == ["created", "unchanged"]
        assert len(forge.comments) == 251


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"retry-after": "2"}),
        (403, {"retry-after": "1"}),
        (403, {"x-ratelimit-remaining": "0"}),
        (500, {}),
        (502, {}),
    ],
)
def test_limits_and_failures_are_waited_for(
    forge: FakeForge, environment: Environment, status: int, headers: dict[str, str]
) -> None:
    forge.faults = [(method, status, headers) for method in ("GET", "POST", "POST")]
    waits: list[float] = []
    assert comment(report(), "github", environment("github"), sleep=waits.append).action == "created"
    assert len(forge.comments) == 1
    wanted = headers.get("retry-after")
    assert len(waits) == 3
    assert wanted is None or set(waits) == {float(wanted)}


def test_a_creation_whose_answer_is_lost_is_no_second_comment(forge: FakeForge, environment: Environment) -> None:
    forge.lose_answers = 1
    assert write("github", environment("github")).action == "created"
    assert len(forge.comments) == 1


@pytest.mark.parametrize("status", [422, 500, 503])
def test_a_forge_that_fails_is_a_warning(forge: FakeForge, environment: Environment, status: int) -> None:
    forge.faults = [("POST", status, {})] * 20
    result = write("github", environment("github"))
    assert (result.action, forge.comments) == ("failed", {})
    assert str(status) in result.warning
    assert TOKEN not in repr(result)


def test_a_wait_beyond_the_budget_is_not_begun(forge: FakeForge, environment: Environment) -> None:
    forge.faults = [("POST", 429, {"retry-after": "3600"})]
    waits: list[float] = []
    result = comment(report(), "github", environment("github"), sleep=waits.append)
    assert (result.action, waits) == ("failed", [])


def test_a_forks_token_that_may_not_comment_is_told(forge: FakeForge, environment: Environment) -> None:
    forge.faults = [("POST", 403, {})]
    result = write("github", environment("github"))
    assert result.action == "refused"
    assert "fork" in result.warning


def test_a_workflow_after_a_forks_comments_on_the_pull_request_that_github_names(
    forge: FakeForge, environment: Environment
) -> None:
    run = {
        "event": "pull_request", "head_sha": forge.head, "head_branch": "topic",
        "head_repository": {"owner": {"login": "someone"}},
    }  # fmt: skip
    of_run = environment("github", event={"workflow_run": run})
    about_another = report(head="c" * 40)  # what a fork's job wrote of itself is not believed
    result = comment(about_another, "github", of_run, sleep=lambda _: None)
    assert (result.action, forge.comments) == ("refused", {})
    assert comment(report(head=forge.head), "github", of_run, sleep=lambda _: None).action == "created"
    assert f"mlkit:head {forge.head}" in forge.texts()[0]
    other = {**run, "head_sha": "d" * 40}
    assert write("github", environment("github", event={"workflow_run": other})).action == "none"


@pytest.mark.parametrize("name", FORGES)
def test_a_missing_token_is_named_and_a_job_of_no_pull_request_left_alone(
    forge: FakeForge, environment: Environment, name: str
) -> None:
    variables = environment(name)
    secret = next(key for key, value in variables.items() if value == TOKEN)
    with pytest.raises(UsageError, match=secret):
        write(name, {**variables, secret: ""})
    number = next((key for key, value in variables.items() if value == "7"), None)
    alone = environment(name, event={"push": {}}) if number is None else {**variables, number: ""}
    assert write(name, alone).action == "none"
    assert forge.comments == {}


def test_a_token_does_not_go_over_plain_http(environment: Environment) -> None:
    with pytest.raises(UsageError, match="over https only"):
        write("github", {**environment("github"), "GITHUB_API_URL": "http://forge.example"})


def test_the_command_prints_the_comment_outside_of_a_forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflowkit.cli.app import app
    from mlflowkit.cli.commands import ci  # noqa: F401  (registers the command)

    for sign in ("GITHUB_ACTIONS", "GITLAB_CI", "BITBUCKET_BUILD_NUMBER", "TF_BUILD"):
        monkeypatch.delenv(sign, raising=False)
    (tmp_path / "report.json").write_bytes(report_bytes(report()))
    done = CliRunner().invoke(app, ["ci", "comment", "--from", str(tmp_path / "report.json")])
    assert done.exit_code == 0
    assert "| `roc_auc >= 0.7` | **FAILED** |" in done.output


def test_the_budget_is_above_the_pauses() -> None:
    assert sum(forge_client.PAUSES) < forge_client.BUDGET_SECONDS


ADDRESSES = {
    "GitHub": "https://github.com/acme/lending/pull/7",
    "GitLab": "https://gitlab.example.com/acme/lending/-/merge_requests/7",
    "Bitbucket": "https://bitbucket.org/acme/lending/pull-requests/7",
}


def _jenkins(forge: FakeForge, address: str, **changes: str) -> dict[str, str]:
    apis = {"GITHUB_API_URL": "", "CI_API_V4_URL": "/api/v4", "BITBUCKET_API_URL": "/2.0"}
    return {
        "JENKINS_URL": "https://ci.example.com/", "CHANGE_URL": address, "MLKIT_COMMENT_TOKEN": TOKEN,
        "GIT_COMMIT": forge.head, **{name: forge.url + path for name, path in apis.items()}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_jenkins_job_comments_where_its_pull_request_is(forge: FakeForge, name: str) -> None:
    forge.add("a person's comment", "someone")
    actions = []
    for push in range(3):
        forge.head = f"{push:040x}"
        actions.append(write("", _jenkins(forge, ADDRESSES[name]), gate=f"gate {push}").action)
    assert actions == ["created", "updated", "updated"]
    assert len(forge.texts()) == 2
    assert "gate 2" in forge.texts()[-1]


def test_a_jenkins_job_of_a_branch_has_nothing_to_comment_on(forge: FakeForge) -> None:
    assert write("", {"JENKINS_URL": "https://ci.example.com/"}).action == "none"
    assert not forge.requests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MLKIT_COMMENT_TOKEN": ""}, "MLKIT_COMMENT_TOKEN is not set: github.com cannot be asked"),
        ({"CHANGE_URL": "https://gerrit.example.com/c/lending/+/7"}, "CHANGE_URL is no pull request"),
        ({"CHANGE_URL": "http://github.com/acme/lending/pull/7"}, "CHANGE_URL is no pull request"),
        ({"CHANGE_URL": "https://me@evil.example/acme/lending/pull/7"}, "CHANGE_URL is no pull request"),
        (
            {"CHANGE_URL": "https://bitbucket.example.com/acme/lending/pull-requests/7", "BITBUCKET_API_URL": ""},
            "no Bitbucket Cloud",
        ),
    ],
)
def test_what_jenkins_cannot_comment_on(forge: FakeForge, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        write("", {**_jenkins(forge, ADDRESSES["GitHub"]), **changes})
    assert not forge.requests
