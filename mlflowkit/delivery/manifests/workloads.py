"""What runs: the Deployment or RayService of a gateway, and the RayJob of a training."""

from __future__ import annotations

import json
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.manifests.cluster_names import labels, selector_labels, service_name, short_name
from mlflowkit.delivery.manifests.pod_template import (
    DELIVERY_FOLDER,
    container_security,
    environment_variables,
    gateway_container,
    gateway_resources,
    gateway_volumes,
    grace_seconds,
    image_of,
    pod_resources,
    pod_spec,
    scratch_volumes,
    spread,
)
from mlflowkit.delivery.yaml_text import Commented, yaml_text

SERVE_APPLICATION = "mlflowkit.processes.serve_application:build"
"""The builder of the Serve application that KubeRay deploys."""
GATEWAY_RESOURCE = "mlkit_gateway"
"""The Ray resource of the pods that are to run gateways, as `mlkit serve` asks for it."""
RAY_VERSION = "2.60.0"
"""The Ray of the images, which is the one that mlflowkit is pinned to."""
MAX_GATEWAYS = 64
"""Gateway replicas of one service."""


def deployment(plan: DeliveryPlan) -> dict[str, Any]:
    """The gateway as a Deployment; its replicas are the overlay's."""
    name = service_name(plan)
    gateways = ("--replicas", str(plan.recipe.replicas)) if plan.recipe.replicas > 1 else ()
    container = gateway_container(plan, name="gateway", command=(*image_of(plan, "serve").entry, *gateways))
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels(plan, "gateway")},
        "spec": {
            "selector": {"matchLabels": selector_labels(plan, "gateway")},
            "strategy": _update(plan),
            "template": {
                "metadata": {"labels": labels(plan, "gateway")},
                "spec": {
                    **pod_spec(plan, [container], gateway_volumes(plan)),
                    "terminationGracePeriodSeconds": grace_seconds(plan),
                    "topologySpreadConstraints": spread(plan, "gateway"),
                },
            },
        },
    }


def _update(plan: DeliveryPlan) -> dict[str, Any]:
    """How another image comes in. A model does not change the pod at all: the gateway rolls it out."""
    if plan.section.kubernetes.state == "volume":
        return {"type": Commented("Recreate", "the state folder has one owner, so another image has a gap")}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def ray_service(plan: DeliveryPlan) -> dict[str, Any]:
    """The gateway on KubeRay: workers answer, the head does not. The head's Service has no name of ours: with a fixed
    one an upgrade waits for ever (kuberay#2433)."""
    name = service_name(plan)
    worker = gateway_container(plan, name="ray-worker")
    resources = gateway_resources(plan)
    start = {
        "num-cpus": str(int(resources.cpus)),
        **({"num-gpus": str(resources.gpus)} if resources.gpus else {}),
        "resources": Commented(
            json.dumps(json.dumps({GATEWAY_RESOURCE: plan.recipe.replicas})),
            "each gateway takes one: every pod has its own",
        ),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "labels": labels(plan, "gateway")},
        "spec": {
            "excludeHeadPodFromServeSvc": True,
            "upgradeStrategy": {"type": "NewCluster"},
            "serveConfigV2": serve_config(plan, 1),
            "rayClusterConfig": {
                **_ray_authentication(),
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": {
                        "metadata": {"labels": labels(plan, "head")},
                        "spec": {
                            **pod_spec(plan, [_head_container(plan)], gateway_volumes(plan)),
                            "terminationGracePeriodSeconds": grace_seconds(plan),
                        },
                    },
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gateway",
                        "rayStartParams": start,
                        "template": {
                            "metadata": {"labels": labels(plan, "gateway")},
                            "spec": {
                                **pod_spec(plan, [worker], gateway_volumes(plan)),
                                "terminationGracePeriodSeconds": grace_seconds(plan),
                                "topologySpreadConstraints": spread(plan, "gateway"),
                            },
                        },
                    }
                ],
            },
        },
    }


def serve_config(plan: DeliveryPlan, pods: int) -> str:
    """The Serve application for ``pods`` workers; Serve changes their number in place. No model changes it."""
    application = {
        "name": service_name(plan),
        "import_path": SERVE_APPLICATION,
        "route_prefix": "/",
        "args": {
            "service": service_name(plan),
            "delivery": f"{DELIVERY_FOLDER}/delivery.yaml",
        },
        "deployments": [{"name": "service", "user_config": {"replicas": pods * plan.recipe.replicas}}],
    }
    return yaml_text({"proxy_location": "Disabled", "applications": [application]})


def _ray_authentication() -> dict[str, Any]:
    """KubeRay refuses a token without the version."""
    token = Commented({"mode": "token"}, "KubeRay makes the token that the pods of a cluster share, since its 1.5")
    return {"rayVersion": RAY_VERSION, "authOptions": token}


def _head_container(plan: DeliveryPlan) -> dict[str, Any]:
    container = gateway_container(plan, name="ray-head")
    for key in ("startupProbe", "readinessProbe", "livenessProbe", "ports", "lifecycle"):
        del container[key]  # KubeRay adds a head's own
    resources = pod_resources(gateway_resources(plan))
    resources["limits"].pop("nvidia.com/gpu", None)
    return {**container, "ports": [{"name": "dashboard", "containerPort": 8265}], "resources": resources}


def ray_job(plan: DeliveryPlan) -> dict[str, Any]:
    """A training on a Ray cluster of its own, replaced for each run and never synchronised: a job that ran cannot be
    changed (argo-cd#5882)."""
    runner = plan.section.runner
    container = {**_train_container(plan), "name": "ray-head"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": short_name(service_name(plan), "-train", 40), "labels": labels(plan, "train")},
        "spec": {
            "entrypoint": Commented(
                f"mlkit run {plan.recipe.path} --until package",
                "the image has no recipe: put it into the working directory (see the page kuberay)",
            ),
            "submissionMode": Commented(
                "SidecarMode", "the job is submitted from the head's pod: 8265 is open to nobody"
            ),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "backoffLimit": 0,
            "activeDeadlineSeconds": plan.step("judge").timeout_minutes * 60,
            "rayClusterSpec": {
                **_ray_authentication(),
                "headGroupSpec": {
                    "rayStartParams": {"num-gpus": str(runner.gpus)} if runner.gpus else {},
                    "template": {
                        "metadata": {"labels": labels(plan, "train")},
                        "spec": {**pod_spec(plan, [container], _train_volumes(plan)), "restartPolicy": "Never"},
                    },
                },
            },
        },
    }


def _train_container(plan: DeliveryPlan) -> dict[str, Any]:
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": item.kubernetes.name, "key": item.kubernetes.key}}}
        for name, item in plan.secrets.items()
        if item.kubernetes is not None
    ]
    mounts, _ = scratch_volumes()
    return {
        "name": "train",
        "image": image_of(plan, "train").reference,
        "env": [*environment_variables(), *secrets],
        "resources": pod_resources(plan.step("judge").resources),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "state", "mountPath": "/state"}, *mounts],
    }


def _train_volumes(plan: DeliveryPlan) -> list[dict[str, Any]]:
    claim = {"name": "state", "persistentVolumeClaim": {"claimName": f"{service_name(plan)}-train"}}
    return [claim, *scratch_volumes()[1]]
