"""Flux: a GitRepository and a Kustomization an environment. No image automation: Git alone says what runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.manifests.cluster_names import (
    IN_CLUSTER,
    labels,
    place_faults,
    repository_faults,
    service_name,
)
from mlflowkit.delivery.targets.kubernetes import HEADER
from mlflowkit.delivery.yaml_text import Commented, yaml_text

NAMESPACE = "flux-system"
FOLDER = "deploy/flux"


class FluxKustomizations(DeliveryTarget):
    """Flux objects for what the target kubernetes renders."""

    name = "flux"
    version = 1
    steps = frozenset()

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        yield from place_faults(plan)
        yield from repository_faults(plan, "Flux")
        for environment in plan.environments:
            if environment.settings.cluster != IN_CLUSTER:
                key = ("environments", environment.name, "cluster")
                yield Unsupported(key, "Flux deploys to the cluster that it runs in", f"write cluster: {IN_CLUSTER}")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        files = {}
        for environment in plan.environments:
            documents = [_repository(plan, environment), _kustomization(plan, environment)]
            text = "---\n".join(yaml_text(document) for document in documents)
            files[f"{FOLDER}/{_name(plan, environment)}.yaml"] = f"# {HEADER}\n{text}"
        return files

    def checks(self) -> Mapping[str, str]:
        return {"apply": "kubectl apply --dry-run=server -f deploy/flux"}


def _name(plan: DeliveryPlan, environment: Environment) -> str:
    return f"{service_name(plan)}-{environment.name}"


def _metadata(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    return {"name": _name(plan, environment), "namespace": NAMESPACE, "labels": labels(plan, "delivery")}


def _address(repo: str) -> str:
    """A repository's address as Flux takes it: it has no short form of ssh.

    >>> _address("git@github.com:acme/env.git")
    'ssh://git@github.com/acme/env.git'
    """
    if repo.startswith("git@"):
        host, _, path = repo.removeprefix("git@").partition(":")
        return f"ssh://git@{host}/{path.lstrip('/')}"
    return repo


def _repository(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    url = _address(environment.settings.repo or "")
    key = {"secretRef": {"name": f"{service_name(plan)}-git"}} if url.startswith("ssh://") else {}
    return {
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "GitRepository",
        "metadata": _metadata(plan, environment),
        "spec": {
            "interval": "1m",
            "timeout": "60s",
            "url": url,
            "ref": {"branch": environment.settings.branch},
            **key,
        },
    }


def _kustomization(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    ray = plan.section.kubernetes.workload == "rayservice"
    workload = (
        {"apiVersion": "ray.io/v1", "kind": "RayService"} if ray else {"apiVersion": "apps/v1", "kind": "Deployment"}
    )
    place = {"name": service_name(plan), "namespace": environment.namespace}
    return {
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
        "kind": "Kustomization",
        "metadata": _metadata(plan, environment),
        "spec": {
            "interval": "10m",
            "retryInterval": "2m",
            "timeout": "10m",
            "prune": True,
            "sourceRef": {"kind": "GitRepository", "name": _name(plan, environment)},
            "path": f"./{environment.path}",
            "wait": Commented(False, "the workload alone says whether the environment is healthy"),
            "healthChecks": [{**workload, **place}],
            **({"healthCheckExprs": [_ray_health()]} if ray else {}),
        },
    }


def _ray_health() -> dict[str, str]:
    """When a RayService is healthy: it has no status that Flux reads by itself."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "current": "status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')",
        "inProgress": "!status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')",
    }
