"""Promotions and settlements in real git repositories with bare remotes."""

from __future__ import annotations

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.ci import environment_promotion
from mlflowkit.ci.environment_promotion import PromotionResult, environment_file, promote, settle
from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, edit_delivery, parse_delivery
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, open_repository
from mlflowkit.delivery.gitops.promotion_decision import RolloutVerdict
from mlflowkit.errors import (
    BundleError,
    ConflictError,
    GateFailedError,
    GateInconclusiveError,
    MlkitError,
    ServiceError,
    UsageError,
)
from tests.support.export_project import make_project
from tests.support.lending_bundle import make_bundle

HOUR = 3600.0
PROMOTED = RolloutVerdict("promoted", "the gateway serves it", "2026-11-30T06:00:00Z")
ROLLED_BACK = RolloutVerdict("rolled_back", "error rate above the champion's", "2026-11-30T06:00:00Z")


class PromotionWorld:
    """A recipe's repository, the environments' bare repository, and judged bundles."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.remote = folder, folder / "environments.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.remote)], check=True)
        environments = (
            f"environments:\n  staging: {{repo: {self.remote}}}\n"
            f"  prod: {{repo: {self.remote}, after: staging, baking: 24h}}"
        )
        self.recipe = make_project(folder / "project", environments)
        self.policy = environment_file(self.recipe, "prod").policy

    def judged(self, seed: int, *, exit_code: int = 0, policy: str = "") -> Path:
        """The report of a bundle, with the bundle beside it."""
        out = self.folder / f"out-{seed}-{exit_code}-{policy}"
        made = make_bundle(out / "bundle", seed, policy=policy or self.policy)
        report = {"schema": 1, "exit_code": exit_code, "identity": made.manifest.identity, "run": f"run-{seed}"}
        (out / "report.json").write_text(json.dumps(report))
        return out / "report.json"

    def promote(self, environment: str, report: Path, **options: object) -> PromotionResult:
        return promote(self.recipe, environment, report, exists=lambda reference: True, **options)  # type: ignore[arg-type]

    def settle(self, environment: str, verdict: RolloutVerdict, seconds: float = 0.0) -> PromotionResult:
        return settle(self.recipe, environment, lambda candidate: verdict, seconds=seconds, poll=0.01)

    def commits(self) -> list[str]:
        return self.git("log", "--format=%s%n%b%x00", "main").split("\0")[:-1]

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.remote), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def put(self, path: str, content: str) -> None:
        with open_repository(str(self.remote), "main") as repository:
            repository.replace(path, lambda version: FileReplacement(content.encode(), "put"))


@pytest.fixture
def world(tmp_path: Path) -> PromotionWorld:
    return PromotionWorld(tmp_path)


def test_a_promotion_is_one_commit_with_trailers_and_again_none(world: PromotionWorld) -> None:
    report = world.judged(1)
    result = world.promote("staging", report)
    assert result.action == "promoted"
    assert len(world.commits()) == 1
    identity = json.loads(report.read_text())["identity"]
    assert f"Mlkit-Identity: {identity}" in world.commits()[0]
    assert "Mlkit-Run: run-1" in world.commits()[0]
    desired = parse_delivery(world.git("show", "main:deploy/overlays/staging/delivery.yaml"))
    assert desired.candidate is not None
    assert desired.candidate.bundle.startswith("ghcr.io/acme/lending-bundle@sha256:")
    assert world.promote("staging", report).action == "unchanged"
    assert len(world.commits()) == 1


def test_a_dry_run_pushes_nothing(world: PromotionWorld) -> None:
    assert world.promote("staging", world.judged(1), dry_run=True).action == "promoted"
    assert world.git("for-each-ref") == ""


def test_a_version_goes_on_only_after_it_has_baked(world: PromotionWorld) -> None:
    report = world.judged(1)
    with pytest.raises(UsageError, match="must be promoted first"):
        world.promote("prod", report)
    world.promote("staging", report)
    with pytest.raises(UsageError, match="must be promoted first"):
        world.promote("prod", report)
    assert world.settle("staging", PROMOTED).action == "settled"
    with pytest.raises(UsageError, match=r"has been champion of staging for 0\.0 h, of 24\.0 h"):
        world.promote("prod", report)
    later = float(world.git("log", "-1", "--format=%ct", "main")) + 25 * HOUR
    assert world.promote("prod", report, now=lambda: later).action == "promoted"


def test_a_rolled_back_version_is_recorded_and_never_promoted_again(world: PromotionWorld) -> None:
    report = world.judged(1)
    world.promote("staging", report)
    assert world.settle("staging", ROLLED_BACK).action == "settled"
    desired = parse_delivery(world.git("show", "main:deploy/overlays/staging/delivery.yaml"))
    assert desired.candidate is None
    assert desired.rejected[0].incident == ROLLED_BACK.reason
    with pytest.raises(UsageError, match="was rejected 2026-11-30"):
        world.promote("staging", report)
    assert len(world.commits()) == 2
    assert world.settle("staging", ROLLED_BACK).action == "unchanged"


def test_a_running_rollout_is_waited_for_and_left_undecided(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    verdicts = iter([RolloutVerdict("running", "step 1"), PROMOTED])
    result = settle(world.recipe, "staging", lambda candidate: next(verdicts), seconds=60, poll=0.01)
    assert result.action == "settled"
    world.promote("staging", world.judged(2))
    assert world.settle("staging", RolloutVerdict("running", "step 1")).action == "undecided"


def test_what_was_not_judged_well_is_refused(world: PromotionWorld) -> None:
    with pytest.raises(GateFailedError):
        world.promote("staging", world.judged(1, exit_code=1))
    with pytest.raises(GateInconclusiveError):
        world.promote("staging", world.judged(1, exit_code=4))
    with pytest.raises(BundleError, match="blessed under other gates"):
        world.promote("staging", world.judged(1, policy="f" * 64))
    swapped = world.judged(2)
    swapped.write_text(world.judged(3).read_text())
    with pytest.raises(BundleError, match="and the report judged"):
        world.promote("staging", swapped)
    with pytest.raises(UsageError, match="the registry has no"):
        promote(world.recipe, "staging", world.judged(4), exists=lambda reference: False)
    with pytest.raises(UsageError, match="no environment 'stagin'") as error:
        world.promote("stagin", world.judged(5))
    assert "--environment staging" in error.value.hint
    assert world.git("for-each-ref") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("service: lending\n<<<<<<< HEAD\n", "delivery.yaml:2: an unresolved merge conflict"),
        ("service: [", "not valid YAML"),
        ("service: other\n", "is of the service other, not lending"),
    ],
)
def test_a_damaged_file_is_named_and_left(world: PromotionWorld, content: str, message: str) -> None:
    world.put("deploy/overlays/staging/delivery.yaml", content)
    with pytest.raises(UsageError) as error:
        world.promote("staging", world.judged(1))
    assert message in error.value.message
    assert len(world.commits()) == 1


def test_an_unreachable_remote_is_named_without_its_secrets(
    world: PromotionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLKIT_GIT_TOKEN", "canary-secret")
    for url in (f"{world.folder}/absent.git", "https://user:canary-secret@127.0.0.1:1/environments.git"):
        with open_repository(url, "main") as repository, pytest.raises(ServiceError) as error:
            repository.read("delivery.yaml")
        text = json.dumps(error.value.to_json())
        assert "canary-secret" not in text
        assert "git ls-remote failed" in text
    with pytest.raises(UsageError, match="is no git remote"), open_repository("ext::sh -c x", "main"):
        pass


def test_fifty_concurrent_promotions_lose_none(world: PromotionWorld) -> None:
    def one(number: int) -> str:
        identity = f"{number:064x}"
        candidate = DesiredCandidate(f"ghcr.io/acme/lending-bundle@sha256:{identity}", identity)

        def change(version: FileVersion) -> FileReplacement | None:
            text = "service: lending\n" if version.content is None else version.content.decode()
            desired = replace(parse_delivery(text), candidate=candidate)
            return FileReplacement(edit_delivery(text, desired).encode(), identity)

        with open_repository(str(world.remote), "main") as repository:
            return repository.replace(f"service-{number}/delivery.yaml", change, attempts=400)

    with ThreadPoolExecutor(8) as pool:
        commits = list(pool.map(one, range(50)))
    assert len(set(commits)) == 50
    assert len(world.commits()) == 50
    files = world.git("ls-tree", "-r", "--name-only", "main").splitlines()
    assert len(files) == 50
    assert sorted(commit.strip() for commit in world.commits()) == [f"{number:064x}" for number in range(50)]


def test_a_lost_race_checks_the_preconditions_anew(world: PromotionWorld) -> None:
    """Between the fetch and the push another commit rejects the version: the retry refuses it."""
    report = world.judged(1)
    identity = json.loads(report.read_text())["identity"]
    rejected = f"service: lending\nrejected:\n  - {{identity: '{identity}', incident: drill, at: now}}\n"
    raced = threading.Event()

    def exists_elsewhere(*arguments: object) -> float:
        if not raced.is_set():
            raced.set()
            world.put("deploy/overlays/staging/delivery.yaml", rejected)
        return 0.0

    with pytest.raises(UsageError, match="was rejected now: drill"):
        world.promote("staging", report, now=exists_elsewhere)
    assert len(world.commits()) == 1


def test_a_rewritten_branch_is_named(world: PromotionWorld) -> None:
    world.put("a", "1")
    with open_repository(str(world.remote), "main") as repository:
        repository.read("a")
        tree = world.git("rev-parse", "main^{tree}").strip()
        environment = ["-c", "user.name=x", "-c", "user.email=x@y"]
        commit = world.git(*environment, "commit-tree", tree, "-m", "rewritten").strip()
        world.git("update-ref", "refs/heads/main", commit)
        with pytest.raises(ConflictError, match="force-pushed"):
            repository.read("a")
        assert repository.read("a").content == b"1"


def test_a_link_in_the_repository_is_not_followed(world: PromotionWorld) -> None:
    blob = subprocess.run(["git", "-C", str(world.remote), "hash-object", "-w", "--stdin"], input="/etc/passwd",
                          text=True, capture_output=True, check=True).stdout.strip()  # fmt: skip
    tree = subprocess.run(["git", "-C", str(world.remote), "mktree"], input=f"120000 blob {blob}\tdelivery.yaml\n",
                          text=True, capture_output=True, check=True).stdout.strip()  # fmt: skip
    commit = world.git("-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", tree, "-m", "link").strip()
    world.git("update-ref", "refs/heads/main", commit)
    with open_repository(str(world.remote), "main") as repository, pytest.raises(UsageError, match="is a link"):
        repository.read("delivery.yaml")


def test_a_hook_that_declines_is_an_error_and_not_a_race(world: PromotionWorld) -> None:
    hook = world.remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no entry >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(MlkitError, match="no entry"):
        world.promote("staging", world.judged(1))


def test_the_gateways_records_say_what_became_of_a_candidate(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no service lending"):
        environment_promotion.state_verdict(tmp_path, "lending", DesiredCandidate("r", "a" * 64))
