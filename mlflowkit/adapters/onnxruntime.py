"""ONNX Runtime behind the Runtime and Engines ports."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as vendor

from mlflowkit.errors import EngineError
from mlflowkit.graphs import cuda_device
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.engine_key import EngineKey
from mlflowkit.graphs.graph_inputs import GraphInputs, all_strings
from mlflowkit.graphs.onnx_file import graph_digest, graph_files, load_checked
from mlflowkit.system.files import disk_errors
from mlflowkit.system.text import first_line

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: Mapping[str, tuple[str, ...]] = {"ort-cpu": (CPU,), "ort-cuda": (CUDA,), "ort-tensorrt": (TENSORRT, CUDA)}
"""Required providers of an Engine.runtime, in order of preference."""
FLOAT16, BFLOAT16 = 10, 16
"""TensorProto.DataType."""
MAX_LISTED_NODES = 5
"""Nodes listed in an error."""
_INSTALL_HINT = "install mlflowkit[gpu] instead of mlflowkit[cpu] (never both), and check the driver"
Provider = str | tuple[str, dict[str, str]]

_ERROR_NAMES = (
    "EPFail EngineError Fail InvalidArgument InvalidGraph InvalidProtobuf ModelLoaded NoModel NoSuchFile "
    "NotImplemented RuntimeException"
)
VENDOR_ERRORS: tuple[type[Exception], ...] = (
    *(error for name in _ERROR_NAMES.split() if isinstance(error := getattr(vendor, name, None), type)),
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of ONNX Runtime: its own classes, and builtin ones from its Python layer."""

DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}

UNSUPPORTED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<domain>[\w.]+):(?P<operator>\w+)\(-?\d+\) is not a registered function/op",
        r'In Node, \("(?P<node>[^"]*)", (?P<operator>\w+), "(?P<domain>[^"]*)", -?\d+\).*(?:No Op registered|No opset)',
        r"Could not find an implementation for (?:(?P<domain>[\w.]+)[:.])?(?P<operator>\w+)\(\d+\) node with name "
        r"'(?P<node>[^']*)'",
        r"of operator \((?P<operator>\w+)\) in node \((?P<node>[^)]*)\) is invalid",
    )
)
"""ONNX Runtime's messages for a missing operator; the last two for a type that an operator does not support."""
UNSUPPORTED_TYPE = UNSUPPORTED[2:]


class OnnxRuntime:
    """The Runtime port: loads graphs on the given providers, in order; by default on the CPU.

    ONNX Runtime silently falls back to the CPU when a provider cannot be loaded; here that is an EngineError.
    """

    def __init__(self, providers: Sequence[Provider] = (CPU,)) -> None:
        self.providers = tuple(providers)

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> OnnxSession | FixedRowsSession:
        """Open a session with ``threads`` intra-operator threads that do not spin.

        A non-default ``engine`` of a bundle replaces this runtime's provider and graph level; the larger number of
        threads applies. A graph with a fixed number of rows accepts any number (`FixedRowsSession`). Raises
        EngineError when the file is absent, no graph, or has external data outside its folder, and when a requested
        provider is not in use.
        """
        if engine is None or engine == Engine():
            session = _session(model, self.providers, _options(threads))
        else:
            engine = engine.model_copy(update={"threads": max(threads, engine.threads)})
            session = OnnxRuntimeEngines().load(model, engine)
        on_cpu = session.providers[0] == CPU
        return FixedRowsSession(session, session.fixed_rows) if on_cpu and session.fixed_rows else session


class OnnxRuntimeEngines:
    """The Engines port for ort-cpu, ort-cuda and ort-tensorrt."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run ``engine``, or "". Loads neither a graph nor a GPU library."""
        providers = PROVIDERS.get(engine.runtime)
        if providers is None:
            return f"ONNX Runtime does not run {engine.runtime} engines: it runs {', '.join(PROVIDERS)}"
        absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
        if absent:
            reason = f"onnxruntime {onnxruntime.__version__} has no {' and no '.join(absent)}"
            return f"{reason}: install mlflowkit[gpu] instead of mlflowkit[cpu]"
        return cuda_device.missing() if engine.runtime != "ort-cpu" else ""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> OnnxSession:
        """Open a session on the engine's provider, with its graph level and threads.

        ort-tensorrt caches its engines under ``store`` in a folder per graph and weights; without ``store`` it caches
        nothing. Raises EngineError: the reason of `missing`, an operator that the provider lacks (with its node), a
        truncated graph, external data outside the model's folder.
        """
        if engine.cuda_graph and engine.runtime == "ort-cpu":
            raise EngineError("ort-cpu has no CUDA graphs", hint="leave engine.cuda_graph out, or use ort-cuda")
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint=_INSTALL_HINT)
        session = OnnxCudaGraphSession if engine.cuda_graph else OnnxSession
        options = _options(engine.threads, engine.graph_level)
        return _session(model, _providers(model, engine, store), options, session)


class OnnxSession:
    """A loaded graph. ``run`` may be called from several threads at once."""

    def __init__(self, session: Any, model: Path) -> None:
        self._session = session
        self._run = getattr(session, "_sess", session).run
        """The session's run without its Python wrapper, whose checks `run` makes only after a failure."""
        inputs = {tensor.name: (DTYPES.get(tensor.type, ""), len(tensor.shape)) for tensor in session.get_inputs()}
        self._inputs = GraphInputs(model.name, inputs)
        self._string_inputs = [name for name, (dtype, _) in inputs.items() if dtype == "object"]
        self._outputs = [tensor.name for tensor in session.get_outputs()]
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Strings are object arrays of ``str``.

        Raises EngineError when an input is missing, unknown, or of another type or rank than the graph's, and when
        the graph itself fails.
        """
        for name in self._string_inputs:
            if name in inputs and not all_strings(inputs[name]):
                raise self._inputs.error(self._inputs.fault(inputs))  # ONNX Runtime would convert None to "None"
        try:
            return dict(zip(self._outputs, self._run(self._outputs, inputs, None), strict=True))
        except VENDOR_ERRORS as error:
            raise self._inputs.error(self._inputs.fault(inputs) or first_line(error)) from error

    @property
    def fixed_rows(self) -> int:
        """The fixed first dimension of all inputs and outputs; 0 where it is open or differs."""
        shapes = [tensor.shape for tensor in (*self._session.get_inputs(), *self._session.get_outputs())]
        first = {shape[0] if shape else None for shape in shapes}
        (rows,) = first if len(first) == 1 else (None,)
        return rows if isinstance(rows, int) and rows > 0 else 0


class FixedRowsSession:
    """Runs a graph with a fixed number of rows on any number: in batches of that size, the last one padded.

    The last row is repeated as padding; outputs of padding rows are dropped.
    """

    def __init__(self, session: OnnxSession, rows: int) -> None:
        self._session, self._rows = session, rows
        self.providers = session.providers

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EngineError as `OnnxSession.run` does."""
        counts = {len(array) if isinstance(array, np.ndarray) and array.ndim else 0 for array in inputs.values()}
        rows = max(counts, default=0)
        if len(counts) != 1 or rows in (0, self._rows):
            return self._session.run(inputs)
        batches = []
        for start in range(0, rows, self._rows):
            indices = np.minimum(np.arange(start, start + self._rows), rows - 1)
            batches.append(self._session.run({name: array[indices] for name, array in inputs.items()}))
        return {name: np.concatenate([batch[name] for batch in batches])[:rows] for name in batches[0]}


class OnnxCudaGraphSession(OnnxSession):
    """A CUDA session that captures its run once per combination of input shapes and then replays it.

    Inputs and outputs stay at fixed GPU addresses, so a lock serialises runs. The provider refuses to capture a graph
    with operators on the CPU, such as string operators.
    """

    def __init__(self, session: Any, model: Path) -> None:
        super().__init__(session, model)
        self._lock = threading.Lock()
        self._bound: dict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any], Any]] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EngineError as `OnnxSession.run` does."""
        if fault := self._inputs.fault(inputs):
            raise self._inputs.error(fault)
        with self._lock:
            try:
                binding, buffers, options = self._bind(inputs)
                for name, buffer in buffers.items():
                    buffer.update_inplace(np.ascontiguousarray(inputs[name]))
                self._session.run_with_iobinding(binding, options)
                return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))
            except VENDOR_ERRORS as error:
                raise self._inputs.error(first_line(error)) from error

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, Any], Any]:
        """Fixed buffers for inputs of these shapes; the provider keeps a captured graph per id."""
        shapes = tuple(inputs[name].shape for name in self._inputs.inputs)
        if shapes not in self._bound:
            buffers, binding = {}, self._session.io_binding()
            for name in self._inputs.inputs:
                array = np.ascontiguousarray(inputs[name])
                buffers[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
                binding.bind_ortvalue_input(name, buffers[name])
            # A run without capture determines the outputs' shapes; their buffers are then bound.
            for name in self._outputs:
                binding.bind_output(name, "cuda")
            no_capture = onnxruntime.RunOptions()
            no_capture.add_run_config_entry("gpu_graph_id", "-1")
            self._session.run_with_iobinding(binding, no_capture)
            for name, buffer in zip(self._outputs, binding.get_outputs(), strict=True):
                binding.bind_ortvalue_output(name, buffer)
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
            self._bound[shapes] = binding, buffers, options
        return self._bound[shapes]


def _session(
    model: Path, providers: Sequence[Provider], options: Any, kind: type[OnnxSession] = OnnxSession
) -> OnnxSession:
    """Load a graph on exactly these providers, after checking that its external data is inside its folder."""
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    _require_providers(names, onnxruntime.get_available_providers(), model)
    try:
        graph_files(model)  # ONNX Runtime would follow a path outside the model's folder
    except FileNotFoundError as error:
        hint = "rebuild a bundle's graph: mlkit run RECIPE --force export"
        raise EngineError(f"there is no {model}", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise EngineError(
            f"{model} cannot be read: {error}", hint="export the model again: it is no complete ONNX graph"
        ) from error
    onnxruntime.disable_telemetry_events()
    if names[0] != CPU:
        _load_vendor_libraries(names[0])
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=list(providers), enable_fallback=False)
    except VENDOR_ERRORS as error:
        raise _load_error(model, names[0], error) from error
    _require_providers(names, session.get_providers(), model)
    return kind(session, model)


@lru_cache(maxsize=2)
def _load_vendor_libraries(provider: str) -> None:
    """Load CUDA, cuDNN and TensorRT from pip's folders, which the system's loader does not search.

    Without them the provider does not load, and `_require_providers` reports it.
    """
    with redirect_stdout(sys.stderr):  # it prints missing libraries
        onnxruntime.preload_dlls()
    if provider == TENSORRT and importlib.util.find_spec("tensorrt") is not None:
        with suppress(ImportError, OSError, RuntimeError):
            importlib.import_module("tensorrt")  # loads libnvinfer and the parser


def _providers(model: Path, engine: Engine, store: Path | None) -> list[Provider]:
    """The engine's providers with options; TensorRT falls back to CUDA per operator, and CUDA to the CPU."""
    if engine.runtime == "ort-cpu":
        return [CPU]
    cuda: Provider = (CUDA, {"enable_cuda_graph": "1"} if engine.cuda_graph else {})
    if engine.runtime == "ort-cuda":
        return [cuda]
    return [(TENSORRT, _tensorrt_options(model, engine, store)), (CUDA, {})]


def _tensorrt_options(model: Path, engine: Engine, store: Path | None) -> dict[str, str]:
    """Options of the TensorRT provider; the precision follows the graph's own types.

    The provider keys its cache by the architecture alone (onnxruntime#6455), so each graph gets its own folder.
    """
    precisions = _precisions(model)
    options = {f"trt_{precision}_enable": "1" for precision in precisions}
    if engine.cuda_graph:
        options["trt_cuda_graph_enable"] = "1"
    if store is None:
        return options
    device = cuda_device.require_gpu()
    key = EngineKey(
        graph=graph_digest(model),
        runtime=engine.runtime,
        target=device.capability,
        driver=device.driver,
        libraries={"onnxruntime": onnxruntime.__version__},
        precision=",".join(precisions),
    )
    folder = store / "onnxruntime" / key.digest
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for cache in ("engine", "timing"):
        options |= {f"trt_{cache}_cache_enable": "1", f"trt_{cache}_cache_path": str(folder)}
    return options


def _precisions(model: Path) -> list[str]:
    """Reduced precisions used by the graph, which the provider's builder must be allowed to use."""
    graph = load_checked(model, weights=False).graph
    casts = [attribute for node in graph.node if node.op_type == "Cast" for attribute in node.attribute]
    types = {attribute.i for attribute in casts if attribute.name == "to"}
    types |= {tensor.data_type for tensor in graph.initializer}
    quantised = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
    uses = {"fp16": FLOAT16 in types, "bf16": BFLOAT16 in types, "int8": quantised}
    return [name for name, is_used in uses.items() if is_used]


def _load_error(model: Path, provider: str, error: Exception) -> EngineError:
    """Translate a vendor error; a missing operator is reported with its nodes."""
    text = first_line(error)
    failure = f"{model.name} does not load in ONNX Runtime {onnxruntime.__version__}"
    for pattern in UNSUPPORTED:
        match = pattern.search(text)
        if match is None:
            continue
        parts = match.groupdict()
        domain, operator = parts.get("domain") or "", parts["operator"]
        nodes = [parts["node"]] if parts.get("node") else _nodes(model, domain, operator)
        listed = f" (node {', '.join(map(repr, nodes[:MAX_LISTED_NODES]))})" if nodes else ""
        operator = f"{domain}:{operator}" if domain else operator
        typed = " for the type of its input" * (pattern in UNSUPPORTED_TYPE)
        return EngineError(
            f"{failure}: {provider} lacks operator {operator}{listed}{typed}",
            hint="replace the operator in the model (model.module), or use another engine.runtime",
        )
    if any(word in text.lower() for word in ("out of memory", "failed to allocate", "bad allocation")):
        hint = "free some, or choose a smaller model or batch"
        return EngineError(f"{failure}: not enough memory: {text}", hint=hint)
    return EngineError(f"{failure}: {text}", hint="export the model again: it is no complete ONNX graph")


def _nodes(model: Path, domain: str, operator: str) -> list[str]:
    """Names of the nodes with an operator; unnamed nodes by their first output."""
    nodes = [node for node in load_checked(model, weights=False).graph.node if node.op_type == operator]
    return [node.name or "".join(node.output[:1]) for node in nodes if node.domain in (domain, "")]


def _options(threads: int, level: str = "all") -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    name = "ORT_DISABLE_ALL" if level == "off" else f"ORT_ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only; they are raised as well
    return options


def _require_providers(required: Sequence[str], present: Sequence[str], model: Path) -> None:
    absent = [name for name in required if name not in present]
    if absent:
        has = f"this ONNX Runtime {onnxruntime.__version__} has {', '.join(present)}"
        raise EngineError(f"{model.name} was to run on {', '.join(absent)}; {has}", hint=_INSTALL_HINT)
