"""The house stands: nothing heavy at import, and the public pieces that packaging promises are there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources

import pytest

VENDORS = (
    "torch",
    "ray",
    "pandas",
    "numpy",
    "sklearn",
    "scipy",
    "onnx",
    "onnxruntime",
    "skl2onnx",
    "whylogs",
    "mlflow",
    "optuna",
    "pandera",
    "pyarrow",
    "matplotlib",
    "uvicorn",
    "httpx",
    "grpc",
    "google.protobuf",
    "starlette",
    "prometheus_client",
)

ROOMS = (
    "mlflowkit",
    "mlflowkit.cli",
    "mlflowkit.cli.app",
    "mlflowkit.wiring",
    "mlflowkit.values",
    "mlflowkit.errors",
    "mlflowkit.system.arrays",
    "mlflowkit.bundle",
    "mlflowkit.processes.trial_main",
    "mlflowkit.adapters.trials",
    "mlflowkit.adapters.trials.child",
    "mlflowkit.optimization.selection",
    "mlflowkit.optimization.early_stopping",
    "mlflowkit.optimization.search",
    "mlflowkit.optimization.space",
    "mlflowkit.graphs.candidates",
    "mlflowkit.graphs.cuda_device",
    "mlflowkit.graphs.engine_store",
    "mlflowkit.graphs.engine_key",
    "mlflowkit.graphs.onnx_file",
    "mlflowkit.adapters.onnx_passes",
    "mlflowkit.ports",
    "mlflowkit.usercode",
    "mlflowkit.recipe.schema",
    "mlflowkit.recipe.check",
    "mlflowkit.pipeline.plan",
    "mlflowkit.pipeline.run",
    "mlflowkit.judging.gates",
    "mlflowkit.judging.stats",
    "mlflowkit.judging.metrics",
    "mlflowkit.judging.online.evidence",
    "mlflowkit.judging.online.findings",
    "mlflowkit.judging.online.judge",
    "mlflowkit.judging.online.questions",
    "mlflowkit.judging.online.sequential",
    "mlflowkit.serving.auth",
    "mlflowkit.serving.inference.circuit_breaker",
    "mlflowkit.service_state.records",
    "mlflowkit.serving.protocol.http_error",
    "mlflowkit.serving.http.routes",
    "mlflowkit.serving.inference.router",
    "mlflowkit.serving.inference.counters",
    "mlflowkit.rollout.settings",
    "mlflowkit.rollout.state",
    "mlflowkit.rollout.policy",
    "mlflowkit.rollout.commands",
    "mlflowkit.rollout.controller",
    "mlflowkit.rollout.simulation.simulator",
    "mlflowkit.rollout.admin.build_view",
    "mlflowkit.rollout.admin.snapshot",
    "mlflowkit.recipe.rollout_rules",
    "mlflowkit.pipeline.promotion",
    "mlflowkit.adapters.ray_serve.supervisor",
    "mlflowkit.adapters.ray_serve.platform",
    "mlflowkit.processes.controller_main",
    "mlflowkit.cli.commands.engines",
    "mlflowkit.cli.commands.feedback",
    "mlflowkit.cli.commands.key",
    "mlflowkit.cli.commands.replay",
    "mlflowkit.cli.commands.rollout",
    "mlflowkit.cli.commands.simulate",
    "mlflowkit.cli.commands.status",
    "mlflowkit.stages.data",
    "mlflowkit.stages.validate",
    "mlflowkit.stages.train",
    "mlflowkit.stages.export",
    "mlflowkit.stages.optimize",
    "mlflowkit.optimization.tournament",
    "mlflowkit.stages.evaluate",
    "mlflowkit.stages.package",
    "mlflowkit.stages.deploy",
)


@pytest.mark.parametrize("room", ROOMS)
def test_room_loads_no_vendor(room: str) -> None:
    code = f"import sys, {room}; print([v for v in {VENDORS!r} if v in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_is_typed() -> None:
    assert resources.files("mlflowkit").joinpath("py.typed").is_file()


def test_cpu_and_gpu_runtimes_are_exclusive_extras() -> None:
    def named(requirement: str) -> str:
        return re.split(r"[^a-z0-9-]", requirement)[0]

    requires = metadata.requires("mlflowkit") or []
    cpu = [line for line in requires if 'extra == "cpu"' in line]
    gpu = [line for line in requires if 'extra == "gpu"' in line]
    assert [named(line) for line in cpu] == ["onnxruntime"]
    assert {named(line) for line in gpu} >= {"onnxruntime-gpu", "tensorrt"}
    assert "onnxruntime" not in {named(line) for line in gpu}
