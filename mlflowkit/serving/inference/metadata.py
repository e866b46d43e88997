"""Protocol documents about the gateway and its models: metadata, repository index, statistics.

Sources: Open Inference Protocol v2; Triton Inference Server, "Model Repository Extension", "Statistics Extension" and
"Model Configuration Extension".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import mlflowkit
from mlflowkit.bundle import TensorSpec
from mlflowkit.serving.inference.gateway_metrics import Telemetry, VersionStats
from mlflowkit.serving.inference.variants import ActiveTable, LoadedModel
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.values import Json

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
"""Of the model repository, the index only: see `load_not_allowed`."""
PLATFORM = "onnx_onnxruntime"


def server(service: str) -> Json:
    return {"name": "mlflowkit", "version": mlflowkit.__version__, "extensions": list(EXTENSIONS), "models": [service]}


def model(active: ActiveTable, loaded: LoadedModel) -> Json:
    """Model metadata, from the bundle's signature."""
    signature = loaded.bundle.signature
    return {
        "name": active.table.service,
        "versions": list(active.by_version),
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
        "parameters": {
            "version": loaded.variant.version,
            "identity": loaded.variant.digest,
            "task": signature.task,
            "classes": list(signature.classes),
            **({"texts": signature.texts.model_dump(mode="json")} if signature.has_text_rule else {}),
            **({} if signature.threshold is None else {"threshold": signature.threshold}),
        },
    }


def _tensor(spec: TensorSpec) -> Json:
    columns = {"parameters": {"columns": list(spec.columns)}} if spec.columns else {}
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape), **columns}


def config(service: str, loaded: LoadedModel, max_rows: int) -> Json:
    """Model configuration in Triton's form: the first dimension is the batch; a tensor has at least one other."""
    signature = loaded.bundle.signature
    return {
        "name": service,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": max_rows,
        "input": [_config_tensor(spec) for spec in signature.inputs],
        "output": [_config_tensor(spec) for spec in signature.outputs],
        "default_model_filename": "model.onnx",
        "parameters": {
            "version": {"string_value": loaded.variant.version},
            "task": {"string_value": signature.task},
            "classes": {"string_value": json.dumps(list(signature.classes))},
        },
    }


def _config_tensor(spec: TensorSpec) -> Json:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = list(spec.shape[1:])
    reshape: dict[str, Json] = {} if dims else {"reshape": {"shape": []}}
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims or [1], **reshape}


def index(service: str, active: ActiveTable | None) -> list[dict[str, str]]:
    """The repository index: every loaded version, with its roles as the reason."""
    roles: dict[str, list[str]] = {}
    for name, loaded in () if active is None else active.by_name.items():
        role = loaded.variant.role
        roles.setdefault(loaded.variant.version, []).append(name if name == role else f"{name} ({role})")
    return [
        {"name": service, "version": version, "state": "READY", "reason": ", ".join(names)}
        for version, names in roles.items()
    ]


def load_not_allowed() -> RequestError:
    """The reply to requests that load or unload a version."""
    advice = "mlkit run RECIPE deploys one, mlkit rollout promote SERVICE promotes it"
    return RequestError(403, f"versions are governed by rollouts: {advice}")


def statistics(service: str, telemetry: Telemetry, versions: Iterable[str]) -> Json:
    """Statistics of versions, as this replica counted them since it started; unmeasured durations are 0.

    A version that served under several variant names is the sum of all of them.
    """
    by_version: dict[str, list[VersionStats]] = {}
    for (_, version), stats in telemetry.by_variant.copy().items():
        by_version.setdefault(version, []).append(stats)
    return {"model_stats": [_version_statistics(service, name, by_version.get(name, [])) for name in versions]}


def _version_statistics(service: str, version: str, stats: Sequence[VersionStats]) -> Json:
    answered = sum(item.answered.count for item in stats)
    zero = _duration(0, 0.0)
    return {
        "name": service,
        "version": version,
        "last_inference": int(1000 * max((item.last for item in stats), default=0.0)),
        "inference_count": sum(item.rows for item in stats),
        "execution_count": answered,
        "inference_stats": {
            "success": _duration(answered, sum(item.answered.total for item in stats)),
            "fail": _duration(sum(item.failed for item in stats), sum(item.failed_seconds for item in stats)),
            "queue": zero,
            "compute_input": zero,
            "compute_infer": _duration(answered, sum(item.run_seconds for item in stats)),
            "compute_output": zero,
            "cache_hit": zero,
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
