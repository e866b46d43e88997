"""Builds and pushes images with buildah or Docker, as command lines: equal inputs give an equal digest.

Buildah's OCI format with every time set to 0 is the same to the byte on every build; Docker's BuildKit rewrites the
times when it pushes. Neither attaches an attestation: that would make an index, which some platforms refuse.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflowkit.delivery.image.registry_credentials import credentials_document, given_credentials
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.files import private_opener

BUILD_SECONDS = 3600.0
BuilderName = Literal["buildah", "docker"]
BUILDERS: tuple[BuilderName, ...] = ("buildah", "docker")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """An image to build from a Dockerfile's text. ``context`` is the folder that files are copied from."""

    reference: str
    dockerfile: str
    ignored: str
    context: Path


def builder_name(name: str) -> BuilderName:
    """A builder's name. Raises UsageError for another one."""
    for each in BUILDERS:
        if each == name:
            return each
    raise UsageError(f"builder {name!r} is not known", hint="mlkit image build RECIPE --builder buildah")


def find_builder(name: BuilderName | None = None) -> BuilderName:
    """The builder on PATH, buildah first. Raises UsageError where there is none."""
    names = BUILDERS if name is None else (name,)
    for each in names:
        if shutil.which(each) is not None:
            return each
    raise UsageError(f"{' or '.join(names)} is not installed", hint="apt-get install buildah")


def build_commands(build: ImageBuild, builder: BuilderName, folder: Path, *, push: bool) -> tuple[tuple[str, ...], ...]:
    """The command lines of a build; ``folder`` has the Dockerfile, and gets the digest.

    >>> build = ImageBuild("ghcr.io/acme/a", "", "", Path("/src"))
    >>> build_commands(build, "buildah", Path("/b"), push=False)[0][:6]
    ('buildah', 'build', '--format', 'oci', '--no-cache', '--timestamp')
    """
    file, ignored = str(folder / "Dockerfile"), str(folder / "Dockerfile.dockerignore")
    if builder == "docker":
        kind = f"type=image,name={build.reference},oci-mediatypes=true,rewrite-timestamp=true,push={str(push).lower()}"
        command = (
            "docker", "buildx", "build", "--no-cache", "--provenance=false", "--sbom=false",
            "--build-arg", "SOURCE_DATE_EPOCH=0", "--output", kind, "--metadata-file", str(folder / "metadata.json"),
            "--file", file, str(build.context),
        )  # fmt: skip
        return (command,)
    commands: list[tuple[str, ...]] = [
        ("buildah", "build", "--format", "oci", "--no-cache", "--timestamp", "0", "--ignorefile", ignored,
         "--iidfile", str(folder / "image-id"), "--tag", build.reference, "--file", file, str(build.context)),
    ]  # fmt: skip
    if push:
        plain = ("--tls-verify=false",) if build.reference.startswith(("127.0.0.1", "localhost")) else ()
        digest_file = str(folder / "digest")
        commands.append(("buildah", "push", *plain, "--format", "oci", "--digestfile", digest_file, build.reference,
                         f"docker://{build.reference}"))  # fmt: skip
    return tuple(commands)


def build_image(
    build: ImageBuild, builder: BuilderName, *, push: bool, environment: Mapping[str, str] | None = None
) -> str:
    """Build an image; returns ``reference@digest`` once pushed, and the image's id otherwise. Raises ServiceError."""
    with tempfile.TemporaryDirectory(prefix="mlkit-image-") as temporary:
        folder = Path(temporary)
        (folder / "Dockerfile").write_text(build.dockerfile, encoding="utf-8")
        (folder / "Dockerfile.dockerignore").write_text(build.ignored, encoding="utf-8")
        given = os.environ if environment is None else environment
        pushing = _push_environment(build.reference.partition("/")[0], folder, given) if push else given
        *before, last = build_commands(build, builder, folder, push=push)
        for command in before:
            _run(command, given)
        _run(last, pushing)
        digest = _digest(folder, push=push)
    return f"{build.reference}@{digest}" if push else digest


def _push_environment(host: str, folder: Path, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of what pushes: with the credentials of ``MLKIT_REGISTRY_TOKEN``, which builders do not read, in
    a private file for buildah and a variable for Docker. Others stay where the builder finds them."""
    credentials = given_credentials(host, environment)
    if credentials is None:
        return environment
    text, file = credentials_document(host, credentials), folder / "auth.json"
    with open(file, "x", encoding="utf-8", opener=private_opener) as stream:
        stream.write(text)
    return {**environment, "REGISTRY_AUTH_FILE": str(file), "DOCKER_AUTH_CONFIG": text}


def _digest(folder: Path, *, push: bool) -> str:
    metadata = folder / "metadata.json"
    if metadata.exists():
        document = json.loads(metadata.read_text())
        text = str(document.get("containerimage.digest" if push else "containerimage.config.digest", ""))
    else:
        text = (folder / ("digest" if push else "image-id")).read_text().strip()
    if not _DIGEST.fullmatch(text):
        raise ServiceError(f"the builder gave no digest but {text[:80]!r}", hint="mlkit image build RECIPE --dry-run")
    return text


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a builder with its output on standard error. Raises ServiceError."""
    hint = "mlkit image build RECIPE --dry-run shows what is built; the builder's own words are above"
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, timeout=BUILD_SECONDS, env=environment,
                                 check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{command[0]} did not end within {BUILD_SECONDS:g} s", hint=hint) from error
    except OSError as error:
        raise ServiceError(f"{command[0]} cannot be run: {error.strerror}", hint=hint) from error
    if process.returncode != 0:
        raise ServiceError(f"{command[0]} {command[1]} failed with exit code {process.returncode}", hint=hint)
