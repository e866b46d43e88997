"""What one command measured, as values and as JSON: rows, their comparisons, the machine. Pure.

What a machine lacks and what fails is a row with its status and reason: nothing is replaced by something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from mlflowkit.bench import validity
from mlflowkit.bench.analysis import quantile, quantile_interval
from mlflowkit.bench.environment import Machine, Moment
from mlflowkit.bench.load import pattern as loads
from mlflowkit.bench.load.open_loop import OpenLoad
from mlflowkit.bench.load.pattern import Load, Taken
from mlflowkit.bench.measure import Samples, pooled
from mlflowkit.bench.pairwise import Comparison
from mlflowkit.bench.target import Entry, Subject
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Built, Loaded


FIGURES = ("p50_us", "p95_us", "p99_us", "quantile_us", "interval", "throughput", "parts", "open")
"""What a row has of a measurement; None where there was none."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    batches: tuple[int, ...] = (1,)
    samples: int = 2000
    """Requests of each entry at each batch size, in all its starts together."""
    starts: int = 5
    """How often each entry's process is started anew: two processes of one graph differ by a few percent for as long
    as they live, which only other processes show (`analysis.started_ratio_interval`)."""
    quantile: float = 0.5
    """What intervals and comparisons are of."""
    cores: tuple[int, ...] | None = None
    """Cores that everything is kept on; None: as many as the largest entry has threads, times the callers. Empty: the
    system chooses.

    Entries take turns, so all can have the same cores. Left to the system, each process stays where it began, and a
    core whose sibling is busy is slower: an entry then seems slower than a copy of itself (seen: 1.7 times)."""
    load: Load = field(default_factory=Load)
    seed: int = 0
    """Of the arrivals of an open loop."""

    @property
    def label(self) -> str:
        return validity.percentile(self.quantile)

    @property
    def each(self) -> int:
        """Requests of one start."""
        return -(-self.samples // self.starts)

    def to_json(self) -> dict[str, Json]:
        return {
            "batches": list(self.batches), "samples": self.samples, "starts": self.starts, "quantile": self.label,
            "load": self.load.to_json(), "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one entry at one batch size. ``status`` is ok, unavailable (the machine lacks it) or failed."""

    entry: Entry
    batch: int
    status: str
    reason: str = ""
    built: Built | None = None
    graph: str = ""
    """Digest of what was measured: the graph after all passes, with its weights."""
    loaded: tuple[Loaded, ...] = ()
    taken: tuple[Taken, ...] = ()
    """Of each start of its process; start i of all entries was measured in the same rounds. Empty: not measured."""
    script: str = ""
    """Does a failure again."""

    @property
    def starts(self) -> tuple[Samples, ...]:
        return tuple(one.samples for one in self.taken)

    @property
    def blocks(self) -> tuple[np.ndarray, ...]:
        """Microseconds [blocks, requests of a block] of each start."""
        return tuple(one.samples.microseconds for one in self.taken)

    @property
    def stretches(self) -> tuple[OpenLoad, ...]:
        """Of an open loop, in the order in which they were asked."""
        return tuple(stretch for one in self.taken for stretch in one.stretches)

    @property
    def key(self) -> tuple[str, int]:
        return self.entry.name, self.batch

    def to_json(self, settings: Settings) -> dict[str, Json]:
        """As candidates.json lists a candidate; times in microseconds, throughput in rows a second."""
        candidate = self.entry.candidate
        row: dict[str, Json] = {
            "name": self.entry.name,
            "runtime": candidate.engine.runtime,
            "batch": self.batch,
            "load": settings.load.to_json(),
            "samples": 0,
            "starts": 0,
            **dict.fromkeys(FIGURES),
            "status": self.status,
            "reason": self.reason,
            "metric": None,
            "metric_drop": None,
            "picked": False,
            "passes": [one.model_dump(mode="json") for one in candidate.passes],
            "engine": candidate.engine.model_dump(mode="json"),
            "graph": self.graph,
            "requests": self.entry.subject.requests.digest,
            "size_bytes": None if self.built is None else self.built.size_bytes,
            "memory_bytes": _most([one.memory_bytes for one in self.loaded]),
            "build_seconds": None if self.built is None else self.built.build_seconds,
            "cold_start_ms": _middle([one.cold_start_ms for one in self.loaded]),
            "front": False,
            "script": self.script,
            "notes": self.notes(settings),
        }
        return row | _figures(self, settings) if self.taken else row

    def notes(self, settings: Settings) -> list[str]:
        """What must be known to believe the figures, in words."""
        if not self.taken:
            return []
        said = validity.notes(pooled(self.starts), sorted({0.5, 0.95, 0.99, settings.quantile}))
        return said + loads.notes(self.stretches)


def _figures(row: Row, settings: Settings) -> dict[str, Json]:
    whole = pooled(row.starts)
    blocks = whole.microseconds
    told = loads.together(row.stretches) if row.stretches else None
    closed = settings.load.callers * blocks.size / float(blocks.sum()) * 1e6
    return {
        "samples": int(blocks.size),
        "starts": len(row.taken),
        "p50_us": quantile(blocks, 0.50),
        "p95_us": quantile(blocks, 0.95),
        "p99_us": quantile(blocks, 0.99),
        "quantile_us": quantile(blocks, settings.quantile),
        "interval": list(quantile_interval(blocks, settings.quantile, starts=len(row.taken))),
        "throughput": row.batch * (closed if told is None else float(told["achieved"])),
        "parts": _parts(whole),
        "open": told,
    }


def _parts(whole: Samples) -> Mapping[str, Json] | None:
    """Of what requests' time was made, where a runtime told it: copies to the device and back, and the device."""
    return {
        name: {f"{validity.percentile(q)}_us": quantile(part, q) for q in (0.5, 0.95, 0.99)}
        for name, part in whole.parts.items()
    } or None


def _most(found: Sequence[int | None]) -> int | None:
    return max((one for one in found if one is not None), default=None)


def _middle(found: Sequence[float]) -> float | None:
    return sorted(found)[len(found) // 2] if found else None


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that one command measured."""

    settings: Settings
    machine: Machine
    cores: tuple[int, ...]
    """That everything was kept on; none: the system chose."""
    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())
    moments: tuple[Moment, ...] = ()
    """The machine before the first request and after the last one of each start, while its processes were there: the
    clocks, temperatures and reasons of GPUs are of one that has just worked."""

    @property
    def measured(self) -> Mapping[tuple[str, int], tuple[Samples, ...]]:
        """The samples of each start, by name and batch size."""
        return {row.key: row.starts for row in self.rows if row.taken}

    def to_json(self) -> dict[str, Json]:
        """The shape of ``mlkit bench --json``."""
        subjects = [
            {"name": one.name, "version": one.version, "kind": one.kind, "path": str(one.path), "notes": [*one.notes]}
            for one in self.subjects
        ]  # fmt: skip
        return {
            "machine": self.machine.to_json(),
            "settings": self.settings.to_json() | {"cores": list(self.cores)},
            "quantile": self.settings.label,
            "subjects": subjects,
            "candidates": [row.to_json(self.settings) for row in self.rows],
            "comparisons": [asdict(one) for one in self.comparisons],
            "notes": list(self.notes),
            "moments": [one.to_json() for one in self.moments],
        }
