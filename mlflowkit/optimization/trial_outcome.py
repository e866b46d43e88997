"""What a tournament knows of one candidate (`TrialOutcome`), and the settings that all its candidates share."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from mlflowkit.bench.measure import BLOCK, Samples
from mlflowkit.bundle import Signature
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.judging.metrics import is_built_in
from mlflowkit.optimization.objective import Bounds, CandidateFigures
from mlflowkit.optimization.pareto import Point
from mlflowkit.ports import BuiltGraph, LoadedGraph, StageContext
from mlflowkit.system import entry_points
from mlflowkit.system.digests import digest_json
from mlflowkit.usercode import plugin_digest
from mlflowkit.values import Measurement

Status = Literal["ok", "rejected", "unavailable", "failed", "dominated", "baseline"]

MIN_BLOCKS = 20
"""Least number of blocks that a candidate's samples are divided into: intervals need blocks, and early stopping looks
between them. Where the recipe asks for few samples, since a request takes long, blocks and warm-up are short too."""
MEMORY_STEP = 1.1
"""Peaks of memory are compared in steps of this factor: processes with the same graph differ by less."""
METRIC_STEPS = 10
"""Metric drops are compared in steps of max_metric_drop divided by this: smaller differences are ignored."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """A candidate and its results, None where it did not get that far.

    ``relative`` is the interval of its latency over the float graph's, in the objective's quantile; ``value`` that of
    the objective itself.
    """

    candidate: Candidate
    status: Status = "ok"
    reason: str = ""
    built: BuiltGraph | None = None
    loaded: LoadedGraph | None = None
    metric: float | None = None
    drop: Measurement | None = None
    samples: Samples | None = None
    relative: Bounds | None = None
    value: Bounds | None = None
    why_not_picked: str = ""
    """Why it cannot be picked although it may serve: another was significantly faster before all its blocks ran."""
    script: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def size_bytes(self) -> int:
        """Size of the graph; 0 where it is unknown."""
        return (self.built.size_bytes or 0) if self.built else 0

    @property
    def figures(self) -> CandidateFigures:
        """The figures that objectives use. Raises ValueError for a candidate that was not measured."""
        if self.samples is None:
            raise ValueError(f"{self.name} was not measured")
        memory = None if self.loaded is None else self.loaded.memory_bytes
        return CandidateFigures(self.samples.microseconds, self.built.size_bytes if self.built else None, memory)

    def secondary_objectives(self, max_metric_drop: float) -> Point:
        """All compared quantities but latency: metric drop, size, memory, rounded by METRIC_STEPS and MEMORY_STEP."""
        size = float(self.size_bytes)
        peak = (self.loaded.memory_bytes or 1) if self.loaded else 1
        memory = float(round(math.log(max(peak, 1), MEMORY_STEP)))
        drop = (0.0, 0.0) if self.drop is None else (self.drop.low, self.drop.high)
        step = max_metric_drop / METRIC_STEPS
        metric = (round(drop[0] / step) * step, round(drop[1] / step) * step) if step else drop
        return Point({"metric": metric, "size": (size, size), "memory": (memory, memory)})


@dataclass(frozen=True)
class TournamentSettings:
    """What all candidates of a search share. ``rows`` is the file that their processes read."""

    context: StageContext
    signature: Signature
    rows: Path
    actual: np.ndarray
    metric: str
    objective: str
    max_metric_drop: float
    max_latency_ms: float | None
    max_size: float | None
    batch: int
    samples: int
    requests: int
    stop_early: bool
    reuse: bool
    timeout: float

    @property
    def block(self) -> int:
        """Requests of a candidate before the next candidate's turn."""
        return block_size(self.samples)

    @cached_property
    def digest(self) -> str:
        """Digest of the settings that a candidate's result depends on, besides the candidate's own digest."""
        actual = hashlib.sha256(self.actual.tobytes()).hexdigest()
        plugin = None if is_built_in(self.metric) else entry_points.find(entry_points.METRICS, self.metric)
        metric = self.metric if plugin is None else f"{self.metric} {plugin_digest(plugin)}"
        return digest_json([metric, actual, self.objective, self.samples, self.stop_early, self.block])


def block_size(samples: int) -> int:
    """Requests of a block: BLOCK, or fewer where the samples would not fill MIN_BLOCKS blocks.

    >>> block_size(5000), block_size(200)
    (50, 10)
    """
    return max(1, min(BLOCK, samples // MIN_BLOCKS))
