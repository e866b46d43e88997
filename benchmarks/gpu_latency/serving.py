"""The same through a service: lending behind the gateway, with all that it does for a request, and behind nothing."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import infer
from benchmarks.gpu_latency import lending
from mlflowkit.errors import MlkitError
from mlflowkit.graphs.candidates import NAMED
from mlflowkit.wiring import Wiring

MODEL = "lending"
CANDIDATES = ("onnx", "onnx-cuda")
"""Names of candidates whose bundles are served: the graph on the processor, and on the GPU."""
Row = dict[str, Any]


def rows(candidates: Sequence[str], connections: Sequence[int], rounds: int, seconds: float) -> Iterator[Row]:
    """Requests a second and latency of one row a request, gateway and plain server in turns: median of the rounds, with
    the least and the largest. What this machine lacks, and a service that does not come up, is a row with its reason.
    The plain server is ONNX Runtime on the processor, whatever the gateway serves."""
    for candidate in candidates:
        blank = {"model": MODEL, "candidate": candidate, "server": infer.OURS}
        if lacking := Wiring(Path()).engines.missing(NAMED[candidate].engine):
            yield blank | {"status": "unavailable", "reason": lacking}
            continue
        try:
            found = _measured(candidate, connections, rounds, seconds)
        except (MlkitError, OSError, RuntimeError) as error:
            yield blank | {"status": "failed", "reason": str(error).partition("\n")[0]}
            continue
        for (server, count), times in found.items():
            yield blank | {"server": server, "connections": count} | _figures(times)


def _measured(
    candidate: str, connections: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, int], list[dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="mlkit-serving-") as place, ExitStack() as stack:
        folder, bundle = Path(place), lending.bundle(candidate)
        body = folder / "body.json"
        body.write_bytes(infer.body_of(bundle))
        ours, headers = stack.enter_context(infer.gateway(bundle, folder / "state"))
        urls = {infer.OURS: ours, infer.PLAIN: stack.enter_context(infer.plain(bundle))}
        answers = {name: infer.await_answer(url, body.read_bytes(), headers) for name, url in urls.items()}
        if NAMED[candidate].engine.runtime == "ort-cpu":  # a GPU multiplies in TF32, and differs by that
            infer.same_answers(answers)
        return infer.rounds_of(
            urls,
            lambda url, count: infer.load(url, body, count, seconds, headers if url == ours else ()),
            rounds,
            list(connections),
        )


def _figures(found: Sequence[dict[str, float]]) -> Row:
    figures = {
        key: [round(value, 1) for value in (statistics.median(values), min(values), max(values))]
        for key in ("per_second", "p50_us", "p99_us")
        if (values := [one[key] for one in found])
    }
    return {**figures, "status": "ok", "reason": ""}
