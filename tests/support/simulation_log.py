"""A service's folder with a prediction log, feedback and evidence, as gateways leave it: seeded, no process runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.observer.prediction_log import LogWriter

BEGUN = 1_790_000_000.0


@dataclass(frozen=True)
class Challenger:
    """What a recorded challenger does; ``mirror`` makes it a shadow of all requests instead."""

    name: str = "challenger"
    weight: float = 0.3
    more_errors: float = 0.0
    slower: float = 1.0
    less_accurate: float = 0.0
    mirror: bool = False
    agrees: float = 1.0


def write_service(
    folder: Path,
    requests: int,
    *,
    rate: float = 50.0,
    challenger: Challenger | None = None,
    experiment: str = "",
    feedback: float = 0.0,
    rows: int = 1,
    seed: int = 0,
    segments: int = 3,
) -> Path:
    """Requests at a steady rate; 80 % of the answers are right."""
    random = np.random.default_rng(seed)
    times = BEGUN + np.arange(requests) / rate
    taken = random.random(requests) < (challenger.weight if challenger and not challenger.mirror else 0.0)
    failed = taken & (random.random(requests) < (challenger.more_errors if challenger else 0.0))
    seconds = random.lognormal(np.log(0.005), 0.5, requests) * np.where(
        taken, challenger.slower if challenger else 1, 1
    )
    truth = np.where(random.random(requests) < 0.2, "bad", "good")
    right = random.random(requests) < np.where(taken, 0.8 - (challenger.less_accurate if challenger else 0.0), 0.8)
    label = np.where(right, truth, np.where(truth == "bad", "good", "bad"))
    clients = _table(times, taken, failed, seconds, label, experiment, challenger, rows)
    parts = [clients]
    if challenger and challenger.mirror:
        same = random.random(requests) < challenger.agrees
        other = np.where(same, label, np.where(label == "bad", "good", "bad"))
        shadow = _table(times, np.zeros(requests, bool), failed, seconds, other, experiment, challenger, rows)
        named = {"variant": challenger.name, "answered": challenger.name, "how": "mirror"}
        parts.append(_with(shadow, named))
    writer = LogWriter(folder / "predictions", "r1", days=1e5, megabytes=100)
    for table in parts:
        step = -(-table.num_rows // segments)
        for start in range(0, table.num_rows, step):
            writer.add(table.slice(start, step))
            writer.roll()
    if feedback:
        _feedback(folder / "feedback", times, truth, random.random(requests) < feedback, rows)
    counts = {"champion": VariantCounts(int((~taken).sum()), round(0.01 * (~taken).sum()))}
    (folder / "evidence").mkdir()
    evidence = Evidence(experiment, {2: counts}).to_json()
    (folder / "evidence" / "r1.json").write_text(json.dumps(evidence))
    return folder


def _table(
    times: np.ndarray, taken: np.ndarray, failed: np.ndarray, seconds: np.ndarray, label: np.ndarray, experiment: str,
    challenger: Challenger | None, rows: int,
) -> pa.Table:  # fmt: skip
    count = len(times)
    each = np.repeat(np.arange(count), rows)
    name = challenger.name if challenger else ""
    variant = np.where(taken, name, "champion")
    answered = np.where(failed, "champion", variant)
    positive = np.where(label == "good", 0.9, 0.1)
    return pa.table(
        {
            "time": pa.array((times * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC")).take(pa.array(each)),
            "id": pa.array([f"r{place}" for place in each]),
            "row": pa.array(np.tile(np.arange(rows), count)),
            "experiment": pa.repeat(experiment, count * rows),
            "epoch": pa.array(np.full(count * rows, 2)),
            "variant": pa.array(variant[each].tolist(), pa.string()),
            "version": pa.repeat("v1", count * rows),
            "answered": pa.array(answered[each].tolist(), pa.string()),
            "how": pa.repeat("hash", count * rows),
            "seconds": pa.array(seconds[each]),
            "error": pa.array(np.where(failed, "late", "")[each].tolist(), pa.string()),
            "input.amount": pa.array(np.ones(count * rows)),
            "label": pa.array(label[each].tolist(), pa.string()),
            "probability.bad": pa.array(1 - positive[each]),
            "probability.good": pa.array(positive[each]),
        }
    )


def _with(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    for name, value in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.repeat(value, table.num_rows))
    return table


def _feedback(folder: Path, times: np.ndarray, truth: np.ndarray, told: np.ndarray, rows: int) -> None:
    folder.mkdir(parents=True)
    with (folder / "r1-000001.jsonl").open("wb") as stream:
        for place in np.flatnonzero(told):
            item = Feedback(f"r{place}", "label", (str(truth[place]),) * rows)
            stream.write(item.to_line(float(times[place]) + 5.0))
