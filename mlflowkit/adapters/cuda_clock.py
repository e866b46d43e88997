"""A clock on the GPU: CUDA events of torch, recorded on the current stream. See `bench.timings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflowkit.errors import EngineError


@dataclass(frozen=True, slots=True)
class CudaClock:
    """Marks are events with timing (resolution about half a microsecond). Raises EngineError where there is no GPU."""

    device: int = 0

    def __post_init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise EngineError("there is no GPU to take the time on", hint="measure wall time only")

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize(self.device)

    def nanoseconds(self, first: Any, last: Any) -> int:
        milliseconds: float = first.elapsed_time(last)
        return round(milliseconds * 1e6)
