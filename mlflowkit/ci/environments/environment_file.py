"""The file in git that says which version of a service an environment wants: where it is, and what commits to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflowkit.ci.recipe_export import load_delivery
from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.gitops.desired_delivery import DesiredDelivery, edit_delivery, parse_delivery
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, GitRepository, open_repository
from mlflowkit.delivery.gitops.promotion_decision import PromotionDecision
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.system.git.git_command import ask_git

FILE = "delivery.yaml"


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
    images: Mapping[str, str] = field(default_factory=dict)
    """Digests of images that the overlay got, by repository."""
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "action": self.action, "environment": self.environment, "service": self.service, "reason": self.reason,
            "identity": self.identity, "commit": self.commit, "repository": self.repository, "branch": self.branch,
            "path": self.path, "desired": None if self.desired is None else self.desired.to_json(),
            "dry_run": self.dry_run, "images": dict(self.images), "warning": self.warning,
        }  # fmt: skip


def environment_file(recipe: Path, environment: str) -> EnvironmentFile:
    """The file of an environment of a recipe. Raises UsageError for an unknown environment."""
    from mlflowkit.recipe.schema import policy_digest

    loaded, plan = load_delivery(recipe)
    environments = {item.name: item for item in plan.environments}
    if environment not in environments:
        close = closest_match(environment, environments)
        suggestion = f"--environment {close}" if close else "add it to environments in the recipe's delivery section"
        raise UsageError(f"no environment {environment!r} in {recipe}; there is {', '.join(environments) or 'none'}",
                         hint=suggestion)  # fmt: skip
    url = environments[environment].settings.repo or own_remote(loaded.folder)
    return EnvironmentFile(recipe, plan, environments[environment], url, policy_digest(loaded.recipe))


def read_environment(recipe: Path, environment: str) -> tuple[EnvironmentFile, DesiredDelivery, str]:
    """An environment's file, what it says, and the commit that it was read from."""
    target = environment_file(recipe, environment)
    with open_repository(target.url, target.branch) as repository:
        version = repository.read(target.path)
    return target, parse_environment(target, version), version.commit


def own_remote(folder: Path) -> str:
    """The remote ``origin`` of the recipe's repository. Raises UsageError where there is none."""
    url = find_remote(folder)
    if not url:
        raise UsageError(
            f"the git repository of {folder} has no remote origin, and the environment names no repo",
            hint="git remote add origin URL, or set environments.ENVIRONMENT.repo in the recipe's delivery section",
        )
    return url


def find_remote(folder: Path) -> str:
    """The remote ``origin`` of the repository around a folder, "" where there is none.

    Raises UsageError where git does not read the repository.
    """
    answer = ask_git(folder, "remote", "get-url", "origin")
    if answer.problem and "No such remote" not in answer.problem:
        raise UsageError(f"the remote of {folder} is not known: {answer.problem}", hint=answer.hint)
    return answer.text.strip()


def environment_result(
    target: EnvironmentFile, repository: GitRepository, action: str, decision: PromotionDecision, commit: str,
    identity: str, dry_run: bool,
) -> PromotionResult:  # fmt: skip
    return PromotionResult(
        action, target.environment.name, target.service, decision.reason, commit, repository.shown, target.branch,
        target.path, decision.desired, identity, dry_run,
    )  # fmt: skip


def parse_environment(target: EnvironmentFile, version: FileVersion) -> DesiredDelivery:
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


def file_replacement(
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
