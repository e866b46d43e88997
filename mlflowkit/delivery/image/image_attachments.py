"""What `mlkit image build` and `sign` attach to an image in its registry, and what `verify` asks of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.delivery.image.attestations import (
    PROVENANCE,
    SBOM_TYPE,
    STATEMENT_TYPE,
    ImageBuilderIdentity,
    document_bytes,
    provenance,
    software_bill,
)
from mlflowkit.delivery.image.image_contents import installed_packages
from mlflowkit.delivery.image.image_record import PushedImage
from mlflowkit.delivery.image.image_signature import (
    ENVELOPE_TYPE,
    FINGERPRINT_KEY,
    PAYLOAD_TYPE,
    SIGNATURE_KEY,
    SIGNATURE_TYPE,
    fingerprint,
    image_payload,
    is_signed,
    open_envelope,
    payload_digest,
    private_key,
    public_key,
    sign_bytes,
    sign_statement,
)
from mlflowkit.delivery.image.referrers import Referrer, attach_document, fallback_tag, referrers_of
from mlflowkit.delivery.image.registry_client import BlobDescriptor, RegistryClient
from mlflowkit.delivery.image.registry_reference import RegistryReference, parse_reference
from mlflowkit.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, slots=True)
class AttachedDocuments:
    """Digests of the manifests that are attached to an image; "" for what is not."""

    sbom: str = ""
    provenance: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class ImageVerification:
    """What the owner of a key vouches for. ``identity`` is the builder's, from the signed provenance; "" without."""

    reference: str
    key: str
    identity: str = ""
    revision: str = ""
    base: str = ""
    sbom: str = ""
    packages: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def attach_attestations(
    image: PushedImage,
    *,
    recipe: str,
    role: str,
    dockerfile: str,
    builder: ImageBuilderIdentity,
    version: str,
    key: Path | None = None,
) -> AttachedDocuments:
    """Attach the list of packages and the provenance to an image, signed where there is a key.

    Raises ServiceError, BundleError for an image that cannot be read, UsageError for a file that is no key.
    """
    private = None if key is None else private_key(key)
    reference = parse_reference(image.reference, pinned=True)
    with RegistryClient(reference) as client:
        subject, manifest = client.describe_image(reference.digest)
        packages = installed_packages(client, manifest)
        bill = document_bytes(software_bill(image, packages))
        sbom = attach_document(client, subject, SBOM_TYPE, bill, SBOM_TYPE)
        document = client.pull_manifest(sbom)["layers"][0]["digest"]
        statement = document_bytes(
            provenance(
                image, recipe=recipe, role=role, dockerfile=dockerfile, sbom=document, builder=builder, version=version
            )
        )
        if private is None:
            stated = attach_document(client, subject, STATEMENT_TYPE, statement, STATEMENT_TYPE, _PREDICATE)
            return AttachedDocuments(sbom, stated)
        stated = _attach_envelope(client, subject, statement, private)
        return AttachedDocuments(sbom, stated, _attach_signature(client, subject, reference, private))


def sign_image(reference: str, key: Path) -> AttachedDocuments:
    """Sign an image or a bundle in a registry, and the provenance that is attached to it without a signature.

    Raises UsageError for a reference without a digest and for a file that is no key, ServiceError, BundleError.
    """
    private, image = private_key(key), parse_reference(reference, pinned=True)
    with RegistryClient(image) as client:
        subject, _ = client.describe_image(image.digest)
        stated = ""
        for referrer in referrers_of(client, image.digest, STATEMENT_TYPE):
            statement = document_bytes(client.pull_document(referrer.document))
            stated = _attach_envelope(client, subject, statement, private)
        return AttachedDocuments("", stated, _attach_signature(client, subject, image, private))


def verify_image(reference: str, key: Path, identity: str | None = None) -> ImageVerification:
    """Verify that the owner of this key signed this image or bundle, and with ``identity`` that this builder built it.

    Raises BundleError unless so, with the keys and builders that there are instead; UsageError for a reference without
    a digest, ServiceError.
    """
    public, image = public_key(key), parse_reference(reference, pinned=True)
    with RegistryClient(image) as client:
        client.describe_image(image.digest)
        _check_signature(client, image, public, key)
        statements = _statements(client, image, public)
        builders = sorted({_builder(statement) for statement in statements})
        if identity is not None and identity not in builders:
            by = "by nobody who is named in a signed provenance" if not builders else f"by {', '.join(builders)[:500]}"
            message = f"{image} was built {by}, not by {identity}"
            raise BundleError(message, hint=f"mlkit image verify {image} --key {key} says who built it")
        chosen = [item for item in statements if identity in (None, _builder(item))]
        return _verification(client, image, public, chosen[-1] if chosen else None)


_PREDICATE = {"in-toto.io/predicate-type": PROVENANCE}


def _attach_envelope(
    client: RegistryClient, subject: BlobDescriptor, statement: bytes, key: ec.EllipticCurvePrivateKey
) -> str:
    """Attach a signed statement unless that very one is there; a signature is never the same twice."""
    public = key.public_key()
    for referrer in referrers_of(client, subject.digest, ENVELOPE_TYPE):
        stated = open_envelope(_document(client, referrer)[1], public)
        if stated is not None and document_bytes(stated) == statement:
            return referrer.digest
    content = document_bytes(sign_statement(statement, key))
    annotations = {**_PREDICATE, FINGERPRINT_KEY: fingerprint(public)}
    return attach_document(client, subject, ENVELOPE_TYPE, content, ENVELOPE_TYPE, annotations)


def _attach_signature(
    client: RegistryClient, subject: BlobDescriptor, image: RegistryReference, key: ec.EllipticCurvePrivateKey
) -> str:
    """Attach a signature unless the key's is there. It gets cosign's own tag too, which older readers look for."""
    public = key.public_key()
    for referrer in referrers_of(client, image.digest, SIGNATURE_TYPE):
        if _holds(client, referrer, image, public):
            return referrer.digest
    payload = image_payload(image)
    annotations = {SIGNATURE_KEY: sign_bytes(payload, key), FINGERPRINT_KEY: fingerprint(public)}
    digest = attach_document(client, subject, SIGNATURE_TYPE, payload, PAYLOAD_TYPE, annotations)
    tag = f"{fallback_tag(image.digest)}.sig"
    if not client.has_manifest(tag):
        client.push_manifest(client.manifest_bytes(digest), tag)
    return digest


def _document(client: RegistryClient, referrer: Referrer) -> tuple[bytes, dict[str, Any]]:
    """An attached document; empty where it cannot be read: whoever may push can attach anything, which is no fault of
    what else is attached."""
    try:
        return client.pull_small(referrer.document)
    except BundleError:
        return b"", {}


def _holds(
    client: RegistryClient, referrer: Referrer, image: RegistryReference, key: ec.EllipticCurvePublicKey
) -> bool:
    """Whether a referrer is the key owner's signature of this very image."""
    signature = referrer.annotations.get(SIGNATURE_KEY, "")
    if referrer.document.type != PAYLOAD_TYPE or not signature:
        return False
    content, payload = _document(client, referrer)
    return payload_digest(payload) == image.digest and is_signed(content, signature, key)


def _check_signature(
    client: RegistryClient, image: RegistryReference, public: ec.EllipticCurvePublicKey, key: Path
) -> None:
    """Raise BundleError unless the key's owner signed the image."""
    signatures = referrers_of(client, image.digest, SIGNATURE_TYPE)
    if any(_holds(client, referrer, image, public) for referrer in signatures):
        return
    others = sorted({referrer.annotations.get(FINGERPRINT_KEY, "a key without a name") for referrer in signatures})
    by = f"by {', '.join(others)[:500]}, as it says" if others else "by nobody"
    message = f"{image} is signed {by}, and not by {fingerprint(public)} ({key})"
    raise BundleError(message, hint=f"mlkit image sign {image} --key PRIVATE signs it, with the right to push")


def _statements(
    client: RegistryClient, image: RegistryReference, key: ec.EllipticCurvePublicKey
) -> list[Mapping[str, Any]]:
    """The provenances of this very image that the key's owner signed."""
    statements: list[Mapping[str, Any]] = []
    for referrer in referrers_of(client, image.digest, ENVELOPE_TYPE):
        statement = open_envelope(_document(client, referrer)[1], key)
        if statement is not None and _is_provenance_of(statement, image.digest):
            statements.append(statement)
    return statements


def _is_provenance_of(statement: Mapping[str, Any], digest: str) -> bool:
    try:
        subjects = [f"sha256:{item['digest']['sha256']}" for item in statement["subject"]]
        named = isinstance(statement["predicate"]["runDetails"]["builder"]["id"], str)
    except (KeyError, TypeError):
        return False
    return named and statement.get("predicateType") == PROVENANCE and digest in subjects


def _builder(statement: Mapping[str, Any]) -> str:
    return str(statement["predicate"]["runDetails"]["builder"]["id"])


def _verification(
    client: RegistryClient,
    image: RegistryReference,
    public: ec.EllipticCurvePublicKey,
    statement: Mapping[str, Any] | None,
) -> ImageVerification:
    """What the signed statement says; the list of packages is the one that it names. Raises BundleError."""
    if statement is None:
        return ImageVerification(str(image), fingerprint(public))
    try:
        predicate = statement["predicate"]
        sources = {item["name"]: item for item in predicate["buildDefinition"]["resolvedDependencies"]}
        revision = str(sources["source"]["digest"]["gitCommit"]) if "source" in sources else ""
        base = f"{sources['base']['uri'].removeprefix('oci://')}@sha256:{sources['base']['digest']['sha256']}"
        items = predicate["runDetails"]["byproducts"]
        bills = {f"sha256:{item['digest']['sha256']}" for item in items if item["name"] == "sbom"}
    except (KeyError, TypeError, AttributeError) as error:
        message = f"the signed provenance of {image} does not say what it was built from"
        raise BundleError(message, hint=f"skopeo inspect docker://{image}") from error
    sbom, packages = _packages(client, image, bills)
    return ImageVerification(str(image), fingerprint(public), _builder(statement), revision, base, sbom, packages)


def _packages(client: RegistryClient, image: RegistryReference, bills: Collection[str]) -> tuple[str, int]:
    """The attached list of packages that a provenance names, and how many it has. Raises BundleError without it."""
    for referrer in referrers_of(client, image.digest, SBOM_TYPE):
        if referrer.document.digest in bills:
            return referrer.digest, len(_document(client, referrer)[1].get("components", ()))
    message = f"the list of packages of {image} that its provenance names is gone"
    raise BundleError(message, hint="build and push the image again: mlkit image build RECIPE --push")
