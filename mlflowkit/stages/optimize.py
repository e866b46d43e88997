"""Measure candidate graphs for latency and metric; pick by the recipe's objective and constraint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflowkit.stages.base import Section

CandidateName = Literal["onnx", "onnx-int8"]


class OptimizeSection(Section):
    """Which graphs to try and how to choose."""

    candidates: list[CandidateName] = Field(default=["onnx"], min_length=1)
    """In order of preference: a later one displaces an earlier one only where its interval says so."""
    objective: Literal["latency_p50", "latency_p95", "latency_p99"] = "latency_p99"
    """What to minimise."""
    metric: str | None = None
    """Metric that must not drop; without it roc_auc (binary), accuracy (multiclass) or rmse (regression)."""
    max_metric_drop: float = Field(default=0.005, ge=0)
    """Largest loss of the metric on the validation rows, against the float graph (paired on the same rows)."""
    batch: int = Field(default=1, ge=1)
    """Rows a request when latency is measured."""
    samples: int = Field(default=2000, ge=200)
    """Requests measured for each candidate, in interleaved blocks."""


class Spec(Section):
    """What the optimize stage's result depends on, besides its inputs and the machine."""

    task: Literal["classification", "regression"]
    optimize: OptimizeSection
