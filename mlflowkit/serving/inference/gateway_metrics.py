"""What a gateway counts, for Prometheus and for the protocol's statistics. A registry a gateway, nothing process-wide.

The request path adds to plain numbers, which `Telemetry.collect` turns into metrics when a scrape asks: a counter of
the client library takes a lock, which costs more than all the rest of the counting. Replicas share a port, so a scrape
reaches any one of them: each leaves its page where the others find it, and the page that is answered has the samples
of all, told apart by the label ``replica``.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from mlflowkit.serving.inference.variants import Loaded, Versions

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_Samples = Mapping[Any, float]
_TAP_GAUGES = ("queued", "backlog_bytes")


class Durations:
    """A histogram of seconds."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them."""
        found, count = [], 0
        for bound, here in zip((*map(str, _SECONDS), "+Inf"), self.buckets.copy(), strict=True):
            count += here
            found.append((bound, float(count)))
        return found


class Served:
    """What one version did under one name, whatever way its requests came. Written by the event loop only.

    answered        requests that it answered: durations from the request's headers to its answer
    failed          requests that it failed, and the seconds that those took
    fallbacks       those of them that the champion answered instead
    rows            rows that it answered
    run_seconds     seconds that its graph took for what it answered
    last            time.time() of its last answer; 0.0 before the first
    """

    __slots__ = ("answered", "failed", "failed_seconds", "fallbacks", "last", "rows", "run_seconds")

    def __init__(self) -> None:
        self.answered = Durations()
        self.failed = 0
        self.failed_seconds = 0.0
        self.fallbacks = 0
        self.rows = 0
        self.run_seconds = 0.0
        self.last = 0.0

    def answer(self, seconds: float, rows: int, run_seconds: float, now: float) -> None:
        """A request of ``rows`` rows was answered."""
        self.answered.add(seconds)
        self.rows += rows
        self.run_seconds += run_seconds
        self.last = now

    def fail(self, seconds: float) -> None:
        """A request was not answered."""
        self.failed += 1
        self.failed_seconds += seconds


class Telemetry(Collector):
    """Metrics of one gateway replica; every sample carries the labels ``service`` and ``replica``.

    ``served`` is what the protocol's statistics read, by (variant, version). ``versions``, where it is given, tells of
    circuits and mirrors; ``tap`` gives the counters of what observes.
    """

    def __init__(self, service: str, replica: str) -> None:
        self.served: dict[tuple[str, str], Served] = {}
        self.versions: Versions | None = None
        self.tap: Callable[[], Mapping[str, float]] = dict
        self.started = time.time()
        self._base = {"service": service, "replica": replica}
        self._codes: dict[tuple[str, int], int] = {}
        self._doors: dict[str, Durations] = {}
        self._unseen: dict[str, int] = {}
        self._refused: dict[int, int] = {}
        self._overload = 0
        self._swaps = 0
        self._epoch = 0
        self._loaded: tuple[tuple[str, str, str], ...] = ()
        self._in_flight = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def of(self, variant: str, version: str) -> Served:
        """The counts of a version under a name."""
        key = (variant, version)
        found = self.served.get(key)
        if found is None:
            found = self.served[key] = Served()
        return found

    def answered(self, door: str, code: int, seconds: float) -> None:
        """One request was answered with ``code`` in ``seconds``; ``door`` is one of `roads`, grpc or other."""
        key = (door, code)
        self._codes[key] = self._codes.get(key, 0) + 1
        durations = self._doors.get(door)
        if durations is None:
            durations = self._doors[door] = Durations()
        durations.add(seconds)

    def unseen(self, cells: Mapping[str, int]) -> None:
        """Cells, by column, held a category that training never saw."""
        for column, count in cells.items():
            self._unseen[column] = self._unseen.get(column, 0) + count

    def refused(self, code: int) -> None:
        """A request had no API key that may do what it asks (401, 403)."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def overloaded(self) -> None:
        """A request was refused before it was read, because too many wait."""
        self._overload += 1

    def swapped(self, epoch: int, versions: tuple[tuple[str, str, str], ...]) -> None:
        """A routing table came in; ``versions`` lists (variant, version, role)."""
        self._loaded, self._epoch = versions, epoch
        self._swaps += 1

    def page(self, in_flight: int) -> bytes:
        """This replica's page, in Prometheus's text format."""
        self._in_flight = in_flight
        return bytes(generate_latest(self.registry))

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not collect to know names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric, for the registry."""
        base, names = list(self._base.values()), list(self._base)

        def counter(name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
            return _filled(CounterMetricFamily(name, text, labels=[*names, *labels]), base, samples)

        def gauge(name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
            return _filled(GaugeMetricFamily(name, text, labels=[*names, *labels]), base, samples)

        codes = {(door, str(code)): float(count) for (door, code), count in self._codes.copy().items()}
        yield counter("mlkit_requests", "Requests answered.", ("door", "code"), codes)
        doors = HistogramMetricFamily(
            "mlkit_request_seconds", "Seconds from the request's headers to its reply.", labels=[*names, "door"]
        )
        for door, durations in self._doors.copy().items():
            doors.add_metric([*base, door], durations.cumulative(), durations.total)
        yield doors
        yield counter("mlkit_unseen_categories", "Cells that hold a category which training never saw.", ("column",),
                      {(column,): count for column, count in self._unseen.copy().items()})  # fmt: skip
        yield counter("mlkit_auth_refusals", "Requests without an API key that may do what they ask.", ("code",),
                      {(str(code),): count for code, count in self._refused.copy().items()})  # fmt: skip
        yield counter("mlkit_overload_refusals", "Requests refused unread, because too many wait.", (),
                      {(): self._overload})  # fmt: skip
        yield counter("mlkit_version_swaps", "Routing tables swapped in.", (), {(): self._swaps})
        yield gauge("mlkit_requests_in_flight", "Requests being answered.", (), {(): self._in_flight})
        yield gauge("mlkit_routing_epoch", "Epoch of the routing table.", (), {(): self._epoch})
        yield gauge("mlkit_model_version", "1 for each version loaded.", ("variant", "version", "role"),
                    dict.fromkeys(self._loaded, 1))  # fmt: skip
        build = InfoMetricFamily("mlkit_build", "The gateway's build.", labels=names)
        build.add_metric(base, {"version": mlflowkit.__version__})
        yield build
        yield from self._by_variant(counter)
        active = None if self.versions is None else self.versions.active
        if active is not None:
            yield from _of_table(active, counter, gauge)
        yield from self._of_tap(counter, gauge)

    def _by_variant(self, counter: Callable[..., Metric]) -> Iterator[Metric]:
        served = self.served.copy()
        labels = ("variant", "version")
        rows: dict[tuple[str, ...], float] = {}
        for (_, version), counts in served.items():
            rows[(version,)] = rows.get((version,), 0) + counts.rows
        yield counter("mlkit_rows", "Rows answered.", ("version",), rows)
        outcomes = {(*key, "answered"): float(counts.answered.count) for key, counts in served.items()}
        outcomes |= {(*key, "failed"): counts.failed for key, counts in served.items()}
        yield counter(
            "mlkit_variant_requests", "Requests that a version answered or failed.", (*labels, "outcome"), outcomes
        )
        yield counter("mlkit_fallbacks", "Requests that a version failed and the champion answered.", labels,
                      {key: counts.fallbacks for key, counts in served.items()})  # fmt: skip
        yield counter("mlkit_variant_run_seconds", "Seconds that a version's graph took.", labels,
                      {key: counts.run_seconds for key, counts in served.items()})  # fmt: skip
        seconds = HistogramMetricFamily(
            "mlkit_variant_seconds",
            "Seconds from the request's headers to a version's answer.",
            labels=[*self._base, *labels],
        )
        for key, counts in served.items():
            seconds.add_metric([*self._base.values(), *key], counts.answered.cumulative(), counts.answered.total)
        yield seconds

    def _of_tap(self, counter: Callable[..., Metric], gauge: Callable[..., Metric]) -> Iterator[Metric]:
        counts = self.tap()
        for name, value in sorted(counts.items()):
            kind = gauge if name in _TAP_GAUGES or name.startswith("observer_") else counter
            yield kind(f"mlkit_tap_{name}", "What the observer's tap says of itself.", (), {(): value})


def _of_table(active: Loaded, counter: Callable[..., Metric], gauge: Callable[..., Metric]) -> Iterator[Metric]:
    """Circuits and mirrors of the variants of the present table."""
    names = {(name, model.variant.version): name for name, model in active.by_name.items()}
    labels = ("variant", "version")
    yield gauge("mlkit_breaker_open", "1 for a version that is left alone because it keeps failing.", labels,
                {key: float(active.by_name[name].breaker.open) for key, name in names.items()})  # fmt: skip
    shadows = {
        key: active.tallies[name] for key, name in names.items() if active.by_name[name].variant.role == "shadow"
    }
    yield counter("mlkit_mirrored", "Requests that a shadow was to answer, under this table.", labels,
                  {key: tally.mirrored for key, tally in shadows.items()})  # fmt: skip
    yield counter("mlkit_mirror_dropped", "Those of them that it was not given in time.", labels,
                  {key: tally.dropped for key, tally in shadows.items()})  # fmt: skip


def _filled(family: Any, base: list[str], samples: _Samples) -> Metric:
    for labels, value in samples.items():
        family.add_metric([*base, *labels], value)
    metric: Metric = family
    return metric


def merge(pages: Iterable[str]) -> bytes:
    """Pages of several replicas as one: each metric is described once, followed by everybody's samples.

    >>> one, two = "# TYPE a gauge\\na 1\\n", "# TYPE a gauge\\na 5\\n"
    >>> merge(["# HELP a A.\\n" + one, "# HELP a A.\\n" + two]).decode().splitlines()
    ['# HELP a A.', '# TYPE a gauge', 'a 1', 'a 5']
    """
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        name, here = "", False
        for line in page.splitlines():
            if line.startswith("# "):
                if line.startswith("# HELP "):
                    name = line.split(" ", 3)[2]
                    here = name not in described
                    described.setdefault(name, [])
                if here:
                    described[name].append(line)
            else:
                samples.setdefault(name, []).append(line)
    lines = [line for name, head in described.items() for line in (*head, *samples.get(name, ()))]
    return "".join(f"{line}\n" for line in lines).encode()
