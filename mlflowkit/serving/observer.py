"""The observer: the process beside a gateway replica that looks at what it answers.

``python -m mlflowkit.serving.observer FOLDER REPLICA PROFILER`` reads frames (see `frames`) from stdin until it
ends. It counts predictions and compares shadows for the evidence, appends to the prediction log and keeps live
profiles; once a second it writes a line of JSON on stdout with what it counted of itself. FOLDER is the service's.

Evidence first: the log and the profiles are written by threads of their own, behind bounded queues, so that neither a
slow disk nor the import of a profiler holds evidence up. The process is nice: where cores are scarce they are the
gateway's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.evidence import Evidence, Moments, VariantCounts
from mlflowkit.serving import comparison, frames
from mlflowkit.serving.files import ServiceFiles, Settings, read_json, write_json
from mlflowkit.serving.frames import Batch
from mlflowkit.serving.live_profile import LiveProfiles
from mlflowkit.serving.prediction_log import LogWriter, logged, logged_shadow
from mlflowkit.values import Json, RoutingTable, Variant

WRITE_SECONDS = 0.25
"""Evidence that changed is written at most this often."""
PUBLISH_SECONDS = 1.0
"""Comparisons that changed are written at most this often."""
SETTINGS_SECONDS = 2.0
WAITING_BYTES = 64 << 20
"""Rows that wait for the disk, and for the profiler; more are dropped."""
TABLES = 64
HELD_BATCHES = 4096
"""Batches of a regression that wait until the tenths of the champion's predictions are known."""
NICE = 5
_log = logging.getLogger("mlflowkit.observer")


@dataclass(slots=True)
class _Counts:
    """What was counted of one variant under one table."""

    predictions: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, Moments] = field(default_factory=dict)
    difference: Moments = field(default_factory=Moments)

    def predicted(self, counts: Mapping[str, int]) -> None:
        for key, count in counts.items():
            self.predictions[key] = self.predictions.get(key, 0) + count

    def compared(self, agreement: Mapping[str, Moments], difference: Moments) -> None:
        for key, value in agreement.items():
            self.agreement[key] = self.agreement.get(key, Moments()) + value
        self.difference += difference


class Counting:
    """Evidence of the present experiment, cumulative over restarts of the observer. No I/O.

    ``edges`` gives the tenths of a champion's predictions, None while they are not known: what needs them waits.
    """

    def __init__(self, evidence: Evidence | None = None) -> None:
        self.experiment = "" if evidence is None else evidence.experiment
        self.changed = False
        self._newest = max(evidence.epochs, default=-1) if evidence is not None else -1
        self._counts: dict[int, dict[str, _Counts]] = {}
        for epoch, variants in () if evidence is None else evidence.epochs.items():
            for name, counts in variants.items():
                kept = _Counts(dict(counts.predictions), dict(counts.agreement), counts.difference)
                self._counts.setdefault(epoch, {})[name] = kept

    def of(self, experiment: str, epoch: int, variant: str) -> _Counts | None:
        """Where to count; None for records that came after their experiment was over. A new experiment begins at 0."""
        if experiment != self.experiment:
            if epoch < self._newest:
                return None
            self.experiment, self._counts = experiment, {}
        self._newest = max(self._newest, epoch)
        self.changed = True
        return self._counts.setdefault(epoch, {}).setdefault(variant, _Counts())

    def evidence(self) -> Evidence:
        """Everything that was counted of the present experiment."""
        epochs = {
            epoch: {
                name: VariantCounts(
                    predictions=dict(counts.predictions), agreement=dict(counts.agreement), difference=counts.difference
                )
                for name, counts in variants.items()
            }
            for epoch, variants in self._counts.items()
        }
        return Evidence(self.experiment, epochs)


@dataclass(frozen=True, slots=True)
class Known:
    """What the observer needs of a bundle."""

    signature: Signature
    reference: Json
    digest: str


@lru_cache(maxsize=64)
def known(variant: Variant) -> Known:
    """Signature and reference profile of a variant's bundle, which the gateway has verified.

    Raises ServiceError when it cannot be read.
    """
    folder = Path(variant.bundle)
    try:
        signature = Signature.model_validate_json((folder / "signature.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{folder}: signature.json cannot be read: {error}", hint="mlkit status") from error
    return Known(signature, read_json(folder / "evidence" / "reference.json"), variant.digest)


class Worker:
    """A thread with a bounded queue: what does not fit is dropped and counted."""

    def __init__(self, name: str, tick: Callable[[], None], close: Callable[[], None]) -> None:
        self.dropped = 0
        self._queue: queue.SimpleQueue[tuple[int, int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._bytes = 0
        self._lock = threading.Lock()
        self._complaint = ""
        self._tick, self._close = tick, close
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, work: Callable[[], None], *, size: int, rows: int) -> None:
        """Have ``work`` done, which holds ``size`` bytes for so long."""
        with self._lock:
            if self._bytes > WAITING_BYTES:
                self.dropped += rows
                return
            self._bytes += size
        self._queue.put((size, rows, work))

    def stop(self, seconds: float) -> None:
        """Do what is queued, for up to ``seconds``."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=0.25)
            except queue.Empty:
                self._guarded(self._tick, 0)
                continue
            if item is None:
                self._close()
                return
            size, rows, work = item
            self._guarded(work, rows)
            with self._lock:
                self._bytes -= size
            self._guarded(self._tick, 0)

    def _guarded(self, work: Callable[[], None], rows: int) -> None:
        """Do something; whatever fails costs its rows, not the thread."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - counted, and told with its traceback when it is another than before
            self.dropped += rows
            if repr(error) != self._complaint:
                _log.exception("the %s thread", self._thread.name)
            self._complaint = repr(error)


class Observer:
    """Looks at one replica's batches. `table`, `answered` and `compared` in the order of the stream, then `tick`."""

    def __init__(self, folder: Path, replica: str, profiler: str) -> None:
        self.files = ServiceFiles(folder)
        self.replica = replica
        self.settings = self._read_settings()
        self._tables: dict[int, RoutingTable] = {}
        self._path = folder / "evidence" / f"{replica}.observer.json"
        self.counting = Counting(self._before())
        self._comparisons: dict[str, comparison.Comparison] = {}
        self._touched: set[str] = set()
        self._slices: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
        self._edges: dict[str, tuple[float, ...]] = {}
        self._samples: dict[str, list[np.ndarray]] = {}
        self._held: list[tuple[Batch, RoutingTable, bool]] = []
        self.counts = {"batches": 0, "rows": 0, "refused": 0, "held_dropped": 0, "write_failures": 0}
        self._damaged: set[Path] = set()
        self._complaint = ""
        self._wrote = self._published = self._looked = self._told = 0.0
        settings = self.settings
        log = LogWriter(folder / "predictions", replica, days=settings.log_days, megabytes=settings.log_mb)
        live = LiveProfiles(folder / "profiles", replica, profiler, days=settings.log_days)
        self.log, self.profiles = log, live
        self._log_worker = Worker("log", log.tick, log.roll)
        self._profile_worker = Worker("profile", live.tick, live.close)
        self._profiler = profiler

    def table(self, payload: bytes) -> None:
        """Learn a routing table."""
        table = RoutingTable.from_json(json.loads(payload))
        self._tables[table.epoch] = table
        for epoch in sorted(self._tables)[:-TABLES]:
            del self._tables[epoch]

    def answered(self, batch: Batch) -> None:
        """Count, log and profile answered rows."""
        table = self._table_of(batch)
        answering = known(_variant(table, batch.head.answered))
        head = batch.head
        if self.settings.log or self.settings.profile:
            self._keep(batch, answering)
        if head.how == "hash" and head.answered == head.variant:
            self._count(batch, table)

    def compared(self, batch: Batch) -> None:
        """Compare and log rows that a shadow answered too."""
        if batch.shadow is None:
            return
        table = self._table_of(batch)
        if self.settings.log:
            rows = logged_shadow(
                batch, known(_variant(table, batch.head.shadow)).signature, sampling=self.settings.log_sampling
            )
            self._log_worker.offer(lambda: self.log.add(rows), size=rows.nbytes, rows=rows.num_rows)
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
        return {
            **self.counts,
            "log_rows": self.log.written,
            "log_dropped": self.log.dropped + self._log_worker.dropped,
            "profile_rows": self.profiles.profiled,
            "profile_dropped": self.profiles.dropped + self._profile_worker.dropped,
        }

    def close(self) -> None:
        """Write everything down."""
        self.tick(last=True)
        self._log_worker.stop(5.0)
        self._profile_worker.stop(10.0)

    def _keep(self, batch: Batch, answering: Known) -> None:
        settings, head = self.settings, batch.head
        whole = logged(batch, answering.signature)
        if settings.log:
            rows = whole
            if settings.log_sampling < 1.0:
                rows = logged(batch, answering.signature, sampling=settings.log_sampling)
            self._log_worker.offer(lambda: self.log.add(rows), size=rows.nbytes, rows=rows.num_rows)
        if settings.profile and self._profiler and head.how == "hash" and head.answered == head.variant:
            when = float(batch.times[0])
            self._profile_worker.offer(
                lambda: self.profiles.add(whole, head.version, when), size=whole.nbytes, rows=whole.num_rows
            )

    def _count(self, batch: Batch, table: RoutingTable) -> None:
        edges = self._edges_for(batch, table)
        if edges is None:
            self._hold(batch, table, False)
            return
        signature = known(_variant(table, batch.head.variant)).signature
        counts = self.counting.of(batch.head.experiment, batch.head.epoch, batch.head.variant)
        if counts is not None:
            counts.predicted(comparison.prediction_counts(signature, batch.answers, edges))

    def _compare(self, batch: Batch, table: RoutingTable) -> None:
        assert batch.shadow is not None  # compared() has looked
        head = batch.head
        edges = self._edges_for(None, table)
        if edges is None:
            self._hold(batch, table, True)
            return
        champion, shadow = known(table.champion), known(_variant(table, head.shadow))
        counts = self.counting.of(head.experiment, head.epoch, head.shadow)
        if counts is None:
            return
        within = comparison.tolerance(edges) if edges else 0.0
        found = comparison.compare(champion.signature, batch.answers, batch.shadow, shadow.signature, within)
        texts = _texts(batch, champion.signature)
        sliced = self._sliced(champion, head.experiment)
        agreement = {"": comparison.moments(found.agrees)}
        for column, values in sliced.items():
            agreement |= comparison.slice_moments(found.agrees, column, texts[column], values)
        counts.compared(agreement, comparison.moments(found.difference))
        counts.predicted(comparison.prediction_counts(shadow.signature, batch.shadow, edges))
        seen = self._comparison(head)
        assert batch.shadow_seconds is not None  # there where a shadow is
        seen.add(found, agreement, batch.shadow_seconds - batch.seconds)
        for row in np.flatnonzero(~found.agrees):
            place = seen.examples.place()
            if place is not None:
                slices = [comparison.slice_name(name, texts[name][row], values) for name, values in sliced.items()]
                one = {**example(batch, int(row), found, champion.signature), "slices": slices}
                seen.examples.items[place : place + 1] = [one]
        self._touched.add(head.shadow)

    def _comparison(self, head: frames.Head) -> comparison.Comparison:
        seen = self._comparisons.get(head.shadow)
        if seen is None or (seen.experiment, seen.version) != (head.experiment, head.shadow_version):
            seen = comparison.Comparison(head.shadow, head.shadow_version, head.experiment)
            self._comparisons[head.shadow] = seen
        return seen

    def _sliced(self, champion: Known, experiment: str) -> Mapping[str, frozenset[str]]:
        key = (champion.digest, experiment)
        if key not in self._slices:
            named: tuple[str, ...] = ()
            try:
                named = agreement_columns(read_json(self.files.folder / "rollout.json"), experiment)
            except (ServiceError, AttributeError, KeyError, TypeError) as error:
                _log.error("rollout.json is damaged, agreement is told by columns of few values: %r", error)
            self._slices = {key: comparison.sliced_columns(champion.signature, champion.reference, named)}
        return self._slices[key]

    def _edges_for(self, batch: Batch | None, table: RoutingTable) -> tuple[float, ...] | None:
        """The tenths of the champion's predictions; () for a classification, None while they are not known.

        They are told from the first EDGE_ROWS that the champion answers, by whichever replica has them first, and
        kept beside the evidence: all replicas, and all that come later, count by the same ones.
        """
        champion = table.champion
        if known(champion).signature.task != "regression":
            return ()
        if champion.digest not in self._edges:
            path = self.files.folder / "tenths" / f"{champion.digest[:32]}.json"
            found = read_json(path)
            if found is None and batch is not None and batch.head.variant == champion.name:
                found = self._told_edges(champion.digest, batch, path)
            if found is None:
                return None
            self._edges[champion.digest] = tuple(found)
            self._release()
        return self._edges[champion.digest]

    def _told_edges(self, digest: str, batch: Batch, path: Path) -> Json:
        sample = self._samples.setdefault(digest, [])
        sample.append(np.array(batch.answers["prediction"]).reshape(-1))
        if sum(map(len, sample)) < comparison.EDGE_ROWS:
            return None
        edges = comparison.tenths(np.concatenate(self._samples.pop(digest)))
        with self.files.lock("tenths"):
            found = read_json(path)
            if found is None:
                write_json(path, edges)
        return edges if found is None else found

    def _hold(self, batch: Batch, table: RoutingTable, compared: bool) -> None:
        if len(self._held) < HELD_BATCHES:
            self._held.append((batch, table, compared))
        else:
            self.counts["held_dropped"] += batch.rows

    def _release(self) -> None:
        held, self._held = self._held, []
        for batch, table, compared in held:
            (self._compare if compared else self._count)(batch, table)

    def _table_of(self, batch: Batch) -> RoutingTable:
        table = self._tables.get(batch.head.epoch)
        if table is None:
            raise ServiceError(f"rows came of routing table {batch.head.epoch}, which was not told")
        return table

    def _write(self, *, all_of_it: bool) -> None:
        if self.counting.changed:
            document = self.counting.evidence().to_json()
            self.counting.changed = not self._attempt(lambda: write_json(self._path, document, durable=False))
        if all_of_it or time.monotonic() - self._published > PUBLISH_SECONDS:
            self._published = time.monotonic()
            self._touched = {shadow for shadow in self._touched if not self._publish(self._comparisons[shadow])}

    def _publish(self, seen: comparison.Comparison) -> bool:
        """Write what this replica saw of a shadow, and beside it what all replicas saw."""
        folder, name = self.files.folder / "disagreements", f"{seen.shadow}.json"

        def write() -> None:
            own = folder / self.replica / name
            write_json(own, seen.to_json(), durable=False)
            with self.files.lock("disagreements"):
                others = (path for path in sorted(folder.glob(f"*/{name}")) if path != own)
                write_json(folder / name, self._with_others(seen, others), durable=False)

        return self._attempt(write)

    def _with_others(self, seen: comparison.Comparison, paths: Iterable[Path]) -> Json:
        """What this replica saw of a shadow together with what others did; a file that is damaged is left out."""
        whole = seen.to_json()
        for path in paths:
            try:
                part = read_json(path)
                if part is not None and part["experiment"] == seen.experiment:
                    whole = comparison.merged([whole, part])
                self._damaged.discard(path)
            except (ServiceError, AttributeError, KeyError, TypeError, ValueError) as error:
                if path not in self._damaged:
                    _log.error("%s is damaged and was left out: %r", path, error)
                self._damaged.add(path)
        return whole

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
            self.settings = self._read_settings()
        except ServiceError as error:
            _log.error("%s; the settings stay as they are", error.message)
        self.log.days, self.log.megabytes = self.settings.log_days, self.settings.log_mb
        self.profiles.days = self.settings.log_days


def example(batch: Batch, row: int, found: comparison.Compared, signature: Signature) -> Json:
    """One row on which a shadow disagreed: inputs by column and both answers."""
    assert batch.shadow is not None  # rows are compared where there is an answer
    inputs = {
        column: _plain(batch.inputs[tensor.name].reshape(batch.rows, -1)[row, place])
        for tensor in signature.inputs
        for place, column in enumerate(tensor.columns)
    }
    request = int(batch.request[row])
    return {
        "time": float(batch.times[request]),
        "id": batch.ids[request],
        "row": int(batch.row[row]),
        "inputs": inputs,
        "champion": {name: _plain(array[row]) for name, array in batch.answers.items()},
        "shadow": {name: _plain(array[row]) for name, array in batch.shadow.items()},
        "difference": _plain(found.difference[row]),
    }


def _plain(value: Any) -> Json:
    """A cell as JSON; a number that is none is null."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain


def agreement_columns(saved: Json, experiment: str) -> tuple[str, ...]:
    """The columns by whose values the rollout of an experiment judges agreement, from ``rollout.json``.

    >>> plan = {"metrics": [{"metric": "agreement", "columns": ["term"]}]}
    >>> agreement_columns({"state": {"experiment": "e1", "plan": plan}}, "e1")
    ('term',)
    """
    state = saved["state"] if isinstance(saved, dict) else {}
    if state.get("experiment") != experiment:
        return ()
    metrics = [metric for metric in state["plan"]["metrics"] if metric["metric"] == "agreement"]
    return tuple(column for metric in metrics for column in metric["columns"])


def _texts(batch: Batch, signature: Signature) -> dict[str, np.ndarray]:
    """Text columns by name."""
    return {
        column: batch.inputs[tensor.name].reshape(batch.rows, -1)[:, place]
        for tensor in signature.inputs
        if tensor.datatype == "BYTES" and tensor.name in batch.inputs
        for place, column in enumerate(tensor.columns)
    }


def _variant(table: RoutingTable, name: str) -> Variant:
    found = next((variant for variant in table.variants if variant.name == name), None)
    if found is None:
        raise ServiceError(f"routing table {table.epoch} has no variant {name}")
    return found


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
