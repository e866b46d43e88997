"""From an ONNX graph to a serialised engine: strongly typed, with a profile for what is dynamic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflowkit.adapters.tensorrt.library import Vendor
from mlflowkit.errors import EngineError
from mlflowkit.graphs.engine_key import EngineKey
from mlflowkit.graphs.engine_store import EngineStore
from mlflowkit.system.files import replace_file

STRING = 8
"""TensorProto.DataType."""
SHOWN = 8
"""Nodes that an error names."""
ANOTHER = "ask for an ort-* engine, which leaves them to the CPU, or take them out of the graph"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be built, and of what: ``key`` has everything that the result depends on."""

    vendor: Vendor
    model: Path
    key: EngineKey
    ahead: bool
    """For a compute capability that is named, not for the GPU at hand."""
    compatible: bool = False
    """For later versions of the library too."""


def build(job: Job, store: EngineStore | None) -> bytes:
    """The serialised engine. ``store`` keeps what was measured of kernels, for libraries that measure.

    Raises EngineError: operators that the library lacks, or whatever it says is wrong.
    """
    module = job.vendor.module
    with job.vendor.listening() as log:
        builder = module.Builder(job.vendor.logger)
        network = builder.create_network(_strongly_typed(module))
        parser = module.OnnxParser(network, job.vendor.logger)
        if not parser.parse_from_file(str(job.model)):
            raise _not_taken(job, parser, log)
        config = builder.create_builder_config()
        _set_target(job, config)
        _set_profile(job, builder, config, log)
        if store is None:
            plan = builder.build_serialized_network(network, config)
        else:
            with store.lock(_timing_name(job)):
                path = store.folder / f"{_timing_name(job)}.timing"
                _use_timings(config, path)
                plan = builder.build_serialized_network(network, config)
                _keep_timings(config, path)
        if plan is None:
            raise _failed(job, log)
        return bytes(plan)


def refuse_strings(proto: Any, model: Path, vendor: Vendor) -> None:
    """Raise EngineError for a graph over strings: TensorRT has none, and its parser does not say which nodes they are.

    The operators that take strings are named, and those of ONNX's classical machine learning, which it lacks too.
    """
    strings = {
        value.name
        for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        if value.type.tensor_type.elem_type == STRING
    } | {tensor.name for tensor in proto.graph.initializer if tensor.data_type == STRING}
    if not strings:
        return
    lacking = [
        _named(node.op_type, node.name or node.output[0], node.domain)
        for node in proto.graph.node
        if node.domain not in ("", "ai.onnx") or strings.intersection(node.input)
    ]
    inputs = [value.name for value in proto.graph.input if value.name in strings]
    what = f"inputs of strings ({', '.join(inputs)}) and " if inputs else ""
    raise EngineError(f"{vendor.title} cannot take {what}the operators {_list(lacking)} of {model.name}", hint=ANOTHER)


def _strongly_typed(module: Any) -> int:
    """The flag of a strongly typed network; where every network is, there may be no flag."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_target(job: Job, config: Any) -> None:
    module = job.vendor.module
    if job.ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, f"SM{job.key.target}"), 0)
    if job.compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)


def _set_profile(job: Job, builder: Any, config: Any, log: list[str]) -> None:
    """One profile over all dynamic inputs; a graph with none needs none."""
    dynamic = {name: bounds for name, bounds in job.key.shapes.items() if len(set(bounds)) > 1}
    profile = builder.create_optimization_profile()
    for name, bounds in job.key.shapes.items():
        profile.set_shape(name, *bounds)
    if config.add_optimization_profile(profile) < 0 and dynamic:
        raise _failed(job, log)


def _timing_name(job: Job) -> str:
    versions = "-".join(f"{name}-{version}" for name, version in job.key.libraries.items())
    return f"{versions}-sm{job.key.target}"


def _use_timings(config: Any, path: Path) -> None:
    """Give the builder what earlier builds measured. It checks it itself, and begins anew when it is another's."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        replace_file(path, bytes(cache.serialize()))


def _not_taken(job: Job, parser: Any, log: list[str]) -> EngineError:
    """The parser's errors: each names the node that it could not take."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    named = [error for error in errors if error.node_operator()]
    what = f"{job.vendor.title} {job.vendor.version} cannot take"
    if not named:
        return EngineError(f"{what} {job.model.name}: {_said(log) or 'it does not say why'}", hint=ANOTHER)
    nodes = [_named(error.node_operator(), error.node_name() or f"number {error.node()}") for error in named]
    reasons = sorted({quoted[1] for error in named if (quoted := re.search(r'"(.+)"', error.desc()))})
    why = f": {'; '.join(reasons)}" if reasons else ""
    return EngineError(f"{what} the operators {_list(nodes)} of {job.model.name}{why}", hint=ANOTHER)


def _failed(job: Job, log: list[str]) -> EngineError:
    said = _said(log)
    what = f"{job.vendor.title} {job.vendor.version} cannot build {job.model.name} for {job.key.target}"
    if "memory" in said.lower():
        return EngineError(f"{what}: not enough memory: {said}", hint="free some, or build for fewer rows")
    return EngineError(f"{what}: {said or 'it does not say why'}", hint="the message is the library's own")


def _said(log: list[str]) -> str:
    """The library's first words on what went wrong, short of the places in its source."""
    return log[0].partition(" In ")[0].partition("\n")[0][:300] if log else ""


def _named(operator: str, node: str, domain: str = "") -> str:
    return f"{domain + '.' if domain else ''}{operator} (node {node})"


def _list(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
