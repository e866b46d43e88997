"""A runtime whose sessions do what a file says: a platform's runtime in tests, loaded by Serve's processes.

``$MLKIT_TEST_FAULTS/<folder of the bundle's folder>`` holds one word: raise, hang, wedge (hang with the interpreter
lock), segfault or eat. Without the file, or with another word, the session answers.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlflowkit.adapters.onnxruntime import OnnxRuntime, OnnxSession
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Engine


class FaultyRuntime:
    """Loads graphs with ONNX Runtime."""

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> FaultySession:
        fault = Path(os.environ["MLKIT_TEST_FAULTS"]) / model.parent.parent.name
        return FaultySession(OnnxRuntime().load(model, threads=threads, engine=engine), fault)


class FaultySession:
    """A session that reads before each run what is to go wrong."""

    def __init__(self, session: OnnxSession, fault: Path) -> None:
        self._session = session
        self._fault = fault
        self._kept: list[np.ndarray] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        word = self._fault.read_text() if self._fault.exists() else ""
        if word == "raise":
            raise EngineError("planted")
        if word == "hang":
            time.sleep(3600)
        if word == "wedge":
            ctypes.PyDLL(None).sleep(3600)
        if word == "segfault":
            ctypes.string_at(0)
        while word == "eat":
            self._kept.append(np.ones(8 << 20))
        return self._session.run(inputs)
