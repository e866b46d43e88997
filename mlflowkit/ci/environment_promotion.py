"""`mlkit gitops promote` and `settle`: a judged bundle becomes an environment's desired digest, with its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflowkit.ci.recipe_export import load_delivery
from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.gitops.desired_delivery import (
    DesiredCandidate,
    DesiredDelivery,
    edit_delivery,
    parse_delivery,
)
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, GitRepository, open_repository
from mlflowkit.delivery.gitops.promotion_decision import (
    BakingFact,
    PromotionDecision,
    RolloutVerdict,
    champion_since,
    decide_promotion,
    decide_settlement,
)
from mlflowkit.errors import (
    BundleError,
    GateFailedError,
    GateInconclusiveError,
    MlkitError,
    ServiceError,
    UsageError,
    closest_match,
)
from mlflowkit.system.text import parse_json, shell_word

FILE = "delivery.yaml"
MAX_REPORT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """Where an environment of a recipe keeps its desired state."""

    recipe: Path
    plan: DeliveryPlan
    environment: Environment
    url: str
    policy: str
    """Digest of the recipe's gates."""

    @property
    def branch(self) -> str:
        return self.environment.settings.branch

    @property
    def path(self) -> str:
        return f"{self.environment.path}/{FILE}"

    @property
    def service(self) -> str:
        return (self.plan.recipe.service or self.plan.name).lower()


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """What became of a promotion or a settlement. ``commit`` is "" where nothing was to be committed."""

    action: str
    environment: str
    service: str
    reason: str
    commit: str
    repository: str
    branch: str
    path: str
    desired: DesiredDelivery | None = None
    identity: str = ""
    dry_run: bool = field(default=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "action": self.action, "environment": self.environment, "service": self.service, "reason": self.reason,
            "identity": self.identity, "commit": self.commit, "repository": self.repository, "branch": self.branch,
            "path": self.path, "desired": None if self.desired is None else self.desired.to_json(),
            "dry_run": self.dry_run,
        }  # fmt: skip


def environment_file(recipe: Path, environment: str) -> EnvironmentFile:
    """The file of an environment of a recipe. Raises UsageError for an unknown environment."""
    from mlflowkit.recipe.schema import policy_digest

    loaded, plan = load_delivery(recipe)
    known = {item.name: item for item in plan.environments}
    if environment not in known:
        close = closest_match(environment, known)
        suggestion = f"--environment {close}" if close else "add it to environments in the recipe's delivery section"
        raise UsageError(f"no environment {environment!r} in {recipe}; there is {', '.join(known) or 'none'}",
                         hint=suggestion)  # fmt: skip
    url = known[environment].settings.repo or own_remote(loaded.folder)
    return EnvironmentFile(recipe, plan, known[environment], url, policy_digest(loaded.recipe))


def promote(
    recipe: Path, environment: str, report: Path, *, dry_run: bool = False, now: Callable[[], float] = time.time,
    exists: Callable[[str], bool] | None = None,
) -> PromotionResult:  # fmt: skip
    """Make the judged bundle the candidate of an environment.

    Verified are the report's verdict, the bundle, its blessing under the recipe's present gates, that the registry has
    it (``exists``), and then, on each try, what the environment's file and that of ``after`` say.
    Raises GateFailedError, GateInconclusiveError, UsageError, BundleError, ServiceError or ConflictError.
    """
    target = environment_file(recipe, environment)
    facts = _read_report(report)
    candidate = _verified_candidate(target, facts, report.parent / "bundle", exists or _in_registry)
    decided: list[PromotionDecision] = []

    with open_repository(target.url, target.branch) as repository:

        def change(version: FileVersion) -> FileReplacement | None:
            present = _parse(target, version)
            baking = _baking(target, candidate.identity)
            decision = decide_promotion(present, candidate, baking, now())
            decided.append(decision)
            if decision.action != "commit" or dry_run:
                return None
            return _replacement(target, version, decision, "promote", candidate.identity, facts["run"])

        commit = repository.replace(target.path, change)
    decision = decided[-1]
    if decision.action == "refused":
        raise UsageError(
            f"{target.service} in {environment}: {decision.reason}",
            hint=f"mlkit gitops status {shell_word(recipe)} --environment {environment}",
        )
    action = "promoted" if decision.action == "commit" else "unchanged"
    return _result(target, repository, action, decision, commit, candidate.identity, dry_run)


def settle(
    recipe: Path, environment: str, verdict: Callable[[DesiredCandidate], RolloutVerdict], *, seconds: float,
    dry_run: bool = False, poll: float = 2.0, sleep: Callable[[float], None] = time.sleep,
) -> PromotionResult:  # fmt: skip
    """Commit what became of an environment's candidate; waits up to ``seconds`` while its rollout runs.

    ``verdict`` asks the gateway. The action is settled, unchanged (there is no candidate) or undecided.
    """
    target = environment_file(recipe, environment)
    deadline = time.monotonic() + seconds
    with open_repository(target.url, target.branch) as repository:
        while True:
            present = _parse(target, repository.read(target.path))
            if present.candidate is None:
                decision = PromotionDecision("unchanged", present, "there is no candidate to settle")
                return _result(target, repository, "unchanged", decision, "", "", dry_run)
            candidate = present.candidate
            outcome = verdict(candidate)
            if outcome.outcome in ("promoted", "rolled_back"):
                return _commit_settlement(target, repository, candidate.identity, outcome, dry_run)
            if time.monotonic() >= deadline:
                decision = PromotionDecision("unchanged", present, outcome.reason)
                return _result(target, repository, "undecided", decision, "", candidate.identity, dry_run)
            sleep(min(poll, max(0.0, deadline - time.monotonic())))


def read_environment(recipe: Path, environment: str) -> tuple[EnvironmentFile, DesiredDelivery, str]:
    """An environment's file, what it says, and the commit that it was read from."""
    target = environment_file(recipe, environment)
    with open_repository(target.url, target.branch) as repository:
        version = repository.read(target.path)
    return target, _parse(target, version), version.commit


def _commit_settlement(
    target: EnvironmentFile, repository: GitRepository, identity: str, outcome: RolloutVerdict, dry_run: bool
) -> PromotionResult:
    decided: list[PromotionDecision] = []

    def change(version: FileVersion) -> FileReplacement | None:
        decision = decide_settlement(_parse(target, version), identity, outcome)
        decided.append(decision)
        if decision.action != "commit" or dry_run:
            return None
        return _replacement(target, version, decision, "settle", identity, "")

    commit = repository.replace(target.path, change)
    action = "settled" if decided[-1].action == "commit" else "unchanged"
    return _result(target, repository, action, decided[-1], commit, identity, dry_run)


def _result(
    target: EnvironmentFile, repository: GitRepository, action: str, decision: PromotionDecision, commit: str,
    identity: str, dry_run: bool,
) -> PromotionResult:  # fmt: skip
    return PromotionResult(
        action, target.environment.name, target.service, decision.reason, commit, repository.shown, target.branch,
        target.path, decision.desired, identity, dry_run,
    )  # fmt: skip


def _parse(target: EnvironmentFile, version: FileVersion) -> DesiredDelivery:
    """The file, or that of a service that has none. Raises UsageError for one of another service."""
    if version.content is None:
        return DesiredDelivery(target.service)
    desired = parse_delivery(version.content, target.path)
    if desired.service != target.service:
        raise UsageError(
            f"{target.path} is of the service {desired.service}, not {target.service}",
            hint=f"set environments.{target.environment.name}.path in the recipe's delivery section",
        )
    return desired


def _replacement(
    target: EnvironmentFile, version: FileVersion, decision: PromotionDecision, verb: str, identity: str, run: str
) -> FileReplacement:
    desired = decision.desired
    if version.content is None:
        text = desired.to_yaml()
    else:
        text = edit_delivery(version.content.decode(), desired, target.path)
    trailers = [f"Mlkit-Identity: {identity}", *([f"Mlkit-Run: {run}"] if run else [])]
    subject = f"{target.service}: {verb} {identity[:12]} in {target.environment.name}"
    return FileReplacement(text.encode(), "\n".join([subject, "", decision.reason, "", *trailers, ""]))


def _read_report(path: Path) -> dict[str, Any]:
    """The facts of report.json. Raises the error of its verdict unless it is a success."""
    hint = "mlkit ci judge RECIPE --out DIR writes it"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    try:
        if len(content) > MAX_REPORT_BYTES:
            raise ValueError(f"more than {MAX_REPORT_BYTES:,} bytes")
        value = parse_json(content)
        code, identity, run = value["exit_code"], value["identity"], value.get("run", "")
        if not (type(code) is int and isinstance(identity, str) and isinstance(run, str)) or "\n" in run:
            raise TypeError("exit_code, identity or run is of another type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no report: {error}", hint=hint) from error
    if code == 1:
        raise GateFailedError(f"{path}: a gate FAILED: nothing is promoted", hint="mlkit ci judge RECIPE")
    if code == 4:
        raise GateInconclusiveError(
            f"{path}: a gate is INCONCLUSIVE: nothing is promoted", hint="mlkit ci judge RECIPE"
        )
    if code != 0:
        raise UsageError(f"{path}: the judgement ended with exit code {code}: nothing is promoted", hint=hint)
    return {"identity": identity, "run": run[:200]}


def _verified_candidate(
    target: EnvironmentFile, facts: dict[str, Any], folder: Path, exists: Callable[[str], bool]
) -> DesiredCandidate:
    """The bundle beside the report, verified. Raises BundleError or UsageError."""
    from mlflowkit.bundle import open_bundle
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference

    bundle = open_bundle(folder, blessed=True)
    identity, blessing = bundle.manifest.identity, bundle.blessing
    assert blessing is not None
    if identity != facts["identity"]:
        raise BundleError(
            f"{folder} is {identity[:12]}, and the report judged {str(facts['identity'])[:12]}",
            hint=f"mlkit ci judge {shell_word(target.recipe)} --out {shell_word(folder.parent)}",
        )
    if blessing.policy != target.policy:
        raise BundleError(
            f"{folder} was blessed under other gates ({blessing.policy[:12]}) than the recipe's ({target.policy[:12]})",
            hint=f"mlkit ci judge {shell_word(target.recipe)} --out {shell_word(folder.parent)}",
        )
    reference = bundle_reference(folder, f"{target.plan.registry}-bundle")
    if not exists(reference):
        report = shell_word(folder.parent / "report.json")
        hint = f"mlkit image build {shell_word(target.recipe)} --push --from {report}"
        raise UsageError(f"the registry has no {reference}", hint=hint)
    return DesiredCandidate(reference, identity, blessing.checksum, _rollout(target.plan))


def _in_registry(reference: str) -> bool:
    from mlflowkit.delivery.image.registry_client import RegistryClient
    from mlflowkit.delivery.image.registry_reference import parse_reference

    source = parse_reference(reference, pinned=True)
    with RegistryClient(source) as client:
        return client.has_manifest(source.digest)


def _rollout(plan: DeliveryPlan) -> dict[str, Any]:
    """The recipe's rollout settings that are no defaults."""
    from mlflowkit.rollout.settings import Rollout

    settings = Rollout.model_validate(plan.recipe.rollout or {})
    value: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=True)
    return value


def _baking(target: EnvironmentFile, identity: str) -> BakingFact | None:
    """Since when the environment before has served a version, by its file's history in git."""
    from mlflowkit.monitoring.monitor_settings import seconds_of

    settings = target.environment.settings
    if settings.after is None:
        return None
    before = environment_file(target.recipe, settings.after)
    versions: list[tuple[float, DesiredDelivery | None]] = []
    with open_repository(before.url, before.branch) as repository:
        if repository.fetch() is not None:
            for item in repository.history(before.path):
                try:
                    desired = _parse(before, FileVersion(item.commit, item.content))
                except MlkitError:
                    desired = None
                versions.append((item.time, desired))
    seconds = seconds_of(settings.baking) if settings.baking else 0.0
    return BakingFact(before.environment.name, champion_since(versions, identity), seconds)


def own_remote(folder: Path) -> str:
    """The remote ``origin`` of the recipe's repository."""
    import subprocess

    command = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if process.returncode != 0 or not process.stdout.strip():
        raise UsageError(
            f"the git repository of {folder} has no remote origin, and the environment names no repo",
            hint="git remote add origin URL, or set environments.ENVIRONMENT.repo in the recipe's delivery section",
        )
    return process.stdout.strip()


def state_verdict(state: Path, service: str, candidate: DesiredCandidate) -> RolloutVerdict:
    """What the records of a state folder say of a candidate."""
    from mlflowkit.rollout import state as states
    from mlflowkit.service_state import version_history
    from mlflowkit.service_state.records import ServiceFiles

    files = next((item for item in ServiceFiles.all(state) if item.service == service), None)
    if files is None:
        raise ServiceError(f"no service {service} in {state}", hint="mlkit status, or --state DIR")
    identity, table, saved = candidate.identity, files.table(), states.read(files)
    rollout = saved.state if saved is not None and saved.state.candidate.digest == identity else None
    rejected = version_history.rejections(files).get(identity)
    if rollout is not None and not rollout.ended:
        return RolloutVerdict("running", f"its rollout is {rollout.phase}, step {rollout.step + 1}")
    if table is not None and table.champion.digest == identity:
        return RolloutVerdict("promoted", "the gateway serves it as champion", _iso(None))
    if rejected is not None:
        incident = f"{rejected.reason} ({rejected.ending}, experiment {rejected.experiment})"
        return RolloutVerdict("rolled_back", incident, _iso(rejected.time))
    if rollout is not None:
        return RolloutVerdict("rolled_back", f"{rollout.reason or rollout.phase}", _iso(rollout.finished))
    return RolloutVerdict("unknown", "the gateway has not taken it up")


def _iso(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
