"""What a reader wants to know first: the best candidate of each model, and how it stands to the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.analysis import ratio_interval

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]


def quickest(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest median of those with figures; the earlier one where two are equal."""
    measured = [row for row in rows if row["status"] == "ok"]
    return min(measured, key=lambda row: row["p50_us"]) if measured else None


def best(
    rows: Sequence[Row], samples: Mapping[str, np.ndarray], operations: int | None, peaks: Mapping[str, float]
) -> dict[str, Any] | None:
    """The best of one model and batch size; None where nothing was measured.

    "ratios": p50 of the best over that of the quickest of other kinds, with the interval of samples that were taken in
    turns. "peak_share": operations a second over the measured peak of the same precision (``peaks`` by precision; at
    most one where the peak is the device's). Either is absent where one side was not measured.
    """
    found = quickest(rows)
    if found is None:
        return None
    said = {key: found[key] for key in ("model", "batch", "name", "precision", "p50_us", "interval", "throughput")}
    ratios = {}
    for title, runtimes in (("torch-compile", ("torch-compile",)), ("plain ONNX Runtime", ("ort-cuda", "ort-cpu"))):
        kind = [row for row in rows if row["runtime"] in runtimes and not (title.startswith("plain") and row["passes"])]
        other = next((one for runtime in runtimes if (one := quickest(_of(kind, runtime)))), None)
        if other is not None and other["name"] != found["name"]:
            ratios[other["name"]] = _ratio(samples, found, other)
    rate = operations and operations * found["throughput"]
    top = peaks.get(found["precision"])
    return {
        **said,
        "ratios": ratios,
        "operations_per_second": rate,
        "peak_share": round(rate / top, 4) if rate and top else None,
    }


def _of(rows: Sequence[Row], runtime: str) -> list[Row]:
    return [row for row in rows if row["runtime"] == runtime]


def _ratio(samples: Mapping[str, np.ndarray], ours: Row, theirs: Row) -> dict[str, Any]:
    """p50 of ours over theirs; an interval only where both were measured in the same turns."""
    left, right = samples[ours["name"]], samples[theirs["name"]]
    interval = None
    if left.shape == right.shape:
        interval = [round(end, 4) for end in ratio_interval(left, right, 0.5)]
    return {"ratio": round(ours["p50_us"] / theirs["p50_us"], 4), "interval": interval}
