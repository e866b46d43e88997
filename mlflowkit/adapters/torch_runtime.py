"""The Python side of a graph, eager and compiled, as baselines: the ONNX graph is turned into torch operators."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.candidates import Engine
from mlflowkit.ports import Session


class TorchEngines:
    """The Engines port for torch and torch-compile."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or ""."""
        raise NotImplementedError

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session. Raises EngineError."""
        raise NotImplementedError
