"""A graph in torch, eager and compiled: baselines that ONNX Runtime and TensorRT are compared with.

The nodes of the ONNX graph become calls of torch operators (`graph`, `operators`). Operators over strings have no form
in torch; neither has anything that is not in `operators.OPERATORS`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.adapters.torch_runtime.graph import refuse_unknown, to_torch
from mlflowkit.bench.timings import unmarked
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.onnx_file import checked_load
from mlflowkit.ports import Session


class TorchEngines:
    """The Engines port for torch and torch-compile. They run on the GPU where torch has one."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or "". torch is not imported to find out."""
        if engine.runtime not in ("torch", "torch-compile"):
            return f"torch does not run {engine.runtime} engines: it runs torch, torch-compile"
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        if engine.runtime == "torch-compile" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "torch.compile needs a C++ compiler: g++ is not there"
        return ""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session; nothing goes to ``store``. ``engine.threads`` holds for all of torch in this process.

        torch-compile compiles at the first request of a shape, the whole graph or not at all. Raises EngineError: what
        `missing` says, operators without a form in torch (named, with their nodes), a graph that is cut short.
        """
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint="leave the candidate out")
        import torch

        if engine.cuda_graph and not (engine.runtime == "torch-compile" and torch.cuda.is_available()):
            raise EngineError("CUDA graphs need torch-compile and a GPU", hint="leave engine.cuda_graph out")
        proto = checked_load(model)
        if proto.functions:
            from onnx import inliner

            proto = inliner.inline_local_functions(proto)
        refuse_unknown(proto, model.name)
        torch.set_num_threads(engine.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module = to_torch(proto).to(device)
        if engine.runtime == "torch-compile":
            mode = "reduce-overhead" if engine.cuda_graph else "default"
            return TorchSession(torch.compile(module, fullgraph=True, mode=mode), proto, model, device)
        return TorchSession(module, proto, model, device)


class TorchSession:
    """A torch module that answers as a graph does. ``run`` may be called from several threads at once.

    ``mark`` is called between the steps of a request: see `bench.timings.Marking`.
    """

    def __init__(self, call: Callable[..., Any], proto: Any, model: Path, device: str) -> None:
        from onnx import helper

        self._call = call
        self._model = model
        self._device = device
        self.on_device = device != "cpu"
        self.mark: Callable[[], object] = unmarked
        constants = {tensor.name for tensor in proto.graph.initializer}
        self._inputs = {
            value.name: (
                np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                len(value.type.tensor_type.shape.dim),
            )
            for value in proto.graph.input
            if value.name not in constants
        }
        self._outputs = [value.name for value in proto.graph.output]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers by output name. Raises EngineError for inputs that are not the graph's, and when torch fails."""
        import torch

        if fault := self._fault(inputs):
            raise self._error(fault)
        try:
            with torch.inference_mode(), torch.device(self._device):
                self.mark()
                placed = [torch.as_tensor(inputs[name], device=self._device) for name in self._inputs]
                self.mark()
                found = self._call(*placed)
                self.mark()
                answers = {name: _array(value) for name, value in zip(self._outputs, found, strict=True)}
                self.mark()
                return answers
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise self._error((str(error).splitlines() or [type(error).__name__])[0]) from error

    def _error(self, fault: str) -> EngineError:
        takes = ", ".join(f"{name} {dtype} rank {rank}" for name, (dtype, rank) in self._inputs.items())
        return EngineError(f"{self._model.name} does not answer: {fault}", hint=f"the graph takes {takes}")

    def _fault(self, inputs: Mapping[str, np.ndarray]) -> str:
        for name, (dtype, rank) in self._inputs.items():
            if name not in inputs:
                return f"input {name} is missing"
            found = inputs[name]
            if not isinstance(found, np.ndarray):
                return f"input {name} is a {type(found).__name__}, not an array"
            if found.ndim != rank:
                return f"input {name} has shape {list(found.shape)}; the graph wants {rank} axes"
            if found.dtype != dtype:
                return f"input {name} is {found.dtype}; the graph wants {dtype}"
        unknown = sorted(set(inputs) - set(self._inputs))
        return f"the graph has no input {', '.join(unknown)}" if unknown else ""


def _array(value: Any) -> np.ndarray:
    import torch

    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
