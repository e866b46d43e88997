"""Optimization candidates: passes over the float graph, and the engine that runs the result. Values only.

A pass rewrites an ONNX graph (`adapters.onnx_passes`, one module each). An engine is a runtime and its settings
(`adapters.onnxruntime`, `adapters.tensorrt`, `adapters.torch_runtime`). A recipe lists candidates by name (`NAMED`) or
in full; a search builds them from a space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlflowkit.sections import PluginUnion, Section
from mlflowkit.system.entry_points import PASSES

if TYPE_CHECKING:
    import numpy as np


class GraphPass(Section):
    """A pass over an ONNX graph. A plugin declares ``kind: Literal[NAME]`` and its keys, and implements `apply`."""

    kind: str

    @property
    def calibration_rows(self) -> int:
        """Number of training rows that `apply` needs."""
        return 0

    def apply(self, model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Rewrite ``model`` to ``out``; return "" on success, else why the pass does not apply to this graph.

        Runs in the trial's process. The names and types of inputs and outputs stay; equal input gives equal bytes.
        ``calibration`` holds training rows by input name. Built-in passes are applied by `adapters.onnx_passes`.
        """
        raise NotImplementedError

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        return () if isinstance(self, BUILT_IN_PASSES) else ((PASSES, self.kind),)


class Fuse(GraphPass):
    """Transformer fusions (attention, layer normalisation, GELU) as ONNX Runtime's own operators."""

    kind: Literal["fuse"] = "fuse"
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; inferred from the graph when omitted."""


class Float16(GraphPass):
    """Weights and arithmetic in FP16; inputs and outputs keep their types."""

    kind: Literal["fp16"] = "fp16"


class BFloat16(GraphPass):
    """Weights and arithmetic in BF16; inputs and outputs keep their types."""

    kind: Literal["bf16"] = "bf16"


class Int8(GraphPass):
    """Static INT8 as explicit Q/DQ pairs around products with constant weights."""

    kind: Literal["int8"] = "int8"
    form: Literal["tensorrt", "cpu"] = "tensorrt"
    """tensorrt: signed, symmetric, bias in float. Every runtime runs it; on x86 CPUs it is as fast as float or slower.

    cpu: unsigned activations with a zero point, for which ONNX Runtime has fast kernels on x86; TensorRT rejects it.
    A CPU without VNNI or AVX512 may accumulate such products in 16 bits and lose accuracy.
    """
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How activation ranges are derived from training rows."""
    per_channel: bool = False
    """Whether each output channel of the weights has its own scale."""
    rows: int = Field(default=512, ge=1)
    """Training rows used for calibration."""
    keep: int = Field(default=0, ge=0)
    """Number of products left in float: those with the largest measured loss when quantised alone."""

    @property
    def calibration_rows(self) -> int:
        return self.rows


class Int8Dynamic(GraphPass):
    """INT8 weights; activations are quantised per request. Not supported by TensorRT."""

    kind: Literal["int8-dynamic"] = "int8-dynamic"
    per_channel: bool = False
    """Whether each output channel of the weights has its own scale."""


class WeightOnly(GraphPass):
    """Large linear layers with INT4 or INT8 weights in blocks; arithmetic in float."""

    kind: Literal["weight-only"] = "weight-only"
    bits: Literal[4, 8] = 4
    """Bits per weight."""
    block: Literal[16, 32, 64, 128] = 32
    """Number of weights that share a scale."""
    smallest: int = Field(default=4096, ge=1)
    """Layers with fewer weights are left unchanged."""


class FixedRows(GraphPass):
    """A graph for one batch size: the row dimension becomes constant and dependent values are folded.

    Requests of other sizes are split into batches of this size; the last one is padded.
    """

    kind: Literal["rows"] = "rows"
    rows: int = Field(ge=1)
    """The batch size."""


BUILT_IN_PASSES = (Fuse, Float16, BFloat16, Int8, Int8Dynamic, WeightOnly, FixedRows)
Pass = Annotated[
    Fuse | Float16 | BFloat16 | Int8 | Int8Dynamic | WeightOnly | FixedRows,
    Field(discriminator="kind"),
    PluginUnion(PASSES, GraphPass),
]

RuntimeName = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compile"]


class Engine(Section):
    """A runtime and its settings."""

    runtime: RuntimeName = "ort-cpu"
    """ONNX Runtime on a provider, TensorRT, or the graph in torch as a baseline (torch, torch-compile)."""
    graph_level: Literal["off", "basic", "extended", "all"] = "all"
    """ONNX Runtime's graph optimization level at load time."""
    threads: int = Field(default=1, ge=1)
    """Intra-operator threads."""
    cuda_graph: bool = False
    """Whether to capture a run as a CUDA graph and replay it (GPU only)."""


class Candidate(Section):
    """Passes and engine under a name that is unique within a list of candidates."""

    name: str = Field(min_length=1, max_length=120)
    """Name of the candidate."""
    passes: list[Pass] = Field(default_factory=list)
    """Passes over the float graph, in order."""
    engine: Engine = Field(default_factory=Engine)
    """Engine that runs the graph."""

    @property
    def servable(self) -> bool:
        """Whether a gateway can serve it; torch engines are baselines for comparison only."""
        return not self.engine.runtime.startswith("torch")


NAMED: Mapping[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        Candidate(name="onnx"),
        Candidate(name="onnx-int8", passes=[Int8()]),
        Candidate(name="onnx-int8-per-channel", passes=[Int8(per_channel=True)]),
        Candidate(name="onnx-int8-cpu", passes=[Int8(form="cpu")]),
        Candidate(name="onnx-int8-cpu-per-channel", passes=[Int8(form="cpu", per_channel=True)]),
        Candidate(name="onnx-int8-dynamic", passes=[Int8Dynamic()]),
        Candidate(name="onnx-fp16", passes=[Float16()]),
        Candidate(name="onnx-fused", passes=[Fuse()]),
        Candidate(name="onnx-weight-only-4", passes=[WeightOnly()]),
        Candidate(name="onnx-weight-only-8", passes=[WeightOnly(bits=8)]),
        Candidate(name="onnx-cuda", engine=Engine(runtime="ort-cuda")),
        Candidate(name="onnx-cuda-fp16", passes=[Float16()], engine=Engine(runtime="ort-cuda")),
        Candidate(name="onnx-tensorrt-fp16", passes=[Float16()], engine=Engine(runtime="ort-tensorrt")),
        Candidate(name="tensorrt-fp16", passes=[Float16()], engine=Engine(runtime="tensorrt")),
        Candidate(name="torch", engine=Engine(runtime="torch")),
        Candidate(name="torch-compile", engine=Engine(runtime="torch-compile")),
    )
}
"""Predefined candidates by name."""


def candidate_title(passes: list[Any], engine: Engine) -> str:
    """A short unique name for a candidate: its passes and engine with all non-default settings.

    >>> candidate_title([Int8(per_channel=True)], Engine(threads=2))
    'int8(per_channel=true) ort-cpu(threads=2)'
    >>> candidate_title([], Engine())
    'float ort-cpu'
    """
    names = [_with_settings(step.kind, step, "kind") for step in passes] or ["float"]
    return " ".join([*names, _with_settings(engine.runtime, engine, "runtime")])


def _with_settings(name: str, section: Section, name_field: str) -> str:
    settings = section.model_dump(mode="json", exclude={name_field}, exclude_defaults=True)
    listed = ",".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in settings.items())
    return f"{name}({listed})" if listed else name
