"""Passes over ONNX graphs, one file each, behind the Passes port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mlflowkit.candidates import Pass


class OnnxPasses:
    """Applies passes one after the other."""

    def apply(self, passes: Sequence[Pass], model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Write ``model`` after all passes to ``out``; returns "" or the reason why this graph cannot be had so."""
        raise NotImplementedError
