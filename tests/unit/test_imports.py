"""Nothing heavy is imported on the light path, and packaging keeps its promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata, resources

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

LIGHT = (
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
    "mlflowkit.judging.online.metric_results",
    "mlflowkit.judging.online.judge",
    "mlflowkit.judging.online.metric_specs",
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
    "mlflowkit.recipe.section_rules.monitor_rules",
    "mlflowkit.recipe.section_rules.rollout_rules",
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
    "mlflowkit.stages.evaluate",
    "mlflowkit.stages.package",
    "mlflowkit.stages.deploy",
)


PRELOADED = ("pydantic", "sqlalchemy", "typer", "hydra", "rich.console")
"""Libraries that are no vendors and that most modules import: loaded once, before the process forks."""

PROBE = """
import importlib, json, os, sys
modules, vendors, preloaded = json.loads(sys.argv[1])
for name in preloaded:
    importlib.import_module(name)
early = [vendor for vendor in vendors if vendor in sys.modules]
assert not early, f"{early} come with {preloaded}"
for name in modules:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os.write(writing, json.dumps([vendor for vendor in vendors if vendor in sys.modules]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        print(json.dumps([name, stream.read()]))
    os.waitpid(child, 0)
"""


def test_light_modules_load_no_vendor() -> None:
    arguments = json.dumps([["mlflowkit", *LIGHT], VENDORS, PRELOADED])
    done = subprocess.run([sys.executable, "-c", PROBE, arguments], capture_output=True, text=True, check=True)
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(loaded) == {"mlflowkit", *LIGHT}
    assert {name: vendors for name, vendors in loaded.items() if vendors != "[]"} == {}


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
