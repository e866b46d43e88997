"""The digests of an environment's images: a kustomize component of its own, so that one line changes with an image.

What `mlkit export` writes names no image that exists: all zeros. The digest that was built takes their place
(`with_digests`); and without the ``delivery.yaml`` of a first promotion the overlay does not build at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from mlflowkit.delivery.yaml_text import yaml_text
from mlflowkit.errors import UsageError

NOT_BUILT = f"sha256:{'0' * 64}"
"""Stands for a digest until there is one; no image has it, so no node can pull it."""
FILE = "images/kustomization.yaml"
"""The component, from the overlay's folder."""
HEADER = "The digests are those of `mlkit image build RECIPE --push`. No tag stands here: a digest is what was judged."
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def images_text(repositories: Mapping[str, str]) -> str:
    """The component of images by digest (``repository: digest``)."""
    return yaml_text(
        {
            "apiVersion": "kustomize.config.k8s.io/v1alpha1",
            "kind": "Component",
            "images": [{"name": name, "digest": digest} for name, digest in repositories.items()],
        },
        header=HEADER,
    )


def image_digests(text: str) -> dict[str, str]:
    """The digests in the text of a component, by repository. Raises UsageError for a tag or anything else."""
    try:
        value = yaml.safe_load(text)
        images = {entry["name"]: entry["digest"] for entry in value["images"]}
        odd = sorted({key for entry in value["images"] for key in entry} - {"name", "digest"})
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(f"{FILE} lists no images by name and digest: {error}", hint="mlkit export RECIPE") from None
    wrong = [name for name, digest in images.items() if not _DIGEST.fullmatch(str(digest))]
    if odd or wrong:
        what = f"has {', '.join(odd)}" if odd else f"has no digest of {', '.join(wrong)}"
        raise UsageError(f"{FILE} {what}: an image is named by its digest only", hint="mlkit export RECIPE")
    return images


def not_built(text: str) -> tuple[str, ...]:
    """The repositories that have no image yet: what must not be deployed."""
    return tuple(name for name, digest in image_digests(text).items() if digest == NOT_BUILT)


def with_digests(text: str, digests: Mapping[str, str]) -> str:
    """The text with other digests; all else, comments included, stays byte for byte.

    Raises UsageError for a digest that is none, and for a repository that the text does not list.

    >>> text = images_text({"ghcr.io/acme/lending": NOT_BUILT})
    >>> image_digests(with_digests(text, {"ghcr.io/acme/lending": "sha256:" + "a" * 64}))
    {'ghcr.io/acme/lending': 'sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'}
    """
    listed = image_digests(text)
    for name, digest in digests.items():
        if name not in listed:
            raise UsageError(f"{FILE} lists no image {name}: it lists {', '.join(listed)}", hint="mlkit export RECIPE")
        if not _DIGEST.fullmatch(digest) or digest == NOT_BUILT:
            raise UsageError(f"{digest!r} is no digest of an image", hint="mlkit image build RECIPE --push")
    lines, name = text.splitlines(keepends=True), ""
    for place, line in enumerate(lines):
        key, _, value = line.strip().removeprefix("- ").partition(":")
        if key == "name":
            name = value.strip().strip("'\"")
        elif key == "digest" and name in digests:
            lines[place] = _DIGEST.sub(digests[name], line, count=1)
    edited = "".join(lines)
    if image_digests(edited) != {**listed, **digests}:
        raise UsageError(f"{FILE} is not laid out as it is generated", hint="mlkit export RECIPE --theirs FILE")
    return edited
