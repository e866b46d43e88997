"""Runs an engine on the GPU, with torch tensors as buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlflowkit.adapters.tensorrt.library import TensorRTLibrary
from mlflowkit.bench.timings import no_mark
from mlflowkit.errors import EngineError
from mlflowkit.graphs.engine_key import Ranges
from mlflowkit.graphs.graph_inputs import GraphInputs

MEMORY_HINT = "free GPU memory, or send fewer rows at once"


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Buffers at fixed addresses for given input shapes: page-locked on the host, and on the GPU."""

    shapes: tuple[tuple[int, ...], ...]
    host: Mapping[str, Any]
    device: Mapping[str, Any]
    graph: Any = None
    """torch.cuda.CUDAGraph of the run, if captured."""


class TensorRTSession:
    """A deserialised engine. ``run`` is thread-safe; a lock serialises runs.

    ``ranges`` are the shapes it was built for. With ``cuda_graph`` a run is captured after each change of the input
    shapes and then replayed. ``mark`` is called between the steps of a request, see `bench.timings.Marking`.
    """

    on_device = True

    def __init__(
        self, library: TensorRTLibrary, plan: bytes, model: Path, ranges: Ranges, *, cuda_graph: bool = False
    ) -> None:
        module = library.module
        self.mark: Callable[[], object] = no_mark
        self._model, self._cuda_graph = model, cuda_graph
        self._lock = threading.Lock()
        with library.capture_log() as log:
            self._runtime = module.Runtime(library.logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                reason = log[0] if log else "the library gives no reason"
                raise EngineError(
                    f"{library.title} {library.version} refuses the engine of {model.name}: {reason}",
                    hint="an engine runs only on the GPU and library version it was built for: build it again here",
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                reason = f"{model.name}: too little GPU memory to run it: {log[0] if log else ''}".rstrip(": ")
                raise EngineError(reason, hint=MEMORY_HINT)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT for name in names}
        types = _torch_types(module)
        self._types = {name: types[self._engine.get_tensor_dtype(name)] for name in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        self._bounds = {name: (ranges[name][0], ranges[name][2]) for name in self._inputs}
        self._graph_inputs = GraphInputs(
            model.name, {name: (_numpy_name(self._types[name]), len(ranges[name][0])) for name in self._inputs}
        )
        self._stream = torch.cuda.Stream()
        self._buffers: _Buffers | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises EngineError when an input is missing, unknown, of another type, or outside the engine's shapes, and when
        the GPU fails or has too little memory.
        """
        if fault := self._fault(inputs):
            takes = ", ".join(
                f"{name} {_numpy_name(self._types[name])} {'x'.join(map(str, least))} to {'x'.join(map(str, most))}"
                for name, (least, most) in self._bounds.items()
            )
            raise EngineError(f"{self._model.name} does not answer: {fault}", hint=f"the engine takes {takes}")
        with self._lock:
            try:
                return self._run(inputs)
            except torch.cuda.OutOfMemoryError as error:
                raise EngineError(f"{self._model.name}: not enough GPU memory: {error}", hint=MEMORY_HINT) from error
            except RuntimeError as error:
                reason = f"{self._model.name} does not answer: {error}"
                raise EngineError(reason, hint="nvidia-smi -q shows the state of the driver") from error

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        buffers = self._bind(inputs)
        with torch.cuda.stream(self._stream):
            self.mark()
            for name in self._inputs:
                buffers.host[name].numpy()[...] = inputs[name]
                buffers.device[name].copy_(buffers.host[name], non_blocking=True)
            self.mark()
            if buffers.graph is not None:
                buffers.graph.replay()
            else:
                self._execute()
            self.mark()
            for name in self._outputs:
                buffers.host[name].copy_(buffers.device[name], non_blocking=True)
            self.mark()
        self._stream.synchronize()
        return {name: buffers.host[name].numpy().copy() for name in self._outputs}

    def _execute(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"{self._model.name} does not answer: the engine did not start", hint=MEMORY_HINT)

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> _Buffers:
        """Buffers for these shapes; reuses those of the last run if the shapes are unchanged."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if self._buffers is not None and self._buffers.shapes == shapes:
            return self._buffers
        self._buffers = None  # a captured run has the old shapes: drop it before the context changes
        for name, shape in zip(self._inputs, shapes, strict=True):
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"{self._model.name}: input {name} cannot have shape {list(shape)}", hint=MEMORY_HINT)
        tensors = {name: self._allocate(name) for name in (*self._inputs, *self._outputs)}
        for name, buffer in tensors.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        host = {name: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for name, t in tensors.items()}
        self._buffers = _Buffers(shapes, host, tensors, self._capture() if self._cuda_graph else None)
        return self._buffers

    def _allocate(self, name: str) -> Any:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(
                f"{self._model.name}: the shape of output {name} depends on the values of the inputs",
                hint="use an ort-* engine: such outputs have no fixed buffer",
            )
        return torch.zeros(shape, dtype=self._types[name], device="cuda")

    def _capture(self) -> Any:
        """The run as a CUDA graph, after one run without capture, which allocates."""
        with torch.cuda.stream(self._stream):
            self._execute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute()
        return graph

    def _fault(self, inputs: Mapping[str, np.ndarray]) -> str:
        if fault := self._graph_inputs.fault(inputs):
            return fault
        for name, (least, most) in self._bounds.items():
            shape = inputs[name].shape
            if any(not low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                return f"input {name} has shape {list(shape)}, for which the engine was not built"
        return ""


def _torch_types(module: Any) -> Mapping[Any, Any]:
    kinds = module.DataType
    floats = {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.BF16: torch.bfloat16}
    integers = {kinds.INT64: torch.int64, kinds.INT32: torch.int32, kinds.INT8: torch.int8, kinds.UINT8: torch.uint8}
    return {**floats, **integers, kinds.BOOL: torch.bool}


def _numpy_name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")
