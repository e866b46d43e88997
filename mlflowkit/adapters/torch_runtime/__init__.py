"""ONNX graphs in torch, eager and compiled: baselines for ONNX Runtime and TensorRT.

Each node becomes a call of a torch function (`graph`, `operators`). String operators, and everything else outside
`operators.OPERATORS`, are not supported.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.bench.timings import no_mark
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.graph_inputs import GraphInputs
from mlflowkit.graphs.onnx_file import load_checked, request_inputs
from mlflowkit.ports import Session
from mlflowkit.system.text import first_line


class TorchEngines:
    """The Engines port for torch and torch-compile, on the GPU where torch has one."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run ``engine``, or "". Does not import torch."""
        if engine.runtime not in ("torch", "torch-compile"):
            return f"torch does not run {engine.runtime} engines: it runs torch, torch-compile"
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        if engine.runtime == "torch-compile" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "torch.compile needs a C++ compiler, and there is no g++"
        return ""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """Open a session; ``store`` is unused. ``engine.threads`` applies to all of torch in this process.

        torch-compile compiles at the first request of a shape, the whole graph or not at all. Raises EngineError: the
        reason of `missing`, unsupported operators (with their nodes), a truncated graph.
        """
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint="leave the candidate out")
        import torch

        from mlflowkit.adapters.torch_runtime.graph import build_torch_module, check_supported

        if engine.cuda_graph and not (engine.runtime == "torch-compile" and torch.cuda.is_available()):
            raise EngineError("CUDA graphs need torch-compile and a GPU", hint="leave engine.cuda_graph out")
        proto = load_checked(model)
        if proto.functions:
            from onnx import inliner

            proto = inliner.inline_local_functions(proto)
        check_supported(proto, model.name)
        torch.set_num_threads(engine.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module = build_torch_module(proto).to(device)
        if engine.runtime == "torch-compile":
            module = torch.compile(module, fullgraph=True, mode="reduce-overhead" if engine.cuda_graph else "default")
        return TorchSession(module, proto, model, device)


class TorchSession:
    """A torch module behind the interface of a graph session. ``run`` is thread-safe.

    ``mark`` is called between the steps of a request, see `bench.timings.Marking`.
    """

    def __init__(self, call: Callable[..., Any], proto: Any, model: Path, device: str) -> None:
        from onnx import helper

        self._call = call
        self._device = device
        self.on_device = device != "cpu"
        self.mark: Callable[[], object] = no_mark
        inputs = {}
        for value in request_inputs(proto):
            kind = value.type.tensor_type
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            inputs[value.name] = (dtype, len(kind.shape.dim))
        self._inputs = GraphInputs(model.name, inputs)
        self._outputs = [value.name for value in proto.graph.output]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EngineError for inputs that do not fit the graph, and when torch fails."""
        import torch

        if fault := self._inputs.fault(inputs):
            raise self._inputs.error(fault)
        try:
            with torch.inference_mode(), torch.device(self._device):
                self.mark()
                tensors = [torch.as_tensor(inputs[name], device=self._device) for name in self._inputs.inputs]
                self.mark()
                results = self._call(*tensors)
                self.mark()
                arrays = [value.cpu().numpy() if torch.is_tensor(value) else np.asarray(value) for value in results]
                self.mark()
                return dict(zip(self._outputs, arrays, strict=True))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise self._inputs.error(first_line(error)) from error
