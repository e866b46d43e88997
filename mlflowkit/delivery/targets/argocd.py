"""Argo CD: a project and an Application an environment. No image updater: Git alone says what runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.manifests.cluster_names import labels, place_faults, repository_faults, service_name
from mlflowkit.delivery.targets.kubernetes import HEADER
from mlflowkit.delivery.yaml_text import Commented, yaml_text

API = "argoproj.io/v1alpha1"
FOLDER = "deploy/argocd"


class ArgocdApplications(DeliveryTarget):
    """Argo CD Applications of what the target kubernetes renders."""

    name = "argocd"
    version = 1
    steps = frozenset()

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        yield from place_faults(plan)
        yield from repository_faults(plan, "Argo CD")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        files = {f"{FOLDER}/{service_name(plan)}-project.yaml": yaml_text(_project(plan), header=HEADER)}
        for environment in plan.environments:
            path = f"{FOLDER}/{service_name(plan)}-{environment.name}.yaml"
            files[path] = yaml_text(_application(plan, environment), header=HEADER)
        return files

    def checks(self) -> Mapping[str, str]:
        return {"apply": "kubectl apply --dry-run=server -f deploy/argocd"}


def _project(plan: DeliveryPlan) -> dict[str, Any]:
    """What the Applications may read and write; the project default may everything."""
    repositories = dict.fromkeys(environment.settings.repo or "" for environment in plan.environments)
    return {
        "apiVersion": API,
        "kind": "AppProject",
        "metadata": {"name": service_name(plan), "namespace": "argocd", "labels": labels(plan, "delivery")},
        "spec": {
            "sourceRepos": list(repositories),
            "destinations": [_destination(environment) for environment in plan.environments],
            "clusterResourceWhitelist": [{"group": "", "kind": "Namespace"}],
        },
    }


def _destination(environment: Environment) -> dict[str, str]:
    cluster = environment.settings.cluster
    return {"server" if "://" in cluster else "name": cluster, "namespace": environment.namespace}


def _application(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    settings = environment.settings
    ray = plan.section.kubernetes.workload == "rayservice"
    return {
        "apiVersion": API,
        "kind": "Application",
        "metadata": {
            "name": f"{service_name(plan)}-{environment.name}",
            "namespace": "argocd",
            "labels": labels(plan, "delivery"),
        },
        "spec": {
            "project": service_name(plan),
            "source": {"repoURL": settings.repo, "targetRevision": settings.branch, "path": environment.path},
            "destination": _destination(environment),
            "syncPolicy": {
                "automated": {
                    "prune": True,
                    "selfHeal": Commented(True, "a version that was rolled back stands in Git as rejected"),
                },
                "syncOptions": [
                    "ServerSideApply=true",
                    *(["RespectIgnoreDifferences=true"] if ray else []),
                ],
                "retry": {
                    "limit": Commented(5, "then a newer commit is tried"),
                    "backoff": {"duration": "10s", "factor": 2, "maxDuration": "3m"},
                },
            },
            **({"ignoreDifferences": [_ray_replicas()]} if ray else {}),
        },
    }


def _ray_replicas() -> dict[str, Any]:
    """Where Ray's autoscaler is switched on, it writes the number of workers (kuberay#4149)."""
    return {
        "group": "ray.io",
        "kind": "RayService",
        "jqPathExpressions": [".spec.rayClusterConfig.workerGroupSpecs[].replicas"],
    }
