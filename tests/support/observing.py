"""Helpers of the observer's tests: records of a small lending service, without a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.inference.answer_records import AssignedBy, MirrorRecord, Record
from mlflowkit.serving.observer import frames
from mlflowkit.serving.observer.frames import Batch

SIGNATURE = Signature(
    task="classification",
    inputs=(
        TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("age", "income")),
        TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("term",)),
    ),
    outputs=(
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
    ),
    classes=("bad", "good"),
)
REGRESSION = Signature(
    task="regression",
    inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, 1), columns=("age",)),),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
)


def classified(scores: Any) -> dict[str, np.ndarray]:
    """Answers of a binary classifier with these probabilities of "good"."""
    good = np.asarray(scores, dtype=np.float32)
    labels = np.where(good >= 0.5, "good", "bad").astype(object)
    return {"label": labels, "probabilities": np.stack([1 - good, good], axis=1)}


def record(number: str, scores: Any, term: str = "36 months", **changes: Any) -> Record:
    """An answered request of as many rows as there are scores."""
    rows = len(scores)
    how: AssignedBy = "hash"
    answer = Record(
        time=1000.0, id=number, key="", experiment="e1", epoch=3, variant="champion", version="v1",
        answered="champion", how=how, seconds=0.002, rows=rows,
        inputs={
            "numeric": np.column_stack([np.arange(rows), np.full(rows, np.nan)]).astype(np.float32),
            "categorical": np.full((rows, 1), term, dtype=object),
        },
        answers=classified(scores),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(answer, name, value)
    return answer


def answered(*records: Record) -> list[Batch]:
    """Encode records to the batches that an observer receives."""
    return [frames.decode(frames.encode_records(header, group)) for header, group in frames.group_records(records)]


def mirrored(source: Record, answers: Mapping[str, np.ndarray] | None, seconds: float = 0.005) -> MirrorRecord:
    return MirrorRecord(source, "candidate", "v2", seconds, answers, "" if answers else "it raised")


def compared(*pairs: MirrorRecord) -> list[Batch]:
    """Encode mirrored requests to the batches that an observer receives."""
    return [frames.decode(frames.encode_mirrored(header, group)) for header, group in frames.group_records(pairs)]
