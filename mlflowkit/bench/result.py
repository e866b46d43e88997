"""Results of one bench run, as values and as JSON: rows, their comparisons, the machine. Pure.

A candidate that fails or that this machine cannot run is a row with its status and reason; there are no fallbacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from mlflowkit.bench import validity
from mlflowkit.bench.analysis import quantile, quantile_interval
from mlflowkit.bench.environment import MachineInfo, MachineMoment
from mlflowkit.bench.load import pattern as loads
from mlflowkit.bench.load.open_loop import OpenLoad
from mlflowkit.bench.load.pattern import LoadPattern, LoadSamples
from mlflowkit.bench.measure import Samples, pool_samples
from mlflowkit.bench.pairwise import PairwiseComparison
from mlflowkit.bench.target import BenchEntry, BenchTarget
from mlflowkit.ports import BuiltGraph, LoadedGraph
from mlflowkit.values import Json

STATISTICS = ("p50_us", "p95_us", "p99_us", "quantile_us", "interval", "throughput", "parts", "open")
"""Keys of a row that are None without a measurement."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Settings of a bench run."""

    batches: tuple[int, ...] = (1,)
    samples: int = 2000
    """Requests of each entry at each batch size, over all its starts."""
    starts: int = 5
    """Process starts of each entry; processes of one graph differ (`analysis.started_ratio_interval`)."""
    quantile: float = 0.5
    """Quantile of the intervals and comparisons."""
    cores: tuple[int, ...] | None = None
    """Cores to pin all processes to; None: as many as the largest entry has threads, times the callers. Empty: no
    pinning, where each process stays on the core it began on, and a core with a busy sibling made an entry up to 1.7
    times slower than a copy of itself."""
    load: LoadPattern = field(default_factory=LoadPattern)
    seed: int = 0
    """Seed of the arrivals of an open loop."""

    @property
    def label(self) -> str:
        return validity.percentile(self.quantile)

    @property
    def requests_per_start(self) -> int:
        """Number of requests of one start."""
        return -(-self.samples // self.starts)

    def to_json(self) -> dict[str, Json]:
        return {
            "batches": list(self.batches), "samples": self.samples, "starts": self.starts, "quantile": self.label,
            "load": self.load.to_json(), "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One entry at one batch size. ``status`` is ok, unavailable (this machine cannot run it) or failed."""

    entry: BenchEntry
    batch: int
    status: str
    reason: str = ""
    built: BuiltGraph | None = None
    graph: str = ""
    """Digest of the measured graph: after all passes, with its weights."""
    loaded: tuple[LoadedGraph, ...] = ()
    measured: tuple[LoadSamples, ...] = ()
    """Samples of each start; start i of all entries was measured in the same rounds. Empty: not measured."""
    script: str = ""
    """Script that reproduces a failure."""

    @property
    def starts(self) -> tuple[Samples, ...]:
        return tuple(start.samples for start in self.measured)

    @property
    def blocks(self) -> tuple[np.ndarray, ...]:
        """Microseconds [blocks, requests of a block] of each start."""
        return tuple(start.samples.microseconds for start in self.measured)

    @property
    def stretches(self) -> tuple[OpenLoad, ...]:
        """Stretches of an open loop, in order."""
        return tuple(stretch for start in self.measured for stretch in start.stretches)

    def to_json(self, settings: BenchSettings) -> dict[str, Json]:
        """Return the JSON of a row of candidates.json; times in microseconds, throughput in rows a second."""
        candidate, built = self.entry.candidate, self.built
        cold_starts = sorted(graph.cold_start_ms for graph in self.loaded)
        memory = [graph.memory_bytes for graph in self.loaded if graph.memory_bytes is not None]
        row: dict[str, Json] = {
            "name": self.entry.name,
            "runtime": candidate.engine.runtime,
            "batch": self.batch,
            "load": settings.load.to_json(),
            "samples": 0,
            "starts": 0,
            **dict.fromkeys(STATISTICS),
            "status": self.status,
            "reason": self.reason,
            "metric": None,
            "metric_drop": None,
            "picked": False,
            "passes": [graph_pass.model_dump(mode="json") for graph_pass in candidate.passes],
            "engine": candidate.engine.model_dump(mode="json"),
            "graph": self.graph,
            "requests": self.entry.target.requests.digest,
            "size_bytes": None if built is None else built.size_bytes,
            "memory_bytes": max(memory, default=None),
            "build_seconds": None if built is None else built.build_seconds,
            "cold_start_ms": cold_starts[len(cold_starts) // 2] if cold_starts else None,
            "front": False,
            "script": self.script,
            "notes": self.notes(settings),
        }
        return row | _statistics(self, settings) if self.measured else row

    def notes(self, settings: BenchSettings) -> list[str]:
        """Return the caveats of the results as sentences."""
        if not self.measured:
            return []
        quantiles = sorted({0.5, 0.95, 0.99, settings.quantile})
        return validity.notes(pool_samples(self.starts), quantiles) + loads.notes(self.stretches)


def _statistics(row: BenchRow, settings: BenchSettings) -> dict[str, Json]:
    samples = pool_samples(row.starts)
    blocks = samples.microseconds
    open_loop = loads.pool_stretches(row.stretches) if row.stretches else None
    closed = settings.load.callers * blocks.size / float(blocks.sum()) * 1e6
    parts = {
        name: {f"{validity.percentile(q)}_us": quantile(part, q) for q in (0.5, 0.95, 0.99)}
        for name, part in samples.parts.items()
    }
    return {
        "samples": int(blocks.size),
        "starts": len(row.measured),
        "p50_us": quantile(blocks, 0.50),
        "p95_us": quantile(blocks, 0.95),
        "p99_us": quantile(blocks, 0.99),
        "quantile_us": quantile(blocks, settings.quantile),
        "interval": list(quantile_interval(blocks, settings.quantile, starts=len(row.measured))),
        "throughput": row.batch * (closed if open_loop is None else float(open_loop["achieved"])),
        "parts": parts or None,
        "open": open_loop,
    }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Results of one bench run."""

    settings: BenchSettings
    machine: MachineInfo
    cores: tuple[int, ...]
    """Cores that all processes were pinned to; empty: not pinned."""
    targets: tuple[BenchTarget, ...]
    rows: tuple[BenchRow, ...]
    comparisons: tuple[PairwiseComparison, ...]
    notes: tuple[str, ...] = field(default=())
    moments: tuple[MachineMoment, ...] = ()
    """State of the machine before the first request, and after each start while GPUs were still warm."""

    @property
    def measured(self) -> Mapping[tuple[str, int], tuple[Samples, ...]]:
        """Samples of each start, by name and batch size."""
        return {(row.entry.name, row.batch): row.starts for row in self.rows if row.measured}

    def to_json(self) -> dict[str, Json]:
        """Return the JSON of ``mlkit bench --json``."""
        subjects = [
            {name: getattr(target, name) for name in ("name", "version", "kind")}
            | {"path": str(target.path), "notes": [*target.notes]}
            for target in self.targets
        ]
        return {
            "machine": self.machine.to_json(),
            "settings": self.settings.to_json() | {"cores": list(self.cores)},
            "quantile": self.settings.label,
            "subjects": subjects,
            "candidates": [row.to_json(self.settings) for row in self.rows],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "notes": list(self.notes),
            "moments": [moment.to_json() for moment in self.moments],
        }
