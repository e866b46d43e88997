"""Exact counts of each variant, kept on the request path: one or two additions a request, read by another thread."""

from __future__ import annotations

import orjson

from mlflowkit.judging.online.evidence import Evidence, VariantCounts, latency_bin
from mlflowkit.judging.online.key_sketch import CELLS, KeySketch, cell_of
from mlflowkit.values import RoutingTable

_BINS = latency_bin(3600.0) + 1


class VariantCounter:
    """Counts of one variant under one routing table. Written by the event loop only.

    Copying a list is atomic in the interpreter, so a reader's counts are at most one request apart.
    """

    __slots__ = (
        "_json", "_json_revision", "dropped", "errors", "keyed", "keys", "latency", "mirrored", "requests", "rows",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.errors = self.rows = self.mirrored = self.dropped = 0
        self.latency = [0] * _BINS
        self.keyed, self.keys = 0, [0] * CELLS
        self._json_revision = (0, 0, 0)
        self._json = b"{}"

    def record_answer(self, seconds: float, rows: int) -> None:
        """Count an answered request that the split routed to the variant."""
        self.rows += rows
        self.latency[min(latency_bin(seconds), _BINS - 1)] += 1
        self.requests += 1  # last: a reader that sees it sees the rest

    def record_key(self, key: str) -> None:
        """Count the affinity key of an answered (of a shadow: a mirrored) request; "" is none."""
        if key:
            cell, sign = cell_of(key)
            self.keys[cell] += sign
            self.keyed += 1

    def record_failure(self) -> None:
        """Count a failed request that the split routed to the variant."""
        self.errors += 1
        self.requests += 1

    @property
    def revision(self) -> tuple[int, int, int]:
        """Changes whenever the counts do."""
        return self.requests, self.mirrored, self.dropped

    def counts(self) -> VariantCounts:
        latency = {index: count for index, count in enumerate(self.latency.copy()) if count}
        counts = (self.requests, self.errors, self.rows)
        keys = KeySketch(self.keyed, tuple(self.keys)) if self.keyed else KeySketch()
        return VariantCounts(*counts, latency, mirrored=self.mirrored, dropped=self.dropped, keys=keys)

    def to_json(self) -> bytes:
        """The counts as JSON, cached until they change: most tables of a long experiment are past."""
        revision = self.revision
        if revision != self._json_revision:
            document = Evidence("", {0: {"": self.counts()}}).to_json()
            self._json, self._json_revision = orjson.dumps(document["epochs"]["0"][""]), revision
        return self._json


class VariantCounters:
    """Counters by epoch of the routing table, for the current experiment; a new experiment starts with none."""

    def __init__(self) -> None:
        self._experiment = ""
        self._epochs: dict[int, dict[str, VariantCounter]] = {}

    def for_table(self, table: RoutingTable) -> dict[str, VariantCounter]:
        """The counters of a table's variants by name; new ones until `adopt` is called with the table."""
        counters = self._epochs.get(table.epoch) if table.experiment == self._experiment else None
        return counters or {variant.name: VariantCounter() for variant in table.variants}

    def adopt(self, table: RoutingTable, counters: dict[str, VariantCounter]) -> None:
        """Add an activated table's counters; those of another experiment, or of none, are discarded."""
        if table.experiment != self._experiment or not table.experiment:
            self._epochs = {}
        self._experiment = table.experiment
        self._epochs = {**self._epochs, table.epoch: counters}

    @property
    def revision(self) -> object:
        """Changes whenever `evidence` does."""
        epochs = self._epochs
        return self._experiment, [(epoch, [counter.revision for counter in epochs[epoch].values()]) for epoch in epochs]

    def evidence(self) -> Evidence:
        """All counts of the current experiment."""
        epochs = {
            epoch: {name: counter.counts() for name, counter in counters.items()}
            for epoch, counters in self._epochs.items()
        }
        return Evidence(self._experiment, epochs)

    def to_json(self) -> bytes:
        """`evidence` as JSON; only counters that changed are serialised again."""
        epochs = {
            str(epoch): {name: orjson.Fragment(counter.to_json()) for name, counter in counters.items()}
            for epoch, counters in self._epochs.items()
        }
        return orjson.dumps({"experiment": self._experiment, "epochs": epochs})
