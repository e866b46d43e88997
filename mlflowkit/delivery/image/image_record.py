"""``image.json``: what the step ``image`` pushed, for the steps after it and for whoever asks what is deployed."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflowkit.delivery.image.registry_client import RegistryClient
from mlflowkit.delivery.image.registry_reference import RegistryReference, parse_reference
from mlflowkit.errors import BundleError, UsageError
from mlflowkit.system.files import disk_errors, make_folder, replace_file
from mlflowkit.system.text import shell_word

FILE = "image.json"
FORMAT = 1
MAX_RECORD_BYTES = 1 << 20
_PINNED = r"^[^@\s]+@sha256:[0-9a-f]{64}$"


class _Record(BaseModel):
    """Keys are added, never renamed: an unknown one is of a later release."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PushedImage(_Record):
    """An image in a registry."""

    reference: str = Field(pattern=_PINNED)
    """repository@sha256:digest."""
    platform: str
    """Operating system and architecture, such as linux/amd64."""
    base: str
    """The image that it is built from, by digest."""
    revision: str
    """The git commit of the checkout that it was built in."""
    dirty: bool
    """Whether the checkout had uncommitted changes."""
    lock: str
    """SHA-256 of the file of packages that it was installed from."""
    sbom: str = ""
    """Digest of the manifest that attaches the list of its packages; "" where there is none, as of the next two."""
    provenance: str = ""
    signature: str = ""

    @property
    def digest(self) -> str:
        return self.reference.partition("@")[2]


class PushedBundle(_Record):
    """A bundle in a registry."""

    reference: str = Field(pattern=_PINNED)
    """repository@sha256:digest."""
    identity: str
    """The bundle's identity: what its version computes."""
    version: str

    @property
    def digest(self) -> str:
        return self.reference.partition("@")[2]


class ImageRecord(_Record):
    """What was pushed together."""

    format: int = FORMAT
    recipe: str
    images: dict[str, PushedImage]
    """By role: train, serve, monitor."""
    bundle: PushedBundle | None = None

    def to_json(self) -> dict[str, object]:
        """The record, with each digest as a key of its own."""
        value: dict[str, object] = self.model_dump(mode="json")
        images = {
            role: {**image.model_dump(mode="json"), "digest": image.digest} for role, image in self.images.items()
        }
        bundle = None if self.bundle is None else {**self.bundle.model_dump(mode="json"), "digest": self.bundle.digest}
        return {**value, "images": images, "bundle": bundle}


def write_image_record(record: ImageRecord, folder: Path) -> Path:
    """Write ``image.json`` into a folder; returns its path. Raises StoreError."""
    path = folder / FILE
    with disk_errors(path):
        make_folder(folder)
        replace_file(path, (json.dumps(record.to_json(), indent=2, sort_keys=True) + "\n").encode())
    return path


def read_image_record(path: Path) -> ImageRecord:
    """Read ``image.json``. Raises UsageError where it is absent, or is none."""
    hint = "mlkit image build RECIPE --push --from REPORT writes it"
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    try:
        if len(content) > MAX_RECORD_BYTES:
            raise ValueError
        record = ImageRecord.model_validate_json(content)
    except (ValidationError, ValueError) as error:
        raise UsageError(f"{path} is no record of pushed images", hint=f"rm {shell_word(path)}, and {hint}") from error
    if record.format != FORMAT:
        message = f"{path} has format {record.format}; this release reads {FORMAT}"
        raise UsageError(message, hint="use the release that wrote it")
    return record


def image_platform(client: RegistryClient, image: RegistryReference) -> str:
    """Operating system and architecture of a pushed image, from its configuration. Raises BundleError."""
    config = client.pull_config(client.describe_image(image.digest)[1])
    names = [config.get(key) for key in ("os", "architecture", "variant")]
    if not all(isinstance(name, str) for name in names[:2]):
        raise BundleError(f"{image} does not say its platform", hint=f"skopeo inspect docker://{image}")
    return "/".join(str(name) for name in names if name)


def pushed_image(reference: str, *, base: str, revision: str, dirty: bool, lock: str) -> PushedImage:
    """The record of an image that the registry has. Raises ServiceError, BundleError."""
    image = parse_reference(reference, pinned=True)
    with RegistryClient(image) as client:
        platform = image_platform(client, image)
    return PushedImage(reference=reference, platform=platform, base=base, revision=revision, dirty=dirty, lock=lock)
