"""The commit of a promotion: what is verified of a bundle, and what the files of the environments say on each try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflowkit.ci.environments.environment_file import (
    EnvironmentFile,
    PromotionResult,
    environment_file,
    environment_result,
    file_replacement,
    parse_environment,
)
from mlflowkit.ci.environments.promoted_images import OverlayImages, overlay_images
from mlflowkit.ci.recipe_facts import repository_root
from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, DesiredDelivery
from mlflowkit.delivery.gitops.git_repository import FileReplacement, FileVersion, open_repository
from mlflowkit.delivery.gitops.promotion_decision import (
    BakingFact,
    PromotionDecision,
    champion_since,
    decide_promotion,
)
from mlflowkit.errors import BundleError, GateInconclusiveError, MlkitError, UsageError
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class VerifiedPromotion:
    """A candidate that was verified, with the digests of its images by repository and the run that it is from."""

    candidate: DesiredCandidate
    images: Mapping[str, str]
    run: str = ""


def verified_candidate(target: EnvironmentFile, folder: Path, identity: str, repair: str) -> DesiredCandidate:
    """The bundle in a folder as a candidate: blessed, of this identity, under the recipe's present gates.

    Raises BundleError, with the command ``repair`` as its hint.
    """
    from mlflowkit.bundle import open_bundle
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference

    bundle = open_bundle(folder, blessed=True)
    blessing = bundle.blessing
    assert blessing is not None
    if bundle.manifest.identity != identity:
        raise BundleError(f"{folder} is {bundle.manifest.identity[:12]}, and not {identity[:12]}", hint=repair)
    if blessing.policy != target.policy:
        raise BundleError(
            f"{folder} was blessed under other gates ({blessing.policy[:12]}) than the recipe's ({target.policy[:12]})",
            hint=repair,
        )
    reference = bundle_reference(folder, f"{target.plan.registry}-bundle")
    return DesiredCandidate(reference, identity, blessing.checksum, _rollout(target.plan))


def check_signatures(
    target: EnvironmentFile, promotion: VerifiedPromotion, verify: Callable[[str, Path], object]
) -> None:
    """Raise BundleError where the recipe names a key whose owner did not sign the bundle or an image."""
    name = target.plan.policy.key
    if name is None:
        return
    key = repository_root(target.recipe.resolve().parent) / name
    for reference in (promotion.candidate.bundle, *(f"{name}@{digest}" for name, digest in promotion.images.items())):
        verify(reference, key)


def commit_promotion(
    target: EnvironmentFile, promotion: VerifiedPromotion, now: Callable[[], float], *, dry_run: bool
) -> PromotionResult:
    """Commit the candidate and the digests of its images, or say why there is nothing to commit.

    Raises GateInconclusiveError for a version that still bakes, UsageError for one that is refused.
    """
    decided: list[tuple[PromotionDecision, OverlayImages]] = []
    candidate = promotion.candidate

    with open_repository(target.url, target.branch) as repository:

        def change(version: FileVersion) -> FileReplacement | None:
            present = parse_environment(target, version)
            decision = decide_promotion(present, candidate, _baking(target, candidate.identity), now())
            images = overlay_images(target, repository, version, promotion.images)
            decided.append((decision, images))
            if dry_run or decision.action in ("refused", "waiting"):
                return None
            if decision.action == "unchanged" and not images.files:
                return None
            replacement = file_replacement(target, version, decision, "promote", candidate.identity, promotion.run)
            content = replacement.content if decision.action == "commit" else None
            return replace(replacement, content=content, more=images.files)

        commit = repository.replace(target.path, change)
    decision, images = decided[-1]
    _raise_refusal(target, decision)
    action = "promoted" if decision.action == "commit" or images.files else "unchanged"
    result = environment_result(target, repository, action, decision, commit, candidate.identity, dry_run)
    return replace(result, images=dict(images.changed), warning=images.warning)


def _raise_refusal(target: EnvironmentFile, decision: PromotionDecision) -> None:
    name = target.environment.name
    message = f"{target.service} in {name}: {decision.reason}"
    if decision.action == "waiting":
        hint = f"mlkit gitops promote {shell_word(target.recipe)} --environment {name} --baked, when that time is over"
        raise GateInconclusiveError(message, hint=hint)
    if decision.action == "refused":
        raise UsageError(message, hint=f"mlkit gitops status {shell_word(target.recipe)} --environment {name}")


def _rollout(plan: DeliveryPlan) -> dict[str, Any]:
    """The recipe's rollout settings that are no defaults."""
    from mlflowkit.rollout.settings import Rollout

    settings = Rollout.model_validate(plan.recipe.rollout or {})
    value: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=True)
    return value


def _baking(target: EnvironmentFile, identity: str) -> BakingFact | None:
    """Since when the environment before has served a version, by its file's history in git."""
    settings = target.environment.settings
    if settings.after is None:
        return None
    before = environment_file(target.recipe, settings.after)
    with open_repository(before.url, before.branch) as repository:
        versions = [] if repository.fetch() is None else [
            (item.time, parsed_version(before, FileVersion(item.commit, item.content)))
            for item in repository.history(before.path)
        ]  # fmt: skip
    seconds = float(target.plan.baking_seconds(target.environment.name))
    return BakingFact(before.environment.name, champion_since(versions, identity), seconds)


def parsed_version(target: EnvironmentFile, version: FileVersion) -> DesiredDelivery | None:
    """What a version of an environment's file says; None for one that cannot be read."""
    try:
        return parse_environment(target, version)
    except MlkitError:
        return None
