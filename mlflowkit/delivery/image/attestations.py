"""What is stated about an image: its packages (CycloneDX) and how it was built (in-toto, SLSA provenance). Pure."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlflowkit.delivery.image.image_contents import InstalledPackage
from mlflowkit.delivery.image.image_record import PushedImage
from mlflowkit.delivery.image.registry_reference import RegistryReference, parse_reference

SBOM_TYPE = "application/vnd.cyclonedx+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/mlflowkit/mlflowkit/image-build/v1"
LOCAL_BUILDER = "urn:mlflowkit:local"
"""Who built an image outside of a pipeline."""
_NAMESPACE = uuid.UUID("6d6c6b69-742d-4973-b62d-73626f6d2d31")


@dataclass(frozen=True, slots=True)
class ImageBuilderIdentity:
    """Who builds: the workflow by its file and ref, which signs for nothing else, and the run."""

    id: str
    run: str = ""


def builder_identity(environment: Mapping[str, str]) -> ImageBuilderIdentity:
    """The workflow that this process is a step of, from the variables of GitHub Actions or GitLab CI.

    >>> builder_identity({}).id
    'urn:mlflowkit:local'
    >>> builder_identity({"CI_CONFIG_REF_URI": "gitlab.com/a/b//.gitlab-ci.yml@refs/heads/main"}).id
    'https://gitlab.com/a/b//.gitlab-ci.yml@refs/heads/main'
    """
    server, workflow = environment.get("GITHUB_SERVER_URL", ""), environment.get("GITHUB_WORKFLOW_REF", "")
    if server and workflow:
        repository, run = environment.get("GITHUB_REPOSITORY", ""), environment.get("GITHUB_RUN_ID", "")
        attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
        return ImageBuilderIdentity(
            f"{server}/{workflow}", f"{server}/{repository}/actions/runs/{run}/attempts/{attempt}" if run else ""
        )
    if reference := environment.get("CI_CONFIG_REF_URI", ""):
        return ImageBuilderIdentity(f"https://{reference}", environment.get("CI_JOB_URL", ""))
    return ImageBuilderIdentity(LOCAL_BUILDER)


def software_bill(image: PushedImage, packages: Sequence[InstalledPackage]) -> dict[str, Any]:
    """CycloneDX 1.6: the packages of an image's Python environment. It depends on the image only: no time is in it."""
    reference = parse_reference(image.reference, pinned=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, image.reference)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image_url(reference),
                "name": reference.name,
                "version": reference.digest,
                "purl": image_url(reference),
                "properties": [{"name": "dev.mlflowkit:base", "value": image.base}],
            }
        },
        "components": [_component(package) for package in packages],
    }


def _component(package: InstalledPackage) -> dict[str, Any]:
    url = f"pkg:pypi/{re.sub(r'[-_.]+', '-', package.name).lower()}@{quote(package.version, safe='')}"
    licenses = {"licenses": [{"expression": package.license}]} if package.license else {}
    return {
        "type": "library", "bom-ref": url, "name": package.name, "version": package.version, **licenses, "purl": url,
    }  # fmt: skip


def image_url(image: RegistryReference) -> str:
    """The package URL of an image.

    >>> image_url(parse_reference("ghcr.io/acme/lending@sha256:" + "a" * 64)).partition("%3A")[0]
    'pkg:oci/lending@sha256'
    """
    name = image.repository.rpartition("/")[2]
    return f"pkg:oci/{name}@{quote(image.digest, safe='')}?repository_url={quote(image.name, safe='/')}"


def provenance(
    image: PushedImage,
    *,
    recipe: str,
    role: str,
    dockerfile: str,
    sbom: str,
    builder: ImageBuilderIdentity,
    version: str,
) -> dict[str, Any]:
    """The in-toto statement of how an image was built (SLSA v1). ``dockerfile`` is a SHA-256, ``sbom`` a digest.

    No time is in it, so that equal builds of one run state the same."""
    source = {"name": "source", "digest": {"gitCommit": image.revision}, "annotations": {"dirty": image.dirty}}
    base, _, base_digest = image.base.partition("@sha256:")
    return {
        "_type": STATEMENT,
        "subject": [{"name": image.reference.partition("@")[0], "digest": _digest(image.digest)}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": recipe, "role": role, "platform": image.platform},
                "resolvedDependencies": [
                    *([source] if image.revision else []),
                    {"name": "base", "uri": f"oci://{base}", "digest": {"sha256": base_digest}},
                    {"name": "lock", "digest": {"sha256": image.lock}},
                    {"name": "Dockerfile", "digest": {"sha256": dockerfile}},
                ],
            },
            "runDetails": {
                "builder": {"id": builder.id, "version": {"mlflowkit": version}},
                **({"metadata": {"invocationId": builder.run}} if builder.run else {}),
                "byproducts": [{"name": "sbom", "mediaType": SBOM_TYPE, "digest": _digest(sbom)}],
            },
        },
    }


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored and signed."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
