"""Exact counts of each variant, kept on the request path: an addition or two a request, read by another thread."""

from __future__ import annotations

from mlflowkit.judging.evidence import Evidence, VariantCounts, latency_bin
from mlflowkit.values import RoutingTable

_BINS = latency_bin(3600.0) + 1


class Tally:
    """Counts of one variant under one routing table. Written by the event loop only.

    A list is copied in one step of the interpreter, so a reader sees counts of one moment, at most one request apart.
    """

    __slots__ = ("dropped", "errors", "latency", "mirrored", "requests", "rows")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.rows = 0
        self.latency = [0] * _BINS
        self.mirrored = 0
        self.dropped = 0

    def answered(self, seconds: float, rows: int) -> None:
        """The variant answered a request that the split gave it."""
        self.requests += 1
        self.rows += rows
        self.latency[min(latency_bin(seconds), _BINS - 1)] += 1

    def failed(self) -> None:
        """The variant failed a request that the split gave it."""
        self.requests += 1
        self.errors += 1

    def counts(self) -> VariantCounts:
        """What was counted until now."""
        latency = {index: count for index, count in enumerate(self.latency.copy()) if count}
        return VariantCounts(
            self.requests, self.errors, self.rows, latency, mirrored=self.mirrored, dropped=self.dropped
        )


class Tallies:
    """Tallies by epoch of the routing table, of the present experiment. A new experiment begins with none."""

    def __init__(self) -> None:
        self._experiment = ""
        self._epochs: dict[int, dict[str, Tally]] = {}

    def of(self, table: RoutingTable) -> dict[str, Tally]:
        """The tallies of a table's variants by name, made when it is new."""
        if table.experiment != self._experiment:
            self._experiment, self._epochs = table.experiment, {}
        return self._epochs.setdefault(table.epoch, {variant.name: Tally() for variant in table.variants})

    def evidence(self) -> Evidence:
        """Everything that was counted of the present experiment."""
        epochs = {
            epoch: {name: tally.counts() for name, tally in tallies.items()}
            for epoch, tallies in self._epochs.copy().items()
        }
        return Evidence(self._experiment, epochs)
