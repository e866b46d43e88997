"""Promotions and settlements in real git repositories with bare remotes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mlflowkit.ci.environments.baked_promotion import promote_baked
from mlflowkit.ci.environments.environment_file import PromotionResult, environment_file
from mlflowkit.ci.environments.environment_promotion import promote
from mlflowkit.ci.environments.environment_settlement import gateway_reader, settle, state_reader
from mlflowkit.delivery.gitops.desired_delivery import (
    DesiredCandidate,
    DesiredDelivery,
    edit_delivery,
    parse_delivery,
)
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, open_repository
from mlflowkit.delivery.gitops.served_state import FollowedState, ServedRejection, ServedState
from mlflowkit.delivery.manifests.image_digests import NOT_BUILT, image_digests, images_text
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
from tests.support.http_answers import answering
from tests.support.lending_bundle import make_bundle

HOUR = 3600.0
INCIDENT = "error rate above the champion's"
Outcome = Literal["promoted", "rolled_back", "running"]


def served(outcome: Outcome, identity: str, champion: str = "0" * 64) -> ServedState:
    """What a gateway says in which a candidate's rollout came to an outcome."""
    if outcome == "promoted":
        return ServedState("lending", identity)
    if outcome == "running":
        return ServedState("lending", champion, identity, "its rollout is live, step 1 of 3")
    rejection = ServedRejection(identity, INCIDENT, "rolled_back", "x1", 1_795_000_000.0)
    return ServedState("lending", champion, rejections=(rejection,))


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
        status = {0: "done", 1: "gate-failed", 4: "inconclusive"}.get(exit_code, "error")
        report = {
            "schema": 1, "recipe": "lending", "path": "recipe.yaml", "status": status, "exit_code": exit_code,
            "identity": made.manifest.identity, "run": f"run-{seed}",
        }  # fmt: skip
        (out / "report.json").write_text(json.dumps(report))
        return out / "report.json"

    def promote(self, environment: str, report: Path, **options: object) -> PromotionResult:
        return promote(self.recipe, environment, report, exists=lambda reference: True, **options)  # type: ignore[arg-type]

    def desired(self, environment: str) -> DesiredDelivery:
        return parse_delivery(self.git("show", f"main:deploy/overlays/{environment}/delivery.yaml"))

    def settle(self, environment: str, *outcomes: Outcome, seconds: float = 0.0) -> PromotionResult:
        """Settle with what the gateway answers, one after the other, about the candidate or else the champion."""
        desired = self.desired(environment)
        version = desired.candidate or desired.champion
        identity = "" if version is None else version.identity
        answers = iter(outcomes)

        def followed() -> FollowedState:
            return self.followed(environment, served(next(answers), identity))

        return settle(self.recipe, environment, followed, seconds=seconds, poll=0.01)

    def followed(self, environment: str, state: ServedState, pending: str = "") -> FollowedState:
        """What a gateway says that acts on the present file of an environment."""
        content = self.git("show", f"main:deploy/overlays/{environment}/delivery.yaml")
        return FollowedState(state, hashlib.sha256(content.encode()).hexdigest(), pending)

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
    assert world.settle("staging", "promoted").action == "settled"
    with pytest.raises(GateInconclusiveError, match=r"has been champion of staging for 0\.0 h, of 24\.0 h") as error:
        world.promote("prod", report)
    assert "--baked" in error.value.hint
    later = float(world.git("log", "-1", "--format=%ct", "main")) + 25 * HOUR
    assert world.promote("prod", report, now=lambda: later).action == "promoted"


def test_what_has_baked_is_promoted_by_whoever_asks_next(world: PromotionWorld) -> None:
    report = world.judged(1)

    def ask(now: float = 0.0, **options: Any) -> PromotionResult:
        pulled: list[str] = []

        def pull(reference: str, folder: Path) -> Path:
            pulled.append(reference)
            shutil.copytree(report.parent / "bundle", folder)
            return folder

        result = promote_baked(world.recipe, "prod", now=lambda: now or time.time(), pull=pull, **options)
        assert len(pulled) == (result.action == "promoted"), "a bundle is fetched only to be promoted"
        return result

    digest = {"ghcr.io/acme/lending": f"sha256:{'a' * 64}"}
    for name in ("staging", "prod"):
        world.put(f"deploy/overlays/{name}/images/kustomization.yaml", images_text({"ghcr.io/acme/lending": NOT_BUILT}))
    assert (ask().action, ask().reason) == ("unchanged", "staging serves no version yet")
    world.promote("staging", report)
    world.put("deploy/overlays/staging/images/kustomization.yaml", images_text(digest))
    assert world.settle("staging", "promoted").action == "settled"
    champion = world.desired("staging").champion
    world.put("deploy/overlays/staging/images/kustomization.yaml", images_text({"ghcr.io/acme/lending": NOT_BUILT}))
    assert ask().action == "waiting"
    later = float(world.git("log", "-1", "--format=%ct", "main")) + 25 * HOUR
    count = len(world.commits())
    assert ask(later, dry_run=True).action == "promoted"
    assert len(world.commits()) == count
    assert ask(later).images == digest, "those that staging had when it began to serve the version"
    candidate = world.desired("prod").candidate
    assert candidate is not None
    assert candidate.as_champion == champion
    assert len(world.commits()) == count + 1
    assert ask(later).action == "unchanged"
    assert world.settle("prod", "rolled_back").action == "settled"
    result = ask(later)
    assert (result.action, "was rejected" in result.reason) == ("unchanged", True)
    with pytest.raises(UsageError, match="staging comes after no environment"):
        promote_baked(world.recipe, "staging")


def test_what_baked_under_other_gates_is_refused(world: PromotionWorld) -> None:
    report = world.judged(1)
    world.promote("staging", report)
    world.settle("staging", "promoted")
    other = world.judged(1, policy="f" * 64)
    with pytest.raises(BundleError, match="blessed under other gates"):
        promote_baked(
            world.recipe,
            "prod",
            now=lambda: time.time() + 25 * HOUR,
            pull=lambda reference, folder: Path(shutil.copytree(other.parent / "bundle", folder)),
        )


def test_a_rolled_back_version_is_recorded_and_never_promoted_again(world: PromotionWorld) -> None:
    report = world.judged(1)
    world.promote("staging", report)
    assert world.settle("staging", "rolled_back").action == "settled"
    desired = parse_delivery(world.git("show", "main:deploy/overlays/staging/delivery.yaml"))
    assert desired.candidate is None
    assert desired.rejected[0].incident == f"{INCIDENT} (rolled_back, experiment x1)"
    with pytest.raises(UsageError, match="was rejected 2026-11-1"):
        world.promote("staging", report)
    assert len(world.commits()) == 2
    assert world.settle("staging", "rolled_back").action == "unchanged"


def test_a_running_rollout_is_waited_for_and_left_undecided(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    result = world.settle("staging", "running", "promoted", seconds=60)
    assert result.action == "settled"
    world.promote("staging", world.judged(2))
    assert world.settle("staging", "running").action == "undecided"


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
        state_reader(tmp_path, "lending")()


def test_a_champion_that_was_rolled_back_after_its_settlement_gives_way_to_the_one_before(
    world: PromotionWorld,
) -> None:
    identities = []
    for seed in (1, 2):
        world.promote("staging", world.judged(seed))
        assert world.settle("staging", "promoted").action == "settled"
        champion = world.desired("staging").champion
        assert champion is not None
        identities.append(champion.identity)
    assert world.settle("staging", "promoted").action == "unchanged"
    before, now = identities
    answer = served("rolled_back", now, champion=before)
    assert settle(world.recipe, "staging", lambda: world.followed("staging", answer), seconds=0).action == "settled"
    desired = world.desired("staging")
    assert desired.champion is not None
    assert desired.champion.identity == before
    assert desired.champion.blessing
    assert desired.rejection(now) is not None
    again = settle(world.recipe, "staging", lambda: world.followed("staging", answer), seconds=0)
    assert again.action == "unchanged"


def test_a_champion_that_fell_is_settled_before_the_candidate_that_waits_for_it(world: PromotionWorld) -> None:
    for seed in (1, 2):
        world.promote("staging", world.judged(seed))
        world.settle("staging", "promoted")
    champion = world.desired("staging").champion
    assert champion is not None
    world.promote("staging", world.judged(3))
    before = parse_delivery(world.git("show", "main~2:deploy/overlays/staging/delivery.yaml")).champion
    assert before is not None
    answer = served("rolled_back", champion.identity, champion=before.identity)
    result = settle(world.recipe, "staging", lambda: world.followed("staging", answer), seconds=0)
    desired = world.desired("staging")
    assert result.action == "settled"
    assert desired.champion == before
    assert desired.candidate is not None
    assert desired.rejection(champion.identity) is not None


def test_an_answer_counts_only_where_the_gateway_has_done_what_this_file_says(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    candidate = world.desired("staging").candidate
    assert candidate is not None
    promoted = served("promoted", candidate.identity)
    commits = len(world.commits())
    content = world.followed("staging", promoted).content
    record = {"content": content, "action": "none", "served": promoted.to_json()}
    for answer, words in (
        (FollowedState(promoted, "f" * 64), "another version of the file"),
        (world.followed("staging", promoted, "cools down"), "cools down"),
        (FollowedState.from_record(record, 99.0), "looked at the file 99 s ago"),
    ):
        result = settle(world.recipe, "staging", lambda answer=answer: answer, seconds=0)  # type: ignore[misc]
        assert (result.action, words in result.reason) == ("undecided", True), result.reason
    assert len(world.commits()) == commits


def test_a_gateway_that_does_not_answer_for_a_moment_is_asked_again(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    candidate = world.desired("staging").candidate
    assert candidate is not None
    calls = iter([ServiceError("reset", hint=""), None])

    def followed() -> FollowedState:
        if (failure := next(calls)) is not None:
            raise failure
        return world.followed("staging", served("promoted", candidate.identity))

    assert settle(world.recipe, "staging", followed, seconds=60, poll=0.01).action == "settled"

    def down() -> FollowedState:
        raise ServiceError("reset", hint="")

    world.promote("staging", world.judged(2))
    with pytest.raises(ServiceError, match="reset"):
        settle(world.recipe, "staging", down, seconds=0)


def test_what_a_gateway_says_is_one_line_of_a_commit(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    candidate = world.desired("staging").candidate
    assert candidate is not None
    rejection = ServedRejection(candidate.identity, "bad\n\nApproved-by: boss\x1b[31m", "rolled_back", "x", 1.0)
    answer = ServedState("lending", "0" * 64, rejections=(rejection,))
    assert settle(world.recipe, "staging", lambda: world.followed("staging", answer), seconds=0).action == "settled"
    assert not [line for line in world.commits()[0].splitlines() if line.startswith("Approved-by")]


def test_the_champion_again_ends_nobodys_rollout(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    world.settle("staging", "promoted")
    world.promote("staging", world.judged(2))
    assert world.promote("staging", world.folder / "out-1-0-" / "report.json").action == "unchanged"
    assert world.desired("staging").candidate is not None


def test_a_gateway_that_serves_what_git_never_named_is_told(world: PromotionWorld) -> None:
    world.promote("staging", world.judged(1))
    world.settle("staging", "promoted")
    commits = len(world.commits())
    with pytest.raises(UsageError, match="no commit of the file names what is served now"):
        world.settle("staging", "rolled_back")
    assert len(world.commits()) == commits


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, {"error": "this service follows no delivery.yaml"}, "answers 404: this service follows no"),
        (401, {"error": "no valid API key"}, "answers 401"),
        (200, {"age": 1.0, "served": {"service": "other", "champion": ""}}, "serves 'other', not lending"),
        (200, {"age": 1.0, "served": {"service": "lending", "champion": 7}}, "champion is no text"),
        (200, {"age": 1.0, "served": {"service": "lending", "rejections": [{"time": "now"}]}}, "time is no number"),
        (200, {"served": {"service": "lending"}}, "age is no number"),
        (200, [1], "answers 200"),
        (200, "x" * (1 << 21), "more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_a_gateway_may_answer_anything(status: int, body: object, words: str) -> None:
    with answering(status, json.dumps(body).encode()) as url, pytest.raises(ServiceError, match=words):
        gateway_reader(url, "lending")()


def test_a_gateway_that_is_down_is_an_error_with_the_command_to_try() -> None:
    with pytest.raises(ServiceError, match="nothing answers at") as caught:
        gateway_reader("http://127.0.0.1:1", "lending")()
    assert caught.value.hint == "curl http://127.0.0.1:1/v2"


OVERLAY = "deploy/overlays/staging/images/kustomization.yaml"


def image_record(report: Path, digest: str, *, identity: str = "") -> None:
    """The record of images that were pushed with a report's bundle."""
    identity = identity or json.loads(report.read_text())["identity"]
    image = {
        "reference": f"ghcr.io/acme/lending@sha256:{digest}", "platform": "linux/amd64", "base": "b", "revision": "r",
        "dirty": False, "lock": "l",
    }  # fmt: skip
    bundle = {"reference": f"ghcr.io/acme/lending-bundle@sha256:{'d' * 64}", "identity": identity, "version": "1"}
    record = {"format": 1, "recipe": "lending", "images": {"serve": image}, "bundle": bundle}
    (report.parent / "image.json").write_text(json.dumps(record))


def test_the_digests_of_images_go_into_the_overlay_with_the_same_commit(world: PromotionWorld) -> None:
    component = images_text({"ghcr.io/acme/lending": NOT_BUILT, "ghcr.io/acme/lending-train": NOT_BUILT})
    world.put(OVERLAY, f"# ours\n{component}")
    report = world.judged(1)
    image_record(report, "a" * 64)
    result = world.promote("staging", report)
    assert result.images == {"ghcr.io/acme/lending": f"sha256:{'a' * 64}"}
    assert "lending-train" in result.warning
    changed = [line for line in world.git("show", "--format=", "main", "--", OVERLAY).splitlines() if line[:1] in "+-"]
    assert len([line for line in changed if not line.startswith(("+++", "---"))]) == 2
    assert len(world.commits()) == 2
    assert world.promote("staging", report).action == "unchanged"
    image_record(report, "b" * 64)  # the same model in another image
    assert world.promote("staging", report).images == {"ghcr.io/acme/lending": f"sha256:{'b' * 64}"}
    assert len(world.commits()) == 3
    assert image_digests(world.git("show", f"main:{OVERLAY}"))["ghcr.io/acme/lending"] == f"sha256:{'b' * 64}"


def test_images_of_another_bundle_and_a_component_with_a_tag_are_refused(world: PromotionWorld) -> None:
    report = world.judged(1)
    image_record(report, "a" * 64, identity="e" * 64)
    with pytest.raises(BundleError, match="was pushed with the bundle eeee"):
        world.promote("staging", report)
    image_record(report, "a" * 64)
    world.put(OVERLAY, "images:\n- name: ghcr.io/acme/lending\n  newTag: latest\n")
    with pytest.raises(UsageError, match="by name and digest"):
        world.promote("staging", report)
    assert "delivery.yaml" not in world.git("ls-tree", "-r", "--name-only", "main")


@pytest.mark.parametrize("key", ["mlk_a b", "mlk_\u00fcx", "a\nb"])
def test_a_key_that_no_header_carries_is_told_without_it(key: str) -> None:
    with pytest.raises(UsageError, match="holds no API key") as caught:
        gateway_reader("http://127.0.0.1:1", "lending", key)
    assert key not in f"{caught.value.message}{caught.value.hint}"
