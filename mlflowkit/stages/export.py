"""Preprocessing and model become one ONNX graph; its parity with the Python model is measured on real rows."""

from __future__ import annotations

from pydantic import Field

from mlflowkit.stages.base import Section


class ExportSection(Section):
    """The graph and how close it must be to the Python model."""

    tolerance: float = Field(default=1e-4, gt=0)
    """Largest absolute difference allowed between the graph's and the Python model's scores (for a regression:
    relative to the standard deviation of the target)."""
    parity_rows: int = Field(default=1000, ge=1)
    """Rows of the validation part that parity is measured on."""


class Spec(Section):
    """What the export stage's result depends on, besides its inputs."""

    export: ExportSection
