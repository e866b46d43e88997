"""Builds a serialised, strongly typed engine from an ONNX graph, with a profile for dynamic inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflowkit.adapters.tensorrt.library import TensorRTLibrary
from mlflowkit.errors import EngineError
from mlflowkit.graphs.engine_key import EngineKey
from mlflowkit.graphs.engine_store import EngineStore
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import limited

STRING = 8
"""TensorProto.DataType."""
MAX_LISTED_NODES = 8
"""Nodes listed in an error."""
HINT = "use an ort-* engine, which runs them on the CPU, or remove them from the graph"


@dataclass(frozen=True, slots=True)
class EngineBuildJob:
    """An engine to build; ``key`` has everything that the result depends on."""

    library: TensorRTLibrary
    model: Path
    key: EngineKey
    ahead: bool
    """Whether to build for a named compute capability instead of this machine's GPU."""
    compatible: bool = False
    """Whether later versions of the library can run the engine."""


def build(job: EngineBuildJob, store: EngineStore | None) -> bytes:
    """The serialised engine. ``store`` keeps kernel timings of libraries that measure kernels.

    Raises EngineError: operators that the library lacks, or its own error.
    """
    module = job.library.module
    with job.library.capture_log() as log:
        builder = module.Builder(job.library.logger)
        flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))  # no flag: there is no other kind
        parser = module.OnnxParser(network, job.library.logger)
        if not parser.parse_from_file(str(job.model)):
            raise _parse_error(job, parser, log)
        config = builder.create_builder_config()
        _configure(job, builder, config, log)
        if store is None:
            plan = builder.build_serialized_network(network, config)
        else:
            versions = "-".join(f"{name}-{version}" for name, version in job.key.libraries.items())
            name = f"{versions}-sm{job.key.target}"
            with store.lock(name):
                path = store.folder / f"{name}.timing"
                _load_timings(config, path)
                plan = builder.build_serialized_network(network, config)
                if (cache := config.get_timing_cache()) is not None:
                    replace_file(path, bytes(cache.serialize()))
        if plan is None:
            raise _build_error(job, log)
        return bytes(plan)


def refuse_strings(proto: Any, model: Path, library: TensorRTLibrary) -> None:
    """Raise EngineError for a graph with strings, which TensorRT lacks; its parser does not report the nodes.

    Lists the operators that take strings, and those of other domains (ai.onnx.ml), which it lacks too.
    """
    strings = {
        value.name
        for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        if value.type.tensor_type.elem_type == STRING
    } | {tensor.name for tensor in proto.graph.initializer if tensor.data_type == STRING}
    if not strings:
        return
    lacking = [
        _format_node(node.op_type, node.name or node.output[0], node.domain)
        for node in proto.graph.node
        if node.domain not in ("", "ai.onnx") or strings.intersection(node.input)
    ]
    inputs = [value.name for value in proto.graph.input if value.name in strings]
    strings_text = f"inputs of strings ({', '.join(inputs)}) and " if inputs else ""
    listed = limited(lacking, MAX_LISTED_NODES)
    raise EngineError(f"{library.title} cannot take {strings_text}the operators {listed} of {model.name}", hint=HINT)


def _configure(job: EngineBuildJob, builder: Any, config: Any, log: list[str]) -> None:
    """Set the target, and add one profile over all dynamic inputs."""
    module = job.library.module
    if job.ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, f"SM{job.key.target}"), 0)
    if job.compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    dynamic = any(len(set(bounds)) > 1 for bounds in job.key.shapes.values())
    profile = builder.create_optimization_profile()
    for name, bounds in job.key.shapes.items():
        profile.set_shape(name, *bounds)
    if config.add_optimization_profile(profile) < 0 and dynamic:
        raise _build_error(job, log)


def _load_timings(config: Any, path: Path) -> None:
    """Give the builder the timings of earlier builds, or an empty cache if it rejects them."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _parse_error(job: EngineBuildJob, parser: Any, log: list[str]) -> EngineError:
    """The parser's errors with the unsupported nodes."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    with_node = [error for error in errors if error.node_operator()]
    failure = f"{job.library.title} {job.library.version} cannot take"
    if not with_node:
        reason = _log_summary(log) or "the library gives no reason"
        return EngineError(f"{failure} {job.model.name}: {reason}", hint=HINT)
    nodes = [_format_node(error.node_operator(), error.node_name() or f"number {error.node()}") for error in with_node]
    reasons = sorted({quoted[1] for error in with_node if (quoted := re.search(r'"(.+)"', error.desc()))})
    details = f": {'; '.join(reasons)}" if reasons else ""
    listed = limited(nodes, MAX_LISTED_NODES)
    return EngineError(f"{failure} the operators {listed} of {job.model.name}{details}", hint=HINT)


def _build_error(job: EngineBuildJob, log: list[str]) -> EngineError:
    reason = _log_summary(log)
    failure = f"{job.library.title} {job.library.version} cannot build {job.model.name} for {job.key.target}"
    if "memory" in reason.lower():
        return EngineError(f"{failure}: not enough memory: {reason}", hint="free some, or build for fewer rows")
    return EngineError(f"{failure}: {reason or 'the library gives no reason'}", hint="the message is the library's own")


def _log_summary(log: list[str]) -> str:
    """The library's first logged line, without source locations."""
    return log[0].partition(" In ")[0].partition("\n")[0][:300] if log else ""


def _format_node(operator: str, node: str, domain: str = "") -> str:
    return f"{domain + '.' if domain else ''}{operator} (node {node})"
