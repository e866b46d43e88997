"""What is read out of an image and what is attached to it, where a registry or its users would deceive."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.delivery.image import image_attachments
from mlflowkit.delivery.image.attestations import PROVENANCE, STATEMENT, document_bytes
from mlflowkit.delivery.image.image_contents import InstalledPackage, installed_packages
from mlflowkit.delivery.image.image_signature import (
    ENVELOPE_TYPE,
    PAYLOAD_TYPE,
    SIGNATURE_KEY,
    SIGNATURE_TYPE,
    image_payload,
    open_envelope,
    private_key,
    public_key,
    sign_bytes,
    sign_statement,
)
from mlflowkit.delivery.image.referrers import attach_document
from mlflowkit.delivery.image.registry_client import BlobDescriptor, RegistryClient, digest_of
from mlflowkit.delivery.image.registry_reference import parse_reference
from mlflowkit.errors import BundleError
from tests.support.image_world import signing_key
from tests.support.registries import FakeRegistry

REPOSITORY = parse_reference("r.example.org/acme/lending")
SITE = "opt/venv/lib/python3.11/site-packages"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def _layer(files: dict[str, str], *, zipped: bool = False) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(stream.getvalue(), mtime=0) if zipped else stream.getvalue()


def _metadata(name: str, version: str) -> dict[str, str]:
    folder = f"{SITE}/{name.lower()}-{version}.dist-info"
    return {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not a header\n"}


def _packages(*layers: bytes) -> tuple[InstalledPackage, ...]:
    registry = FakeRegistry()
    with RegistryClient(REPOSITORY, transport=registry.transport) as client:
        listed = []
        for layer in layers:
            client.push_blob(layer, digest_of(layer))
            listed.append(BlobDescriptor(LAYER, digest_of(layer), len(layer)).to_json())
        return installed_packages(client, {"layers": listed})


def test_a_layer_deletes_of_those_below_and_not_of_itself() -> None:
    first = _layer({**_metadata("A", "1"), **_metadata("B", "1"), **_metadata("C", "1")}, zipped=True)
    second = _layer({f"./{SITE}/.wh.a-1.dist-info": "", **{f"./{k}": v for k, v in _metadata("A", "2").items()}})
    assert _packages(first) == tuple(InstalledPackage(name, "1") for name in "ABC")
    assert _packages(first, second) == (InstalledPackage("A", "2"), *(InstalledPackage(name, "1") for name in "BC"))
    opaque = _layer({f"{SITE}/.wh..wh..opq": "", **_metadata("D", "1")})
    assert _packages(first, second, opaque) == (InstalledPackage("D", "1"),)
    assert _packages(first, _layer({"opt/.wh.venv": ""})) == ()
    assert _packages(first, _layer({SITE: "a file in its place"})) == ()


def test_what_lies_elsewhere_is_not_installed() -> None:
    elsewhere = {path.replace("opt/venv", "usr/local"): text for path, text in _metadata("A", "1").items()}
    nested = {f"{SITE}/vendored/x-1.dist-info/METADATA": "Name: x\nVersion: 1\n"}
    nameless = {f"{SITE}/y-1.dist-info/METADATA": "Version: 1\n"}
    assert _packages(_layer({**elsewhere, **nested, **nameless})) == ()


@pytest.mark.parametrize(
    "content",
    [b"\x28\xb5\x2f\xfd zstd", b"", _layer(_metadata("A", "1"), zipped=True)[:90]],
    ids=["zstd", "empty", "cut"],
)
def test_a_layer_that_cannot_be_read_is_refused_whole(content: bytes) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        _packages(_layer(_metadata("A", "1")), content)


class _Signed:
    """An image in a fake registry, with the keys of its owner and of somebody who may push too."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = FakeRegistry()
        self.client = partial(RegistryClient, transport=registry.transport)
        monkeypatch.setattr(image_attachments, "RegistryClient", self.client)
        image = json.dumps({"config": {}, "layers": []}).encode()
        with self.client(REPOSITORY) as client:
            client.push_manifest(image)
            self.image = REPOSITORY.at(digest_of(image))
            self.subject, _ = client.describe_image(self.image.digest)
        (self.private, self.public), (self.others, _) = signing_key(folder, "ours"), signing_key(folder, "others")

    def attach(self, artifact: str, content: bytes, kind: str, **annotations: str) -> None:
        notes = {SIGNATURE_KEY: annotations["signature"]} if annotations else None
        with self.client(REPOSITORY) as client:
            attach_document(client, self.subject, artifact, content, kind, notes)

    def statement(self, builder: str, digest: str = "") -> bytes:
        subject = [{"name": "x", "digest": {"sha256": (digest or self.image.digest).removeprefix("sha256:")}}]
        predicate: dict[str, Any] = {
            "buildDefinition": {"resolvedDependencies": []},
            "runDetails": {"builder": {"id": builder}, "byproducts": []},
        }  # fmt: skip
        statement = {"_type": STATEMENT, "subject": subject, "predicateType": PROVENANCE, "predicate": predicate}
        return document_bytes(statement)

    def verify(self, identity: str | None = None) -> image_attachments.ImageVerification:
        return image_attachments.verify_image(str(self.image), self.public, identity)


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Signed:
    return _Signed(tmp_path, monkeypatch)


def test_a_signature_of_another_image_or_by_another_key_is_none(signed: _Signed) -> None:
    ours, others = private_key(signed.private), private_key(signed.others)
    elsewhere = image_payload(REPOSITORY.at(f"sha256:{'0' * 64}"))
    own = image_payload(signed.image)
    signed.attach(SIGNATURE_TYPE, elsewhere, PAYLOAD_TYPE, signature=sign_bytes(elsewhere, ours))
    signed.attach(SIGNATURE_TYPE, own, PAYLOAD_TYPE, signature=sign_bytes(own, others))
    signed.attach(SIGNATURE_TYPE, own, "text/plain", signature=sign_bytes(own, ours))
    signed.attach(SIGNATURE_TYPE, b"[]", PAYLOAD_TYPE, signature="AA==")
    with pytest.raises(BundleError, match="is signed by a key without a name, as it says, and not by SHA256:"):
        signed.verify()
    image_attachments.sign_image(str(signed.image), signed.private)
    assert signed.verify().identity == ""


def test_who_may_push_cannot_name_the_builder(signed: _Signed) -> None:
    ours, others = private_key(signed.private), private_key(signed.others)
    image_attachments.sign_image(str(signed.image), signed.private)
    forged = [
        sign_statement(signed.statement("https://trusted"), others),
        sign_statement(signed.statement("https://trusted", f"sha256:{'0' * 64}"), ours),  # of another image
        {**sign_statement(signed.statement("https://other"), ours), "payload": "e30="},
        {"payloadType": 1},
    ]
    for envelope in forged:
        signed.attach(ENVELOPE_TYPE, document_bytes(envelope), ENVELOPE_TYPE)
    with pytest.raises(
        BundleError, match="built by nobody who is named in a signed provenance, not by https://trusted"
    ):
        signed.verify("https://trusted")
    signed.attach(ENVELOPE_TYPE, document_bytes(sign_statement(signed.statement("https://try"), ours)), ENVELOPE_TYPE)
    with pytest.raises(BundleError, match="built by https://try, not by https://trusted"):
        signed.verify("https://trusted")


def test_an_envelope_holds_for_its_type_and_text_only(tmp_path: Path) -> None:
    private, public = signing_key(tmp_path, "key")
    key = public_key(public)
    envelope = sign_statement(b'{"a": 1}', private_key(private))
    assert open_envelope(envelope, key) == {"a": 1}
    for change in (
        {"payload": "eyJhIjogMn0="},
        {"payloadType": "text/plain"},
        {"signatures": []},
        {"signatures": None},
    ):
        assert open_envelope({**envelope, **change}, key) is None
    assert open_envelope({}, key) is None
