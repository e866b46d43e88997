"""The Python model itself, eager or compiled: what one has before any of this."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks.gpu_latency import networks
from benchmarks.gpu_latency.models import Inputs, Model
from mlflowkit.graphs.candidates import Engine


def python_model(
    model: Model, engine: Engine, precision: str, device: str
) -> Callable[[Inputs], Mapping[str, np.ndarray]]:
    """The network on a device ("cuda", "cpu") as a function of NumPy arrays; copies there and back are part of a call.

    Raises RuntimeError where torch cannot use the device: it does not take another in its stead.
    """
    torch.set_num_threads(engine.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as the others do by default
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network = networks.make(model.name).to(device=device, dtype=dtype)
    if engine.runtime == "torch-compile":
        network = torch.compile(network, mode="max-autotune" if device == "cuda" else "default", dynamic=False)

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            placed = (torch.from_numpy(cells).to(device) for cells in inputs.values())
            found = network(*(cells.to(dtype) if cells.is_floating_point() else cells for cells in placed))
            return {model.output: found.float().cpu().numpy()}

    return run
