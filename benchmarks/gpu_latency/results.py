"""The document of results: what a run adds to it, group by group, and what of an earlier run may stay. Pure, but for
`opened` and `kept`.

A group is one model at one batch size: its candidates were measured in turns, so it is replaced whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.summary import shared
from benchmarks.gpu_latency.tables import lines
from mlflowkit.errors import DataError, UsageError
from mlflowkit.system.files import replace_file

Document = dict[str, Any]
Key = tuple[str, str, int | None]
"""A list of the document ("rows", "engines", "serving"), a model, and a batch size where its items name one."""


def opened(path: Path | None, settings: Mapping[str, Any], asked: Iterable[Key]) -> Document:
    """The document at ``path`` to go on with, under these ``settings`` (machine, threads, effort).

    ``asked`` is what will be measured. Raises UsageError where something else there was measured under other settings:
    a table of two machines compares nothing. Raises DataError for a file of something else.
    """
    fresh = {"benchmark": "gpu_latency", **json.loads(json.dumps(settings))}
    if path is None or not path.exists():
        return fresh
    try:
        old = json.loads(path.read_bytes())
        differing = [key for key, value in _essence(fresh).items() if _essence(old).get(key) != value]
        measured = {(key, *_group(item)) for key in ("rows", "engines", "serving") for item in old.get(key, ())}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no results of this suite: {error}", hint="give --out another file") from error
    if not differing:
        return {**old, **fresh}
    others = sorted({f"{model} ({key})" for key, model, _ in measured - set(asked)})
    if not others:
        return fresh
    raise UsageError(
        f"{path} has results under another {' and '.join(differing)}, of what is not measured now: {', '.join(others)}",
        hint="give --out another file, or leave out --models, --batches and --parts to measure everything anew",
    )


def _essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be alike in one table."""
    machine = settings["machine"]
    parts = {key: machine.get(key) for key in ("processor", "cores", "python", "libraries")}
    names = [one["name"] for one in machine.get("gpus") or ()]
    return {**parts, "GPU": names, "number of threads": settings.get("threads"), "effort": settings.get("effort")}


def put(document: Document, key: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Put items in place of those of the same model and batch size, and everything in the order of MODELS."""
    replaced = {_group(item) for item in items}
    order = {name: index for index, name in enumerate(MODELS)}
    left = [item for item in document.get(key, ()) if _group(item) not in replaced]
    document[key] = sorted([*left, *items], key=lambda item: (order.get(item["model"], -1), item.get("batch", 0)))


def _group(item: Mapping[str, Any]) -> tuple[str, int | None]:
    return item["model"], item.get("batch")


def put_peaks(document: Document, peaks: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the larger of two peaks, for a peak is what the device can do; all shares follow."""
    held = document.setdefault("peaks", {})
    for name, peak in peaks.items():
        if (peak["operations_per_second"] or 0) >= (held.get(name, {}).get("operations_per_second") or 0):
            held[name] = dict(peak)
    document["best"] = [shared(one, held) for one in document.get("best", ())]


def kept(path: Path | None, document: Document) -> None:
    """Write it, whole or not at all; nowhere where there is no path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lines(document).encode(), durable=False)
