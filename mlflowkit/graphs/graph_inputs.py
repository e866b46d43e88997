"""Checks of a request's arrays against the inputs of a loaded graph, shared by all sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlflowkit.errors import EngineError

_TEXT = frozenset({str})


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """The inputs of a graph: NumPy dtype name ("" for any) and rank by input name. ``model`` is its file name."""

    model: str
    inputs: Mapping[str, tuple[str, int]]

    def fault(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The first fault of a request's arrays, or "".

        >>> GraphInputs("m.onnx", {"x": ("float32", 2)}).fault({"x": np.zeros(3, np.float32)})
        'input x has shape [3]; the graph wants 2 axes'
        """
        for name, (dtype, rank) in self.inputs.items():
            if name not in arrays:
                return f"input {name} is missing"
            array = arrays[name]
            if not isinstance(array, np.ndarray):
                return f"input {name} is a {type(array).__name__}, not an array"
            if array.ndim != rank:
                return f"input {name} has shape {list(array.shape)}; the graph wants {rank} axes"
            if dtype and array.dtype.name != dtype and not (dtype == "object" and array.dtype.kind in "US"):
                return f"input {name} is {array.dtype}; the graph wants {dtype}"
            if dtype == "object" and not all_strings(array):
                return f"input {name} holds something that is not a string; a missing value is the empty string"
        unknown = sorted(set(arrays) - set(self.inputs))
        return f"the graph has no input {', '.join(unknown)}" if unknown else ""

    def error(self, fault: str) -> EngineError:
        """An EngineError for a request with a fault; the hint lists the graph's inputs."""
        listed = ", ".join(f"{name} {dtype} rank {rank}" for name, (dtype, rank) in self.inputs.items())
        return EngineError(f"{self.model} does not answer: {fault}", hint=f"the graph takes {listed}")


def all_strings(array: object) -> bool:
    """Whether an object array holds ``str`` only; True for anything else, which other checks cover."""
    if not isinstance(array, np.ndarray) or array.dtype != object:
        return True
    kinds = set(map(type, array.ravel().tolist()))
    return kinds <= _TEXT or all(issubclass(kind, str) for kind in kinds)
