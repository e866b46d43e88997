"""Exact counts of each variant, kept on the request path: an addition or two a request, read by another thread."""

from __future__ import annotations

import orjson

from mlflowkit.judging.online.evidence import Evidence, VariantCounts, latency_bin
from mlflowkit.values import RoutingTable

_BINS = latency_bin(3600.0) + 1


class Tally:
    """Counts of one variant under one routing table. Written by the event loop only.

    A list is copied in one step of the interpreter, so a reader sees counts of one moment, at most one request apart.
    """

    __slots__ = ("_seen", "_written", "dropped", "errors", "latency", "mirrored", "requests", "rows")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.rows = 0
        self.latency = [0] * _BINS
        self.mirrored = 0
        self.dropped = 0
        self._seen = (0, 0, 0)
        self._written = b"{}"

    def answered(self, seconds: float, rows: int) -> None:
        """The variant answered a request that the split gave it."""
        self.rows += rows
        self.latency[min(latency_bin(seconds), _BINS - 1)] += 1
        self.requests += 1  # last: a reader that sees it sees the rest

    def failed(self) -> None:
        """The variant failed a request that the split gave it."""
        self.errors += 1
        self.requests += 1

    @property
    def mark(self) -> tuple[int, int, int]:
        """Changes whenever the counts do."""
        return self.requests, self.mirrored, self.dropped

    def counts(self) -> VariantCounts:
        """What was counted until now."""
        latency = {index: count for index, count in enumerate(self.latency.copy()) if count}
        return VariantCounts(
            self.requests, self.errors, self.rows, latency, mirrored=self.mirrored, dropped=self.dropped
        )

    def written(self) -> bytes:
        """JSON of the counts, made anew only when they changed: most tables of a long experiment are past."""
        mark = self.mark
        if mark != self._seen:
            whole = Evidence("", {0: {"": self.counts()}}).to_json()
            self._written, self._seen = orjson.dumps(whole["epochs"]["0"][""]), mark
        return self._written


class Tallies:
    """Tallies by epoch of the routing table, of the present experiment. A new experiment begins with none."""

    def __init__(self) -> None:
        self._experiment = ""
        self._epochs: dict[int, dict[str, Tally]] = {}

    def of(self, table: RoutingTable) -> dict[str, Tally]:
        """The tallies of a table's variants by name; new ones until `adopt` says that the table answers."""
        known = self._epochs.get(table.epoch) if table.experiment == self._experiment else None
        return known or {variant.name: Tally() for variant in table.variants}

    def adopt(self, table: RoutingTable, tallies: dict[str, Tally]) -> None:
        """Count a table's tallies in; those of another experiment go, as do older ones outside of any."""
        if table.experiment != self._experiment or not table.experiment:
            self._epochs = {}
        self._experiment = table.experiment
        self._epochs = {**self._epochs, table.epoch: tallies}

    @property
    def mark(self) -> object:
        """Changes whenever `evidence` does."""
        epochs = self._epochs
        return self._experiment, [(epoch, [tally.mark for tally in epochs[epoch].values()]) for epoch in epochs]

    def evidence(self) -> Evidence:
        """Everything that was counted of the present experiment."""
        epochs = {
            epoch: {name: tally.counts() for name, tally in tallies.items()} for epoch, tallies in self._epochs.items()
        }
        return Evidence(self._experiment, epochs)

    def document(self) -> bytes:
        """The JSON of `evidence`, at the price of what changed since it was last asked for."""
        epochs = {
            str(epoch): {name: orjson.Fragment(tally.written()) for name, tally in tallies.items()}
            for epoch, tallies in self._epochs.items()
        }
        return orjson.dumps({"experiment": self._experiment, "epochs": epochs})
