"""What is installed in an image: read from its layers in the registry, without running anything of it."""

from __future__ import annotations

import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

from mlflowkit.delivery.image.registry_client import BlobDescriptor, RegistryClient, descriptor_of
from mlflowkit.errors import BundleError
from mlflowkit.system.files import disk_errors

ENVIRONMENT = "opt/venv"
"""The Python environment of generated images."""
MAX_LAYER_BYTES = 32 << 30
MAX_METADATA_BYTES = 4 << 20
_METADATA = re.compile(r"/lib/python3\.\d+/site-packages/(?:[^/]+\.dist-info/METADATA|[^/]+\.egg-info/PKG-INFO)")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True, slots=True, order=True)
class InstalledPackage:
    """A Python distribution, as its metadata names it; ``license`` is an SPDX expression, "" where it says none."""

    name: str
    version: str
    license: str = ""


def installed_packages(
    client: RegistryClient, manifest: Mapping[str, Any], environment: str = ENVIRONMENT
) -> tuple[InstalledPackage, ...]:
    """The distributions of a Python environment of an image, sorted: what ``pip freeze --all`` says in it.

    The layers are applied in their order, deletions included. Raises BundleError for a layer that cannot be read.
    """
    files: dict[str, InstalledPackage] = {}
    with tempfile.TemporaryDirectory(prefix="mlkit-layers-") as temporary:
        for number, value in enumerate(manifest["layers"]):
            layer, path = descriptor_of(value, client.repository.name), Path(temporary) / str(number)
            if layer.size > MAX_LAYER_BYTES:
                hint = f"skopeo inspect docker://{client.repository.name}"
                raise BundleError(f"layer {layer.digest} has {layer.size} bytes; at most {MAX_LAYER_BYTES}", hint=hint)
            with disk_errors(path):
                client.pull_blob(layer, path)
            try:
                _apply(files, path, environment)
            except (tarfile.TarError, OSError, EOFError, zlib.error, UnicodeError) as error:
                raise _unreadable(client, layer, error) from error
            path.unlink()
    return tuple(sorted(set(files.values())))


def _apply(files: dict[str, InstalledPackage], path: Path, environment: str) -> None:
    """Apply a layer's archive: what it deletes of the layers below, then what it adds."""
    added: dict[str, InstalledPackage] = {}
    with tarfile.open(path, mode="r:*") as archive:
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            folder, _, last = name.rpartition("/")
            if last == _OPAQUE:
                _delete(files, folder)
            elif last.startswith(_WHITEOUT):
                _delete(files, f"{folder}/{last.removeprefix(_WHITEOUT)}".strip("/"))
            elif not member.isdir():
                _delete(files, name)  # a file in the place of a folder
                if (
                    (member.isreg() or member.islnk())
                    and name.startswith(f"{environment}/")
                    and _METADATA.fullmatch(name[len(environment) :])
                ):
                    added |= dict(_package(archive, member, name))
    files |= added


def _delete(files: dict[str, InstalledPackage], name: str) -> None:
    for path in [path for path in files if path == name or not name or path.startswith(f"{name}/")]:
        del files[path]


def _package(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Iterator[tuple[str, InstalledPackage]]:
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read(MAX_METADATA_BYTES)
    headers = BytesHeaderParser().parsebytes(content)
    if headers["Name"] and headers["Version"]:
        license = str(headers["License-Expression"] or "")
        yield name, InstalledPackage(str(headers["Name"]), str(headers["Version"]), license)


def _unreadable(client: RegistryClient, layer: BlobDescriptor, error: Exception) -> BundleError:
    message = f"layer {layer.digest} ({layer.type}) of {client.repository.name} cannot be read: {error}"
    return BundleError(message, hint="build it with gzip layers, as buildah and Docker do by default")
