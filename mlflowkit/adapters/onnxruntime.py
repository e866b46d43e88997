"""ONNX Runtime behind the Runtime port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as vendor

from mlflowkit.candidates import Engine
from mlflowkit.errors import EngineError
from mlflowkit.ports import Session

CPU = "CPUExecutionProvider"
Provider = str | tuple[str, Mapping[str, str]]

VENDOR_ERRORS: tuple[type[Exception], ...] = (
    *(
        error
        for name in (
            "EPFail",
            "EngineError",
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "ModelLoaded",
            "NoModel",
            "NoSuchFile",
            "NotImplemented",
            "RuntimeException",
        )
        if isinstance(error := getattr(vendor, name, None), type)
    ),
    RuntimeError,
    TypeError,
    ValueError,
)
"""What ONNX Runtime raises: its own classes, and plain ones from its Python layer."""

DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class OnnxRuntime:
    """Loads graphs on the providers asked for, in their order; without any, on the CPU.

    ONNX Runtime falls back to the CPU silently when a provider cannot be loaded; here that is an EngineError.
    """

    def __init__(self, providers: Sequence[Provider] = (CPU,)) -> None:
        self.providers = tuple(providers)

    def load(self, model: Path, *, threads: int = 1) -> OnnxSession:
        """A session over ``model`` with ``threads`` threads inside an operator, and none that spin.

        Raises EngineError when the file is absent or no graph, or when a provider asked for is not in use.
        """
        asked = [provider if isinstance(provider, str) else provider[0] for provider in self.providers]
        _require(asked, onnxruntime.get_available_providers(), model)
        onnxruntime.disable_telemetry_events()
        try:
            session = onnxruntime.InferenceSession(
                str(model), _options(threads), providers=_with_options(self.providers), enable_fallback=False
            )
        except VENDOR_ERRORS as error:
            raise EngineError(
                f"{model.name} does not load in ONNX Runtime {onnxruntime.__version__}: {_first_line(error)}",
                hint="an operator that ONNX Runtime lacks comes from the model: choose another model.module"
                if model.exists()
                else f"there is no {model}: `mlkit run --force export` makes it anew",
            ) from error
        _require(asked, session.get_providers(), model)
        return OnnxSession(session, model)


class OnnxSession:
    """A loaded graph. ``run`` may be called from several threads at once."""

    def __init__(self, session: Any, model: Path) -> None:
        self._session = session
        self._model = model
        self._inputs = {
            tensor.name: (DTYPES.get(tensor.type, ""), len(tensor.shape)) for tensor in session.get_inputs()
        }
        self._strings = [name for name, (dtype, _) in self._inputs.items() if dtype == "object"]
        self._outputs = [tensor.name for tensor in session.get_outputs()]
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers by output name. Strings go in and come out as object arrays of ``str``.

        Raises EngineError when an input is absent, unknown, or of another type or rank than the graph's, and when
        the graph itself fails.
        """
        for name in self._strings:
            if name in inputs and not _all_strings(inputs[name]):
                raise self._error(self._fault(inputs))  # ONNX Runtime would take None for the category "None"
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except VENDOR_ERRORS as error:
            raise self._error(self._fault(inputs) or _first_line(error)) from error

    def _error(self, fault: str) -> EngineError:
        takes = ", ".join(f"{name} {dtype} rank {rank}" for name, (dtype, rank) in self._inputs.items())
        return EngineError(f"{self._model.name} does not answer: {fault}", hint=f"the graph takes {takes}")

    def _fault(self, inputs: Mapping[str, np.ndarray]) -> str:
        """What is wrong with the inputs, in words; "" when nothing shows."""
        for name, (dtype, rank) in self._inputs.items():
            if name not in inputs:
                return f"input {name} is missing"
            found = inputs[name]
            if not isinstance(found, np.ndarray):
                return f"input {name} is a {type(found).__name__}, not an array"
            if found.ndim != rank:
                return f"input {name} has shape {list(found.shape)}; the graph wants {rank} axes"
            if dtype and found.dtype != dtype and not (dtype == "object" and found.dtype.kind in "US"):
                return f"input {name} is {found.dtype}; the graph wants {dtype}"
            if dtype == "object" and not _all_strings(found):
                return f"input {name} holds something that is not a string; a missing value is the empty string"
        unknown = sorted(set(inputs) - set(self._inputs))
        return f"the graph has no input {', '.join(unknown)}" if unknown else ""


def _all_strings(cells: object) -> bool:
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        return True  # not for this check to judge
    kinds = set(map(type, cells.ravel().tolist()))
    return kinds <= {str} or all(issubclass(kind, str) for kind in kinds)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; they are raised as well
    return options


def _with_options(providers: Sequence[Provider]) -> list[Any]:
    return [entry if isinstance(entry, str) else (entry[0], dict(entry[1])) for entry in providers]


def _require(asked: Sequence[str], present: Sequence[str], model: Path) -> None:
    absent = [name for name in asked if name not in present]
    if absent:
        raise EngineError(
            f"{model.name} was to run on {', '.join(absent)}; "
            f"this ONNX Runtime {onnxruntime.__version__} has {', '.join(present)}",
            hint="install mlflowkit[gpu] instead of mlflowkit[cpu] (never both), and check the driver",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class OnnxRuntimeEngines:
    """The Engines port for ort-cpu, ort-cuda and ort-tensorrt."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or ""."""
        raise NotImplementedError

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session. Raises EngineError."""
        raise NotImplementedError
