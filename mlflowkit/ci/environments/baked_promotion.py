"""`mlkit gitops promote --baked`: the champion of one environment becomes the candidate of the next.

It asks for no report of a run: what has baked was judged and promoted before. So it can be asked at any time and by
anything that keeps a schedule, and answers the same until something changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflowkit.ci.environments.environment_file import (
    EnvironmentFile,
    PromotionResult,
    environment_file,
    environment_result,
    parse_environment,
)
from mlflowkit.ci.environments.promoted_images import overlay_digests
from mlflowkit.ci.environments.promotion_commit import (
    VerifiedPromotion,
    check_signatures,
    commit_promotion,
    parsed_version,
    verified_candidate,
)
from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, DesiredChampion
from mlflowkit.delivery.gitops.git_repository import FileCommit, FileVersion, GitRepository, open_repository
from mlflowkit.delivery.gitops.promotion_decision import BakingFact, PromotionDecision, decide_promotion
from mlflowkit.delivery.image.bundle_artifact import pull_bundle
from mlflowkit.delivery.image.image_attachments import verify_image
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word


def promote_baked(
    recipe: Path, environment: str, *, dry_run: bool = False, now: Callable[[], float] = time.time,
    pull: Callable[[str, Path], Path] = pull_bundle, verify: Callable[[str, Path], object] = verify_image,
) -> PromotionResult:  # fmt: skip
    """Make the champion of the environment before the candidate of this one, once it has baked there.

    The action is ``promoted``, ``waiting`` while it bakes, or ``unchanged``: nothing is served there, it is served here
    already, or it was rejected here. The bundle is fetched (``pull``) and verified as that of a report is.
    Raises UsageError for an environment that comes after none, BundleError, ServiceError or ConflictError.
    """
    target = environment_file(recipe, environment)
    after = target.environment.settings.after
    if after is None:
        hint = f"mlkit gitops promote {shell_word(recipe)} --environment {environment} --from REPORT"
        raise UsageError(f"{environment} comes after no environment in which a version could bake", hint=hint)
    before = environment_file(recipe, after)
    champion, since, images = _served_before(before)
    decision, repository = _first_look(target, after, champion, since, now())
    if champion is None or decision.action != "commit":
        action = "waiting" if decision.action == "waiting" else "unchanged"
        identity = "" if champion is None else champion.identity
        return environment_result(target, repository, action, decision, "", identity, dry_run)
    with TemporaryDirectory(prefix="mlkit-baked-") as folder:
        bundle = pull(champion.bundle, Path(folder, "bundle"))
        repair = f"mlkit ci judge {shell_word(recipe)} --out DIR, for a version under the gates of now"
        candidate = verified_candidate(target, bundle, champion.identity, repair)
    promotion = VerifiedPromotion(replace(candidate, bundle=champion.bundle), images)
    check_signatures(target, promotion, verify)
    return commit_promotion(target, promotion, now, dry_run=dry_run)


def _served_before(before: EnvironmentFile) -> tuple[DesiredChampion | None, float | None, dict[str, str]]:
    """The champion of the environment before, since when it is that, and the images that its overlay named then."""
    with open_repository(before.url, before.branch) as repository:
        champion = parse_environment(before, repository.read(before.path)).champion
        if champion is None:
            return None, None, {}
        history = repository.history(before.path)
        first: FileCommit | None = None
        for item in history:
            desired = parsed_version(before, FileVersion(item.commit, item.content))
            if desired is None or desired.champion is None or desired.champion.identity != champion.identity:
                break
            first = item
        if first is None:
            return champion, None, {}
        return champion, first.time, overlay_digests(before, repository, first.commit)


def _first_look(
    target: EnvironmentFile, after: str, champion: DesiredChampion | None, since: float | None, now: float
) -> tuple[PromotionDecision, GitRepository]:
    """Whether there is anything to fetch; the decision is made anew when it is committed."""
    with open_repository(target.url, target.branch) as repository:
        present = parse_environment(target, repository.read(target.path))
    if champion is None:
        return PromotionDecision("unchanged", present, f"{after} serves no version yet"), repository
    candidate = DesiredCandidate(champion.bundle, champion.identity, champion.blessing)
    baking = BakingFact(after, since, float(target.plan.baking_seconds(target.environment.name)))
    return decide_promotion(present, candidate, baking, now), repository
