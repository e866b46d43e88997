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
    target: EnvironmentFile, repository: GitRepository, version: FileVersion, record: ImageRecord | None
) -> OverlayImages:
    """Write the digests of the built images into the overlay's component; nothing where it has none.

    Only the lines of digests change. Raises UsageError for a component that is not laid out as it is generated.
    """
    path = f"{target.environment.path}/{FILE}"
    component = None if not version.commit else repository.at(version.commit, path).content
    if component is None:
        return OverlayImages({}, {})
    text = component.decode(errors="replace")
    before = image_digests(text)
    pushed = {} if record is None else dict(_by_repository(record))
    changed = {name: digest for name, digest in pushed.items() if name in before and before[name] != digest}
    missing = [name for name, digest in {**before, **changed}.items() if digest == NOT_BUILT]
    warning = f"{path} has no digest of {', '.join(missing)} yet: no pod can start from it" if missing else ""
    files = {path: with_digests(text, changed).encode()} if changed else {}
    return OverlayImages(files, changed, warning)


def _by_repository(record: ImageRecord) -> list[tuple[str, str]]:
    return [(image.reference.partition("@")[0], image.digest) for image in record.images.values()]
