"""How often affinity keys repeat among the requests of a variant, in constant memory.

Under sticky routing the requests of one key go to one variant, and they resemble one another: a few heavy keys make
equal variants look different. If all requests of a key were alike, n requests would be worth Kish's n^2 / sum of n_k^2
of them, where n_k are the requests of key k. The sum of squares is estimated by a count sketch (Charikar, Chen &
Farach-Colton, ICALP 2002): a key adds or subtracts 1 in one of `CELLS` cells, chosen by its hash, and the squares of
the cells add up to the sum without bias, with a relative error of sqrt(2 / CELLS). Sketches of several gateways add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from mlflowkit.values import Json

CELLS = 256
_MULTIPLIER = 0x9E3779B1


def cell_of(key: str) -> tuple[int, int]:
    """The cell of a key and its sign, the same in every process.

    >>> cell_of("user-17") == cell_of("user-17"), cell_of("user-17")[1] in (-1, 1)
    (True, True)
    """
    mixed = crc32(key.encode(errors="surrogatepass")) * _MULTIPLIER & 0xFFFFFFFF
    return mixed >> 24, 1 if mixed & 0x800000 else -1


@dataclass(frozen=True, slots=True)
class KeySketch:
    """The sketch of ``requests`` that had a key; no cells where none had."""

    requests: int = 0
    cells: tuple[int, ...] = ()

    def __add__(self, other: KeySketch) -> KeySketch:
        if not (self.cells and other.cells):
            return self if self.cells else other
        cells = tuple(one + two for one, two in zip(self.cells, other.cells, strict=True))
        return KeySketch(self.requests + other.requests, cells)

    @property
    def repeats(self) -> float:
        """The mean number of requests of a request's key, at least 1: the sum of n_k^2 over the sum of n_k."""
        return max(sum(cell * cell for cell in self.cells) / self.requests, 1.0) if self.requests else 1.0

    def effective(self, observations: float) -> float:
        """What ``observations`` of these requests (those with a label, say) are worth, if those of a key are alike.

        >>> KeySketch().effective(500)
        500.0
        >>> KeySketch(500, (500,)).effective(500), KeySketch(500, (500,)).effective(1)
        (1.0, 0.5005005005005005)
        """
        share = min(observations / self.requests, 1.0) if self.requests else 1.0
        return observations / (1.0 + share * (self.repeats - 1.0))

    def to_json(self) -> Json:
        """The number of requests, then the cells."""
        return [self.requests, *self.cells]

    @classmethod
    def from_json(cls, value: Sequence[Json]) -> KeySketch:
        """The sketch that `to_json` returned. Raises ValueError for another number of cells.

        >>> sketch = KeySketch(3, (1,) * CELLS)
        >>> KeySketch.from_json(sketch.to_json()) == sketch
        True
        """
        requests, *cells = map(int, value)
        if len(cells) not in (0, CELLS):
            raise ValueError(f"a sketch of keys has {CELLS} cells, not {len(cells)}")
        return cls(requests, tuple(cells))
