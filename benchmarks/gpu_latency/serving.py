"""The same through a service: lending behind the gateway, with all that it does for a request, and behind nothing."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import infer
from benchmarks.gpu_latency import lending
from mlflowkit.errors import MlkitError

Row = dict[str, Any]


def rows(connections: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Requests a second and latency of one row a request, gateway and plain server in turns: median of the rounds, with
    the least and the largest. A service that does not come up is a row with its reason."""
    try:
        results = _measured(connections, rounds, seconds)
    except (MlkitError, OSError, RuntimeError) as error:
        return [{"model": "lending", "server": infer.OURS, "status": "failed", "reason": str(error).splitlines()[0]}]
    return [_row(server, count, found) for (server, count), found in results.items()]


def _measured(connections: Sequence[int], rounds: int, seconds: float) -> dict[tuple[str, int], list[dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="mlkit-serving-") as place, ExitStack() as stack:
        folder, bundle = Path(place), lending.bundle()
        body = folder / "body.json"
        body.write_bytes(infer.body_of(bundle))
        ours, headers = stack.enter_context(infer.gateway(bundle, folder / "state"))
        urls = {infer.OURS: ours, infer.PLAIN: stack.enter_context(infer.plain(bundle))}
        infer.same_answers({name: infer.await_answer(url, body.read_bytes(), headers) for name, url in urls.items()})
        return infer.rounds_of(
            urls,
            lambda url, count: infer.load(url, body, count, seconds, headers if url == ours else ()),
            rounds,
            list(connections),
        )


def _row(server: str, count: int, found: Sequence[dict[str, float]]) -> Row:
    figures = {
        key: [round(value, 1) for value in (statistics.median(values), min(values), max(values))]
        for key in ("per_second", "p50_us", "p99_us")
        if (values := [one[key] for one in found])
    }
    return {"model": "lending", "server": server, "connections": count, **figures, "status": "ok", "reason": ""}
