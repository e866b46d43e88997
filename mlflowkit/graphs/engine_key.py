"""What a built engine depends on: its key in the store. Two models of one architecture never share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mlflowkit.system.digests import digest_json

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""Least, usual and largest shape by input name."""


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
    shapes: Ranges = field(default_factory=dict)
    precision: str = ""

    @property
    def digest(self) -> str:
        """The key, 64 hexadecimal digits.

        >>> one = EngineKey(graph="a" * 64, runtime="tensorrt-rtx", target="89")
        >>> one.digest == EngineKey(graph="b" * 64, runtime="tensorrt-rtx", target="89").digest
        False
        """
        return digest_json(asdict(self))

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EngineKey:
        """The key that ``dataclasses.asdict`` and JSON made ``value`` of. Raises TypeError, ValueError, KeyError.

        >>> key = EngineKey("a", "tensorrt", "89", shapes={"x": ((1, 4), (32, 4), (128, 4))})
        >>> EngineKey.from_json({**asdict(key), "shapes": {"x": [[1, 4], [32, 4], [128, 4]]}}) == key
        True
        """
        shapes = {}
        for name, bounds in value["shapes"].items():
            least, usual, most = (tuple(map(int, shape)) for shape in bounds)
            shapes[name] = (least, usual, most)
        return EngineKey(**{**value, "libraries": dict(value["libraries"]), "shapes": shapes})

    def differences(self, other: EngineKey) -> str:
        """In which fields two keys differ, in words; "" when they are the same.

        >>> EngineKey("a", "tensorrt", "89").differences(EngineKey("a", "tensorrt", "86"))
        'target is 86, not 89'
        """
        found = []
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if mine != theirs:
                found.append(f"{each.name} is {_shown(theirs)}, not {_shown(mine)}")
        return "; ".join(found)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) or "none"
    if isinstance(value, tuple):
        return " to ".join("x".join(map(str, shape)) for shape in value)
    text = str(value) or "none"
    return text[:12] if len(text) == 64 else text
