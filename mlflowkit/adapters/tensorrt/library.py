"""The two libraries: availability, build targets and logs."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from mlflowkit.errors import EngineError, UsageError
from mlflowkit.graphs import cuda_device

MODULES: Mapping[str, tuple[str, str, str]] = {
    "tensorrt": ("tensorrt", "TensorRT", "pip install 'mlflowkit[gpu]'"),
    "tensorrt-rtx": ("tensorrt_rtx", "TensorRT for RTX", "pip install 'mlflowkit[tensorrt-rtx]'"),
}
"""Module, title and install command by Engine.runtime."""

HINT = "use another engine.runtime, or a machine that has it"


@dataclass(frozen=True, slots=True)
class TensorRTLibrary:
    """An imported library; ``log`` has the messages of the current `capture_log`, one at a time per process."""

    module: Any
    title: str
    version: str
    logger: Any
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def capture_log(self) -> Iterator[list[str]]:
        """Collect the library's warnings and errors; other callers wait until the block ends."""
        with self.lock:
            self.log.clear()
            yield self.log


def library_missing(runtime: str) -> str:
    """Why the library of a runtime cannot be used, or "". Does not import it."""
    if runtime not in MODULES:
        return f"TensorRT does not run {runtime} engines: it runs {', '.join(MODULES)}"
    module, title, install = MODULES[runtime]
    if importlib.util.find_spec(module) is None:
        return f"{title} is not installed (no module {module}): {install}"
    return ""


@lru_cache(maxsize=2)
def load(runtime: str) -> TensorRTLibrary:
    """The library of a runtime. Raises EngineError when it cannot be imported."""
    if reason := library_missing(runtime):
        raise EngineError(reason, hint=HINT)
    name, title, install = MODULES[runtime]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{title} cannot be loaded: {error}", hint=f"{install}, and check the driver") from error
    log: list[str] = []
    return TensorRTLibrary(module, title, str(module.__version__), _logger(module, log), log)


def builds_ahead(runtime: str) -> bool:
    """Whether engines are built ahead of time for named compute capabilities, without a GPU."""
    return runtime == "tensorrt-rtx"


def targets(runtime: str) -> tuple[str, ...]:
    """Compute capabilities that the library builds for ahead of time; () if it builds for this machine's GPU only."""
    if not builds_ahead(runtime):
        return ()
    names = [name for name in dir(load(runtime).module.ComputeCapability) if name.startswith("SM")]
    return tuple(sorted((name.removeprefix("SM") for name in names), key=int))


def check_target(runtime: str, target: str) -> None:
    """Raise UsageError for a compute capability unknown to the library, EngineError if this machine cannot build it."""
    library, supported = load(runtime), targets(runtime)
    if supported and target not in supported:
        raise UsageError(
            f"{library.title} {library.version} does not build for compute capability {target}",
            hint=f"--target is one of {', '.join(supported)}",
        )
    if not supported and (reason := cuda_device.missing()):
        raise EngineError(f"{library.title} builds on the GPU that runs the engine: {reason}", hint=HINT)
    if not supported and (capability := cuda_device.require_gpu().capability) != target:
        raise EngineError(
            f"{library.title} builds for the GPU at hand, which has compute capability {capability}, not {target}",
            hint=f"--target {capability}, or build on the other machine",
        )


def torch_missing() -> str:
    """Why torch cannot hold a session's buffers, or ""."""
    import torch

    reason = f"torch {torch.__version__} is built without CUDA: TORCH=torch make install"
    return "" if torch.cuda.is_available() else reason


def _logger(module: Any, log: list[str]) -> Any:
    """A logger for the library that appends warnings and errors to ``log`` and prints nothing."""
    severities = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR, module.ILogger.WARNING)

    class TensorRTLog(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                log.append(message)

    return TensorRTLog()
