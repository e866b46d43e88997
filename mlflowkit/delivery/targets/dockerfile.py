"""Docker: a Dockerfile for training, serving and monitoring each, and what goes to the builder.

Two stages: packages are installed from the lock in the first, and the second has no installer. The image runs as user
65532 of group 0 on a read-only root, starts without a shell and without the network, and keeps everything that it
writes below /var/lib/mlkit and /tmp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import ClassVar

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Image
from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.pins import python_image
from mlflowkit.delivery.text_templates import text_templates

FOLDER = "deploy/docker"


def dockerfile_path(image: Image) -> str:
    """Where an image's Dockerfile is generated, from the repository's root."""
    return f"{FOLDER}/{image.role}.Dockerfile"


class DockerTarget(DeliveryTarget):
    """Dockerfiles, for Docker and buildah."""

    name = "docker"
    version = 1
    steps: ClassVar[frozenset[str]] = frozenset()

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        files: dict[str, str] = {}
        for image in plan.images:
            path = dockerfile_path(image)
            files[path], files[f"{path}.dockerignore"] = dockerfile_texts(plan, image)
        return files

    def checks(self) -> Mapping[str, str]:
        return {"hadolint": f"hadolint {FOLDER}/serve.Dockerfile {FOLDER}/train.Dockerfile {FOLDER}/monitor.Dockerfile"}


def dockerfile_texts(plan: DeliveryPlan, image: Image) -> tuple[str, str]:
    """The Dockerfile of an image, and what of the repository does not go to the builder."""
    templates, values = text_templates(), _values(plan, image)
    templates.filters["json_words"] = _json_words
    return (
        templates.get_template("Dockerfile.jinja2").render(values),
        templates.get_template("dockerignore.jinja2").render(values),
    )


def _values(plan: DeliveryPlan, image: Image) -> dict[str, object]:
    """What the templates say of one image."""
    folder = PurePosixPath(plan.recipe.path).parent
    at_root = str(folder) == "."
    patterns = ("*.py", "*.yaml", "*.yml") if at_root else (f"{folder}/**",)
    return {
        "role": image.role,
        "name": plan.name,
        "base": image.base or python_image(),
        "reference": image.reference,
        "requirements": image.requirements,
        "source": "." if at_root else str(folder),
        "source_target": "" if at_root else f"{folder}/",
        "patterns": patterns,
        "port": plan.recipe.port,
        "user": image.user,
        "entry": image.entry,
    }


def _json_words(words: Sequence[str]) -> str:
    """A command in the exec form, which no shell reads.

    >>> _json_words(("mlkit", "serve"))
    '["mlkit", "serve"]'
    """
    return json.dumps(list(words), ensure_ascii=False)
