"""Kubernetes: kustomize, a base and an overlay an environment. The gateway is a Deployment, or KubeRay's RayService."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.delivery_target import PIPELINES, DeliveryTarget, Unsupported
from mlflowkit.delivery.manifests import network, workloads
from mlflowkit.delivery.manifests.cluster_names import (
    base_folder,
    client_faults,
    labels,
    place_faults,
    selector_labels,
    service_name,
)
from mlflowkit.delivery.manifests.image_digests import FILE, NOT_BUILT, images_text
from mlflowkit.delivery.manifests.pod_template import image_of
from mlflowkit.delivery.yaml_text import Commented, yaml_text

HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."


class KubernetesManifests(DeliveryTarget):
    """Kubernetes manifests."""

    name = "kubernetes"
    version = 1
    steps = frozenset()

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        yield from place_faults(plan)
        yield from client_faults(plan)
        yield from _state_faults(plan)
        yield from _trigger_faults(plan)
        yield from _ray_faults(plan)

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        files: dict[str, str] = {}
        for environment in plan.environments:
            files |= _files(base_folder(environment), _base(plan))
            files |= _files(environment.path, _overlay(plan, environment))
        if plan.environments and plan.section.kubernetes.workload == "rayservice":
            folder = posixpath.join(posixpath.dirname(base_folder(plan.environments[-1])), "train")
            files |= _files(folder, _train(plan, plan.environments[-1], folder))
        return files

    def checks(self) -> Mapping[str, str]:
        return {
            "build": "kubectl kustomize deploy/overlays/ENVIRONMENT",
            "schema": "kubectl kustomize deploy/overlays/ENVIRONMENT | kubernetes-validate --strict -",
            "images are built": f"! grep -rn {NOT_BUILT} deploy/overlays",
        }


def _files(folder: str, contents: Mapping[str, Any]) -> dict[str, str]:
    """Text by path; a list is several documents."""
    files = {}
    for name, value in contents.items():
        documents = value if isinstance(value, list) else [value]
        texts = [item if isinstance(item, str) else yaml_text(item) for item in documents]
        header = "" if isinstance(value, str) else f"# {HEADER}\n"
        files[posixpath.join(folder, name)] = header + "---\n".join(texts)
    return files


def _base(plan: DeliveryPlan) -> dict[str, Any]:
    options = plan.section.kubernetes
    name = service_name(plan)
    workload = workloads.ray_service(plan) if options.workload == "rayservice" else workloads.deployment(plan)
    contents: dict[str, Any] = {
        "account.yaml": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "labels": labels(plan, "gateway")},
            "automountServiceAccountToken": False,
        },
        "workload.yaml": workload,
        "service.yaml": network.service(plan),
        "network.yaml": network.network_policies(plan),
    }
    if options.state == "volume":
        contents["state.yaml"] = _claim(plan, "state")
    if options.service_monitor:
        contents["monitor.yaml"] = network.service_monitor(plan)
    return {"kustomization.yaml": {**_kustomization(), "resources": sorted(contents)}, **contents}


def _kustomization() -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def _claim(plan: DeliveryPlan, use: str) -> dict[str, Any]:
    """A volume that several pods mount: the state of the gateway, or that of training, by which a trigger knows what
    was trained."""
    options = plan.section.kubernetes
    storage = {"storageClassName": options.storage_class} if options.storage_class else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": f"{service_name(plan)}-{use}",
            "labels": labels(plan, "gateway" if use == "state" else "train"),
        },
        "spec": {
            "accessModes": [_access_mode(plan, use)],
            **storage,
            "resources": {"requests": {"storage": options.storage}},
        },
    }


def _access_mode(plan: DeliveryPlan, use: str) -> str | Commented:
    if use == "state" and plan.section.kubernetes.workload == "deployment":
        return Commented("ReadWriteOnce", "one pod owns it; an update ends the old pod first")
    return Commented("ReadWriteMany", "several pods mount it")


def _overlay(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    name, count = service_name(plan), environment.replicas
    contents: dict[str, Any] = {"namespace.yaml": _namespace(environment)}
    if count >= 2:
        contents["disruption.yaml"] = _disruption_budget(plan)
    if environment == plan.environments[-1] and plan.section.kubernetes.workload == "rayservice":
        contents["training.yaml"] = _claim(plan, "train")
    base = posixpath.relpath(base_folder(environment), environment.path)
    desired = Commented(["delivery.yaml"], "written by `mlkit gitops promote RECIPE`: before, nothing can be deployed")
    return {
        "kustomization.yaml": {
            **_kustomization(),
            "namespace": environment.namespace,
            "resources": [base, *sorted(contents)],
            "components": ["images"],
            "configMapGenerator": [
                {
                    "name": f"{name}-delivery",
                    "files": desired,
                    "options": {
                        "disableNameSuffixHash": Commented(
                            True, "another model changes no pod: the gateway follows the file"
                        )
                    },
                }
            ],
            **_replicas(plan, count),
        },
        FILE: images_text({image_of(plan, "serve").reference: NOT_BUILT}),
        **contents,
    }


def _replicas(plan: DeliveryPlan, count: int) -> dict[str, Any]:
    name = service_name(plan)
    if plan.section.kubernetes.workload == "deployment":
        return {"replicas": [{"name": name, "count": count}]}
    group = "/spec/rayClusterConfig/workerGroupSpecs/0"
    edits = [
        {"op": "add", "path": f"{group}/{key}", "value": count} for key in ("replicas", "minReplicas", "maxReplicas")
    ]
    edits.append({"op": "replace", "path": "/spec/serveConfigV2", "value": workloads.serve_config(plan, count)})
    target = {"group": "ray.io", "version": "v1", "kind": "RayService", "name": name}
    return {"patches": [{"target": target, "patch": yaml_text(edits)}]}


def _namespace(environment: Environment) -> dict[str, Any]:
    level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": environment.namespace, "labels": level}}


def _disruption_budget(plan: DeliveryPlan) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": service_name(plan), "labels": labels(plan, "gateway")},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector_labels(plan, "gateway")}},
    }


def _train(plan: DeliveryPlan, environment: Environment, folder: str) -> dict[str, Any]:
    """A training that is created by hand or by a pipeline, never synchronised."""
    return {
        "kustomization.yaml": {
            **_kustomization(),
            "namespace": environment.namespace,
            "resources": ["job.yaml"],
            "components": ["images"],
        },
        FILE: images_text({image_of(plan, "train").reference: NOT_BUILT}),
        "job.yaml": workloads.ray_job(plan),
    }


def _ray_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if plan.section.kubernetes.workload != "rayservice":
        return
    for environment in plan.environments:
        gateways = environment.replicas * plan.recipe.replicas
        if gateways > workloads.MAX_GATEWAYS:
            message = f"{gateways} gateways in one Ray cluster; a service has at most {workloads.MAX_GATEWAYS}"
            hint = f"write replicas: {workloads.MAX_GATEWAYS // plan.recipe.replicas} or less"
            yield Unsupported(("environments", environment.name, "replicas"), message, hint)


def _state_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    options = plan.section.kubernetes
    deployed, shared = options.workload == "deployment", options.state == "volume"
    if (deployed and not shared and plan.recipe.strategy == "direct") or (shared and not deployed):
        return
    fault, hint = "without a shared state folder would not find the service", "write kubernetes.state: volume"
    if deployed and shared:
        fault, hint = "cannot own one state folder", "write kubernetes.workload: rayservice"
    elif deployed:
        fault = "without a shared state folder would each decide a rollout alone"
        hint = "write kubernetes.workload: rayservice, with kubernetes.state: volume"
    for environment in plan.environments:
        if environment.replicas > 1:
            message = f"{environment.replicas} pods {fault}"
            yield Unsupported(("environments", environment.name, "replicas"), message, f"{hint}; or replicas: 1")


def _trigger_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    """Nothing in a cluster checks a repository out and goes on with a training: a pipeline's target does."""
    if PIPELINES & set(plan.section.targets) or "triggers" not in plan.section.model_fields_set:
        return
    hint = f"add one of {', '.join(sorted(PIPELINES))} to targets"
    for index, trigger in enumerate(plan.triggers):
        event = "a schedule" if trigger.on == "schedule" else trigger.on.replace("_", " ")
        yield Unsupported(("triggers", index, "on"), f"no manifest of a cluster starts a pipeline on {event}", hint)
