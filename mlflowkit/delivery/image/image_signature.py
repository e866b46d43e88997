"""Signatures of images with a key (ECDSA): cosign's format for the image, DSSE for statements about it.

The key is the identity: verification takes the one public key that must have signed. Signatures by other keys are
listed by the fingerprints that they claim, and count for nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.delivery.image.attestations import STATEMENT_TYPE, document_bytes
from mlflowkit.delivery.image.registry_reference import RegistryReference
from mlflowkit.errors import UsageError
from mlflowkit.system.files import create_private_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_KEY = "dev.cosignproject.cosign/signature"
"""The annotation that holds a signature, as cosign has it."""
FINGERPRINT_KEY = "dev.mlflowkit.key"
"""The annotation that says whose signature it is: a claim."""
KEY_VARIABLE = "MLKIT_SIGNING_KEY_PEM"
"""Environment variable with a private key itself, as CI systems hand secrets to a job."""
MAX_KEY_BYTES = 1 << 16
KEY_HINT = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem makes such a key"


@contextmanager
def signing_key(path: Path | None, environment: Mapping[str, str]) -> Iterator[Path | None]:
    """The file of the private key: the one that is given, or that of the key in MLKIT_SIGNING_KEY_PEM, which is
    removed in the end; None without any."""
    text = environment.get(KEY_VARIABLE, "")
    if path is not None or not text.strip():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlkit-key-") as folder:
        file = Path(folder) / KEY_VARIABLE
        create_private_file(file, text.strip().encode() + b"\n")
        yield file


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file without a password. Raises UsageError; no byte of it is in a message."""
    from_pem, curves = _library()
    try:
        key: Any = from_pem.load_pem_private_key(_content(path), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no private key in PEM without a password", hint=KEY_HINT) from error
    if not isinstance(key, curves.EllipticCurvePrivateKey):
        raise UsageError(f"{path} is a private key of another kind than EC", hint=KEY_HINT)
    checked: ec.EllipticCurvePrivateKey = key
    return checked


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The public key in a PEM file. Raises UsageError."""
    from_pem, curves = _library()
    hint = "openssl ec -in signing.pem -pubout -out signing.pub writes it"
    try:
        key: Any = from_pem.load_pem_public_key(_content(path))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no public key in PEM", hint=hint) from error
    if not isinstance(key, curves.EllipticCurvePublicKey):
        raise UsageError(f"{path} is a public key of another kind than EC", hint=hint)
    checked: ec.EllipticCurvePublicKey = key
    return checked


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """The name of a key: ``SHA256:`` and the digest of its DER form."""
    from cryptography.hazmat.primitives import serialization

    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return f"SHA256:{hashlib.sha256(key.public_bytes(serialization.Encoding.DER, info)).hexdigest()}"


def image_payload(image: RegistryReference) -> bytes:
    """What is signed of an image: its repository and digest (simple signing)."""
    critical = {
        "identity": {"docker-reference": image.name},
        "image": {"docker-manifest-digest": image.digest},
        "type": "cosign container image signature",
    }
    return document_bytes({"critical": critical, "optional": None})


def payload_digest(payload: Mapping[str, Any]) -> str:
    """The digest of the image that a payload is about; "" for another payload."""
    try:
        critical = payload["critical"]
        return str(critical["image"]["docker-manifest-digest"]) if "signature" in critical["type"] else ""
    except (KeyError, TypeError):
        return ""


def sign_bytes(content: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """The signature of bytes, in base64."""
    return base64.b64encode(key.sign(content, _algorithm())).decode()


def is_signed(content: bytes, signature: str, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the owner of the key signed these bytes."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), content, _algorithm())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def sign_statement(statement: bytes, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """A statement in a signed envelope (DSSE)."""
    signature = {"keyid": fingerprint(key.public_key()), "sig": sign_bytes(_encoding(statement), key)}
    payload = base64.b64encode(statement).decode()
    return {"payloadType": STATEMENT_TYPE, "payload": payload, "signatures": [signature]}


def open_envelope(envelope: Mapping[str, Any], key: ec.EllipticCurvePublicKey) -> dict[str, Any] | None:
    """The statement in an envelope that the key's owner signed; None for any other."""
    try:
        statement = base64.b64decode(envelope["payload"], validate=True)
        signatures = [str(item["sig"]) for item in envelope["signatures"]]
        if envelope["payloadType"] != STATEMENT_TYPE:
            return None
        if not any(is_signed(_encoding(statement), signature, key) for signature in signatures):
            return None
        document = json.loads(statement)
    except (KeyError, TypeError, binascii.Error, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _encoding(statement: bytes) -> bytes:
    """What is signed of a statement (DSSE's pre-authentication encoding)."""
    kind = STATEMENT_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(statement), statement)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}", hint=KEY_HINT) from error


def _algorithm() -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(hashes.SHA256())


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        hint = "pip install 'mlflowkit[sign]'"
        raise UsageError("signatures need cryptography, which is not installed", hint=hint) from error
    return serialization, ec
