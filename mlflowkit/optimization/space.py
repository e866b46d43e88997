"""Search spaces of candidates: enumerates every valid combination once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from mlflowkit.graphs.candidates import Candidate, Engine, FixedRows, Int8Dynamic, Pass, RuntimeName, candidate_title
from mlflowkit.sections import Section
from mlflowkit.system.digests import digest_json

FLOAT = Candidate(name="onnx")
"""The graph that the export stage published, on the default engine: the reference of all others."""
MAX_COMBINATIONS = 100_000
"""Largest number of combinations of a space."""
MAX_NAME_LENGTH = 120


class Space(Section):
    """Candidates by dimension: each list of passes on each engine that the other dimensions form."""

    passes: list[list[Pass]] = Field(default=[[]], min_length=1)
    """Lists of passes over the float graph; an empty list is the float graph itself."""
    runtime: list[RuntimeName] = Field(default=["ort-cpu"], min_length=1)
    """The runtimes."""
    graph_level: list[Literal["off", "basic", "extended", "all"]] = Field(default=["all"], min_length=1)
    """Graph optimisation level of ONNX Runtime when it loads the graph."""
    threads: list[Annotated[int, Field(ge=1)]] = Field(default=[1], min_length=1)
    """Threads inside an operator."""
    cuda_graph: list[bool] = Field(default=[False], min_length=1)
    """Whether a run is captured once and replayed (GPU only)."""

    @property
    def size(self) -> int:
        """Number of combinations, invalid ones included."""
        dimensions = (self.passes, self.runtime, self.graph_level, self.threads, self.cuda_graph)
        return math.prod(len(values) for values in dimensions)


def candidates_of(space: Space) -> list[Candidate]:
    """Each candidate of a space once, in the order of its lists (the last one varies fastest).

    A setting that a runtime ignores is left at its default, so that it makes no difference.

    >>> [candidate.name for candidate in candidates_of(Space(graph_level=["basic", "all"], threads=[1, 2]))][:2]
    ['float ort-cpu(graph_level=basic)', 'float ort-cpu(graph_level=basic,threads=2)']
    """
    combinations = product(space.passes, space.runtime, space.graph_level, space.threads, space.cuda_graph)
    candidates = []
    for passes, runtime, level, threads, graph in combinations:
        engine = normalize(Engine(runtime=runtime, graph_level=level, threads=threads, cuda_graph=graph))
        if not reason_impossible(passes, engine):
            name = candidate_title(list(passes), engine)
            if len(name) > MAX_NAME_LENGTH:
                name = f"{name[: MAX_NAME_LENGTH - 9]} {digest_json(name)[:8]}"
            candidates.append(Candidate(name=name, passes=list(passes), engine=engine))
    return distinct(candidates)


def normalize(engine: Engine) -> Engine:
    """The engine with the settings that its runtime ignores at their defaults.

    >>> normalize(Engine(runtime="tensorrt", threads=4, graph_level="off")).threads
    1
    """
    ignored: dict[str, object] = {}
    if not engine.runtime.startswith("ort-"):
        ignored["graph_level"] = "all"
    if engine.runtime not in ("ort-cpu", "torch", "torch-compile"):
        ignored["threads"] = 1
    if engine.runtime in ("ort-cpu", "torch", "torch-compile"):
        ignored["cuda_graph"] = False
    return engine.model_copy(update=ignored)


def reason_impossible(passes: Sequence[Pass], engine: Engine) -> str:
    """Why no machine can run these passes on this engine, or "".

    >>> reason_impossible([Int8Dynamic()], Engine(runtime="tensorrt"))
    'TensorRT takes no dynamic quantisation'
    """
    kinds = [graph_pass.kind for graph_pass in passes]
    repeated = next((kind for index, kind in enumerate(kinds) if kind in kinds[:index]), "")
    if repeated:
        return f"the pass {repeated} occurs twice"
    if "tensorrt" in engine.runtime and any(isinstance(graph_pass, Int8Dynamic) for graph_pass in passes):
        return "TensorRT takes no dynamic quantisation"
    if engine.runtime.startswith("torch") and passes:
        return f"{engine.runtime} runs the Python model, which graph passes do not change"
    return ""


def reason_unservable(candidate: Candidate) -> str:
    """Why no gateway can serve a candidate, or ""."""
    if not candidate.servable:
        return f"{candidate.engine.runtime} is a baseline: a gateway serves graphs"
    fixed = next((graph_pass for graph_pass in candidate.passes if isinstance(graph_pass, FixedRows)), None)
    if fixed is not None and candidate.engine.runtime != "ort-cpu":
        return f"a baseline: {candidate.engine.runtime} answers {fixed.rows} rows only, and requests have any number"
    return ""


def key_of(candidate: Candidate) -> str:
    """Identity of a candidate regardless of its name: equal for equal passes on an equal engine."""
    passes = [graph_pass.model_dump(mode="json") for graph_pass in candidate.passes]
    return digest_json({"passes": passes, "engine": normalize(candidate.engine).model_dump(mode="json")})


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates without duplicates (regardless of names); the first of each is kept."""
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        unique.setdefault(key_of(candidate), candidate)
    return list(unique.values())
