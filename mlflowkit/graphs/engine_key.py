"""Cache key of a built engine. Two models of one architecture never share a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mlflowkit.system.digests import digest_json

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""Minimum, optimum and maximum shape by input name."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything a built engine depends on.

    graph       digest of the graph file *and* its external weights (onnxruntime#6455: a cache keyed by the
                architecture alone returned the engine of another model)
    runtime     candidates.RuntimeName
    target      compute capability the engine was built for, such as "89"
    driver      GPU driver version; "" for an engine built ahead of time, without a GPU
    libraries   versions of the build libraries by name
    shapes      minimum, optimum and maximum shape of each input
    precision   builder settings beyond the graph's own types
    """

    graph: str
    runtime: str
    target: str
    driver: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    shapes: Ranges = field(default_factory=dict)
    precision: str = ""

    @property
    def digest(self) -> str:
        """The key, 64 hexadecimal digits.

        >>> key = EngineKey(graph="a" * 64, runtime="tensorrt-rtx", target="89")
        >>> key.digest == EngineKey(graph="b" * 64, runtime="tensorrt-rtx", target="89").digest
        False
        """
        return digest_json(asdict(self))

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EngineKey:
        """Inverse of ``dataclasses.asdict`` and a JSON round trip. Raises TypeError, ValueError, KeyError.

        >>> key = EngineKey("a", "tensorrt", "89", shapes={"x": ((1, 4), (32, 4), (128, 4))})
        >>> EngineKey.from_json({**asdict(key), "shapes": {"x": [[1, 4], [32, 4], [128, 4]]}}) == key
        True
        """
        shapes = {}
        for name, bounds in value["shapes"].items():
            minimum, optimum, maximum = (tuple(map(int, shape)) for shape in bounds)
            shapes[name] = (minimum, optimum, maximum)
        return EngineKey(**{**value, "libraries": dict(value["libraries"]), "shapes": shapes})

    def differences(self, other: EngineKey) -> str:
        """Readable list of the fields in which two keys differ; "" when they are equal.

        >>> EngineKey("a", "tensorrt", "89").differences(EngineKey("a", "tensorrt", "86"))
        'target is 86, not 89'
        """
        names = [entry.name for entry in fields(self) if getattr(self, entry.name) != getattr(other, entry.name)]
        pairs = [(name, _format(getattr(other, name)), _format(getattr(self, name))) for name in names]
        return "; ".join(f"{name} is {theirs}, not {ours}" for name, theirs, ours in pairs)


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format(part)}" for name, part in value.items()) or "none"
    if isinstance(value, tuple):
        return " to ".join("x".join(map(str, shape)) for shape in value)
    text = str(value) or "none"
    return text[:12] if len(text) == 64 else text
