"""The two libraries: whether they are there, what they can build for, and what they say."""

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
"""Module, title and how to install it, by Engine.runtime."""

HINT = "ask for another engine.runtime, or run it on a machine that has what is missing"


@dataclass(frozen=True, slots=True)
class Vendor:
    """An imported library. ``log`` holds what it said since `listening` began; it speaks to one listener at a time."""

    module: Any
    title: str
    version: str
    logger: Any
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """The library's warnings and errors from here on; others wait until it ends."""
        with self.lock:
            self.log.clear()
            yield self.log


def absent(runtime: str) -> str:
    """Why the library of a runtime cannot be used, or "". The module is not imported to find out."""
    if runtime not in MODULES:
        return f"TensorRT does not run {runtime} engines: it runs {', '.join(MODULES)}"
    module, title, install = MODULES[runtime]
    if importlib.util.find_spec(module) is None:
        return f"{title} is not installed (no module {module}): {install}"
    return ""


@lru_cache(maxsize=2)
def load(runtime: str) -> Vendor:
    """The library of a runtime. Raises EngineError when it cannot be imported."""
    if reason := absent(runtime):
        raise EngineError(reason, hint=HINT)
    name, title, install = MODULES[runtime]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{title} cannot be loaded: {error}", hint=f"{install}, and check the driver") from error
    log: list[str] = []
    return Vendor(module, title, str(module.__version__), _logger(module, log), log)


def builds_ahead(runtime: str) -> bool:
    """Whether engines are built ahead of time, for compute capabilities that are named, without a GPU."""
    return runtime == "tensorrt-rtx"


def targets(runtime: str) -> tuple[str, ...]:
    """Compute capabilities that the library can build for without such a GPU; () when it builds for the GPU here."""
    if not builds_ahead(runtime):
        return ()
    names = [name for name in dir(load(runtime).module.ComputeCapability) if name.startswith("SM")]
    return tuple(sorted((name.removeprefix("SM") for name in names), key=int))


def check_target(runtime: str, target: str) -> None:
    """Raise UsageError for a compute capability that the library does not know, EngineError for one that this machine
    cannot build for."""
    vendor, known = load(runtime), targets(runtime)
    if known and target not in known:
        raise UsageError(
            f"{vendor.title} {vendor.version} does not build for compute capability {target}",
            hint=f"--target is one of {', '.join(known)}",
        )
    if not known and (reason := cuda_device.missing()):
        raise EngineError(f"{vendor.title} builds on the GPU that runs the engine: {reason}", hint=HINT)
    if not known and (here := cuda_device.here().capability) != target:
        raise EngineError(
            f"{vendor.title} builds for the GPU at hand, which has compute capability {here}, not {target}",
            hint=f"--target {here}, or build on the other machine",
        )


def torch_missing() -> str:
    """Why torch cannot hold a session's buffers, or ""."""
    import torch

    return (
        ""
        if torch.cuda.is_available()
        else f"torch {torch.__version__} is built without CUDA: TORCH=torch make install"
    )


def _logger(module: Any, log: list[str]) -> Any:
    """The library's logger, which keeps warnings and errors and prints nothing."""
    heard = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR, module.ILogger.WARNING)

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in heard:
                log.append(message)

    return Log()
