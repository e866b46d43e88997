"""What a built engine depends on: its key in the store. Two models of one architecture never share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mlflowkit.bundle import digest_json


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that a built engine depends on.

    graph       digest of the graph's file *and* of its external weights (onnxruntime#6455: a cache keyed by the
                architecture alone gave a model the engine of another)
    runtime     candidates.RuntimeName
    target      compute capability that it was built for, such as "89"
    driver      version of the GPU's driver; "" for an engine built ahead of time, without a GPU
    libraries   version by name of what built it
    shapes      least, usual and largest shape of each input
    precision   what the builder was told beyond the graph's own types
    """

    graph: str
    runtime: str
    target: str
    driver: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    precision: str = ""

    @property
    def digest(self) -> str:
        """The key, 64 hexadecimal digits.

        >>> one = EngineKey(graph="a" * 64, runtime="tensorrt-rtx", target="89")
        >>> one.digest == EngineKey(graph="b" * 64, runtime="tensorrt-rtx", target="89").digest
        False
        """
        return digest_json(asdict(self))
