"""`mlkit gitops promote`: a judged bundle becomes the candidate of an environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlflowkit.ci.environments.environment_file import EnvironmentFile, PromotionResult, environment_file
from mlflowkit.ci.environments.promoted_images import built_images, recorded_digests
from mlflowkit.ci.environments.promotion_commit import (
    VerifiedPromotion,
    check_signatures,
    commit_promotion,
    verified_candidate,
)
from mlflowkit.ci.judge_report import JudgeReport, read_report
from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate
from mlflowkit.delivery.image.image_attachments import verify_image
from mlflowkit.errors import BundleError, GateFailedError, GateInconclusiveError, UsageError
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
    Raises GateFailedError, GateInconclusiveError (also for a version that still bakes), UsageError, BundleError,
    ServiceError or ConflictError.
    """
    target = environment_file(recipe, environment)
    judged = _judged(report)
    candidate = _verified_candidate(target, judged, report.parent / "bundle", exists or _in_registry)
    images = recorded_digests(built_images(target, report, candidate.identity))
    promotion = VerifiedPromotion(candidate, images, judged.run)
    check_signatures(target, promotion, verify or verify_image)
    return commit_promotion(target, promotion, now, dry_run=dry_run)


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

    repair = f"mlkit ci judge {shell_word(target.recipe)} --out {shell_word(folder.parent)}"
    identity = open_bundle(folder, blessed=True).manifest.identity
    if identity != judged.identity:
        message = f"{folder} is {identity[:12]}, and the report judged {judged.identity[:12]}"
        raise BundleError(message, hint=repair)
    candidate = verified_candidate(target, folder, identity, repair)
    if not exists(candidate.bundle):
        report = shell_word(folder.parent / "report.json")
        hint = f"mlkit image build {shell_word(target.recipe)} --push --from {report}"
        raise UsageError(f"the registry has no {candidate.bundle}", hint=hint)
    return candidate


def _in_registry(reference: str) -> bool:
    from mlflowkit.delivery.image.registry_client import RegistryClient
    from mlflowkit.delivery.image.registry_reference import parse_reference

    source = parse_reference(reference, pinned=True)
    with RegistryClient(source) as client:
        return client.has_manifest(source.digest)
