"""The observer: the process beside a gateway replica that looks at what it answers.

``python -m mlflowkit.serving.observer.observer_process FOLDER REPLICA PROFILER`` reads frames (see `frames`) from
stdin until it
ends. It counts predictions and compares shadows for the evidence, appends to the prediction log and keeps live
profiles; once a second it writes a line of JSON on stdout with what it counted of itself. FOLDER is the service's.

Evidence first: the log and the profiles are written by threads of their own, behind bounded queues, so that neither a
slow disk nor the import of a profiler holds evidence up. The process is nice: where cores are scarce they are the
gateway's.

This file receives; `counting` counts, `tenths` tells how a regression's predictions are counted, `disagreements`
compares and publishes, `keeping` logs and profiles.
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

import pyarrow as pa

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.service_state.records import ServiceFiles, Settings, read_json, write_json
from mlflowkit.serving.observer import frames, shadow_comparison
from mlflowkit.serving.observer.bundle_info import known, variant_of
from mlflowkit.serving.observer.deciles import Tenths
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.prediction_counts import Counting
from mlflowkit.serving.observer.shadow_report import Disagreements
from mlflowkit.serving.observer.sinks import Keeping
from mlflowkit.values import RoutingTable

WRITE_SECONDS = 0.25
"""Evidence that changed is written at most this often."""
PUBLISH_SECONDS = 1.0
"""Comparisons that changed are written at most this often."""
SETTINGS_SECONDS = 2.0
TABLES = 64
HELD_BATCHES = 4096
"""Batches of a regression that wait until the tenths of the champion's predictions are known."""
NICE = 5
_log = logging.getLogger("mlflowkit.observer")


class Observer:
    """Looks at one replica's batches. `table`, `answered` and `compared` in the order of the stream, then `tick`."""

    def __init__(self, folder: Path, replica: str, profiler: str) -> None:
        self.files = ServiceFiles(folder)
        self.replica = replica
        self.counts = {"batches": 0, "rows": 0, "refused": 0, "held_dropped": 0, "write_failures": 0}
        self.keeping = Keeping(folder, replica, profiler, self._read_settings())
        self._path = folder / "evidence" / f"{replica}.observer.json"
        self.counting = Counting(self._before())
        self._disagreements = Disagreements(self.files, replica, self._attempt)
        self._tenths = Tenths(self.files)
        self._tables: dict[int, RoutingTable] = {}
        self._held: list[tuple[Batch, RoutingTable, bool]] = []
        self._complaint = ""
        self._wrote = self._published = self._looked = self._told = 0.0

    def table(self, payload: bytes) -> None:
        """Learn a routing table."""
        table = RoutingTable.from_json(json.loads(payload))
        self._tables[table.epoch] = table
        for epoch in sorted(self._tables)[:-TABLES]:
            del self._tables[epoch]

    def answered(self, batch: Batch) -> None:
        """Count, log and profile answered rows."""
        table, head = self._table_of(batch), batch.head
        answering = known(variant_of(table, head.answered))
        self.keeping.answered(batch, answering.signature)
        if head.how == "hash" and head.answered == head.variant:
            self._count(batch, table)

    def compared(self, batch: Batch) -> None:
        """Compare and log rows that a shadow answered too."""
        if batch.shadow is None:
            return
        table = self._table_of(batch)
        if self.keeping.settings.log:
            self.keeping.shadowed(batch, known(variant_of(table, batch.head.shadow)).signature)
        if batch.head.how == "hash" and batch.head.answered == table.champion.name:
            self._compare(batch, table)

    def tick(self, *, last: bool = False) -> None:
        """Write what changed, look at the settings, say what was counted."""
        now = time.monotonic()
        if now - self._looked > SETTINGS_SECONDS:
            self._looked = now
            self._follow_settings()
        if last or now - self._wrote > WRITE_SECONDS:
            self._wrote = now
            self._write(all_of_it=last)
        if last or now - self._told > 1.0:
            self._told = now
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # nobody listens any more
                os.write(sys.stdout.fileno(), json.dumps(self.counters()).encode() + b"\n")

    def counters(self) -> dict[str, int]:
        """What the observer counted of itself; all of it only grows."""
        return {**self.counts, **self.keeping.counters()}

    def close(self) -> None:
        """Write everything down."""
        self.tick(last=True)
        self.keeping.close()

    def _count(self, batch: Batch, table: RoutingTable) -> None:
        edges = self._edges(batch, table, compared=False)
        if edges is None:
            return
        signature = known(variant_of(table, batch.head.variant)).signature
        counts = self.counting.of(batch.head.experiment, batch.head.epoch, batch.head.variant)
        if counts is not None:
            counts.predicted(shadow_comparison.prediction_counts(signature, batch.answers, edges))

    def _compare(self, batch: Batch, table: RoutingTable) -> None:
        edges = self._edges(batch, table, compared=True)
        if edges is None:
            return
        counts = self.counting.of(batch.head.experiment, batch.head.epoch, batch.head.shadow)
        if counts is not None:
            self._disagreements.add(batch, table, edges, counts)

    def _edges(self, batch: Batch, table: RoutingTable, *, compared: bool) -> tuple[float, ...] | None:
        """The tenths to count by; None while they are not known: the batch is held until they are."""
        before = self._tenths.found
        edges = self._tenths.of(table, None if compared else batch)
        if edges is None:
            if len(self._held) < HELD_BATCHES:
                self._held.append((batch, table, compared))
            else:
                self.counts["held_dropped"] += batch.rows
        elif self._tenths.found > before:
            held, self._held = self._held, []
            for one, its_table, was_compared in held:
                (self._compare if was_compared else self._count)(one, its_table)
        return edges

    def _table_of(self, batch: Batch) -> RoutingTable:
        table = self._tables.get(batch.head.epoch)
        if table is None:
            raise ServiceError(
                f"rows came of routing table {batch.head.epoch}, which was not told", hint="mlkit status"
            )
        return table

    def _write(self, *, all_of_it: bool) -> None:
        if self.counting.changed:
            document = self.counting.evidence().to_json()
            self.counting.changed = not self._attempt(lambda: write_json(self._path, document, durable=False))
        if all_of_it or time.monotonic() - self._published > PUBLISH_SECONDS:
            self._published = time.monotonic()
            self._disagreements.publish()

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Whether the disk took it; it is tried again the next time."""
        try:
            write()
        except (ServiceError, OSError) as error:
            if str(error) != self._complaint:
                _log.error("%s", error)
            self._complaint = str(error)
            self.counts["write_failures"] += 1
            return False
        self._complaint = ""
        return True

    def _before(self) -> Evidence | None:
        """What an observer of this replica had counted before this one took over."""
        try:
            found = read_json(self._path)
            return None if found is None else Evidence.from_json(found)
        except (ServiceError, AttributeError, KeyError, TypeError, ValueError) as error:
            _log.error("%s is damaged, counting begins anew: %r", self._path, error)
            return None

    def _read_settings(self) -> Settings:
        desired = self.files.desired()
        return Settings(self.files.service) if desired is None else desired.settings

    def _follow_settings(self) -> None:
        try:
            self.keeping.follow(self._read_settings())
        except ServiceError as error:
            _log.error("%s; the settings stay as they are", error.message)


def main(arguments: list[str]) -> int:
    """Observe what comes on stdin until it ends; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    os.nice(NICE)
    os.set_blocking(sys.stdout.fileno(), False)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    folder, replica, profiler = arguments
    observer = Observer(Path(folder), replica, profiler)
    stream, pieces = sys.stdin.fileno(), frames.Frames()
    while True:
        if select.select([stream], [], [], WRITE_SECONDS)[0]:
            data = os.read(stream, 1 << 20)
            if not data:
                break
            for kind, payload in pieces.feed(data):
                _take(observer, kind, payload)
        observer.tick()
    observer.close()
    return 0


def _take(observer: Observer, kind: bytes, payload: bytes) -> None:
    """Look at one frame; one that cannot be looked at is counted, and told the first time."""
    try:
        if kind == frames.TABLE:
            observer.table(payload)
            return
        batch = frames.decode(payload)
        observer.counts["batches"] += 1
        observer.counts["rows"] += batch.rows
        (observer.answered if kind == frames.ANSWERED else observer.compared)(batch)
    except (MlkitError, KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        if not observer.counts["refused"]:
            _log.error("a batch was not looked at: %r", error)
        observer.counts["refused"] += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
