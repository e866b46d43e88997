"""`mlkit gitops settle`: git learns what became of a candidate, or of a champion, in the gateway."""

from __future__ import annotations

import hashlib
import re
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
from mlflowkit.delivery.gitops.desired_delivery import DesiredChampion, DesiredDelivery
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, GitRepository, open_repository
from mlflowkit.delivery.gitops.promotion_decision import (
    PromotionDecision,
    RolloutVerdict,
    decide_champion_settlement,
    decide_settlement,
)
from mlflowkit.delivery.gitops.served_state import FollowedState, ServedState, verdict_of
from mlflowkit.errors import MlkitError, ServiceError, UsageError
from mlflowkit.system.text import printable_line, shell_word, truncate

MAX_ANSWER_BYTES = 1 << 20
CHANGED = "the file changed meanwhile: settle it again"
_KEY = re.compile(r"[!-~]{1,500}")


def state_reader(state: Path, service: str) -> Callable[[], FollowedState]:
    """Reads what a service serves from its state folder.

    Raises ServiceError where the folder has none of it, or nothing there follows a delivery.yaml.
    """
    from mlflowkit.delivery.gitops.served_state import read_served
    from mlflowkit.service_state.records import DELIVERY, ServiceFiles

    def read() -> FollowedState:
        files = next((item for item in ServiceFiles.all(state) if item.service == service), None)
        if files is None:
            raise ServiceError(f"no service {service} in {state}", hint="mlkit status, or --state DIR")
        record = files.read_json(DELIVERY)
        if record is None:
            message = f"nothing in {state} follows a delivery.yaml for {service}: what it serves is not git's"
            raise ServiceError(message, hint="mlkit serve --delivery FILE follows one; --gateway URL asks another")
        try:
            age = time.time() - float(record["looked"])
            return FollowedState.from_record(record, age, read_served(files))
        except (ValueError, TypeError, KeyError) as error:
            place = files.location(DELIVERY)
            raise ServiceError(f"{place} is damaged: {error}", hint=f"rm {shell_word(place)}") from error

    return read


def gateway_reader(url: str, service: str, key: str = "") -> Callable[[], FollowedState]:
    """Asks a gateway that follows a delivery.yaml what it serves; raises ServiceError for any other answer.

    ``key`` is an API key with the scope admin. Raises UsageError for one that no header can carry.
    """
    from mlflowkit.service_state import http_client

    key = key.strip()
    if key and not _KEY.fullmatch(key):
        raise UsageError("MLKIT_API_KEY holds no API key", hint="mlkit key create --scope admin")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    look = f"curl {shell_word(url)}/v2/delivery"

    def read() -> FollowedState:
        status, document = http_client.request(
            url, "GET", "/v2/delivery", headers=headers, max_bytes=MAX_ANSWER_BYTES, hint=f"curl {shell_word(url)}/v2"
        )
        reason = document.get("error", "") if isinstance(document, dict) else ""
        if status != 200 or not isinstance(document, dict):
            keyed = "MLKIT_API_KEY holds a key with the scope admin; " if status in (401, 403) else ""
            message = f"{url}/v2/delivery answers {status}: {truncate(printable_line(str(reason)), 200)}"
            raise ServiceError(message, hint=f"{keyed}{look}")
        try:
            age = document.get("age")
            if isinstance(age, bool) or not isinstance(age, int | float):
                raise ValueError("age is no number of seconds")
            followed = FollowedState.from_record(document, age)
        except ValueError as error:
            raise ServiceError(f"{url}/v2/delivery cannot be read: {error}", hint=look) from error
        if followed.served.service != service:
            message = f"{url} serves {followed.served.service!r}, not {service}"
            raise ServiceError(message, hint=f"curl {shell_word(url)}/v2")
        return followed

    return read


def settle(
    recipe: Path, environment: str, followed: Callable[[], FollowedState], *, seconds: float,
    dry_run: bool = False, poll: float = 2.0, sleep: Callable[[float], None] = time.sleep,
) -> PromotionResult:  # fmt: skip
    """Commit what became of an environment's candidate; waits up to ``seconds`` while its rollout runs.

    A champion that the gateway has rolled back since its settlement is settled first: the version that it serves
    instead becomes the champion. ``followed`` asks the gateway; its answer counts only where it acts on this very file,
    and has done all that it says. The action is settled, unchanged (there is nothing to settle) or undecided. Raises
    UsageError where git has never named what is served now, ServiceError where the gateway does not answer in the end.
    """
    target = environment_file(recipe, environment)
    deadline = time.monotonic() + seconds
    with open_repository(target.url, target.branch) as repository:
        while True:
            version = repository.read(target.path)
            present = parse_environment(target, version)
            answer, problem = _read_gateway(followed)
            outcome = _outcome(present, version, answer, problem)
            if answer is not None and outcome.outcome in ("promoted", "rolled_back"):
                if present.candidate is not None and not _champion_fell(present, answer):
                    return _commit_settlement(target, repository, version, present.candidate.identity, outcome, dry_run)
                return _settle_champion(target, repository, version, answer.served, dry_run)
            if present.candidate is None:
                more = f": {outcome.reason}" if outcome.reason else ""
                decision = PromotionDecision("unchanged", present, f"there is no candidate to settle{more}")
                return environment_result(target, repository, "unchanged", decision, "", "", dry_run)
            if time.monotonic() >= deadline:
                if problem is not None:
                    raise problem
                decision = PromotionDecision("unchanged", present, outcome.reason)
                identity = present.candidate.identity
                return environment_result(target, repository, "undecided", decision, "", identity, dry_run)
            sleep(min(poll, max(0.0, deadline - time.monotonic())))


def _read_gateway(followed: Callable[[], FollowedState]) -> tuple[FollowedState | None, ServiceError | None]:
    """The gateway's answer, or why there is none now."""
    try:
        return followed(), None
    except ServiceError as error:
        return None, error


def _champion_fell(present: DesiredDelivery, answer: FollowedState) -> bool:
    """Whether the gateway has rolled git's champion back."""
    champion = present.champion
    return champion is not None and verdict_of(answer.served, champion.identity).outcome == "rolled_back"


def _outcome(
    present: DesiredDelivery, version: FileVersion, answer: FollowedState | None, problem: ServiceError | None
) -> RolloutVerdict:
    """What an answer says of the champion that fell, or else of the candidate."""
    if answer is None:
        return RolloutVerdict("unknown", "" if problem is None else problem.message)
    if answer.content != _digest(version):
        return RolloutVerdict("unknown", "the gateway acts on another version of the file than git's")
    if answer.pending:
        return RolloutVerdict("running", answer.pending)
    if _champion_fell(present, answer):
        return RolloutVerdict("rolled_back", "the champion was rolled back")
    if present.candidate is None:
        return RolloutVerdict("unknown", "")
    return verdict_of(answer.served, present.candidate.identity)


def _digest(version: FileVersion) -> str:
    return hashlib.sha256(version.content or b"").hexdigest()


def _commit_settlement(
    target: EnvironmentFile, repository: GitRepository, judged: FileVersion, identity: str, outcome: RolloutVerdict,
    dry_run: bool,
) -> PromotionResult:  # fmt: skip
    decided: list[PromotionDecision] = []

    def change(version: FileVersion) -> FileReplacement | None:
        decision = decide_settlement(parse_environment(target, version), identity, outcome)
        if _digest(version) != _digest(judged):
            decision = PromotionDecision("unchanged", decision.desired, CHANGED)
        decided.append(decision)
        if decision.action != "commit" or dry_run:
            return None
        return file_replacement(target, version, decision, "settle", identity, "")

    commit = repository.replace(target.path, change)
    action = "settled" if decided[-1].action == "commit" else "unchanged"
    return environment_result(target, repository, action, decided[-1], commit, identity, dry_run)


def _settle_champion(
    target: EnvironmentFile, repository: GitRepository, judged: FileVersion, served: ServedState, dry_run: bool
) -> PromotionResult:
    """Commit that the gateway rolled the champion back."""
    decided: list[PromotionDecision] = []

    def change(version: FileVersion) -> FileReplacement | None:
        present = parse_environment(target, version)
        identity = "" if present.champion is None else present.champion.identity
        before = _named_before(target, repository, served.champion)
        decision = decide_champion_settlement(present, before, verdict_of(served, identity))
        if _digest(version) != _digest(judged):
            decision = PromotionDecision("unchanged", present, CHANGED)
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
