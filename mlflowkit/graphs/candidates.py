"""What a candidate is: passes over the float graph, and the engine that runs what comes out. Values only.

A pass turns one ONNX graph into another (`adapters.onnx_passes`, one file each). An engine is a runtime and how it is
set up (`adapters.onnxruntime`, `adapters.tensorrt`, `adapters.torch_runtime`). A recipe writes candidates by name
(`NAMED`) or in full; a search makes them from a space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from mlflowkit.sections import Section


class Fuse(Section):
    """Transformer fusions (attention, layer normalisation, GELU) as ONNX Runtime's own kernels have them."""

    kind: Literal["fuse"] = "fuse"
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; found in the graph without."""


class Float16(Section):
    """Weights and arithmetic in FP16; inputs and answers keep their types."""

    kind: Literal["fp16"] = "fp16"


class BFloat16(Section):
    """Weights and arithmetic in BF16; inputs and answers keep their types."""

    kind: Literal["bf16"] = "bf16"


class Int8(Section):
    """Static INT8 as explicit Q/DQ pairs around products with constant weights."""

    kind: Literal["int8"] = "int8"
    form: Literal["tensorrt", "cpu"] = "tensorrt"
    """tensorrt: signed, symmetric, bias in float. Every runtime takes it; on x86 CPUs it is as fast as float or slower.

    cpu: unsigned activations with a zero point, for which ONNX Runtime has fast kernels on x86; TensorRT refuses it. A
    CPU without VNNI or AVX512 may add such products up in 16 bits and lose more of the answers.
    """
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How ranges are found from training rows."""
    per_channel: bool = False
    """Whether each output channel of the weights has a scale of its own."""
    rows: int = Field(default=512, ge=1)
    """Training rows that fix the ranges."""
    keep: int = Field(default=0, ge=0)
    """How many products stay in float: those that cost most when they alone are quantised (measured)."""


class Int8Dynamic(Section):
    """INT8 weights; activations are quantised as they come. No TensorRT."""

    kind: Literal["int8-dynamic"] = "int8-dynamic"
    per_channel: bool = False
    """Whether each output channel of the weights has a scale of its own."""


class WeightOnly(Section):
    """Large linear layers with INT4 or INT8 weights in blocks; arithmetic in float."""

    kind: Literal["weight-only"] = "weight-only"
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    block: Literal[16, 32, 64, 128] = 32
    """Weights that share a scale."""
    smallest: int = Field(default=4096, ge=1)
    """Layers with fewer weights stay as they are."""


class FixedRows(Section):
    """A graph for one batch size: the dimension of rows becomes a constant, and what follows from it is folded.

    Requests of other sizes are cut into parts of so many rows, the last one filled up.
    """

    kind: Literal["rows"] = "rows"
    rows: int = Field(ge=1)
    """The batch size."""


Pass = Annotated[Fuse | Float16 | BFloat16 | Int8 | Int8Dynamic | WeightOnly | FixedRows, Field(discriminator="kind")]

RuntimeName = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compile"]


class Engine(Section):
    """What runs a graph, and how it is set up."""

    runtime: RuntimeName = "ort-cpu"
    """ONNX Runtime on a provider, TensorRT itself, or the Python model as a baseline (torch, torch-compile)."""
    graph_level: Literal["off", "basic", "extended", "all"] = "all"
    """How far ONNX Runtime rewrites the graph when it loads it."""
    threads: int = Field(default=1, ge=1)
    """Threads inside an operator."""
    cuda_graph: bool = False
    """Whether a run is captured once and replayed (GPU only)."""


class Candidate(Section):
    """A graph's way from float to what runs. ``name`` is unique within a list of candidates."""

    name: str = Field(min_length=1, max_length=120)
    """What it is called; no two of a list alike."""
    passes: list[Pass] = Field(default_factory=list)
    """In the order in which they are applied."""
    engine: Engine = Field(default_factory=Engine)
    """What runs the graph."""

    @property
    def servable(self) -> bool:
        """Whether a gateway can serve it; torch baselines are there to be compared with."""
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
"""Candidates that a recipe may name in a word."""


def title(passes: list[Any], engine: Engine) -> str:
    """A short name for a candidate, unique for what it is: passes and engine with what differs from the default.

    >>> title([Int8(per_channel=True)], Engine(threads=2))
    'int8(per_channel=true) ort-cpu(threads=2)'
    >>> title([], Engine())
    'float ort-cpu'
    """
    words = [_words(one.kind, one, "kind") for one in passes] or ["float"]
    return " ".join([*words, _words(engine.runtime, engine, "runtime")])


def _words(name: str, section: Section, without: str) -> str:
    said = section.model_dump(mode="json", exclude={without}, exclude_defaults=True)
    inside = ",".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in said.items())
    return f"{name}({inside})" if inside else name
