"""ONNX Runtime behind the Runtime port."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
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
from mlflowkit.graphs.onnx_file import checked_load, external_files, graph_digest
from mlflowkit.system.files import disk_errors

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "ort-cpu": (CPU,),
    "ort-cuda": (CUDA,),
    "ort-tensorrt": (TENSORRT, CUDA),
}
"""The providers that an Engine.runtime needs, first choice first."""
FLOAT16, BFLOAT16 = 10, 16
"""TensorProto.DataType."""
SHOWN = 5
"""Nodes that an error names."""
_INSTALL = "install mlflowkit[gpu] instead of mlflowkit[cpu] (never both), and check the driver"
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
"""How ONNX Runtime says that it lacks an operator, or, as the last two do, lacks it for a type."""
UNTYPED = UNSUPPORTED[2:]

LEVELS: Mapping[str, str] = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Engine.graph_level in ONNX Runtime's words."""


class OnnxRuntime:
    """The Runtime port: loads graphs on the providers asked for, in their order; without any, on the CPU.

    ONNX Runtime falls back to the CPU silently when a provider cannot be loaded; here that is an EngineError.
    """

    def __init__(self, providers: Sequence[Provider] = (CPU,)) -> None:
        self.providers = tuple(providers)

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> OnnxSession | FixedRowsSession:
        """A session over ``model`` with ``threads`` threads inside an operator, and none that spin.

        ``engine`` is what a bundle asks for (see `bundle`): unless it is the default, its provider and graph level
        count instead of this runtime's, and the larger number of threads. A graph for one number of rows answers any
        number (`FixedRowsSession`). Raises EngineError when the file is absent, no graph, or has external data outside
        its folder, and when a provider asked for is not in use.
        """
        if engine is None or engine == Engine():
            session = _session(model, self.providers, _options(threads))
        else:
            asked = engine.model_copy(update={"threads": max(threads, engine.threads)})
            session = OnnxRuntimeEngines().load(model, asked)
        on_cpu = session.providers[0] == CPU
        return FixedRowsSession(session, session.fixed_rows) if on_cpu and session.fixed_rows else session


class OnnxRuntimeEngines:
    """The Engines port for ort-cpu, ort-cuda and ort-tensorrt."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or "". Neither a graph nor a GPU library is loaded to find out."""
        providers = PROVIDERS.get(engine.runtime)
        if providers is None:
            return f"ONNX Runtime does not run {engine.runtime} engines: it runs {', '.join(PROVIDERS)}"
        absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
        if absent:
            return (
                f"onnxruntime {onnxruntime.__version__} has no {' and no '.join(absent)}: "
                "install mlflowkit[gpu] instead of mlflowkit[cpu]"
            )
        return cuda_device.missing() if engine.runtime != "ort-cpu" else ""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> OnnxSession:
        """A session on the engine's provider, with its graph level and threads.

        ort-tensorrt keeps what it builds under ``store``, in a folder of this very graph, weights included; without
        ``store`` it keeps nothing. Raises EngineError: what `missing` says, an operator that the provider lacks
        (named, with its node), a graph that is cut short, external data outside the model's folder.
        """
        if engine.cuda_graph and engine.runtime == "ort-cpu":
            raise EngineError("ort-cpu has no CUDA graphs", hint="leave engine.cuda_graph out, or ask for ort-cuda")
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint=_INSTALL)
        options = _options(engine.threads, engine.graph_level)
        providers = _providers(model, engine, store)
        kind = OnnxCudaGraphSession if engine.cuda_graph else OnnxSession
        return _session(model, providers, options, kind)


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

    @property
    def fixed_rows(self) -> int:
        """The number of rows that every input and output has by its first axis; 0 where it is open or they differ."""
        shapes = [tensor.shape for tensor in (*self._session.get_inputs(), *self._session.get_outputs())]
        first = {shape[0] if shape else None for shape in shapes}
        (rows,) = first if len(first) == 1 else (None,)
        return rows if isinstance(rows, int) and rows > 0 else 0

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


class FixedRowsSession:
    """A graph for one number of rows, asked any number: in parts of so many, the last one filled up with its last row.

    What the rows that fill up are answered is dropped.
    """

    def __init__(self, session: OnnxSession, rows: int) -> None:
        self._session = session
        self._rows = rows
        self.providers = session.providers

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers by output name. Raises EngineError as `OnnxSession.run` does."""
        counts = {len(array) if isinstance(array, np.ndarray) and array.ndim else 0 for array in inputs.values()}
        rows = max(counts, default=0)
        if len(counts) != 1 or rows in (0, self._rows):
            return self._session.run(inputs)
        parts = []
        for start in range(0, rows, self._rows):
            asked = np.minimum(np.arange(start, start + self._rows), rows - 1)
            parts.append(self._session.run({name: array[asked] for name, array in inputs.items()}))
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}


class OnnxCudaGraphSession(OnnxSession):
    """A graph on CUDA whose run is captured once for each shape of its inputs and replayed from then on.

    Inputs and outputs stay at fixed places of the GPU's memory, so runs follow one another: a lock keeps them apart.
    The provider refuses to capture a graph of which some operators run on the CPU, such as those over strings.
    """

    def __init__(self, session: Any, model: Path) -> None:
        super().__init__(session, model)
        self._lock = threading.Lock()
        self._bound: dict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any], Any]] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers by output name. Raises EngineError as `OnnxSession.run` does."""
        if fault := self._fault(inputs):
            raise self._error(fault)
        with self._lock:
            try:
                binding, places, options = self._binding(inputs)
                for name, place in places.items():
                    place.update_inplace(np.ascontiguousarray(inputs[name]))
                self._session.run_with_iobinding(binding, options)
                return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))
            except VENDOR_ERRORS as error:
                raise self._error(_first_line(error)) from error

    def _binding(self, inputs: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, Any], Any]:
        """Fixed places for inputs of these shapes; the provider keeps a captured graph for each id."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if shapes not in self._bound:
            places = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(inputs[name]), "cuda", 0)
                for name in self._inputs
            }
            binding = self._session.io_binding()
            for name, place in places.items():
                binding.bind_ortvalue_input(name, place)
            # One run outside a capture tells the outputs' shapes; they are then bound where they came to lie.
            for name in self._outputs:
                binding.bind_output(name, "cuda")
            plain = onnxruntime.RunOptions()
            plain.add_run_config_entry("gpu_graph_id", "-1")
            self._session.run_with_iobinding(binding, plain)
            for name, place in zip(self._outputs, binding.get_outputs(), strict=True):
                binding.bind_ortvalue_output(name, place)
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
            self._bound[shapes] = binding, places, options
        return self._bound[shapes]


def _all_strings(cells: object) -> bool:
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        return True  # not for this check to judge
    kinds = set(map(type, cells.ravel().tolist()))
    return kinds <= {str} or all(issubclass(kind, str) for kind in kinds)


def _session(
    model: Path, providers: Sequence[Provider], options: Any, kind: type[OnnxSession] | None = None
) -> OnnxSession:
    """Load a graph whose external data was found to be within its folder, on exactly these providers."""
    asked = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    _require(asked, onnxruntime.get_available_providers(), model)
    _keeps_to_its_folder(model)
    onnxruntime.disable_telemetry_events()
    if asked[0] != CPU:
        _load_vendor_libraries(asked[0])
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=_with_options(providers), enable_fallback=False
        )
    except VENDOR_ERRORS as error:
        raise _does_not_load(model, asked[0], error) from error
    _require(asked, session.get_providers(), model)
    return (kind or OnnxSession)(session, model)


@lru_cache(maxsize=2)
def _load_vendor_libraries(provider: str) -> None:
    """Load CUDA, cuDNN and TensorRT from where pip puts them: the system's loader does not look there.

    Where they are not there either, the provider does not come up, and `_require` says so.
    """
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        onnxruntime.preload_dlls()
    if provider == TENSORRT and importlib.util.find_spec("tensorrt") is not None:
        with suppress(ImportError, OSError, RuntimeError):
            importlib.import_module("tensorrt")  # which loads libnvinfer and the parser


def _keeps_to_its_folder(model: Path) -> None:
    """Raise EngineError for external data outside the model's folder, before ONNX Runtime follows the path.

    Each tensor with external data has the key "location": a file without these bytes, as most are, has none, and a
    gateway need not parse it to know.
    """
    try:
        with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            suspect = content.find(b"location") >= 0
    except FileNotFoundError as error:
        raise EngineError(
            f"there is no {model}", hint="`mlkit run --force export` makes a bundle's graph anew"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise EngineError(f"{model} cannot be read: {error}", hint="is it a whole ONNX graph?") from error
    if suspect:
        external_files(model)


def _providers(model: Path, engine: Engine, store: Path | None) -> list[Provider]:
    """The engine's providers with their options; TensorRT leaves to CUDA what it cannot take, and CUDA to the CPU."""
    if engine.runtime == "ort-cpu":
        return [CPU]
    cuda: Provider = (CUDA, {"enable_cuda_graph": "1"} if engine.cuda_graph else {})
    if engine.runtime == "ort-cuda":
        return [cuda]
    return [(TENSORRT, _tensorrt_options(model, engine, store)), (CUDA, {})]


def _tensorrt_options(model: Path, engine: Engine, store: Path | None) -> dict[str, str]:
    """Precision follows the graph's own types. The provider names its cache files by the graph's architecture alone
    (onnxruntime#6455), so each graph with its weights gets a folder to itself."""
    precisions = _precisions(model)
    options = {f"trt_{precision}_enable": "1" for precision in precisions}
    if engine.cuda_graph:
        options["trt_cuda_graph_enable"] = "1"
    if store is None:
        return options
    device = cuda_device.here()
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
    path = str(folder)
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": path,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": path,
    }


def _precisions(model: Path) -> list[str]:
    """Reduced precisions that a graph states itself: what the provider's builder has to be allowed to use."""
    graph = checked_load(model, weights=False).graph
    casts = {
        attribute.i
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    types = casts | {tensor.data_type for tensor in graph.initializer}
    quantised = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
    found = {"fp16": FLOAT16 in types, "bf16": BFLOAT16 in types, "int8": quantised}
    return [name for name, there in found.items() if there]


def _does_not_load(model: Path, provider: str, error: Exception) -> EngineError:
    """What a vendor's error means: an operator that is lacking is named with its nodes."""
    text = _first_line(error)
    what = f"{model.name} does not load in ONNX Runtime {onnxruntime.__version__}"
    for pattern in UNSUPPORTED:
        found = pattern.search(text)
        if found is None:
            continue
        parts = found.groupdict()
        domain, operator = parts.get("domain") or "", parts["operator"]
        nodes = [parts["node"]] if parts.get("node") else _nodes(model, domain, operator)
        shown = f"{domain}:{operator}" if domain else operator
        where = f" (node {', '.join(map(repr, nodes[:SHOWN]))})" if nodes else ""
        return EngineError(
            f"{what}: {provider} lacks operator {shown}{where}{' for the type of its input' * (pattern in UNTYPED)}",
            hint="replace the operator in the model (model.module), or ask for another engine.runtime",
        )
    if any(word in text.lower() for word in ("out of memory", "failed to allocate", "bad allocation")):
        return EngineError(f"{what}: not enough memory: {text}", hint="free some, or choose a smaller model or batch")
    return EngineError(f"{what}: {text}", hint="is it a whole ONNX graph? export the model again")


def _nodes(model: Path, domain: str, operator: str) -> list[str]:
    """Names of the nodes with an operator; the output's name where a node has none."""
    nodes = checked_load(model, weights=False).graph.node
    return [
        node.name or (node.output[0] if node.output else "")
        for node in nodes
        if node.op_type == operator and node.domain in (domain, "")
    ]


def _options(threads: int, level: str = "all") -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
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
            hint=_INSTALL,
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
