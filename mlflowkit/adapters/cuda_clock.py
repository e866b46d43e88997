"""A clock on the GPU: torch's CUDA events, recorded on the current stream. See `bench.timings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mlflowkit.errors import EngineError


@dataclass(frozen=True, slots=True)
class CudaClock:
    """Marks are timing events (resolution about 0.5 us). Raises EngineError when there is no GPU."""

    device: int = 0

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            raise EngineError("there is no GPU to measure time on", hint="measure wall time only")

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def nanoseconds(self, first: Any, last: Any) -> int:
        milliseconds: float = first.elapsed_time(last)
        return round(milliseconds * 1e6)
