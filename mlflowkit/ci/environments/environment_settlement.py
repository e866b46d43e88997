"""`mlkit gitops settle`: git learns what became of a candidate, or of a champion, in the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlflowkit.ci.environments.environment_file import (
    EnvironmentFile,
    PromotionResult,
    environment_file,
    environment_result,
    file_replacement,
    parse_environment,
)
from mlflowkit.delivery.gitops.desired_delivery import DesiredChampion
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, GitRepository, open_repository
from mlflowkit.delivery.gitops.promotion_decision import (
    PromotionDecision,
    RolloutVerdict,
    decide_champion_settlement,
    decide_settlement,
)
from mlflowkit.delivery.gitops.served_state import ServedState, verdict_of
from mlflowkit.errors import MlkitError, ServiceError, UsageError
from mlflowkit.system.text import shell_word, truncate

MAX_ANSWER_BYTES = 1 << 20


def state_reader(state: Path, service: str) -> Callable[[], ServedState]:
    """Reads what a service serves from its state folder; raises ServiceError where it has none of it."""
    from mlflowkit.delivery.gitops.served_state import read_served
    from mlflowkit.service_state.records import ServiceFiles

    def read() -> ServedState:
        files = next((item for item in ServiceFiles.all(state) if item.service == service), None)
        if files is None:
            raise ServiceError(f"no service {service} in {state}", hint="mlkit status, or --state DIR")
        return read_served(files)

    return read


def gateway_reader(url: str, service: str, key: str = "") -> Callable[[], ServedState]:
    """Asks a gateway that follows a delivery.yaml what it serves; raises ServiceError for any other answer.

    ``key`` is an API key with the scope metrics.
    """
    from mlflowkit.service_state import http_client

    headers = {"authorization": f"Bearer {key}"} if key else {}

    def read() -> ServedState:
        status, document = http_client.request(
            url, "GET", "/v2/delivery", headers=headers, max_bytes=MAX_ANSWER_BYTES, hint=f"curl {shell_word(url)}/v2"
        )
        reason = document.get("error", "") if isinstance(document, dict) else ""
        if status != 200 or not isinstance(document, dict):
            keyed = "MLKIT_API_KEY holds a key with the scope metrics; " if status in (401, 403) else ""
            hint = f"{keyed}curl {shell_word(url)}/v2/delivery"
            raise ServiceError(f"{url}/v2/delivery answers {status}: {truncate(str(reason), 200)}", hint=hint)
        try:
            served = ServedState.from_json(document.get("served"))
        except ValueError as error:
            raise ServiceError(
                f"{url}/v2/delivery cannot be read: {error}", hint=f"curl {shell_word(url)}/v2/delivery"
            ) from error
        if served.service != service:
            raise ServiceError(f"{url} serves {served.service!r}, not {service}", hint=f"curl {shell_word(url)}/v2")
        return served

    return read


def settle(
    recipe: Path, environment: str, served: Callable[[], ServedState], *, seconds: float,
    dry_run: bool = False, poll: float = 2.0, sleep: Callable[[float], None] = time.sleep,
) -> PromotionResult:  # fmt: skip
    """Commit what became of an environment's candidate; waits up to ``seconds`` while its rollout runs.

    Where there is no candidate, a champion that the gateway has rolled back since is settled: the version that it
    serves instead becomes the champion. ``served`` asks the gateway. The action is settled, unchanged (there is nothing
    to settle) or undecided. Raises UsageError where git has never named what is served now.
    """
    target = environment_file(recipe, environment)
    deadline = time.monotonic() + seconds
    with open_repository(target.url, target.branch) as repository:
        while True:
            present = parse_environment(target, repository.read(target.path))
            if present.candidate is None:
                return _settle_champion(target, repository, served(), dry_run)
            candidate = present.candidate
            outcome = verdict_of(served(), candidate.identity)
            if outcome.outcome in ("promoted", "rolled_back"):
                return _commit_settlement(target, repository, candidate.identity, outcome, dry_run)
            if time.monotonic() >= deadline:
                decision = PromotionDecision("unchanged", present, outcome.reason)
                return environment_result(target, repository, "undecided", decision, "", candidate.identity, dry_run)
            sleep(min(poll, max(0.0, deadline - time.monotonic())))


def _commit_settlement(
    target: EnvironmentFile, repository: GitRepository, identity: str, outcome: RolloutVerdict, dry_run: bool
) -> PromotionResult:
    decided: list[PromotionDecision] = []

    def change(version: FileVersion) -> FileReplacement | None:
        decision = decide_settlement(parse_environment(target, version), identity, outcome)
        decided.append(decision)
        if decision.action != "commit" or dry_run:
            return None
        return file_replacement(target, version, decision, "settle", identity, "")

    commit = repository.replace(target.path, change)
    action = "settled" if decided[-1].action == "commit" else "unchanged"
    return environment_result(target, repository, action, decided[-1], commit, identity, dry_run)


def _settle_champion(
    target: EnvironmentFile, repository: GitRepository, served: ServedState, dry_run: bool
) -> PromotionResult:
    """Commit that the gateway rolled the champion back, if it did."""
    decided: list[PromotionDecision] = []

    def change(version: FileVersion) -> FileReplacement | None:
        present = parse_environment(target, version)
        identity = "" if present.champion is None else present.champion.identity
        verdict = verdict_of(served, identity) if identity else RolloutVerdict("unknown", "git names no champion")
        before = _named_before(target, repository, served.champion) if verdict.outcome == "rolled_back" else None
        decision = decide_champion_settlement(present, before, verdict)
        decided.append(decision)
        if decision.action != "commit" or dry_run:
            return None
        return file_replacement(target, version, decision, "settle", identity, "")

    commit = repository.replace(target.path, change)
    decision = decided[-1]
    if decision.action == "refused":
        hint = f"mlkit gitops promote {shell_word(target.recipe)} --environment {target.environment.name} --from REPORT"
        raise UsageError(f"{target.service} in {target.environment.name}: {decision.reason}", hint=hint)
    action = "settled" if decision.action == "commit" else "unchanged"
    return environment_result(target, repository, action, decision, commit, "", dry_run)


def _named_before(target: EnvironmentFile, repository: GitRepository, identity: str) -> DesiredChampion | None:
    """A version as the newest commit named it that had it as champion or candidate; None where none did."""
    for item in repository.history(target.path):
        try:
            desired = parse_environment(target, FileVersion(item.commit, item.content))
        except MlkitError:
            continue
        candidate = None if desired.candidate is None else desired.candidate.as_champion
        for version in (desired.champion, candidate):
            if version is not None and version.identity == identity:
                return version
    return None
