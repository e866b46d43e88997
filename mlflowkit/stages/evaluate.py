"""Judge the artifact that will serve, on the test rows, at the recipe's gates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflowkit.stages.base import Section

BINARY_METRICS = ("roc_auc", "average_precision", "precision", "recall", "f1", "brier")
CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "log_loss", "macro_f1", "macro_roc_auc")
REGRESSION_METRICS = ("rmse", "mae", "r2", "median_absolute_error")
LATENCY_METRICS = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
LOWER_IS_BETTER = ("brier", "log_loss", "rmse", "mae", "median_absolute_error", *LATENCY_METRICS)


class Slice(Section):
    """The rows of the test part, by the values of a column."""

    column: str
    """A column declared under data.columns or in a schema check."""
    min_rows: int = Field(default=30, ge=2)
    """Values with fewer rows are reported and not judged."""


class Gate(Section):
    """One condition. A value threshold has min or max; a change threshold has against and margin."""

    metric: str
    """What is judged."""
    min: float | None = None
    """PASSED needs the whole interval at or above it."""
    max: float | None = None
    """PASSED needs the whole interval at or below it."""
    against: Literal["champion"] | None = None
    """Compare with the model that serves now, paired on the same rows. PASSED when there is none."""
    margin: float = Field(default=0.0, ge=0)
    """Non-inferiority margin: how much worse than the champion is borne."""
    slice: Slice | None = None
    """Judge each slice, corrected for their number (Holm)."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the interval (one bound of it decides)."""
    on_inconclusive: Literal["block", "allow"] = "block"
    """Whether INCONCLUSIVE stops the bundle from being blessed."""
    dry_run: bool = False
    """Report only."""


class Spec(Section):
    """What the evaluate stage's result depends on, besides its inputs and the champion."""

    task: Literal["classification", "regression"]
    gates: list[Gate]
    """Also the policy: its digest is bound by the blessing."""
