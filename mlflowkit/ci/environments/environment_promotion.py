"""`mlkit gitops promote`: a judged bundle becomes the candidate of an environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
from mlflowkit.ci.environments.promoted_images import OverlayImages, built_images, overlay_images
from mlflowkit.ci.judge_report import JudgeReport, read_report
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
from mlflowkit.delivery.image.image_attachments import verify_image
from mlflowkit.delivery.image.image_record import ImageRecord
from mlflowkit.errors import BundleError, GateFailedError, GateInconclusiveError, MlkitError, UsageError
from mlflowkit.system.text import shell_word, truncate


def promote(
    recipe: Path, environment: str, report: Path, *, dry_run: bool = False, now: Callable[[], float] = time.time,
    exists: Callable[[str], bool] | None = None, verify: Callable[[str, Path], object] | None = None,
) -> PromotionResult:  # fmt: skip
    """Make the judged bundle the candidate of an environment.

    Verified are the report's verdict, the bundle, its blessing under the recipe's present gates, that the registry has
    it (``exists``), that the owner of ``policy.key`` signed it and its images (``verify``), and then, on each try, what
    the environment's file and that of ``after`` say. The digests of the images that were pushed with it
    (``image.json`` beside the report) go into the overlay with the same commit.
    Raises GateFailedError, GateInconclusiveError, UsageError, BundleError, ServiceError or ConflictError.
    """
    target = environment_file(recipe, environment)
    judged = _judged(report)
    candidate = _verified_candidate(target, judged, report.parent / "bundle", exists or _in_registry)
    record = built_images(target, report, candidate.identity)
    _check_signatures(target, candidate, record, verify or verify_image)
    decided: list[tuple[PromotionDecision, OverlayImages]] = []

    with open_repository(target.url, target.branch) as repository:

        def change(version: FileVersion) -> FileReplacement | None:
            present = parse_environment(target, version)
            baking = _baking(target, candidate.identity)
            decision = decide_promotion(present, candidate, baking, now())
            images = overlay_images(target, repository, version, record)
            decided.append((decision, images))
            if dry_run or decision.action == "refused" or (decision.action == "unchanged" and not images.files):
                return None
            replacement = file_replacement(target, version, decision, "promote", candidate.identity, judged.run)
            content = replacement.content if decision.action == "commit" else None
            return replace(replacement, content=content, more=images.files)

        commit = repository.replace(target.path, change)
    decision, images = decided[-1]
    if decision.action == "refused":
        raise UsageError(
            f"{target.service} in {environment}: {decision.reason}",
            hint=f"mlkit gitops status {shell_word(recipe)} --environment {environment}",
        )
    action = "promoted" if decision.action == "commit" or images.files else "unchanged"
    result = environment_result(target, repository, action, decision, commit, candidate.identity, dry_run)
    return replace(result, images=dict(images.changed), warning=images.warning)


def _judged(path: Path) -> JudgeReport:
    """The report. Raises the error of its verdict unless that is a success, and UsageError for a file that is none."""
    report = read_report(path)
    if report.exit_code == 1:
        raise GateFailedError(f"{path}: a gate FAILED: nothing is promoted", hint="mlkit ci judge RECIPE")
    if report.exit_code == 4:
        message = f"{path}: a gate is INCONCLUSIVE: nothing is promoted"
        raise GateInconclusiveError(message, hint="mlkit ci judge RECIPE")
    if report.exit_code != 0 or not report.identity:
        code = report.exit_code
        raise UsageError(
            f"{path}: the judgement ended with exit code {code} and without a bundle: nothing is promoted"
            if code == 0
            else f"{path}: the judgement ended with exit code {code}: nothing is promoted",
            hint="mlkit ci judge RECIPE --out DIR writes it",
        )
    if report.git_dirty:
        files = ", ".join(report.git_changes[:5]) or "files of the recipe"
        message = f"{path}: judged with changes that no commit holds ({truncate(files, 300)}): nothing is promoted"
        raise UsageError(message, hint="git status; commit them, and judge the commit")
    return report


def _verified_candidate(
    target: EnvironmentFile, judged: JudgeReport, folder: Path, exists: Callable[[str], bool]
) -> DesiredCandidate:
    """The bundle beside the report, verified. Raises BundleError or UsageError."""
    from mlflowkit.bundle import open_bundle
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference

    bundle = open_bundle(folder, blessed=True)
    identity, blessing = bundle.manifest.identity, bundle.blessing
    assert blessing is not None
    if identity != judged.identity:
        raise BundleError(
            f"{folder} is {identity[:12]}, and the report judged {judged.identity[:12]}",
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


def _check_signatures(
    target: EnvironmentFile, candidate: DesiredCandidate, record: ImageRecord | None,
    verify: Callable[[str, Path], object],
) -> None:  # fmt: skip
    """Raise BundleError where the recipe names a key whose owner did not sign the bundle or an image."""
    name = target.plan.policy.key
    if name is None:
        return
    key = repository_root(target.recipe.resolve().parent) / name
    images = [] if record is None else [image.reference for image in record.images.values()]
    for reference in (candidate.bundle, *images):
        verify(reference, key)


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
                    desired = parse_environment(before, FileVersion(item.commit, item.content))
                except MlkitError:
                    desired = None
                versions.append((item.time, desired))
    seconds = seconds_of(settings.baking) if settings.baking else 0.0
    return BakingFact(before.environment.name, champion_since(versions, identity), seconds)
