"""What a reader wants to know first: the best candidate of each model, and how it stands to the others. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.analysis import ratio_interval, unpaired_ratio_interval

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]

AT = 128
"""Batch size at which a device is held against its peak: what a throughput is for."""
NEAR = 0.05
"""Relative difference of answers (see `measure.difference`) beyond which a candidate is shown, and not called best."""
RIVALS: Mapping[str, Callable[[Row], bool]] = {
    "torch-compile": lambda row: row["runtime"] == "torch-compile",
    "ort-cuda": lambda row: row["runtime"] == "ort-cuda" and _plain(row),
    "ort-cpu": lambda row: row["runtime"] == "ort-cpu" and _plain(row),
    "torch": lambda row: row["runtime"] == "torch",
}
"""What the best is held against: the Python model compiled, the float graph as it was exported, the Python model."""


def _plain(row: Row) -> bool:
    return not row["passes"] and not row["engine"]["cuda_graph"]


def quickest(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest median of those with figures; the earlier one where two are equal."""
    measured = [row for row in rows if row["status"] == "ok"]
    return min(measured, key=lambda row: row["p50_us"]) if measured else None


def servable(rows: Sequence[Row]) -> list[Row]:
    """Those that a gateway can serve (the Python model is there to be compared with), whose answers are near enough to
    those in FP32 to be an answer of the same model."""
    return [row for row in rows if not row["runtime"].startswith("torch") and (row["difference"] or 0.0) <= NEAR]


def best(rows: Sequence[Row], samples: Mapping[str, np.ndarray], operations: int | None) -> dict[str, Any] | None:
    """The best of one model and batch size of those that are `servable`; None where none was measured.

    "ratios": p50 of the best over that of each of RIVALS, with the interval of samples that were taken in turns and
    what it shows: "faster", "slower", "not told apart", "itself", or "not run" with the reason.
    "operations_per_second": ``operations`` of a row times rows a second; None where they are not counted.
    """
    found = quickest(servable(rows))
    if found is None:
        return None
    said = {key: found[key] for key in ("model", "batch", "name", "runtime", "precision", "device")}
    figures = {key: found[key] for key in ("p50_us", "p95_us", "p99_us", "interval", "throughput")}
    ratios = {rival: _against(found, [row for row in rows if theirs(row)], samples) for rival, theirs in RIVALS.items()}
    rate = operations * found["throughput"] if operations else None
    return {**said, **figures, "ratios": ratios, "operations_per_second": rate}


def shared(found: Row, peaks: Mapping[str, Row]) -> dict[str, Any]:
    """What `best` said, with "peak_share": its operations a second over the measured peak of the same precision and
    device (``peaks`` by precision, see `hardware.matmul_peak`); None where there is none, for "peak_reason"."""
    share, reason = _share(found, peaks)
    return {**found, "peak_share": share, "peak_reason": reason}


def _share(found: Row, peaks: Mapping[str, Row]) -> tuple[float | None, str]:
    rate = found["operations_per_second"]
    if rate is None:
        return None, "not counted"
    peak = peaks.get(found["precision"])
    if peak is None or not peak["operations_per_second"]:
        why = "not measured" if peak is None else peak["reason"]
        return None, f"no peak of {found['precision']} products: {why}"
    if peak["device"] != found["device"]:
        return None, f"it ran on {found['device']}, and the peak is of {peak['device']}"
    return round(rate / peak["operations_per_second"], 4), ""


def _against(ours: Row, theirs: Sequence[Row], samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """p50 of ours over that of the quickest of theirs, paired where both were measured in the same turns."""
    other = quickest(theirs)
    blank: dict[str, Any] = {"name": None, "ratio": None, "interval": None}
    if other is None:
        reasons = dict.fromkeys(f"{row['status']}: {row['reason']}" for row in theirs)
        return blank | {"shown": "not run", "reason": "; ".join(reasons) or "not asked for"}
    if other["name"] == ours["name"]:
        return blank | {"name": other["name"], "ratio": 1.0, "shown": "itself", "reason": ""}
    left, right = samples[ours["name"]], samples[other["name"]]
    together = ours["device"] == other["device"]  # each device has turns of its own
    ends = ratio_interval(left, right, 0.5) if together else unpaired_ratio_interval([left], [right], 0.5)
    ratio, interval = round(ours["p50_us"] / other["p50_us"], 4), [round(end, 4) for end in ends]
    return {"name": other["name"], "ratio": ratio, "interval": interval, "shown": _shown(interval), "reason": ""}


def _shown(interval: Sequence[float]) -> str:
    return "faster" if interval[1] < 1 else "slower" if interval[0] > 1 else "not told apart"


def on_gpu(document: Mapping[str, Any], batch: int = AT) -> list[dict[str, Any]]:
    """What is claimed of a GPU, for each model at one batch size: the share of its measured peak that the best reaches,
    and the ratios to torch.compile and to plain ONNX Runtime on CUDA.

    [{"model", "best", "peak_share", "against": {rival: ratio as in `best`}, "reason"}]; a reason where the best did not
    run on a GPU, and no figures then.
    """
    names = dict.fromkeys(row["model"] for row in document.get("rows", ()) if row["batch"] == batch)
    found = {one["model"]: one for one in document.get("best", ()) if one["batch"] == batch}
    return [_claim(name, found.get(name), document.get("gpu", "")) for name in names]


def _claim(model: str, found: Row | None, lacking: str) -> dict[str, Any]:
    blank: dict[str, Any] = {"model": model, "best": None, "peak_share": None, "against": {}, "reason": ""}
    if lacking and lacking != "present":
        return blank | {"reason": lacking}
    if found is None or found["device"] != "cuda":
        return blank | {"reason": "nothing was measured" if found is None else f"the best is {found['name']}"}
    against = {rival: found["ratios"][rival] for rival in ("torch-compile", "ort-cuda")}
    share = {"peak_share": found["peak_share"], "reason": found["peak_reason"]}
    return blank | share | {"best": found["name"], "against": against}
