"""The observer: the process beside a gateway replica that counts, compares, logs and profiles its answers.

``python -m mlflowkit.serving.observer.observer_process FOLDER REPLICA PROFILER`` reads frames (see `frames`) from stdin
until it ends. It counts predictions and compares shadows for the evidence, appends to the prediction log and keeps live
profiles; once a second it prints its own counters as a line of JSON. FOLDER is the service's.

Evidence comes first: log and profiles are written by threads behind bounded queues (`sinks`), so that neither a slow
disk nor the import of a profiler delays evidence. The process runs at lower priority than the gateway.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflowkit.errors import ConflictError, MlkitError, ServiceError
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.service_state.records import GatewaySettings, ServiceFiles
from mlflowkit.serving.observer import frames, shadow_comparison
from mlflowkit.serving.observer.bundle_info import bundle_info, find_variant
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.shadow_report import ShadowReports
from mlflowkit.serving.observer.sinks import RecordSinks
from mlflowkit.system.files import use_private_umask
from mlflowkit.system.log_once import LogOnce
from mlflowkit.system.logs import configure_logging
from mlflowkit.values import RoutingTable

WRITE_SECONDS = 0.25
"""Shortest time between two writes of evidence."""
PUBLISH_SECONDS = 1.0
"""Shortest time between two writes of shadow reports."""
SETTINGS_SECONDS = 2.0
REPORT_SECONDS = 1.0
MAX_TABLES = 64
MAX_HELD_BATCHES = 4096
"""Batches of a regression that wait until the champion's decile edges are known."""
NICE = 5
_log = logging.getLogger("mlflowkit.observer")


class PredictionCounts:
    """Evidence of the current experiment, cumulative over restarts of the observer."""

    def __init__(self, evidence: Evidence | None = None) -> None:
        evidence = evidence or Evidence("")
        self.experiment = evidence.experiment
        self.changed = False
        self._newest = max(evidence.epochs, default=-1)
        self._epochs = {epoch: dict(variants) for epoch, variants in evidence.epochs.items()}

    def accepts(self, experiment: str, epoch: int) -> bool:
        """Whether records count: late ones of an earlier experiment do not. A new experiment starts at 0."""
        if experiment != self.experiment:
            if epoch < self._newest:
                return False
            self.experiment, self._epochs = experiment, {}
        self._newest = max(self._newest, epoch)
        return True

    def add(self, epoch: int, variant: str, counts: VariantCounts) -> None:
        """Add counts of accepted records."""
        variants = self._epochs.setdefault(epoch, {})
        variants[variant] = variants.get(variant, VariantCounts()) + counts
        self.changed = True

    def evidence(self) -> Evidence:
        """Return all counts of the current experiment."""
        return Evidence(self.experiment, {epoch: dict(variants) for epoch, variants in self._epochs.items()})


class DecileEdges:
    """Decile edges of champions' predictions, by which the predictions of a regression are counted.

    The first replica whose champion has answered EDGE_ROWS rows computes the edges and stores them beside the evidence;
    all replicas, now and later, count by those.
    """

    def __init__(self, files: ServiceFiles) -> None:
        self._files = files
        self._edges: dict[str, tuple[float, ...]] = {}
        self._samples: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._edges)

    def get(self, table: RoutingTable, batch: Batch | None) -> tuple[float, ...] | None:
        """Return the edges of the table's champion: () for a classification, None while they are not known.

        ``batch`` holds answered rows; those of the champion are sampled until there are enough.
        """
        champion = table.champion
        if bundle_info(champion).signature.task != "regression":
            return ()
        if champion.digest not in self._edges:
            name = f"tenths/{champion.digest[:32]}.json"
            edges = self._files.read_json(name)
            if edges is None and batch is not None and batch.header.variant == champion.name:
                edges = self._sample(champion.digest, batch)
                if edges is not None:
                    try:
                        self._files.create_json(name, edges)
                    except ConflictError:  # the first edges to be written hold for all replicas
                        edges = self._files.read_json(name)
            if edges is None:
                return None
            self._edges[champion.digest] = tuple(edges)
        return self._edges[champion.digest]

    def _sample(self, digest: str, batch: Batch) -> tuple[float, ...] | None:
        sample = self._samples.setdefault(digest, [])
        sample.append(np.array(batch.answers["prediction"]).reshape(-1))
        if sum(map(len, sample)) < shadow_comparison.EDGE_ROWS:
            return None
        return shadow_comparison.decile_edges(np.concatenate(self._samples.pop(digest)))


class Observer:
    """Observes one replica. Call `add_table`, `answered` and `compared` in the order of the stream, then `tick`."""

    def __init__(self, folder: Path, replica: str, profiler: str) -> None:
        self.files = ServiceFiles(folder)
        self.replica = replica
        self.counts = {"batches": 0, "rows": 0, "refused": 0, "held_dropped": 0, "write_failures": 0}
        self.sinks = RecordSinks(folder, replica, profiler, self._read_settings())
        self._evidence = f"evidence/{replica}.observer.json"
        self.predictions = PredictionCounts(self._read_evidence())
        self._reports = ShadowReports(self.files, replica, self._attempt)
        self._deciles = DecileEdges(self.files)
        self._tables: dict[int, RoutingTable] = {}
        self._held: list[tuple[Batch, RoutingTable, bool]] = []
        self._errors = LogOnce(_log)
        self._written = self._published = self._settings_read = self._reported = 0.0

    def add_table(self, payload: bytes) -> None:
        table = RoutingTable.from_json(json.loads(payload))
        self._tables[table.epoch] = table
        for epoch in sorted(self._tables)[:-MAX_TABLES]:
            del self._tables[epoch]

    def answered(self, batch: Batch) -> None:
        """Count, log and profile answered rows."""
        table = self._table_of(batch)
        self.sinks.answered(batch, bundle_info(find_variant(table, batch.header.answered)))
        if batch.header.is_evidence:
            self._count(batch, table)

    def compared(self, batch: Batch) -> None:
        """Compare and log rows that a shadow also answered."""
        if batch.shadow is None:
            return
        table, header = self._table_of(batch), batch.header
        if self.sinks.settings.log:
            self.sinks.shadowed(batch, bundle_info(find_variant(table, header.shadow)).signature)
        if header.how == "hash" and header.answered == table.champion.name:
            self._compare(batch, table)

    def tick(self, *, last: bool = False) -> None:
        """Do what is due: read the settings, write evidence and reports, print the counters."""
        now = time.monotonic()
        if now - self._settings_read > SETTINGS_SECONDS:
            self._settings_read = now
            try:
                self.sinks.apply_settings(self._read_settings())
            except ServiceError as error:
                _log.error("%s; the settings stay as they are", error.message)
        if last or now - self._written > WRITE_SECONDS:
            self._written = now
            if self.predictions.changed:
                document = self.predictions.evidence().to_json()
                self.predictions.changed = not self._attempt(
                    lambda: self.files.write_json(self._evidence, document, durable=False)
                )
        if last or now - self._published > PUBLISH_SECONDS:
            self._published = now
            self._reports.publish()
        if last or now - self._reported > REPORT_SECONDS:
            self._reported = now
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the gateway does not read any more
                os.write(sys.stdout.fileno(), json.dumps(self.counters()).encode() + b"\n")

    def counters(self) -> dict[str, int]:
        """Return the observer's own counters; they only grow."""
        return {**self.counts, **self.sinks.counters()}

    def close(self) -> None:
        self.tick(last=True)
        self.sinks.close()

    def _count(self, batch: Batch, table: RoutingTable) -> None:
        edges = self._edges(batch, table, compared=False)
        if edges is None:
            return
        header = batch.header
        signature = bundle_info(find_variant(table, header.variant)).signature
        if self.predictions.accepts(header.experiment, header.epoch):
            rows = shadow_comparison.prediction_counts(signature, batch.answers, edges)
            requests = shadow_comparison.request_prediction_counts(signature, batch.answers, batch.request, edges)
            counts = VariantCounts(predictions=rows, request_predictions=requests)
            self.predictions.add(header.epoch, header.variant, counts)

    def _compare(self, batch: Batch, table: RoutingTable) -> None:
        edges, header = self._edges(batch, table, compared=True), batch.header
        if edges is not None and self.predictions.accepts(header.experiment, header.epoch):
            self.predictions.add(header.epoch, header.shadow, self._reports.add(batch, table, edges))

    def _edges(self, batch: Batch, table: RoutingTable, *, compared: bool) -> tuple[float, ...] | None:
        """Return the decile edges; while they are not known, hold the batch and return None."""
        champions = len(self._deciles)
        edges = self._deciles.get(table, None if compared else batch)
        if edges is None:
            if len(self._held) < MAX_HELD_BATCHES:
                self._held.append((batch, table, compared))
            else:
                self.counts["held_dropped"] += batch.rows
        elif len(self._deciles) > champions:
            held, self._held = self._held, []
            for held_batch, held_table, held_compared in held:
                (self._compare if held_compared else self._count)(held_batch, held_table)
        return edges

    def _table_of(self, batch: Batch) -> RoutingTable:
        table = self._tables.get(batch.header.epoch)
        if table is None:
            raise ServiceError(f"routing table {batch.header.epoch} was not received", hint="mlkit status")
        return table

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Run a write and return whether it succeeded; a failure is counted and logged once."""
        try:
            write()
        except (ServiceError, OSError) as error:
            self._errors.error(str(error))
            self.counts["write_failures"] += 1
            return False
        self._errors.clear()
        return True

    def _read_evidence(self) -> Evidence | None:
        try:
            document = self.files.read_json(self._evidence)
            return None if document is None else Evidence.from_json(document)
        except (ServiceError, AttributeError, KeyError, TypeError, ValueError) as error:
            _log.error("%s is damaged, counting starts from zero: %r", self.files.location(self._evidence), error)
            return None

    def _read_settings(self) -> GatewaySettings:
        desired = self.files.desired()
        return GatewaySettings(self.files.service) if desired is None else desired.settings


def main(arguments: list[str]) -> int:
    """Observe the stream on stdin until it ends; returns the exit code."""
    use_private_umask()
    configure_logging(logging.WARNING)
    os.nice(NICE)
    os.set_blocking(sys.stdout.fileno(), False)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    folder, replica, profiler = arguments
    observer = Observer(Path(folder), replica, profiler)
    stream, parser = sys.stdin.fileno(), frames.FrameParser()
    while True:
        if select.select([stream], [], [], WRITE_SECONDS)[0]:
            data = os.read(stream, 1 << 20)
            if not data:
                break
            for kind, payload in parser.feed(data):
                _process_frame(observer, kind, payload)
        observer.tick()
    observer.close()
    return 0


def _process_frame(observer: Observer, kind: bytes, payload: bytes) -> None:
    """Process one frame; a frame that fails is counted, and the first failure logged."""
    try:
        if kind == frames.TABLE:
            observer.add_table(payload)
            return
        batch = frames.decode(payload)
        observer.counts["batches"] += 1
        observer.counts["rows"] += batch.rows
        (observer.answered if kind == frames.ANSWERED else observer.compared)(batch)
    except (MlkitError, KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        if not observer.counts["refused"]:
            _log.error("a batch could not be processed: %r", error)
        observer.counts["refused"] += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
