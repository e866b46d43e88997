"""The pod of a gateway and of a training: what Pod Security *restricted* asks, probes, volumes, resources."""

from __future__ import annotations

import math
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Image, Resources
from mlflowkit.delivery.manifests.cluster_names import selector_labels, service_name
from mlflowkit.delivery.yaml_text import Commented

USER = 65532
PRESTOP_SECONDS = 5
"""Time in which load balancers take the pod out before it stops to accept."""
DRAIN_SECONDS = 10
"""Time beyond a request's deadline in which its answer is written."""
STOP_SECONDS = 20
"""Time in which Ray and the controller end."""
SHARED_MEMORY_MB = 1024
"""The object store of Ray; a container has 64 MiB otherwise."""
GATEWAY_MEMORY_MB = 2048
"""Ray, the controller and the monitor."""
REPLICA_MEMORY_MB = 512
"""A gateway replica with its variants."""
DELIVERY_FOLDER = "/etc/mlkit"
KEYS_FOLDER = "/etc/mlkit-keys"


def grace_seconds(plan: DeliveryPlan) -> int:
    """How long a pod may take to stop: all requests that it accepted are answered."""
    return PRESTOP_SECONDS + math.ceil(plan.recipe.timeout_seconds) + DRAIN_SECONDS + STOP_SECONDS


def image_of(plan: DeliveryPlan, role: str) -> Image:
    return next(image for image in plan.images if image.role == role)


def container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": Commented(0, "the image's files belong to group 0, so that a cluster may choose another user"),
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def environment_variables() -> list[dict[str, Any]]:
    """Variables of every container; none is a secret."""
    return [
        {"name": "HOME", "value": "/tmp"},
        {"name": "MLKIT_STATE", "value": "/state"},
        {"name": "RAY_AUTH_MODE", "value": "token"},
    ]


def pod_resources(resources: Resources) -> dict[str, Any]:
    """Memory is never overcommitted; a CPU limit would throttle answers."""
    gpus = {"nvidia.com/gpu": str(resources.gpus)} if resources.gpus else {}
    memory = f"{resources.memory_mb}Mi"
    return {
        "requests": {"cpu": f"{math.ceil(resources.cpus * 1000)}m", "memory": memory},
        "limits": {"memory": memory, **gpus},
    }


def gateway_resources(plan: DeliveryPlan) -> Resources:
    """A CPU a gateway replica, and one for Ray, the controller and the monitor."""
    memory = GATEWAY_MEMORY_MB + SHARED_MEMORY_MB + REPLICA_MEMORY_MB * plan.recipe.replicas
    return Resources(plan.recipe.replicas + 1, memory, plan.recipe.gpus)


def scratch_volumes() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What stays writable with a read-only root: mounts and volumes."""
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    shared = {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_MB}Mi"}
    return mounts, [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": shared}]


def gateway_probes(port: str = "http") -> dict[str, Any]:
    """None asks for a key. Ready is no condition of alive: a refused table must not restart the champion."""

    def get(path: str) -> dict[str, Any]:
        return {"path": path, "port": port}

    ready = {"httpGet": get("/v2/health/ready"), "periodSeconds": 5, "timeoutSeconds": 2}
    return {
        "startupProbe": {**ready, "failureThreshold": 60},
        "readinessProbe": {**ready, "failureThreshold": 2},
        "livenessProbe": {
            "httpGet": get("/v2/health/live"),
            "periodSeconds": 10,
            "timeoutSeconds": 2,
            "failureThreshold": 6,
        },
    }


def gateway_container(plan: DeliveryPlan, *, name: str, command: tuple[str, ...] = ()) -> dict[str, Any]:
    """The container that answers requests."""
    image = image_of(plan, "serve")
    mounts, _ = scratch_volumes()
    ports = [{"name": "http", "containerPort": plan.recipe.port}]
    if plan.recipe.grpc_port:
        ports.append({"name": "grpc", "containerPort": plan.recipe.grpc_port})
    run = {"command": [command[0]], "args": list(command[1:])} if command else {}
    return {
        "name": name,
        "image": Commented(image.reference, "the digest is in images/kustomization.yaml of each overlay"),
        **run,
        "env": [*environment_variables(), *_listener(plan)],
        "ports": ports,
        **gateway_probes(),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRESTOP_SECONDS}}},
        "resources": pod_resources(gateway_resources(plan)),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "delivery", "mountPath": DELIVERY_FOLDER, "readOnly": True},
            {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True},
            {"name": "state", "mountPath": "/state"},
            *mounts,
        ],
    }


def _listener(plan: DeliveryPlan) -> list[dict[str, Any]]:
    """Where the gateway listens, and the file of API keys, without which it listens on no address but loopback."""
    values = {"MLKIT_HOST": "0.0.0.0", "MLKIT_PORT": str(plan.recipe.port), "MLKIT_KEYS": f"{KEYS_FOLDER}/keys"}
    return [{"name": name, "value": value} for name, value in values.items()]


def gateway_volumes(plan: DeliveryPlan) -> list[dict[str, Any]]:
    """The desired state is mounted as a folder: a single file (subPath) would not follow the ConfigMap."""
    name = service_name(plan)
    kept = plan.section.kubernetes.state == "volume"
    state = {"persistentVolumeClaim": {"claimName": f"{name}-state"}} if kept else {"emptyDir": {}}
    _, scratch = scratch_volumes()
    delivery = {"name": "delivery", "configMap": {"name": f"{name}-delivery"}}
    keys = {"name": "keys", "secret": {"secretName": f"{name}-keys", "defaultMode": 0o440}}
    return [delivery, keys, {"name": "state", **state}, *scratch]


def pull_secrets(plan: DeliveryPlan) -> dict[str, Any]:
    """The Secret that images are pulled with, where the recipe names one."""
    secret = plan.credentials.kubernetes
    return {"imagePullSecrets": [{"name": secret.name}]} if secret is not None else {}


def pod_spec(plan: DeliveryPlan, containers: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """What all pods have in common."""
    return {
        "serviceAccountName": service_name(plan),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **pull_secrets(plan),
        "securityContext": pod_security(),
        "containers": containers,
        "volumes": volumes,
    }


def spread(plan: DeliveryPlan, component: str) -> list[dict[str, Any]]:
    """Pods on several nodes and zones where there are several."""
    selector = {"matchLabels": selector_labels(plan, component)}
    return [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
