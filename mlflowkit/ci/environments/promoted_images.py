"""The images of a promotion: what was built with the judged bundle, and the line of the overlay that names each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.ci.environments.environment_file import EnvironmentFile
from mlflowkit.delivery.gitops.git_repository import FileVersion, GitRepository
from mlflowkit.delivery.image.image_record import FILE as RECORD
from mlflowkit.delivery.image.image_record import ImageRecord, read_image_record
from mlflowkit.delivery.manifests.image_digests import FILE, NOT_BUILT, image_digests, with_digests
from mlflowkit.errors import BundleError
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class OverlayImages:
    """What an overlay's images become: files by path, the digests that changed, and what is to be known of them."""

    files: Mapping[str, bytes]
    changed: Mapping[str, str]
    warning: str = ""


def built_images(target: EnvironmentFile, report: Path, identity: str) -> ImageRecord | None:
    """The record of the images that were pushed with a bundle; None where no image was built beside the report.

    Raises BundleError for the record of another bundle or recipe, UsageError for one that cannot be read.
    """
    path = report.parent / RECORD
    if not path.exists():
        return None
    record = read_image_record(path)
    other = "" if record.bundle is None else record.bundle.identity
    if other != identity:
        report_word = shell_word(report)
        raise BundleError(
            f"{path} was pushed with the bundle {other[:12] or 'of no report'}, and the report judged {identity[:12]}",
            hint=f"mlkit image build {shell_word(target.recipe)} --push --from {report_word}",
        )
    return record


def overlay_images(
    target: EnvironmentFile, repository: GitRepository, version: FileVersion, pushed: Mapping[str, str]
) -> OverlayImages:
    """Write the digests of images (``pushed``, by repository) into the overlay's component; nothing where it has none.

    Only the lines of digests change. Raises UsageError for a component that is not laid out as it is generated.
    """
    text = _component(target, repository, version.commit)
    if text is None:
        return OverlayImages({}, {})
    path = f"{target.environment.path}/{FILE}"
    before = image_digests(text)
    changed = {name: digest for name, digest in pushed.items() if name in before and before[name] != digest}
    missing = [name for name, digest in {**before, **changed}.items() if digest == NOT_BUILT]
    warning = f"{path} has no digest of {', '.join(missing)} yet: no pod can start from it" if missing else ""
    files = {path: with_digests(text, changed).encode()} if changed else {}
    return OverlayImages(files, changed, warning)


def recorded_digests(record: ImageRecord | None) -> dict[str, str]:
    """The digests of pushed images by repository."""
    images = () if record is None else record.images.values()
    return {image.reference.partition("@")[0]: image.digest for image in images}


def overlay_digests(target: EnvironmentFile, repository: GitRepository, commit: str) -> dict[str, str]:
    """The digests of the images that an environment's overlay named at a commit, by repository."""
    text = _component(target, repository, commit)
    digests = {} if text is None else image_digests(text)
    return {name: digest for name, digest in digests.items() if digest != NOT_BUILT}


def _component(target: EnvironmentFile, repository: GitRepository, commit: str) -> str | None:
    content = repository.at(commit, f"{target.environment.path}/{FILE}").content if commit else None
    return None if content is None else content.decode(errors="replace")
