"""What is attached to an image in its registry: manifests with the image as their ``subject`` (OCI 1.1).

The image itself stays as it is, and is no index. Where a registry keeps no list of referrers, the specification's
fallback is used: an index under the tag ``sha256-DIGEST``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflowkit.delivery.image.registry_client import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    BlobDescriptor,
    RegistryClient,
    descriptor_of,
    digest_of,
)
from mlflowkit.errors import BundleError, ServiceError

EMPTY, EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
MAX_REFERRERS = 500
TRIES = 8


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to an image: its digest, the descriptor of its one document, and that one's notes."""

    digest: str
    document: BlobDescriptor
    annotations: Mapping[str, str]


def attach_document(
    client: RegistryClient,
    subject: BlobDescriptor,
    artifact_type: str,
    content: bytes,
    kind: str,
    annotations: Mapping[str, str] | None = None,
) -> str:
    """Attach a document to an image; returns the digest of its manifest. Attaching it again changes nothing.

    Raises ServiceError when the registry does not store it, or other writers win the tag of the fallback every time.
    """
    layer = {**BlobDescriptor(kind, digest_of(content), len(content)).to_json()}
    if annotations:
        layer["annotations"] = dict(annotations)
    manifest = _canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": BlobDescriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY)).to_json(),
            "layers": [layer],
            "subject": subject.to_json(),
        }
    )
    client.push_blob(EMPTY, digest_of(EMPTY))
    client.push_blob(content, digest_of(content))
    digest, listed = client.push_referring_manifest(manifest)
    if not listed:
        entry = {**BlobDescriptor(MANIFEST_TYPE, digest, len(manifest)).to_json(), "artifactType": artifact_type}
        _add_to_index(client, subject.digest, entry)
    return digest


def referrers_of(client: RegistryClient, digest: str, artifact_type: str) -> list[Referrer]:
    """What of one type is attached to an image. Each manifest names the image as its subject.

    Raises ServiceError, and BundleError for more than MAX_REFERRERS or what is not as the specification says.
    """
    entries = client.list_referrers(digest)
    if entries is None:
        entries = _index(client, digest)
    if len(entries) > MAX_REFERRERS:
        hint = f"skopeo inspect docker://{client.repository.at(digest)}"
        raise BundleError(f"{len(entries)} manifests refer to {digest}; at most {MAX_REFERRERS} are read", hint=hint)
    matching = [entry for entry in entries if isinstance(entry, dict) and entry.get("artifactType") == artifact_type]
    read = [_referrer(client, descriptor_of(entry, client.repository.name).digest, digest) for entry in matching]
    return [referrer for referrer in read if referrer is not None]


def _referrer(client: RegistryClient, digest: str, subject: str) -> Referrer | None:
    """A referrer with one document; None where its manifest names another subject, whatever the list says."""
    manifest = client.pull_manifest(digest)
    named, layers = manifest.get("subject"), manifest.get("layers")
    if (
        not isinstance(named, dict)
        or named.get("digest") != subject
        or not isinstance(layers, list)
        or len(layers) != 1
    ):
        return None
    annotations = layers[0].get("annotations") if isinstance(layers[0], dict) else None
    texts = {key: value for key, value in (annotations or {}).items() if isinstance(value, str)}
    return Referrer(digest, descriptor_of(layers[0], client.repository.name), texts)


def fallback_tag(digest: str) -> str:
    """The tag of the index of referrers, where the registry keeps no list.

    >>> fallback_tag("sha256:ab")
    'sha256-ab'
    """
    return digest.replace(":", "-")


def _index(client: RegistryClient, digest: str) -> list[Any]:
    tag = fallback_tag(digest)
    if not client.has_manifest(tag):
        return []
    entries = client.pull_manifest(tag, INDEX_TYPE).get("manifests")
    return entries if isinstance(entries, list) else []


def _add_to_index(client: RegistryClient, subject: str, entry: Mapping[str, Any]) -> None:
    """Add an entry to the index under the tag. There is no compare-and-swap: what is written is read back, and written
    again where another writer has replaced it."""
    for _ in range(TRIES):
        entries = _index(client, subject)
        if any(isinstance(item, dict) and item.get("digest") == entry["digest"] for item in entries):
            return
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*entries, dict(entry)]}
        client.push_manifest(_canonical(index), fallback_tag(subject), INDEX_TYPE)
    message = f"{client.repository.name} does not keep what is attached to {subject}"
    raise ServiceError(message, hint=f"skopeo inspect docker://{client.repository.name}:{fallback_tag(subject)}")


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
