"""One candidate in a process of its own: what it does is asked for in lines of JSON, and answered in lines of JSON.

    python -m benchmarks.gpu_latency.child '{"do": "serve", "model": "mlp", "candidate": {...}, "batch": 8, ...}'

A crash, a kill for memory or a hang of a vendor's library costs this candidate, and the process that asked lives on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.gpu_latency import ahead
from benchmarks.gpu_latency.models import MODELS, Inputs, Model, pool
from mlflowkit.bench.measure import requests_over, timed_source
from mlflowkit.graphs import cuda_device
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.wiring import Wiring

Run = Callable[[Inputs], Mapping[str, np.ndarray]]


def main() -> None:
    """Do what the first argument asks; nothing but answers goes to the real standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    job = json.loads(sys.argv[1])
    works = {"prepare": prepare, "serve": serve, "facts": facts, "build": ahead.build}
    works[job["do"]](job, lambda said: print(json.dumps(said), file=answers, flush=True))


def prepare(job: Mapping[str, Any], say: Callable[[Any], None]) -> None:
    """Make a candidate's graph: {"path", "seconds", "size", "reason"}."""
    from benchmarks.gpu_latency.exports import rewritten

    candidate = Candidate.model_validate(job["candidate"])
    graph = rewritten(MODELS[job["model"]], candidate.passes, Wiring(Path()).passes)
    size = 0 if graph.reason else graph.size
    say({"path": str(graph.path), "seconds": graph.seconds, "size": size, "reason": graph.reason})


def serve(job: Mapping[str, Any], say: Callable[[Any], None], asked: IO[str] = sys.stdin) -> None:
    """Load a candidate, give its first answer, then time blocks of requests until the other side hangs up.

    First line: {"cold_start_ms": load and first answer, "start_ms": the same since the process was started,
    "answers": file with all numbers answered to the first request}. Then for each line [start, count] the nanoseconds
    of those requests; for "end" the peak of memory and, on a GPU, what copies between host and device take.
    """
    model, batch = MODELS[job["model"]], int(job["batch"])
    candidate = Candidate.model_validate(job["candidate"])
    rows = pool(model, batch)
    load = loader(model, candidate, job)
    idle = reset_memory()
    begin = time.monotonic_ns()
    run = load()
    first = requests_over(run, rows, batch)
    answers: Mapping[str, np.ndarray] = first(0)  # type: ignore[assignment]
    end = time.monotonic_ns()
    numbers = {name: np.asarray(found) for name, found in answers.items() if np.asarray(found).dtype.kind != "O"}
    np.savez(job["answers"], allow_pickle=False, **numbers)  # labels of strings follow from them
    say({"cold_start_ms": (end - begin) / 1e6, "start_ms": (end - job["spawned"]) / 1e6})
    source = timed_source(first)
    for line in asked:
        if line.strip() == '"end"':
            break
        say(source(*json.loads(line)))
    memory = peak_memory() - idle
    more = on_gpu({name: cells[:batch] for name, cells in rows.items()}, answers) if job["gpu"] else {}
    say({"memory_bytes": memory, **more})


def on_gpu(inputs: Inputs, answers: Inputs) -> dict[str, Any]:
    """What is asked of a candidate on a GPU at the end: memory there, and copies by themselves."""
    from benchmarks.gpu_latency import hardware

    return {"gpu_memory_bytes": hardware.gpu_memory(), "copies": hardware.copies(inputs, answers)}


def loader(model: Model, candidate: Candidate, job: Mapping[str, Any]) -> Callable[[], Run]:
    """What loads the candidate, with its libraries already imported: a service imports them before there is a model."""
    engine = candidate.engine
    if engine.runtime.startswith("torch"):
        from benchmarks.gpu_latency.baseline import python_model

        return lambda: python_model(model, engine, job["precision"], "cuda" if job["gpu"] else "cpu")
    engines = Wiring(Path()).engines
    engines.missing(engine)  # imports the vendor
    return lambda: engines.load(Path(job["path"]), engine, store=Path(job["store"])).run


def facts(job: Mapping[str, Any], say: Callable[[Any], None]) -> None:
    """What candidates are held against: {"peaks": by precision, "operations": of one row, by model with a network}."""
    from benchmarks.gpu_latency import hardware, networks

    named = [MODELS[name] for name in job["models"] if MODELS[name].network]
    counted = {model.name: networks.operations(model.name, model.rows(1)) for model in named}
    device = "cpu" if cuda_device.missing() else "cuda"
    peaks = {precision: hardware.matmul_peak(precision, job["threads"], device) for precision in job["precisions"]}
    say({"peaks": peaks, "operations": counted})


def reset_memory() -> int:
    """Resident bytes now; the peak counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The most resident bytes since `reset_memory`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
