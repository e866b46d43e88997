"""From a space to its candidates: every combination that makes sense, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from mlflowkit.graphs.candidates import Candidate, Engine, FixedRows, Int8Dynamic, Pass, RuntimeName, title
from mlflowkit.sections import Section
from mlflowkit.system.digests import digest_json

FLOAT = Candidate(name="onnx")
"""The graph that the export stage published, on the default engine: what every other is held against."""
MOST = 100_000
"""Combinations that a space may have."""
LONGEST_NAME = 120


class Space(Section):
    """Candidates by dimension: each way through the passes on each engine that its other dimensions make."""

    passes: list[list[Pass]] = Field(default=[[]], min_length=1)
    """Ways from the float graph to what runs; an empty list is the float graph itself."""
    runtime: list[RuntimeName] = Field(default=["ort-cpu"], min_length=1)
    """What runs it."""
    graph_level: list[Literal["off", "basic", "extended", "all"]] = Field(default=["all"], min_length=1)
    """How far ONNX Runtime rewrites the graph when it loads it."""
    threads: list[Annotated[int, Field(ge=1)]] = Field(default=[1], min_length=1)
    """Threads inside an operator."""
    cuda_graph: list[bool] = Field(default=[False], min_length=1)
    """Whether a run is captured once and replayed (GPU only)."""

    @property
    def size(self) -> int:
        """Combinations, those that make no sense included."""
        lists = (self.passes, self.runtime, self.graph_level, self.threads, self.cuda_graph)
        count = 1
        for one in lists:
            count *= len(one)
        return count


def candidates_of(space: Space) -> list[Candidate]:
    """Each candidate of a space once, in the order of its lists (the last one varies fastest).

    A setting that a runtime does not know is left at its default, so that it makes no difference.

    >>> [one.name for one in candidates_of(Space(graph_level=["basic", "all"], threads=[1, 2]))][:2]
    ['float ort-cpu(graph_level=basic)', 'float ort-cpu(graph_level=basic,threads=2)']
    """
    combinations = product(space.passes, space.runtime, space.graph_level, space.threads, space.cuda_graph)
    found: dict[str, Candidate] = {}
    for passes, runtime, level, threads, graph in combinations:
        engine = Engine(runtime=runtime, graph_level=level, threads=threads, cuda_graph=graph)
        candidate = made(passes, engine)
        if not impossible(passes, candidate.engine):
            found.setdefault(key_of(candidate), candidate)
    return list(found.values())


def made(passes: Sequence[Pass], engine: Engine) -> Candidate:
    """A candidate named for what it is."""
    engine = normal(engine)
    name = title(list(passes), engine)
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]} {digest_json(name)[:8]}"
    return Candidate(name=name, passes=list(passes), engine=engine)


def normal(engine: Engine) -> Engine:
    """The engine with what its runtime does not look at left at the default.

    >>> normal(Engine(runtime="tensorrt", threads=4, graph_level="off")).threads
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


def impossible(passes: Sequence[Pass], engine: Engine) -> str:
    """Why no machine can run these passes on this engine, or "".

    >>> impossible([Int8Dynamic()], Engine(runtime="tensorrt"))
    'TensorRT takes no dynamic quantisation'
    """
    kinds = [one.kind for one in passes]
    repeated = next((kind for index, kind in enumerate(kinds) if kind in kinds[:index]), "")
    if repeated:
        return f"the pass {repeated} is there twice"
    tensorrt = "tensorrt" in engine.runtime
    if tensorrt and any(isinstance(one, Int8Dynamic) for one in passes):
        return "TensorRT takes no dynamic quantisation"
    if engine.runtime.startswith("torch") and passes:
        return f"{engine.runtime} runs the Python model, which passes over the graph do not touch"
    return ""


def unservable(candidate: Candidate) -> str:
    """Why a gateway cannot serve a candidate wherever it runs, or ""."""
    if not candidate.servable:
        return f"{candidate.engine.runtime} is a baseline: a gateway serves graphs"
    fixed = next((one for one in candidate.passes if isinstance(one, FixedRows)), None)
    if fixed is not None and candidate.engine.runtime != "ort-cpu":
        return f"a baseline: {candidate.engine.runtime} answers {fixed.rows} rows only, and requests have any number"
    return ""


def key_of(candidate: Candidate) -> str:
    """What a candidate is, whatever it is called: equal for equal passes on an equal engine."""
    engine = normal(candidate.engine).model_dump(mode="json")
    return digest_json({"passes": [one.model_dump(mode="json") for one in candidate.passes], "engine": engine})


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that are not among those before them, whatever they are called."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(key_of(candidate), candidate)
    return list(found.values())
