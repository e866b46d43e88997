"""Manifests as a cluster would get them: rendered by kustomize, checked by Kubernetes' own schemas and by those of
custom resources."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from mlflowkit.delivery.delivery_plan import DeliveryPlan, RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.manifests.image_digests import FILE, image_digests, with_digests
from mlflowkit.delivery.pins import python_image
from tests.support.tools import CHECKOUT, require_tool

SCHEMAS = CHECKOUT.parent / "shared" / "schemas"
DESIRED = "service: lending\nchampion: {bundle: ghcr.io/acme/lending-bundle@sha256:1, identity: a, blessing: b}\n"
FACTS = RecipeFacts("lending", "recipes/lending.yaml", "lending", 8080, 2, 7.5, "canary", grpc_port=8081)


def cluster_plan(facts: RecipeFacts = FACTS, **section: Any) -> DeliveryPlan:
    """A plan with the given keys of ``delivery``."""
    registry = {"image": "ghcr.io/acme/lending"}
    value = {"registry": registry, "environments": {"prod": {}}, "targets": ["github", "kubernetes"], **section}
    return delivery_plan(DeliverySection.model_validate(value), facts, default_base=python_image())


def write(folder: Path, files: Mapping[str, str], *, promoted: bool = True) -> Path:
    """The files in a folder; ``promoted`` has images and a champion, as after a first promotion."""
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if promoted and path.endswith(FILE) and "kind: Component" in text:
            digests = {name: f"sha256:{number:064x}" for number, name in enumerate(image_digests(text), 1)}
            text = with_digests(text, digests)
            (file.parents[1] / "delivery.yaml").write_text(DESIRED)
        file.write_text(text)
    return folder


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [require_tool("kubectl"), "kustomize", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects of an overlay. Raises AssertionError where kustomize refuses it."""
    process = kustomize(folder)
    assert process.returncode == 0, process.stderr
    return list(yaml.safe_load_all(process.stdout))


def schema_faults(objects: list[dict[str, Any]], file: Path) -> str:
    """What Kubernetes' schemas refuse; empty where nothing is."""
    file.write_text(yaml.safe_dump_all(objects))
    command = [require_tool("kubernetes-validate"), "--strict", "--quiet", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return "" if process.returncode == 0 else process.stdout + process.stderr


def resource_schema(kind: str) -> dict[str, Any] | None:
    """The closed schema of a custom resource of KubeRay: a misspelt key is refused. None where it is not at hand."""
    file = SCHEMAS / f"ray.io_{kind.lower()}s_v1.json"
    if not file.is_file():
        return None
    value = json.loads(file.read_text())
    closed = _closed(value.get("openAPIV3Schema", value))
    closed["properties"] |= {"metadata": {"type": "object"}}
    return closed


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    value = {key: _closed(item) for key, item in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        value["additionalProperties"] = False
    return value


def resource_faults(value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]
