"""What a gateway says of itself and its models, whatever door asks: metadata, repository index, statistics.

Sources: Open Inference Protocol v2; Triton Inference Server, "Model Repository Extension" and "Statistics Extension".
"""

from __future__ import annotations

from collections.abc import Iterable

import mlflowkit
from mlflowkit.bundle import Tensor
from mlflowkit.serving.inference.gateway_metrics import Served, Telemetry
from mlflowkit.serving.inference.variants import Loaded, Model
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.values import Json

EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
"""Of the model repository, the index: versions come and go by rollouts, and `refuse_change` says so."""
PLATFORM = "onnx_onnxruntime"


def server(service: str) -> Json:
    """Server metadata."""
    return {
        "name": "mlflowkit",
        "version": mlflowkit.__version__,
        "extensions": list(EXTENSIONS),
        "models": [service],
    }


def model(active: Loaded, found: Model) -> Json:
    """Model metadata, from the bundle's signature."""
    signature = found.bundle.signature
    return {
        "name": active.table.service,
        "versions": list(active.by_version),
        "platform": PLATFORM,
        "inputs": [tensor(one) for one in signature.inputs],
        "outputs": [tensor(one) for one in signature.outputs],
        "parameters": {
            "version": found.variant.version,
            "identity": found.variant.digest,
            "task": signature.task,
            "classes": list(signature.classes),
        },
    }


def tensor(described: Tensor) -> Json:
    """One tensor's metadata."""
    found: dict[str, Json] = {
        "name": described.name,
        "datatype": described.datatype,
        "shape": list(described.shape),
    }
    if described.columns:
        found["parameters"] = {"columns": list(described.columns)}
    return found


def index(service: str, active: Loaded | None) -> list[dict[str, str]]:
    """The repository's index: every version that is loaded, and why it is."""
    if active is None:
        return []
    roles: dict[str, list[str]] = {}
    for name, loaded in active.by_name.items():
        role = loaded.variant.role
        roles.setdefault(loaded.variant.version, []).append(name if name == role else f"{name} ({role})")
    return [
        {"name": service, "version": version, "state": "READY", "reason": ", ".join(names)}
        for version, names in roles.items()
    ]


def refuse_change() -> Refusal:
    """Why versions are not loaded or unloaded by request."""
    return Refusal(
        403,
        "versions are governed by rollouts: mlkit run RECIPE deploys one, mlkit rollout promotes it or rolls it back",
    )


def statistics(service: str, telemetry: Telemetry, versions: Iterable[str]) -> Json:
    """Statistics of versions, as this replica counted them since it started. What it does not measure is 0.

    A version that served under several names is counted once, with all of them.
    """
    served = telemetry.served.copy()
    return {
        "model_stats": [
            _of_version(service, version, [counts for (_, had), counts in served.items() if had == version])
            for version in versions
        ]
    }


def _of_version(service: str, version: str, parts: list[Served]) -> Json:
    answered = sum(part.answered.count for part in parts)
    seconds = sum(part.answered.total for part in parts)
    running = sum(part.run_seconds for part in parts)
    success = _duration(answered, seconds)
    nothing = _duration(0, 0.0)
    return {
        "name": service,
        "version": version,
        "last_inference": int(1000 * max((part.last for part in parts), default=0.0)),
        "inference_count": sum(part.rows for part in parts),
        "execution_count": answered,
        "inference_stats": {
            "success": success,
            "fail": _duration(sum(part.failed for part in parts), sum(part.failed_seconds for part in parts)),
            "queue": nothing,
            "compute_input": nothing,
            "compute_infer": _duration(answered, running),
            "compute_output": nothing,
            "cache_hit": nothing,
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
