"""`mlkit image build`: a recipe's images, built and pushed with the judged bundle, and the record of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflowkit import __version__
from mlflowkit.ci.recipe_export import load_delivery
from mlflowkit.ci.recipe_facts import repository_root
from mlflowkit.delivery.delivery_plan import Image
from mlflowkit.delivery.image.attestations import builder_identity
from mlflowkit.delivery.image.bundle_artifact import bundle_reference, push_bundle
from mlflowkit.delivery.image.image_attachments import attach_attestations, sign_image
from mlflowkit.delivery.image.image_builder import BuilderName, ImageBuild, build_commands, build_image
from mlflowkit.delivery.image.image_record import (
    ImageRecord,
    PushedBundle,
    PushedImage,
    pushed_image,
    write_image_record,
)
from mlflowkit.delivery.image.image_signature import private_key
from mlflowkit.delivery.targets.dockerfile import DockerTarget, dockerfile_path
from mlflowkit.errors import UsageError
from mlflowkit.pipeline.lineage.checkout import Checkout, StatusEntry, read_checkout
from mlflowkit.system.digests import digest_file
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class PlannedImages:
    """What is to be built and pushed: images by role, and the bundle where there is one."""

    recipe: str
    images: Mapping[str, tuple[Image, ImageBuild]]
    bundle: Path | None
    bundle_repository: str


def planned_images(recipe: Path, roles: Sequence[str], report: Path | None) -> PlannedImages:
    """A recipe's images of some roles, with the bundle beside a report. Raises UsageError, RecipeError."""
    loaded, plan = load_delivery(recipe)
    images = {image.role: image for image in plan.images}
    unknown = [role for role in roles if role not in images]
    if unknown:
        raise UsageError(f"there is no image {unknown[0]!r}", hint=f"--role is one of {', '.join(images)}")
    files, root = DockerTarget().render(plan), repository_root(loaded.folder)
    builds: dict[str, tuple[Image, ImageBuild]] = {}
    for role in roles:
        image = next(image for name, image in images.items() if name == role)
        path = dockerfile_path(image)
        builds[role] = image, ImageBuild(image.reference, files[path], files[f"{path}.dockerignore"], root)
    bundle = None if report is None else report.parent / "bundle"
    return PlannedImages(loaded.recipe.name, builds, bundle, f"{plan.registry}-bundle")


def planned_commands(planned: PlannedImages, builder: BuilderName, *, push: bool) -> tuple[list[str], str]:
    """The command lines of a build, and the reference that its bundle would get."""
    lines = [
        " ".join(map(shell_word, command))
        for _, build in planned.images.values()
        for command in build_commands(build, builder, Path("BUILD"), push=push)
    ]
    return lines, "" if planned.bundle is None else bundle_reference(planned.bundle, planned.bundle_repository)


def build_recipe_images(
    planned: PlannedImages,
    builder: BuilderName,
    *,
    push: bool,
    folder: Path | None,
    progress: Callable[[str], None],
    attest: bool = True,
    key: Path | None = None,
) -> dict[str, Any]:
    """Build, and with ``push`` push the images and the bundle; ``image.json`` goes into ``folder``.

    Pushed images get their list of packages and their provenance attached unless ``attest`` is False; with a ``key``
    both are signed, and the bundle.

    Returns ``images`` by role (the reference once pushed, the id otherwise), ``bundle``, and ``record``, the path of
    ``image.json``. Raises ServiceError, BundleError, StoreError.
    """
    value: dict[str, Any] = {"images": {}, "bundle": "", "record": ""}
    if key is not None:
        private_key(key)  # before anything is built
    bundle = _push_bundle(planned) if push else None
    if bundle is not None:
        value["bundle"] = bundle.reference
        progress(f"pushed {bundle.reference}")
        if key is not None:
            sign_image(bundle.reference, key)
    images: dict[str, PushedImage] = {}
    for role, (image, build) in planned.images.items():
        value["images"][role] = build_image(build, builder, push=push)
        if push:
            pushed = _pushed(image, build, value["images"][role], read_checkout(build.context))
            images[role] = _attested(planned, role, build, pushed, key) if attest else pushed
    if push and folder is not None:
        record = ImageRecord(recipe=planned.recipe, images=images, bundle=bundle)
        value["record"] = str(write_image_record(record, folder))
    return value


def _attested(
    planned: PlannedImages, role: str, build: ImageBuild, image: PushedImage, key: Path | None
) -> PushedImage:
    """The record of an image with what was attached to it."""
    attached = attach_attestations(
        image,
        recipe=planned.recipe,
        role=role,
        dockerfile=hashlib.sha256(build.dockerfile.encode()).hexdigest(),
        builder=builder_identity(os.environ),
        version=__version__,
        key=key,
    )
    return image.model_copy(update=asdict(attached))


def _push_bundle(planned: PlannedImages) -> PushedBundle | None:
    from mlflowkit.bundle import read_manifest

    if planned.bundle is None:
        return None
    reference = push_bundle(planned.bundle, planned.bundle_repository)
    manifest = read_manifest(planned.bundle)
    return PushedBundle(reference=reference, identity=manifest.identity, version=manifest.version)


def _pushed(image: Image, build: ImageBuild, reference: str, checkout: Checkout) -> PushedImage:
    lock = digest_file(build.context / image.requirements)
    dirty = any(_goes_in(entry, image) for entry in checkout.entries)
    return pushed_image(reference, base=image.base, revision=checkout.commit, dirty=dirty, lock=lock)


def _goes_in(entry: StatusEntry, image: Image) -> bool:
    """Whether a path that differs from the commit may make another image. Untracked files of the recipe's folder go
    into the train image only, the lock into all."""
    return entry.tracked or image.role == "train" or image.requirements.startswith(entry.path)
