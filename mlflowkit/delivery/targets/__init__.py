"""The built-in targets, one system a module; each is imported when it is named."""

from __future__ import annotations

import importlib

from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.system import entry_points

BUILT_IN: dict[str, str] = {
    "airflow": "mlflowkit.delivery.targets.airflow:AirflowDag",
    "argocd": "mlflowkit.delivery.targets.argocd:ArgocdApplications",
    "docker": "mlflowkit.delivery.targets.dockerfile:DockerTarget",
    "flux": "mlflowkit.delivery.targets.flux:FluxKustomizations",
    "github": "mlflowkit.delivery.targets.github:GithubActions",
    "gitlab": "mlflowkit.delivery.targets.gitlab:GitlabCi",
    "jenkins": "mlflowkit.delivery.targets.jenkins:JenkinsPipeline",
    "kubeflow": "mlflowkit.delivery.targets.kubeflow:KubeflowPipelines",
    "kubernetes": "mlflowkit.delivery.targets.kubernetes:KubernetesManifests",
    "mlproject": "mlflowkit.delivery.targets.mlproject:MlflowProject",
    "sagemaker": "mlflowkit.delivery.targets.sagemaker:SagemakerDelivery",
}
"""References of the target classes, by the name that recipes write."""


def target(name: str) -> DeliveryTarget:
    """The target of a name, built in or of an installed plugin. Raises UsageError for an unknown name."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        kind = getattr(importlib.import_module(module), attribute)
    elif name in entry_points.names(entry_points.TARGETS):
        kind = entry_points.load(entry_points.TARGETS, name)
    else:
        near = closest_match(name, BUILT_IN)
        raise UsageError(
            f"there is no delivery target {name!r}: it may be {', '.join(BUILT_IN)}",
            hint=f"write {near}" if near else entry_points.install_hint(entry_points.TARGETS, name),
        )
    instance: DeliveryTarget = kind()
    return instance
