"""A bundle as an artifact of a registry, apart from the image that serves it: a new model is a new artifact only.

The artifact is an image of one uncompressed layer that holds ``bundle/``, so that Kubernetes mounts it as an image
volume and every registry stores it. Equal bundles are equal artifacts: entries are sorted; owners and times are zero.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflowkit.bundle import Manifest, open_bundle
from mlflowkit.delivery.image.registry_client import (
    MANIFEST_TYPE,
    BlobDescriptor,
    RegistryClient,
    digest_of,
)
from mlflowkit.delivery.image.registry_reference import parse_reference
from mlflowkit.errors import BundleError, UsageError
from mlflowkit.system.digests import digest_file
from mlflowkit.system.files import disk_errors, make_folder, private_opener

if TYPE_CHECKING:
    import httpx

ARTIFACT_TYPE = "application/vnd.mlflowkit.bundle.v1"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
ROOT = "bundle"
OCI_SCHEME = "oci://"
MAX_BUNDLE_BYTES = 16 << 30
MAX_FILES = 10_000


def push_bundle(folder: Path, repository: str, *, transport: httpx.BaseTransport | None = None) -> str:
    """Store a bundle in a repository; returns its reference, ``repository@sha256:digest``.

    What the registry has already is not sent again. Raises BundleError for a folder that is no bundle, UsageError for
    refused credentials, ServiceError when the registry fails.
    """
    target = parse_reference(repository)
    with _layer_file(folder) as layer:
        config, manifest = _documents(folder, layer)
        with RegistryClient(target, transport=transport) as client:
            digest = digest_of(manifest)
            if not client.has_manifest(digest):
                client.push_blob(layer, _file_digest(layer))
                client.push_blob(config, digest_of(config))
                client.push_manifest(manifest)
    return str(target.at(digest))


def bundle_reference(folder: Path, repository: str) -> str:
    """The reference that `push_bundle` would return; nothing is sent."""
    with _layer_file(folder) as layer:
        return str(parse_reference(repository).at(digest_of(_documents(folder, layer)[1])))


def pull_bundle(
    reference: str, folder: Path, *, blessed: bool = False, transport: httpx.BaseTransport | None = None
) -> Path:
    """Fetch a bundle into a new folder, which appears whole or not at all; returns the folder.

    A folder with this very bundle is left as it is. Raises UsageError for a reference without a digest, and BundleError
    for content that has another digest, is too large, is anything but a bundle of regular files, or is not blessed
    where ``blessed`` is required.
    """
    source = parse_reference(reference, pinned=True)
    if folder.exists():
        if bundle_reference(folder, source.name) == str(source.at(source.digest)):
            return folder
        raise UsageError(f"{folder} exists and holds another bundle than {reference}", hint="name a new folder")
    make_folder(folder.parent)
    staging = make_folder(folder.parent / f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with RegistryClient(source, transport=transport) as client:
            layer = _checked_layer(client.pull_manifest(source.digest), reference)
            client.pull_blob(layer, staging / "layer.tar")
        with disk_errors(staging):
            _unpack(staging / "layer.tar", staging / "unpacked", reference)
            open_bundle(staging / "unpacked" / ROOT, blessed=blessed)
            (staging / "unpacked" / ROOT).rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class OciBundles:
    """The ModelRegistry port for a repository of a registry of artifacts."""

    repository: str
    transport: httpx.BaseTransport | None = None

    def push(self, bundle: Path) -> str:
        """Store a blessed bundle; returns ``oci://repository@sha256:digest``."""
        open_bundle(bundle, blessed=True)
        return OCI_SCHEME + push_bundle(bundle, self.repository, transport=self.transport)

    def pull(self, reference: str, folder: Path) -> Path:
        """Fetch a blessed bundle of any repository by its digest."""
        return pull_bundle(reference.removeprefix(OCI_SCHEME), folder, blessed=True, transport=self.transport)


@contextmanager
def _layer_file(folder: Path) -> Iterator[Path]:
    """A temporary file with the layer of a verified bundle."""
    import tempfile

    files = _bundle_files(folder)
    with tempfile.TemporaryDirectory(prefix="mlkit-layer-") as temporary:
        layer = Path(temporary) / "layer.tar"
        with disk_errors(layer), open(layer, "xb", opener=private_opener) as stream:
            _write_layer(folder, files, stream)
        yield layer


def _bundle_files(folder: Path) -> list[str]:
    """Names of a bundle's files and folders, sorted. Raises BundleError unless it verifies and is within bounds."""
    bundle = open_bundle(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    size = sum((folder / name).stat().st_size for name in bundle.manifest.files if bundle.has(name))
    if len(names) > MAX_FILES or size > MAX_BUNDLE_BYTES:
        message = (
            f"{folder} has {len(names)} entries of {size} bytes; at most {MAX_FILES} of {MAX_BUNDLE_BYTES} are pushed"
        )
        raise BundleError(message, hint="a bundle of this size is served from a folder: mlkit serve --bundle FOLDER")
    return names


def _write_layer(folder: Path, names: list[str], stream: Any) -> None:
    """Write a tar archive that depends on names and contents only; everybody may read what it holds."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(_entry(ROOT, None))
        for name in names:
            path = folder / name
            if path.is_dir():
                archive.addfile(_entry(f"{ROOT}/{name}", None))
                continue
            with path.open("rb") as content:
                archive.addfile(_entry(f"{ROOT}/{name}", os.fstat(content.fileno()).st_size), content)


def _entry(name: str, size: int | None) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if size is None else 0o644
    entry.type = tarfile.DIRTYPE if size is None else tarfile.REGTYPE
    entry.size = size or 0
    return entry


def _documents(folder: Path, layer: Path) -> tuple[bytes, bytes]:
    """The artifact's configuration and manifest."""
    from mlflowkit.bundle import read_manifest

    bundle = read_manifest(folder)
    digest = _file_digest(layer)
    config = _canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mlkit"}],
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": BlobDescriptor(CONFIG_TYPE, digest_of(config), len(config)).to_json(),
        "layers": [BlobDescriptor(LAYER_TYPE, digest, layer.stat().st_size).to_json()],
        "annotations": _annotations(bundle),
    }
    return config, _canonical(manifest)


def _annotations(bundle: Manifest) -> dict[str, str]:
    values = {
        "org.opencontainers.image.title": bundle.name,
        "org.opencontainers.image.version": bundle.version,
        "org.opencontainers.image.revision": bundle.git_commit,
        "io.mlflowkit.identity": bundle.identity,
        "io.mlflowkit.evidence": bundle.evidence,
        "io.mlflowkit.git-tree": bundle.git_tree,
        "io.mlflowkit.data-version": bundle.data_version,
        "io.mlflowkit.data-source": bundle.data_source,
        "io.mlflowkit.data-commit": bundle.data_commit,
    }
    return {name: value for name, value in values.items() if value}


def _checked_layer(manifest: dict[str, Any], reference: str) -> BlobDescriptor:
    """The one layer of an artifact's manifest. Raises BundleError when it is no bundle or too large."""
    layers = manifest.get("layers")
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else None
    if manifest.get("artifactType") != ARTIFACT_TYPE or not isinstance(layer, dict):
        kind = str(manifest.get("artifactType") or manifest.get("mediaType"))[:100]
        raise BundleError(
            f"{reference} is no bundle but {kind}", hint="mlkit image push BUNDLE REPOSITORY pushes a bundle"
        )
    digest, size, layer_type = layer.get("digest"), layer.get("size"), layer.get("mediaType")
    whole = isinstance(digest, str) and len(digest) == 71 and digest.startswith("sha256:")
    if layer_type != LAYER_TYPE or not whole or type(size) is not int or not 0 < size <= MAX_BUNDLE_BYTES + (64 << 20):
        message = f"{reference}: a layer of type {str(layer_type)[:100]} and {str(size)[:30]} bytes is not read"
        raise BundleError(message, hint=f"a bundle has one layer {LAYER_TYPE} of at most {MAX_BUNDLE_BYTES} bytes")
    return BlobDescriptor(LAYER_TYPE, str(digest), size)


def _unpack(layer: Path, target: Path, reference: str) -> None:
    """Unpack regular files and folders below ``bundle/``. Raises BundleError for anything else; owners are ignored."""

    def refuse(name: str, problem: str) -> BundleError:
        return BundleError(
            f"{reference}: {name[:120]!r} {problem}", hint="mlkit image push BUNDLE REPOSITORY pushes it again"
        )

    make_folder(target)
    count = 0
    try:
        with tarfile.open(layer, mode="r:") as archive:
            for entry in archive:
                count += 1
                parts = PurePosixPath(entry.name).parts
                if count > MAX_FILES or ".." in parts or not parts or parts[0] != ROOT or "\\" in entry.name:
                    raise refuse(entry.name, "is not below bundle/, or one file too many")
                path = target.joinpath(*parts)
                if entry.isdir():
                    make_folder(path)
                    continue
                content = archive.extractfile(entry) if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
                if content is None or entry.issparse():
                    raise refuse(entry.name, "is no regular file")
                make_folder(path.parent)
                with content, open(path, "xb", opener=private_opener) as stream:
                    shutil.copyfileobj(content, stream, 1 << 20)
    except (tarfile.TarError, FileExistsError, NotADirectoryError) as error:
        raise refuse(layer.name, f"cannot be unpacked: {error}") from error
    if not stat.S_ISDIR((target / ROOT).lstat().st_mode if (target / ROOT).exists() else 0):
        raise refuse(ROOT, "is missing")


def _file_digest(path: Path) -> str:
    return f"sha256:{digest_file(path)}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
