"""An engine at work on the GPU; torch holds its buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlflowkit.adapters.tensorrt.library import Vendor
from mlflowkit.bench.timings import unmarked
from mlflowkit.errors import EngineError
from mlflowkit.graphs.engine_key import Ranges

MEMORY = "free GPU memory, or ask for fewer rows at once"


@dataclass(frozen=True, slots=True)
class _Bound:
    """Buffers for inputs of certain shapes, at fixed places: page-locked on the host, and on the GPU."""

    shapes: tuple[tuple[int, ...], ...]
    host: Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    graph: Any = None
    """torch.cuda.CUDAGraph of the run, when runs are captured."""


class TensorRTSession:
    """A deserialised engine. ``run`` may be called from several threads; a lock lets one run at a time.

    ``ranges`` are the shapes that it was built for. With ``cuda_graph`` a run is captured once for each change of the
    inputs' shapes and replayed from then on. ``mark`` is called between the steps of a request: see
    `bench.timings.Marking`.
    """

    on_device = True

    def __init__(self, vendor: Vendor, plan: bytes, model: Path, ranges: Ranges, *, cuda_graph: bool = False) -> None:
        module = vendor.module
        self._model = model
        self.mark: Callable[[], object] = unmarked
        self._lock = threading.Lock()
        self._cuda_graph = cuda_graph
        with vendor.listening() as log:
            self._runtime = module.Runtime(vendor.logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                said = log[0] if log else "it does not say why"
                raise EngineError(
                    f"{vendor.title} {vendor.version} refuses the engine of {model.name}: {said}",
                    hint="an engine runs on the GPU and with the library that it was built for: build it again here",
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(
                    f"{model.name}: no room on the GPU to run it: {log[0] if log else ''}".rstrip(": "), hint=MEMORY
                )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT for name in names}
        types = _torch_types(module)
        self._types = {name: types[self._engine.get_tensor_dtype(name)] for name in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        self._bounds = {name: (ranges[name][0], ranges[name][2]) for name in self._inputs}
        self._stream = torch.cuda.Stream()
        self._bound: _Bound | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers by output name.

        Raises EngineError when an input is absent, unknown, of another type, or outside the shapes that the engine
        was built for, and when the GPU fails or has too little memory.
        """
        self._check(inputs)
        with self._lock:
            try:
                return self._run(inputs)
            except torch.cuda.OutOfMemoryError as error:
                raise EngineError(f"{self._model.name}: not enough GPU memory: {error}", hint=MEMORY) from error
            except RuntimeError as error:
                raise EngineError(
                    f"{self._model.name} does not answer: {error}", hint="see the driver's log"
                ) from error

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        bound = self._bind(inputs)
        with torch.cuda.stream(self._stream):
            self.mark()
            for name in self._inputs:
                bound.host[name].numpy()[...] = inputs[name]
                bound.inputs[name].copy_(bound.host[name], non_blocking=True)
            self.mark()
            if bound.graph is not None:
                bound.graph.replay()
            else:
                self._execute()
            self.mark()
            for name in self._outputs:
                bound.host[name].copy_(bound.outputs[name], non_blocking=True)
            self.mark()
        self._stream.synchronize()
        return {name: bound.host[name].numpy().copy() for name in self._outputs}

    def _execute(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"{self._model.name} does not answer: the engine did not start", hint=MEMORY)

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> _Bound:
        """Buffers for these shapes; those of the last run where the shapes are the same."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if self._bound is not None and self._bound.shapes == shapes:
            return self._bound
        self._bound = None  # a captured run is of the old shapes: gone before the context changes
        for name, shape in zip(self._inputs, shapes, strict=True):
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"{self._model.name}: input {name} cannot have shape {list(shape)}", hint=MEMORY)
        made = {name: self._made(name) for name in (*self._inputs, *self._outputs)}
        for name, buffer in made.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        host = {name: torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True) for name, buffer in made.items()}
        inside = {name: made[name] for name in self._inputs}
        outside = {name: made[name] for name in self._outputs}
        graph = self._captured() if self._cuda_graph else None
        self._bound = _Bound(shapes, host, inside, outside, graph)
        return self._bound

    def _made(self, name: str) -> Any:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(
                f"{self._model.name}: the shape of output {name} depends on the values of the inputs",
                hint="ask for an ort-* engine: such outputs have no fixed place",
            )
        return torch.zeros(shape, dtype=self._types[name], device="cuda")

    def _captured(self) -> Any:
        """The run as a CUDA graph, after one run outside it: the first one allocates."""
        with torch.cuda.stream(self._stream):
            self._execute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute()
        return graph

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        if fault := self._fault(inputs):
            takes = ", ".join(
                f"{name} {_numpy_name(self._types[name])} {'x'.join(map(str, least))} to {'x'.join(map(str, most))}"
                for name, (least, most) in self._bounds.items()
            )
            raise EngineError(f"{self._model.name} does not answer: {fault}", hint=f"the engine takes {takes}")

    def _fault(self, inputs: Mapping[str, np.ndarray]) -> str:
        for name, (least, most) in self._bounds.items():
            if name not in inputs:
                return f"input {name} is missing"
            found = inputs[name]
            if not isinstance(found, np.ndarray):
                return f"input {name} is a {type(found).__name__}, not an array"
            if found.dtype != _numpy_name(self._types[name]):
                return f"input {name} is {found.dtype}; the graph wants {_numpy_name(self._types[name])}"
            if found.ndim != len(least):
                return f"input {name} has shape {list(found.shape)}; the graph wants {len(least)} axes"
            if any(not low <= size <= high for low, size, high in zip(least, found.shape, most, strict=True)):
                return f"input {name} has shape {list(found.shape)}, for which the engine was not built"
        unknown = sorted(set(inputs) - set(self._bounds))
        return f"the graph has no input {', '.join(unknown)}" if unknown else ""


def _torch_types(module: Any) -> Mapping[Any, Any]:
    kinds = module.DataType
    return {
        kinds.FLOAT: torch.float32,
        kinds.HALF: torch.float16,
        kinds.BF16: torch.bfloat16,
        kinds.INT64: torch.int64,
        kinds.INT32: torch.int32,
        kinds.INT8: torch.int8,
        kinds.UINT8: torch.uint8,
        kinds.BOOL: torch.bool,
    }


def _numpy_name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")
