"""TensorRT (10, 11) and TensorRT for RTX behind one adapter."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.candidates import Engine
from mlflowkit.ports import Session


class TensorRTEngines:
    """The Engines port for tensorrt and tensorrt-rtx."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or ""."""
        raise NotImplementedError

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session. Raises EngineError."""
        raise NotImplementedError
