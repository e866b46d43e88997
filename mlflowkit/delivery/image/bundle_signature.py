"""Signatures of bundles by `model-signing` (the OpenSSF's format), with a key: of every file and its digest.

Verification takes the one public key that must have signed: there is no way to accept just anybody's signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflowkit.bundle import open_bundle
from mlflowkit.errors import BundleError, UsageError


def sign_bundle(folder: Path, signature: Path, private_key: Path) -> None:
    """Write the signature of a verified bundle to a file beside it. Raises BundleError, UsageError."""
    open_bundle(folder)
    if signature.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            "a signature within the bundle would alter it", hint="mlkit image sign BUNDLE --signature FILE"
        )
    _check_key(private_key)
    try:
        _library("signing").Config().use_elliptic_key_signer(private_key=private_key).sign(folder, signature)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(f"{private_key} does not sign: {error}", hint=_KEY_HINT) from error


def verify_bundle(folder: Path, signature: Path, public_key: Path) -> None:
    """Verify that the key's owner signed exactly these files. Raises BundleError unless so."""
    open_bundle(folder)
    _check_key(public_key)
    if not signature.is_file():
        raise BundleError(f"there is no signature {signature}", hint="mlkit image sign BUNDLE --key KEY")
    verifier = _library("verifying").Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.verify(folder, signature)
    except Exception as error:  # whatever the library raises, the signature does not hold
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"{signature} is no signature of {folder} by the key {public_key}: {reason[0]}"
        raise BundleError(message, hint="fetch the bundle again: mlkit image pull REFERENCE FOLDER") from error


_KEY_HINT = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem makes such a key"


def _check_key(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"there is no key {path}", hint=_KEY_HINT)


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        hint = "pip install 'mlflowkit[sign]'"
        raise UsageError("signatures need model-signing, which is not installed", hint=hint) from error
