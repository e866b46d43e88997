"""A gateway's metrics, for Prometheus and for the protocol's statistics. One registry a gateway, nothing process-wide.

The request path adds to plain numbers, which `Telemetry.collect` turns into metrics at a scrape: a counter of the
client library takes a lock, which costs more than all the other counting. Replicas share a port, so a scrape reaches
any one of them: each writes its page where the others find it, and the returned page has the samples of all replicas,
distinguished by the label ``replica``.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import mlflowkit
from mlflowkit.serving.inference.variants import ActiveTable, Versions

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKET_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of every histogram, but the last one's."""
_Samples = Mapping[Any, float]
_Family = Callable[[str, str, tuple[str, ...], _Samples], Metric]
_SINK_GAUGES = ("queued", "backlog_bytes")


class Durations:
    """A histogram of seconds."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKET_SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKET_SECONDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), Prometheus's histogram format."""
        bounds = (*map(str, BUCKET_SECONDS), "+Inf")
        return list(zip(bounds, map(float, itertools.accumulate(self.buckets.copy())), strict=True))


class VersionStats:
    """Counts of one version under one variant name, over all routes. Written by the event loop only.

    answered        requests that it answered: durations from the request's headers to the answer
    failed          requests that it failed, and their total ``failed_seconds``
    fallbacks       failed requests that the champion answered instead
    rows            rows that it answered
    run_seconds     seconds that its graph ran for answered requests
    last            time.time() of its last answer; 0.0 before the first
    """

    __slots__ = ("answered", "failed", "failed_seconds", "fallbacks", "last", "rows", "run_seconds")

    def __init__(self) -> None:
        self.answered = Durations()
        self.failed = self.fallbacks = self.rows = 0
        self.failed_seconds = self.run_seconds = self.last = 0.0

    def record_answer(self, seconds: float, rows: int, run_seconds: float, now: float) -> None:
        self.answered.add(seconds)
        self.rows += rows
        self.run_seconds += run_seconds
        self.last = now

    def record_failure(self, seconds: float) -> None:
        self.failed += 1
        self.failed_seconds += seconds


class Telemetry(Collector):
    """Metrics of one gateway replica; every sample has the labels ``service`` and ``replica``.

    ``by_variant`` holds the statistics by (variant, version). ``versions``, if set, adds the state of circuits and
    mirrors; ``sink_counters`` returns the counters of the record sink.
    """

    def __init__(self, service: str, replica: str) -> None:
        self.by_variant: defaultdict[tuple[str, str], VersionStats] = defaultdict(VersionStats)
        self.versions: Versions | None = None
        self.sink_counters: Callable[[], Mapping[str, float]] = dict
        self._base = {"service": service, "replica": replica}
        self._status_counts: Counter[tuple[str, int]] = Counter()
        self._durations: defaultdict[str, Durations] = defaultdict(Durations)
        self._unseen: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._ignored = 0
        self._unauthorized: Counter[int] = Counter()
        self._overload = self._swaps = self._epoch = self._in_flight = 0
        self._loaded: tuple[tuple[str, str, str], ...] = ()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def stats(self, variant: str, version: str) -> VersionStats:
        return self.by_variant[variant, version]

    def record_request(self, endpoint: str, code: int, seconds: float) -> None:
        """Count one request; ``endpoint`` is one of `routes`, grpc or other."""
        self._status_counts[endpoint, code] += 1
        self._durations[endpoint].add(seconds)

    def record_notes(self, notes: Mapping[str, Mapping[str, int]]) -> None:
        """Count cells by note and column; see `Query`."""
        self._unseen.update(notes.get("unseen_categories", {}))
        self._missing.update(notes.get("missing_columns", {}))
        self._ignored += sum(notes.get("ignored_columns", {}).values())

    def record_unauthorized(self, code: int) -> None:
        """Count a request without an API key that permits it (401, 403)."""
        self._unauthorized[code] += 1

    def record_overload(self) -> None:
        """Count a request refused unread, because too many wait."""
        self._overload += 1

    def record_swap(self, epoch: int, versions: tuple[tuple[str, str, str], ...]) -> None:
        """Count an activated routing table; ``versions`` lists (variant, version, role)."""
        self._loaded, self._epoch = versions, epoch
        self._swaps += 1

    def render(self, in_flight: int) -> bytes:
        """This replica's page, in Prometheus's text format."""
        self._in_flight = in_flight
        return bytes(generate_latest(self.registry))

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that the registry does not collect at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric, for the registry."""
        counter, gauge = partial(self._family, CounterMetricFamily), partial(self._family, GaugeMetricFamily)
        yield from self._collect_requests(counter)
        yield counter("mlkit_version_swaps", "Routing tables swapped in.", (), {(): self._swaps})
        yield gauge("mlkit_requests_in_flight", "Requests being answered.", (), {(): self._in_flight})
        yield gauge("mlkit_routing_epoch", "Epoch of the routing table.", (), {(): self._epoch})
        yield gauge("mlkit_model_version", "1 for each version loaded.", ("variant", "version", "role"),
                    dict.fromkeys(self._loaded, 1))  # fmt: skip
        build = InfoMetricFamily("mlkit_build", "The gateway's build.", labels=list(self._base))
        build.add_metric(list(self._base.values()), {"version": mlflowkit.__version__})
        yield build
        yield from self._collect_variants(counter)
        active = None if self.versions is None else self.versions.active
        if active is not None:
            yield from _collect_table(active, counter, gauge)
        for name, value in sorted(self.sink_counters().items()):
            family = gauge if name in _SINK_GAUGES or name.startswith("observer_") else counter
            yield family(f"mlkit_tap_{name}", "A counter of the observer's record sink.", (), {(): value})

    def _collect_requests(self, counter: _Family) -> Iterator[Metric]:
        codes = {(endpoint, str(code)): float(count) for (endpoint, code), count in self._status_counts.copy().items()}
        yield counter("mlkit_requests", "Requests answered.", ("door", "code"), codes)
        durations = {(endpoint,): histogram for endpoint, histogram in self._durations.copy().items()}
        text = "Seconds from the request's headers to its reply."
        yield self._histogram("mlkit_request_seconds", text, ("door",), durations)
        yield counter("mlkit_unseen_categories", "Cells with a category that was not in the training data.",
                      ("column",), {(column,): count for column, count in self._unseen.copy().items()})  # fmt: skip
        yield counter("mlkit_missing_cells", "Cells taken as missing, because the request did not have their column.",
                      ("column",), {(column,): count for column, count in self._missing.copy().items()})  # fmt: skip
        yield counter("mlkit_ignored_cells", "Cells of columns that the model does not know.", (), {(): self._ignored})
        yield counter("mlkit_auth_refusals", "Requests without an API key that permits them.", ("code",),
                      {(str(code),): count for code, count in self._unauthorized.copy().items()})  # fmt: skip
        yield counter("mlkit_overload_refusals", "Requests refused unread, because too many wait.", (),
                      {(): self._overload})  # fmt: skip

    def _collect_variants(self, counter: _Family) -> Iterator[Metric]:
        by_variant = self.by_variant.copy()
        labels = ("variant", "version")
        rows: Counter[tuple[str, ...]] = Counter()
        for (_, version), stats in by_variant.items():
            rows[(version,)] += stats.rows
        yield counter("mlkit_rows", "Rows answered.", ("version",), rows)
        outcomes = {(*key, "answered"): float(stats.answered.count) for key, stats in by_variant.items()}
        outcomes |= {(*key, "failed"): stats.failed for key, stats in by_variant.items()}
        yield counter("mlkit_variant_requests", "Requests that a version answered or failed.", (*labels, "outcome"),
                      outcomes)  # fmt: skip
        yield counter("mlkit_fallbacks", "Requests that a version failed and the champion answered.", labels,
                      {key: stats.fallbacks for key, stats in by_variant.items()})  # fmt: skip
        yield counter("mlkit_variant_run_seconds", "Seconds that a version's graph ran.", labels,
                      {key: stats.run_seconds for key, stats in by_variant.items()})  # fmt: skip
        durations = {key: stats.answered for key, stats in by_variant.items()}
        text = "Seconds from the request's headers to a version's answer."
        yield self._histogram("mlkit_variant_seconds", text, labels, durations)

    def _family(self, kind: Any, name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> Any:
        family = kind(name, text, labels=[*self._base, *labels])
        for values, value in samples.items():
            family.add_metric([*self._base.values(), *values], value)
        return family

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], durations: Mapping[Any, Durations]
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=[*self._base, *labels])
        for values, histogram in durations.items():
            family.add_metric([*self._base.values(), *values], histogram.cumulative(), histogram.total)
        return family


def _collect_table(active: ActiveTable, counter: _Family, gauge: _Family) -> Iterator[Metric]:
    """Circuits and mirrors of the active table's variants."""
    models = {(name, model.variant.version): model for name, model in active.by_name.items()}
    labels = ("variant", "version")
    yield gauge("mlkit_breaker_open", "1 for a version whose circuit is open because it keeps failing.", labels,
                {key: float(model.breaker.open) for key, model in models.items()})  # fmt: skip
    shadows = {key: active.counters[key[0]] for key, model in models.items() if model.variant.role == "shadow"}
    yield counter("mlkit_mirrored", "Requests mirrored to a shadow, under this table.", labels,
                  {key: count.mirrored for key, count in shadows.items()})  # fmt: skip
    yield counter("mlkit_mirror_dropped", "Mirrored requests that the shadow's queue did not take.", labels,
                  {key: count.dropped for key, count in shadows.items()})  # fmt: skip


def merge_pages(pages: Iterable[str]) -> bytes:
    """Merge the pages of several replicas: each metric is described once, followed by all samples.

    >>> first, second = "# TYPE a gauge\\na 1\\n", "# TYPE a gauge\\na 5\\n"
    >>> merge_pages(["# HELP a A.\\n" + first, "# HELP a A.\\n" + second]).decode().splitlines()
    ['# HELP a A.', '# TYPE a gauge', 'a 1', 'a 5']
    """
    descriptions: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        name, is_new = "", False
        for line in page.splitlines():
            if line.startswith("# "):
                if line.startswith("# HELP "):
                    name = line.split(" ", 3)[2]
                    is_new = name not in descriptions
                    descriptions.setdefault(name, [])
                if is_new:
                    descriptions[name].append(line)
            else:
                samples.setdefault(name, []).append(line)
    lines = [line for name, head in descriptions.items() for line in (*head, *samples.get(name, ()))]
    return "".join(f"{line}\n" for line in lines).encode()
